"""Tests of the training loss: soft targets, loss terms and pretraining."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

import models
from stkd_keras import (
    SGD,
    CutMix,
    FrozenTeacher,
    InputError,
    Mixup,
    SimilarityTransferDistiller,
    data,
)
from stkd_keras import methods as m
from stkd_keras.classifiers.features import with_features
from stkd_keras.classifiers.folding import fold_batch_normalization
from stkd_keras.recipes import make_mixing, method_settings
from stkd_keras.teacher.recording import record_teacher

DIGITS = data.load("digits")


def student_model():
    return networks.staged_classifier(width=4, seed=1)


def teacher_model():
    return networks.staged_classifier(width=6, seed=2)


def linear_model(seed):
    keras.utils.set_random_seed(seed)
    layers = keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(10)
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


def distill(*terms, student=None, teacher=None, steps=0, eager=True, **settings):
    """Returns a compiled distiller and its history after a number of steps on digits."""
    distiller = SimilarityTransferDistiller(
        student or student_model(), teacher or teacher_model(), terms=terms, **settings
    )
    distiller.compile(SGD(0.01, momentum=0.9, l2=0.1), metrics=["accuracy"], run_eagerly=eager)
    if not steps:
        return distiller, None
    needs_index = any(term.needs_index for term in terms)
    batches = data.pipeline(DIGITS, "train", 16, data_seed=0, with_index=needs_index)
    history = distiller.fit(batches, steps_per_epoch=1, epochs=steps, verbose=0, shuffle=False)
    return distiller, history.history


def softmax(x):
    exponents = np.exp(x - x.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def first_batch():
    images, labels = next(iter(data.pipeline(DIGITS, "train", 16, data_seed=0)))
    return images, tf.one_hot(labels, 10)


def test_a_term_adds_its_weighted_loss_on_the_virtual_samples():
    distiller, history = distill(m.SP(weight=7.0), steps=1)
    images, labels = first_batch()
    mixed, _, _ = distiller.virtual_samples(images, labels, None, tf.constant(0, tf.int64))
    student = models.features(student_model(), ["stage3"])(mixed, training=True)
    teacher = models.features(teacher_model(), ["stage3"])(mixed, training=False)
    expected = float(m.SP()(student, teacher, labels))
    assert expected > 0
    np.testing.assert_allclose(history["sp"][0], expected, rtol=1e-3)
    parts = 0.1 * history["label_loss"][0] + 0.9 * history["soft_loss"][0]
    np.testing.assert_allclose(history["loss"][0], parts + 7 * history["sp"][0], rtol=1e-5)


def test_terms_train_with_the_student_and_are_saved_with_the_distiller(tmp_path):
    memory = m.CRD(len(DIGITS.train), image_labels=DIGITS.train.labels, num_negatives=32)
    terms = [m.VID(), memory, m.FT(pretraining_steps=1)]
    distiller, history = distill(*terms, steps=2, eager=False, mixing=None, soft_weight=0.0)
    for name in ("loss", "vid", "crd", "ft"):
        assert np.isfinite(history[name]).all()
    teacher_weights = {id(v) for v in distiller.teacher._members[0].snapshot.weights}
    assert not teacher_weights & {id(v) for v in distiller.variables}
    distiller.student.save(tmp_path / "student.keras")
    saved = keras.saving.load_model(tmp_path / "student.keras")
    assert saved.count_params() == student_model().count_params()
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    for term, again in zip(terms, loaded.terms, strict=True):
        for trained, restored in zip(term.weights, again.weights, strict=True):
            np.testing.assert_array_equal(trained, restored)


def test_kd_with_mixup_is_stkd_and_stkd_without_mixing_is_kd():
    def train(method, **explicit):
        settings = method_settings(method, **explicit)
        _, history = distill(
            student=linear_model(1), teacher=linear_model(2), steps=3,
            mixing=make_mixing(settings), temperature=settings["temperature"],
            soft_weight=settings["soft_weight"], label_weight=settings["label_weight"],
        )  # fmt: skip
        return history

    given = {"temperature": 3.0, "soft_weight": 0.7, "label_weight": 0.2}
    stkd, kd = train("stkd", **given), train("kd", **given)
    assert train("kd", mixing="mixup", **given) == stkd
    assert train("stkd", mixing="none", **given) == kd
    assert stkd["loss"] != kd["loss"]


def test_label_smoothing_spreads_a_share_of_the_labels_that_there_are():
    """By Szegedy et al.'s formula (arXiv 1512.00567), on mixtures and unlabeled images."""
    distiller, _ = distill(
        student=linear_model(1), teacher=linear_model(2), label_smoothing=0.3, mixing=Mixup(1.0)
    )
    images, labels = first_batch()
    labels = labels.numpy() * (np.arange(16) % 4 > 0)[:, None]  # A quarter is unlabeled.
    mixed, soft_labels, _ = distiller.virtual_samples(images, labels, None, 0)
    p = softmax(np.float64(distiller.student(mixed)))
    smooth = 0.7 * soft_labels.numpy() + 0.3 / 10 * soft_labels.numpy().sum(axis=1, keepdims=True)
    expected = -(smooth * np.log(p)).sum(axis=1).mean()
    clean = softmax(np.float64(distiller.student(images)))
    validation = -(labels * np.log(clean)).sum(axis=1).mean()
    scores = distiller.evaluate(images, labels, batch_size=16, verbose=0, return_dict=True)
    np.testing.assert_allclose(scores["loss"], validation, rtol=1e-4)
    logs = distiller.train_on_batch(images, labels, return_dict=True)
    np.testing.assert_allclose(logs["label_loss"], expected, rtol=1e-4)


