"""Tests of the table of methods, and of the properties that every method has."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from every_method import NAMES, call, inputs_of, make

from stkd_keras import InputError, Mixup, SimilarityTransferDistiller, methods
from stkd_keras.methods import METHODS, ft, relations
from stkd_keras.methods.arithmetic import squared_error

BATCH_LOSSES = {"sp", "cc", "rkd", "pkt", "dist"}
STAGES = ("stage1", "stage2", "stage3")


def gradients_of(term, student, teacher, labels):
    """Returns the gradients with respect to the student, the teacher and the term's variables."""
    student, teacher = (
        {name: tf.constant(each[name]) for name in term.features} for each in (student, teacher)
    )
    call(term, student, teacher, labels)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = call(term, student, teacher, labels)
    variables = {variable.path: variable.value for variable in term.trainable_variables}
    return tape.gradient(loss, (student, teacher, variables))


def all_finite(gradients):
    found = [gradient for gradient in tf.nest.flatten(gradients) if gradient is not None]
    return all(np.isfinite(gradient).all() for gradient in found)


def test_methods_are_listed_by_the_name_they_are_logged_under():
    expected = "ab at cc crd dist dkd fitnet fsp ft kd_standardized nst pkt rkd sp vid"
    assert set(expected.split()) <= set(METHODS)
    for name, method in METHODS.items():
        term = make(name)
        assert term.name == name
        assert (method.label_weight, method.soft_weight) == (1.0, 0.0)
        assert method.source.startswith("github.com/")
        if name != "crd":
            assert getattr(term, "temperature", None) == method.temperature
    assert methods.method("at") is METHODS["at"]
    with pytest.raises(InputError, match=r"unknown method 'fitnets'; the nearest known: fitnet"):
        methods.method("fitnets")


