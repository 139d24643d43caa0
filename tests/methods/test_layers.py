"""What every term keeps to: its interface, its configuration, its errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from every_method import NAMES, NUM_CLASSES, STUDENT, call, inputs_of, make, random_features

from stkd_keras import InputError, methods
from stkd_keras.methods import METHODS
from stkd_keras.methods.arithmetic import pooled

SCALARS = {"sp", "cc", "rkd", "pkt", "dist"}


def built(method, **options):
    term = make(method, **options)
    student, teacher, _ = inputs_of(method)
    term.build(
        {key: (None, *values.shape[1:]) for key, values in student.items()},
        {key: (None, *values.shape[1:]) for key, values in teacher.items()},
        (None, NUM_CLASSES),
    )
    return term


def test_the_registry_holds_the_published_methods_by_the_name_they_are_logged_under():
    expected = "ab at cc crd dist dkd fitnet fsp ft kd_standardized nst pkt rkd sp vid"
    assert set(expected.split()) <= set(METHODS)
    for name, method in METHODS.items():
        term = make(name)
        assert term.name == name
        assert (method.label_weight, method.soft_weight) == (1.0, 0.0)
        assert method.source.startswith("github.com/")
        if name != "crd":
            assert getattr(term, "temperature", None) == method.temperature
    with pytest.raises(InputError, match=r"unknown method 'fitnets'; the nearest known: fitnet"):
        methods.method("fitnets")
    assert methods.method("at") is METHODS["at"]


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_of_samples_or_a_scalar_and_float32_whatever_the_policy(name):
    student, teacher, labels = inputs_of(name, batch=6)
    options = {"index": np.arange(6)} if name == "crd" else {}
    previous = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        keras.utils.set_random_seed(0)
        mixed = make(name)(student, teacher, labels, **options)
    finally:
        keras.config.set_dtype_policy(previous)
    keras.utils.set_random_seed(0)
    term = make(name)
    loss = term(student, teacher, labels, **options)
    assert mixed.dtype == loss.dtype == tf.float32
    assert loss.shape == (() if name in SCALARS else (6,))
    np.testing.assert_array_equal(mixed, loss)
    assert {variable.dtype for variable in term.trainable_variables} <= {"float32"}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_made_from_its_configuration_is_equal(name):
    options = {"weight": 0.25, "name": "other"}
    if METHODS[name].pretraining_epochs:
        options["pretraining_steps"] = 7
    term = built(name, **options)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(term))
    assert type(again) is type(term)
    assert again.get_config() == term.get_config()
    assert (again.weight, again.name, again.features) == (0.25, "other", term.features)
    assert again.pretraining_steps == options.get("pretraining_steps", 0)
    student, teacher, labels = inputs_of(name)
    call(again, student, teacher, labels)
    if term.weights:
        call(term, student, teacher, labels)
        again.set_weights(term.get_weights())
    np.testing.assert_allclose(
        call(again, student, teacher, labels), call(term, student, teacher, labels), rtol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_term_compiles(name):
    student, teacher, labels = inputs_of(name)
    term = built(name)
    weights = term.get_weights()
    eager = call(term, student, teacher, labels, training=True)
    term.set_weights(weights)
    compiled = tf.function(call, jit_compile=True)(term, student, teacher, labels, training=True)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)


@pytest.mark.parametrize("name", ["ab", "ft", "fsp"])
def test_a_stage_of_its_own_has_a_loss_and_says_whether_the_term_counts_afterwards(name):
    term = built(name, pretraining_steps=3)
    student, teacher, labels = inputs_of(name)
    assert term.pretraining_loss(student, teacher, labels).shape == (6,)
    assert term.only_in_pretraining == (name != "ft")
    assert not make(name).only_in_pretraining


def test_samples_without_label_have_no_decoupled_loss():
    student, teacher, labels = inputs_of("dkd")
    labels[2] = 0
    loss = methods.DKD()(student, teacher, labels).numpy()
    assert loss[2] == 0
    assert (np.delete(loss, 2) > 0).all()


@pytest.mark.parametrize("sizes", [(8, 4), (7, 3), (5, 5), (4, 8), (9, 1)])
def test_maps_are_averaged_as_pytorch_does(sizes):
    torch = pytest.importorskip("torch")
    size, smaller = sizes
    maps = np.random.default_rng(0).normal(size=(2, size, size + 1, 3)).astype("float32")
    result = pooled(maps, smaller, smaller)
    expected = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(maps).permute(0, 3, 1, 2), (min(size, smaller), min(size + 1, smaller))
    )
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("name", ["at", "nst", "vid", "ft"])
@pytest.mark.parametrize("student_is_larger", [True, False])
def test_maps_of_different_sizes_are_averaged_down_to_the_smaller(name, student_is_larger):
    halved = {key: (h // 2, w // 2, c) for key, (h, w, c) in STUDENT.items()}
    shapes = (STUDENT, halved) if student_is_larger else (halved, STUDENT)
    student, teacher = (random_features(i, shapes=shapes[i]) for i in range(2))
    keras.utils.set_random_seed(0)
    loss = call(make(name), student, teacher, np.eye(6))
    assert np.isfinite(loss)
    if name in ("at", "nst"):
        smaller, larger = (teacher, student) if student_is_larger else (student, teacher)
        sizes = {key: values.shape[1:3] for key, values in smaller.items() if values.ndim == 4}
        larger |= {key: pooled(larger[key], *size).numpy() for key, size in sizes.items()}
        np.testing.assert_allclose(call(make(name), student, teacher, np.eye(6)), loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 6), (4, 5)), ((3, 3), (3, 3))]
)
@pytest.mark.parametrize("name", ["fitnet", "ab"])
def test_a_regressor_brings_maps_to_the_teachers_shape(name, student, teacher):
    maps = {"m": np.ones((2, *student, 3), "float32")}, {"m": np.ones((2, *teacher, 5), "float32")}
    assert make(name, features=["m"])(*maps, np.eye(2)).shape == (2,)


def shape(**features):
    return {name: (None, *sizes) for name, sizes in features.items()}


BUILDS = [
    (
        methods.FitNet(),
        shape(stage2=(8, 8, 4)),
        shape(stage2=(20, 20, 4)),
        "8x8 and the teacher's 2",
    ),
    (methods.AT(), shape(stage1=(8, 8, 4)), shape(stage1=(8, 8, 4)), "stage2"),
    (methods.SP(), shape(stage3=(4, 4, 4)), shape(stage1=(4, 4, 4)), "of the teacher for sp"),
    (methods.NST(["embedding"]), shape(embedding=(4,)), shape(embedding=(4,)), "expects .batch, h"),
    (methods.RKD(["stage1"]), shape(stage1=(4, 4, 4)), shape(stage1=(4, 4, 4)), "batch, values"),
    (
        methods.FSP(["a", "b"]),
        shape(a=(8, 8, 4), b=(8, 8, 4)),
        shape(a=(8, 8, 4), b=(8, 8, 5)),
        "b has 4 channels in the student and 5 in the teacher",
    ),
    (methods.FT(["a"]), shape(a=(8, 8, 4)), shape(a=(8, 8, 1)), "at least 2"),
    (methods.AT(["a"]), shape(a=(None, None, 4)), shape(a=(8, 8, 4)), "known sizes"),
    (methods.DKD(), shape(logits=(10,)), shape(logits=(100,)), "10 classes and the teacher's 100"),
]


@pytest.mark.parametrize(("term", "student", "teacher", "message"), BUILDS)
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