def test_a_mixed_soft_target_mixes_the_softened_outputs_for_the_clean_images():
    distiller, history = distill(
        student=linear_model(1), teacher=linear_model(2), soft_target="mixed",
        mixing=Mixup(num_images=3), steps=1,
    )  # fmt: skip
    images, labels = first_batch()
    mixing, seed = distiller.mixing, distiller.mixing_seed(0)
    mixed, _, _ = mixing(images, labels, None, seed=seed)
    partners, weights = (t.numpy() for t in mixing.draw(16, seed=seed))
    soft = softmax(np.float64(linear_model(2)(images, training=False)) / 4)
    p = sum(weights[:, k, None] * soft[partners[:, k]] for k in range(3))
    q = softmax(np.float64(linear_model(1)(mixed, training=True)) / 4)
    divergence = (p * (np.log(p) - np.log(q))).sum(axis=1)
    np.testing.assert_allclose(history["soft_loss"][0], 16 * divergence.mean(), rtol=1e-3)


def test_a_recording_on_clean_images_works_for_a_mixed_soft_target(tmp_path):
    batches = data.pipeline(DIGITS, "train", 16, data_seed=0)
    recorded = record_teacher(
        tmp_path / "clean", linear_model(2), batches, None, 0, steps=2, dtype="float32"
    )
    distiller, _ = distill(student=linear_model(1), teacher=recorded, soft_target="mixed")
    replayed = distiller.fit(
        recorded.attach(batches), steps_per_epoch=1, epochs=2, verbose=0, shuffle=False
    )
    _, live = distill(
        student=linear_model(1), teacher=linear_model(2), soft_target="mixed", steps=2
    )
    np.testing.assert_allclose(replayed.history["loss"], live["loss"], rtol=1e-4)
    with pytest.raises(InputError, match="recorded with other settings"):
        distill(teacher=recorded)
    with pytest.raises(InputError, match="only has the teacher's logits, but at needs"):
        distill(m.AT(), teacher=recorded, mixing=None)
    distill(m.DKD(), teacher=recorded, mixing=None)


def test_pretraining_trains_only_the_paraphraser_which_is_then_frozen():
    distiller, _ = distill(m.FT(pretraining_steps=2, weight=3.0))
    weights, logs = [], []
    for step in range(5):
        encoder = distiller.terms[0].encoder
        weights.append((encoder.get_weights(), distiller.student.get_weights()))
        batches = data.pipeline(DIGITS, "train", 16, data_seed=0, start_step=step)
        history = distiller.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False).history
        logs.append({name: values[0] for name, values in history.items()})

    def changed(part, step):
        pairs = zip(weights[step][part], weights[step + 1][part], strict=True)
        return any((a != b).any() for a, b in pairs)

    assert distiller.pretraining_steps == 2
    assert [changed(0, step) for step in range(4)] == [True, True, False, False]
    assert [changed(1, step) for step in range(4)] == [False, False, True, True]
    for step, log in enumerate(logs):
        whole = 0.9 * log["soft_loss"] + 0.1 * log["label_loss"] + 3 * log["ft"]
        expected = log["ft_pretraining"] if step < 2 else whole
        np.testing.assert_allclose(log["loss"], expected, rtol=1e-5)


def test_a_term_that_only_pretrains_adds_nothing_later():
    _, history = distill(m.AB(pretraining_steps=1), steps=2)
    later = 0.9 * history["soft_loss"][1] + 0.1 * history["label_loss"][1]
    np.testing.assert_allclose(history["loss"][1], later, rtol=1e-5)
    assert history["ab"][1] > 0