@pytest.mark.parametrize("name", NAMES)
def test_student_and_adapters_get_gradients_and_the_teacher_none(name):
    of_student, of_teacher, of_variables = gradients_of(make(name), *inputs_of(name))
    assert all(np.any(gradient) for gradient in of_student.values())
    assert set(of_teacher.values()) == {None}
    trained = [gradient for gradient in of_variables.values() if gradient is not None]
    # FT's paraphraser is trained by the pretraining loss only (test_ft.py).
    assert len(trained) == len(of_variables) or name == "ft"
    assert all(np.any(gradient) for gradient in trained)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_for_degenerate_features(name):
    student, teacher, labels = inputs_of(name)
    zeros, repeated = (
        [{key: change(values) for key, values in each.items()} for each in (student, teacher)]
        for change in (np.zeros_like, lambda x: np.repeat(x[:1], len(x), axis=0))
    )
    tiny, large = (
        {key: values * np.float32(scale) for key, values in student.items()}
        for scale in (1e-12, 1e6)
    )
    degenerate = [zeros, repeated, (zeros[0], teacher), (student, zeros[1])]
    degenerate += [(repeated[0], teacher), (student, repeated[1])]
    for s, t in [*degenerate, (tiny, teacher), (large, teacher)]:
        of_student, _, of_variables = gradients_of(make(name), s, t, labels)
        assert all_finite((of_student, of_variables))
        if s is not tiny and s is not large:
            assert max(np.abs(gradient).max() for gradient in of_student.values()) < 1e4
    term, one = make(name), inputs_of(name, batch=1)
    assert np.isfinite(call(term, *one))
    assert all_finite(gradients_of(term, *one)[::2])


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_float32_under_any_policy_and_compiles(name):
    student, teacher, labels = inputs_of(name)
    losses = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        previous = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            term = make(name)
            options = {"index": np.arange(6)} if term.needs_index else {}
            losses.append(term(student, teacher, labels, training=True, **options))
        finally:
            keras.config.set_dtype_policy(previous)
        assert losses[-1].shape == (() if name in BATCH_LOSSES else (6,))
        assert losses[-1].dtype == tf.float32
        assert {variable.dtype for variable in term.trainable_variables} <= {"float32"}
    np.testing.assert_array_equal(*losses)
    weights = term.get_weights()
    eager = call(term, student, teacher, labels, training=True)
    term.set_weights(weights)
    compiled = tf.function(call, jit_compile=True)(term, student, teacher, labels, training=True)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_term_is_restored_from_its_config(name):
    options = {"weight": 0.25, "name": "other"}
    if METHODS[name].pretraining_epochs:
        options["pretraining_steps"] = 7
    term = make(name, **options)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(term))
    assert type(restored) is type(term)
    assert restored.get_config() == term.get_config()
    assert (restored.weight, restored.name, restored.features) == (0.25, "other", term.features)
    assert restored.pretraining_steps == options.get("pretraining_steps", 0)
    inputs = inputs_of(name)
    for each in (term, restored):
        call(each, *inputs)
    if term.weights:
        restored.set_weights(term.get_weights())
    np.testing.assert_allclose(call(restored, *inputs), call(term, *inputs), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_matter(name):
    if name in ("cc", "crd"):
        pytest.skip("CC compares neighbors in the batch, and CRD is keyed by image")
    student, teacher, labels = inputs_of(name)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = [{key: x[order] for key, x in each.items()} for each in (student, teacher)]
    term = make(name)
    expected = call(term, student, teacher, labels)
    np.testing.assert_allclose(call(term, *shuffled, labels[order]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["crd", "dkd"])
def test_mixing_is_refused_where_the_method_is_not_defined_on_mixtures(name):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    with pytest.raises(InputError, match=f"{name} isn't defined on mixed images"):
        SimilarityTransferDistiller(model, model, mixing=Mixup(), terms=[make(name)])
    assert {name for name in NAMES if make(name).refuses_mixing} == {"crd", "dkd"}


@pytest.mark.parametrize("name", ["ab", "ft", "fsp"])
def test_a_pretraining_loss_and_whether_the_term_counts_afterwards(name):
    term = make(name, pretraining_steps=3)
    inputs = inputs_of(name)
    call(term, *inputs)
    assert term.pretraining_loss(*inputs).shape == (6,)
    assert term.only_in_pretraining == (name != "ft")
    assert not make(name).only_in_pretraining


@pytest.fixture(scope="module")
def reference(shared):
    """Features, and the losses that the original code gives for them."""
    return np.load(shared / "reference" / "losses.npz")


@pytest.mark.parametrize(
    ("term", "expected", "models", "names"),
    [
        (methods.AT(), "at_sum_over_stages", ("student", "teacher"), STAGES),
        (methods.NST(), "nst_sum_over_stages", ("student", "teacher"), STAGES),
        (methods.SP(), "sp_last_stage", ("student", "teacher"), STAGES),
        (methods.FSP(), "fsp_sum", ("student", "teacher_same"), STAGES),
        (methods.RKD(), "rkd_d25_a50", ("student", "teacher"), ["embedding"]),
        (methods.PKT(), "pkt", ("student", "teacher"), ["embedding"]),
        (methods.DKD(), "dkd_alpha1_beta8_T4", ("student", "teacher"), ["logits"]),
        (methods.AB(STAGES), "ab_margin1_sum", ("student_pre", "teacher_pre"), STAGES),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_loss_without_adapters_equals_the_original(reference, term, expected, models, names):
    features = [{name: reference[f"{model}_{name}"] for name in names} for model in models]
    labels = np.eye(10, dtype="float32")[reference["labels"]]
    loss = np.mean(term(*features, labels))
    np.testing.assert_allclose(loss, reference[f"expected_{expected}"], rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "expected", "student", "teacher"),
    [
        (squared_error, "fitnet_mse_stage2", "student_stage2", "teacher_same_stage2"),
        (
            relations.correlation_loss,
            "cc_embeddings",
            "student_embedding_same",
            "teacher_embedding_same",
        ),
        (ft.factor_loss, "ft_p1_2_p2_1_last", "student_stage3", "teacher_stage3"),
    ],
)
def test_a_loss_after_adapters_equals_the_original(reference, loss, expected, student, teacher):
    value = np.mean(loss(reference[student], reference[teacher]))
    np.testing.assert_allclose(value, reference[f"expected_{expected}"], rtol=1e-4)
