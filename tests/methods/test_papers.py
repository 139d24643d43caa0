"""VID and CRD are what their papers say, DKD its decomposition: written again in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from every_method import NUM_CLASSES, call, inputs_of, make

from stkd_keras import SoftTargetLoss, methods
from stkd_keras.methods import logits

NUM_IMAGES, NUM_NEGATIVES, TEMPERATURE = 30, 11, 0.1


def test_vid_is_the_negative_log_likelihood_of_a_gaussian_but_for_its_constant():
    student, teacher, labels = inputs_of("vid")
    term = methods.VID()
    expected = 0.0
    call(term, student, teacher, labels)
    rng = np.random.default_rng(0)
    for name, mean, parameter in zip(
        term.features, term.means, term.variance_parameters, strict=True
    ):
        np.testing.assert_allclose(np.log1p(np.exp(parameter.numpy())) + 1e-5, 5.0, rtol=1e-5)
        parameter.assign(rng.normal(size=parameter.shape))
        kernels = [weight.numpy()[0, 0] for weight in mean.trainable_variables]
        assert len(kernels) == 3
        hidden = np.float64(student[name])
        for kernel in kernels[:-1]:
            hidden = np.maximum(hidden @ kernel, 0)
        prediction = hidden @ kernels[-1]
        variance = np.log1p(np.exp(np.float64(parameter))) + 1e-5
        density = np.exp(-((prediction - teacher[name]) ** 2) / (2 * variance))
        density /= np.sqrt(2 * np.pi * variance)
        expected += np.mean(-np.log(density)) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(call(term, student, teacher, labels), expected, rtol=1e-5)


def contrast(**options):
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
    """The two logarithms of the paper's critic h, for the positive and for the negatives."""
    scores = np.exp(np.einsum("bd,bkd->bk", anchors, bank[picked]) / TEMPERATURE)
    z = scores.mean() * NUM_IMAGES if z is None else z
    p, noise = scores / z, NUM_NEGATIVES / NUM_IMAGES
    critic = p / (p + noise + 1e-7)
    return -np.log(critic[:, 0]) - np.log1p(-critic[:, 1:]).sum(axis=1), z


def test_crd_is_the_paper_s_contrastive_loss_and_remembers_embeddings():
    student, teacher, labels = inputs_of("crd", batch=4)
    s, t = student["embedding"], teacher["embedding"]
    term = contrast(momentum=0.25)
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


def test_negatives_are_of_other_classes_and_evenly_drawn():
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


def test_negatives_depend_on_the_seed_and_on_the_batches_seen_alone():
    inputs = inputs_of("crd", batch=4)

    def draws(seed, steps):
        term = contrast(seed=seed)
        for _ in range(steps):
            call(term, *inputs, training=True)
        return term._draw_negatives(tf.range(4)).numpy()

    np.testing.assert_array_equal(draws(0, 2), draws(0, 2))
    assert (draws(0, 2) != draws(0, 1)).any()
    assert (draws(0, 1) != draws(1, 1)).any()


def test_a_call_that_does_not_train_leaves_the_state_as_it_is():
    inputs = inputs_of("crd", batch=4)
    term = contrast()
    call(term, *inputs, training=True)
    before = term.get_weights()
    first, second = (call(term, *inputs, training=False) for _ in range(2))
    assert first == second
    for old, new in zip(before, term.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_contrast_wants_the_number_of_each_image():
    student, teacher, labels = inputs_of("crd")
    with pytest.raises(ValueError, match="needs index="):
        make("crd")(student, teacher, labels)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_losses_add_up_to_plain_distillation(temperature):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=4, size=(2, 8, NUM_CLASSES)).astype("float32")
    labels = np.eye(NUM_CLASSES, dtype="float32")[rng.integers(NUM_CLASSES, size=8)]
    of_target, of_others = logits.decoupled_losses(
        tf.constant(student), tf.constant(teacher), tf.constant(labels), temperature
    )
    p_target = (keras.ops.softmax(teacher / temperature) * labels).numpy().sum(axis=1)
    plain = SoftTargetLoss(temperature).call(teacher, student)
    np.testing.assert_allclose(of_target + (1 - p_target) * of_others, plain, rtol=1e-4)
    loss = methods.DKD(temperature=temperature, alpha=3.0, beta=0.5)(
        {"logits": student}, {"logits": teacher}, labels
    )
    np.testing.assert_allclose(loss, 3 * of_target + 0.5 * of_others, rtol=1e-5)
