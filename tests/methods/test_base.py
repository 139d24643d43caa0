"""Terms refuse arguments out of range and features that don't fit."""

import pytest

from stkd_keras import InputError, methods


def shape(**features):
    return {name: (None, *sizes) for name, sizes in features.items()}


@pytest.mark.parametrize(
    ("term", "student", "teacher", "message"),
    [
        (
            methods.FitNet(),
            shape(stage2=(8, 8, 4)),
            shape(stage2=(20, 20, 4)),
            "8x8 and the teacher's 2",
        ),
        (methods.AT(), shape(stage1=(8, 8, 4)), shape(stage1=(8, 8, 4)), "stage2"),
        (methods.SP(), shape(stage3=(4, 4, 4)), shape(stage1=(4, 4, 4)), "of the teacher for sp"),
        (methods.NST(["a"]), shape(a=(4,)), shape(a=(4,)), r"expects \(batch, height, width"),
        (methods.RKD(["a"]), shape(a=(4, 4, 4)), shape(a=(4, 4, 4)), "batch, values"),
        (
            methods.FSP(["a", "b"]),
            shape(a=(8, 8, 4), b=(8, 8, 4)),
            shape(a=(8, 8, 4), b=(8, 8, 5)),
            "axis of b has size 4 in the student and 5 in the teacher",
        ),
        (methods.FT(["a"]), shape(a=(8, 8, 4)), shape(a=(8, 8, 1)), "at least 2"),
        (methods.AT(["a"]), shape(a=(None, None, 4)), shape(a=(8, 8, 4)), "with known sizes"),
        (methods.SP(["a"]), shape(a=(None, 4)), shape(a=(8, 4)), "sp expects with known sizes"),
        (
            methods.DKD(),
            shape(logits=(10,)),
            shape(logits=(100,)),
            "size 10 in the student and 100 in the teacher",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused_in_one_line(term, student, teacher, message):
    with pytest.raises(InputError, match=message) as error:
        term.build(student, teacher, (None, 10))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("term", "options", "message"),
    [
        (methods.AT, {"features": ()}, "at least one name"),
        (methods.AT, {"features": "stage1"}, "a sequence"),
        (methods.AT, {"weight": -1}, "weight is -1"),
        (methods.AT, {"weight": float("nan")}, "weight is nan"),
        (methods.FT, {"features": ["stage1", "stage2"]}, "expected one name"),
        (methods.FSP, {"features": ["stage1"]}, "at least two"),
        (methods.AB, {"pretraining_steps": -1}, "at least 0"),
        (methods.AB, {"margin": 0}, "above 0"),
        (methods.DKD, {"temperature": 0}, "above 0"),
        (methods.DKD, {"beta": -2}, "beta is -2"),
        (methods.CC, {"embedding_size": 1.5}, "an integer"),
        (methods.CRD, {"num_images": 1}, "at least 2"),
        (methods.CRD, {"num_images": 3, "image_labels": [0, 1]}, "each of the 3"),
        (methods.CRD, {"num_images": 2, "image_labels": [1, 1]}, "no negatives"),
        (methods.CRD, {"num_images": 2, "momentum": 1.0}, "momentum"),
        (methods.CRD, {"num_images": 2, "features": ["a", "b"]}, "expected one name"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(term, options, message):
    with pytest.raises(InputError, match=message) as error:
        term(**options)
    assert "\n" not in str(error.value)