def test_sample_weights_count_in_terms_with_a_loss_per_sample():
    x, y = networks.vectors(16)
    results = []
    for inputs, labels, weights in (
        (x, y, np.repeat([0.0, 2.0], 8)),
        (x[8:], y[8:], None),
    ):
        keras.utils.set_random_seed(0)
        distiller = SimilarityTransferDistiller(
            networks.dense_classifier(), networks.dense_classifier(), mixing=None,
            soft_weight=0.0, label_weight=0.0, terms=[m.StandardizedKD()],
        )  # fmt: skip
        distiller.compile("sgd", run_eagerly=True)
        logs = distiller.train_on_batch(inputs, labels, sample_weight=weights, return_dict=True)
        results.append(logs["kd_standardized"])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_a_folded_teacher_has_the_features_of_the_original_model():
    model = networks.trained_looking(models.build("resnet8", (8, 8, 1), 10))
    names = ["stem", "stage1", "stage2_preactivation", "stage3", "embedding"]
    images = networks.images(8)[0]
    teacher, shapes = FrozenTeacher(model).with_features(names)
    folded = teacher(images)
    expected = models.features(model, [*names, "logits"])(images, training=False)
    for name in (*names, "logits"):
        np.testing.assert_allclose(
            folded[name], expected[name], atol=1e-3 * np.std(expected[name]) + 1e-6
        )
        assert shapes[name].is_compatible_with(folded[name].shape)


def test_a_feature_can_be_a_layer_of_another_name():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    teacher = keras.Model(inputs, outputs)
    layers = {"student_features": {"map": "stage1"}, "teacher_features": {"map": "first"}}
    _, history = distill(m.AT(features=("map",)), teacher=teacher, steps=1, **layers)
    assert history["at"][0] > 0
    with pytest.raises(InputError, match=r"'stage3'.*teacher_features"):
        distill(m.SP(), teacher=teacher)
    # The input of the last dense layer is the embedding.
    _, history = distill(m.RKD(), teacher=teacher, steps=1)
    assert np.isfinite(history["rkd"]).all()


def test_a_layer_with_a_folded_normalization_gives_no_feature():
    model = networks.small_convolutional_classifier()
    name = next(x.name for x in model.layers if isinstance(x, keras.layers.Conv2D))
    with_features(model, [name])
    fold_batch_normalization(model)
    with pytest.raises(InputError, match="was folded into it"):
        with_features(model, [name])


class Subclassed(keras.Model):
    """A model without a graph."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(10)
        self(np.zeros((1, 8, 8, 1), "float32"))

    def call(self, x):
        return self.head(keras.ops.reshape(x, (-1, 64)))


REFUSED = {
    "crd mixes": (lambda: distill(m.CRD(4)), "CRD is keyed by image.*mixing=None"),
    "dkd mixes": (lambda: distill(m.DKD(), mixing=CutMix()), "several targets"),
    "no teacher": (
        lambda: SimilarityTransferDistiller(student_model(), None, soft_weight=0.0, terms=[m.AT()]),
        "at compares with a teacher",
    ),
    "no term": (lambda: distill(keras.layers.Dense(3)), "DistillationTerm"),
    "same names": (lambda: distill(m.AT(), m.AT()), "'at' of a loss term.*name="),
    "a taken name": (lambda: distill(m.AT(name="soft_loss")), "'soft_loss' of a loss term"),
    "teacher without a graph": (
        lambda: distill(m.AT(), teacher=FrozenTeacher(Subclassed(), outputs="logits")),
        "features",
    ),
    "student without a graph": (
        lambda: distill(m.AT(), student=Subclassed(), student_outputs="logits"),
        "no graph to take features from",
    ),
    "several teachers": (
        lambda: distill(m.AT(), teacher=[linear_model(1), linear_model(2)]),
        "2 teachers have no inner features",
    ),
    "no index": (
        lambda: distill(m.CRD(40), mixing=None)[0].fit(*networks.images(16), verbose=0),
        "index of each image",
    ),
    "soft target": (
        lambda: distill(student=linear_model(1), soft_target="clean"),
        "'clean'; the nearest known",
    ),
    "mixed of nothing": (
        lambda: distill(student=linear_model(1), soft_target="mixed", mixing=None),
        "nothing is mixed",
    ),
    "mixing without outputs": (
        lambda: distill(
            student=linear_model(1), soft_target="mixed", mixing=lambda x, y, w, seed: (x, y, w)
        ),
        "mixes no outputs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_do_not_fit_together_are_refused_in_one_line(case):
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
