"""Tests of CRD, against the paper's formula in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from every_method import call, inputs_of, make
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras import InputError, methods
from stkd_keras.methods import crd

NUM_IMAGES, NUM_NEGATIVES, TEMPERATURE = 30, 11, 0.1


def small_crd(**options):
    return methods.CRD(
        NUM_IMAGES,
        num_negatives=NUM_NEGATIVES,
        temperature=TEMPERATURE,
        embedding_size=4,
        **options,
    )


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embedded(dense, features):
    kernel, bias = (weight.numpy().astype("float64") for weight in dense.weights)
    return unit(features @ kernel + bias)


def contrastive(anchors, bank, picked, z):
    """Returns the loss with the paper's critic h, and Z."""
    scores = np.exp(np.einsum("bd,bkd->bk", anchors, bank[picked]) / TEMPERATURE)
    z = scores.mean() * NUM_IMAGES if z is None else z
    p, noise = scores / z, NUM_NEGATIVES / NUM_IMAGES
    critic = p / (p + noise + 1e-7)
    return -np.log(critic[:, 0]) - np.log1p(-critic[:, 1:]).sum(axis=1), z


def test_the_loss_and_the_memory_banks_are_those_of_the_paper():
    student, teacher, labels = inputs_of("crd", batch=4)
    s, t = student["embedding"], teacher["embedding"]
    term = small_crd(momentum=0.25)
    index = np.array([3, 29, 0, 7])
    term.build({"embedding": s.shape}, {"embedding": t.shape}, labels.shape)
    z = [None, None]
    for _ in range(3):
        banks = [bank.numpy().astype("float64") for bank in (term.student_bank, term.teacher_bank)]
        negatives = term._draw_negatives(tf.constant(index)).numpy()
        picked = np.concatenate([index[:, None], negatives], axis=1)
        anchors = embedded(term.student_map, s), embedded(term.teacher_map, t)
        of_student, z[0] = contrastive(anchors[0], banks[1], picked, z[0])
        of_teacher, z[1] = contrastive(anchors[1], banks[0], picked, z[1])
        loss = term(student, teacher, labels, index=index, training=True)
        np.testing.assert_allclose(loss, of_student + of_teacher, rtol=1e-4)
        for bank, old, new in zip(
            (term.student_bank, term.teacher_bank), banks, anchors, strict=True
        ):
            old[index] = unit(0.25 * old[index] + 0.75 * new)
            np.testing.assert_allclose(bank.numpy(), old, atol=1e-6)


def test_negatives_are_drawn_uniformly_from_other_classes():
    image_labels = np.array([2, 0, 1, 1, 0, 2, 2, -1, -1, 0])
    term = methods.CRD(10, image_labels, num_negatives=20_000)
    term.build({"embedding": (None, 3)}, {"embedding": (None, 3)}, (None, 3))
    negatives = term._draw_negatives(tf.range(10)).numpy()
    for image in range(10):
        counts = np.bincount(negatives[image], minlength=10)
        is_other = image_labels != image_labels[image]
        if image_labels[image] < 0:
            is_other = np.arange(10) != image
        assert (counts[~is_other] == 0).all()
        expected = 20_000 / is_other.sum()
        assert np.abs(counts[is_other] - expected).max() < 6 * expected**0.5


def test_without_classes_all_other_images_are_negatives():
    term = methods.CRD(5, num_negatives=2_000)
    term.build({"embedding": (None, 3)}, {"embedding": (None, 3)}, (None, 3))
    negatives = term._draw_negatives(tf.range(5)).numpy()
    assert [sorted(set(row)) for row in negatives] == [
        sorted(set(range(5)) - {i}) for i in range(5)
    ]


def test_negatives_depend_only_on_the_seed_and_the_number_of_batches():
    inputs = inputs_of("crd", batch=4)

    def draws(seed, steps):
        term = small_crd(seed=seed)
        for _ in range(steps):
            call(term, *inputs, training=True)
        return term._draw_negatives(tf.range(4)).numpy()

    np.testing.assert_array_equal(draws(0, 2), draws(0, 2))
    assert (draws(0, 2) != draws(0, 1)).any()
    assert (draws(0, 1) != draws(1, 1)).any()


def test_a_call_with_training_false_does_not_change_the_state():
    inputs = inputs_of("crd", batch=4)
    term = small_crd()
    call(term, *inputs, training=True)
    before = term.get_weights()
    first, second = (call(term, *inputs, training=False) for _ in range(2))
    assert first == second
    for old, new in zip(before, term.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_numbers_of_the_images_are_required():
    student, teacher, labels = inputs_of("crd")
    with pytest.raises(InputError, match="needs index="):
        make("crd")(student, teacher, labels)


@given(
    seed=st.integers(0, 2**32 - 1),
    negatives=st.integers(1, 20),
    num_images=st.integers(2, 100),
)
@settings(max_examples=10, deadline=None)
def test_a_likelier_positive_and_less_likely_negatives_cost_less(seed, negatives, num_images):
    rng = np.random.default_rng(seed)
    likelihoods = rng.normal(size=(3, 1 + negatives)).astype("float32")
    better = likelihoods + np.array([1] + [-1] * negatives, "float32")
    before, after = (crd.contrastive_loss(x, num_images) for x in (likelihoods, better))
    assert (after < before).numpy().all()
