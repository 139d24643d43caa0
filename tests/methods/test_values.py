"""Each method's loss has the value that its original code gives."""

import numpy as np
import pytest

from stkd_keras import methods
from stkd_keras.methods import ft, hints, relations

STAGES = ("stage1", "stage2", "stage3")


@pytest.fixture(scope="module")
def reference(shared):
    return np.load(shared / "reference" / "losses.npz")


def features(reference, student="student", teacher="teacher", names=STAGES):
    return [{name: reference[f"{model}_{name}"] for name in names} for model in (student, teacher)]


def loss_of(term, student, teacher, reference):
    labels = np.eye(10, dtype="float32")[reference["labels"]]
    return np.mean(term(student, teacher, labels))


@pytest.mark.parametrize(
    ("term", "expected", "teacher", "names"),
    [
        (methods.AT(), "at_sum_over_stages", "teacher", STAGES),
        (methods.NST(), "nst_sum_over_stages", "teacher", STAGES),
        (methods.SP(), "sp_last_stage", "teacher", STAGES),
        (methods.FSP(), "fsp_sum", "teacher_same", STAGES),
        (methods.RKD(), "rkd_d25_a50", "teacher", ["embedding"]),
        (methods.PKT(), "pkt", "teacher", ["embedding"]),
        (methods.DKD(), "dkd_alpha1_beta8_T4", "teacher", ["logits"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_term_without_adapters_equals_the_original(reference, term, expected, teacher, names):
    student, teacher = features(reference, teacher=teacher, names=names)
    loss = loss_of(term, student, teacher, reference)
    np.testing.assert_allclose(loss, reference[f"expected_{expected}"], rtol=1e-4)


def test_activation_boundaries_of_equal_shapes_equal_the_original(reference):
    student, teacher = features(reference, "student_pre", "teacher_pre")
    student, teacher = (
        {f"{name}_preactivation": maps for name, maps in each.items()}
        for each in (student, teacher)
    )
    loss = loss_of(methods.AB(), student, teacher, reference)
    np.testing.assert_allclose(loss, reference["expected_ab_margin1_sum"], rtol=1e-4)


def test_distances_behind_adapters_equal_the_originals(reference):
    losses = {
        "fitnet_mse_stage2": hints.hint_loss(
            reference["student_stage2"], reference["teacher_same_stage2"]
        ),
        "cc_embeddings": relations.correlation_loss(
            reference["student_embedding_same"], reference["teacher_embedding_same"]
        ),
        "ft_p1_2_p2_1_last": ft.factor_loss(
            reference["student_stage3"], reference["teacher_stage3"]
        ),
    }
    for name, loss in losses.items():
        np.testing.assert_allclose(np.mean(loss), reference[f"expected_{name}"], rtol=1e-4)
