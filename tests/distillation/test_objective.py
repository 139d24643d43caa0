"""Further losses join the distiller's: what is compared, how it counts, and what is refused."""

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


def zoo_model(name="resnet8"):
    """Always the same weights."""
    keras.utils.set_random_seed(len(name))
    return networks.trained_looking(models.build(name, (8, 8, 1), 10))


def distil(*terms, student=None, teacher=None, steps=0, **settings):
    """A compiled distiller on digits, and its history after so many steps of 16."""
    keras.utils.set_random_seed(0)
    distiller = SimilarityTransferDistiller(
        student or zoo_model(), teacher or zoo_model("resnet14"), terms=terms, **settings
    )
    distiller.compile(keras.optimizers.SGD(0.01, momentum=0.9), metrics=["accuracy"])
    if not steps:
        return distiller, None
    needs_index = any(term.needs_index for term in terms)
    batches = data.pipeline(DIGITS, "train", 16, data_seed=0, with_index=needs_index)
    history = distiller.fit(batches, steps_per_epoch=1, epochs=steps, verbose=0, shuffle=False)
    return distiller, history.history


def softmax(x):
    exponents = np.exp(x - x.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(axis=1)


def first_batch():
    images, labels = next(iter(data.pipeline(DIGITS, "train", 16, data_seed=0)))
    return images, tf.one_hot(labels, 10)


def test_a_term_adds_its_weight_times_its_value_on_the_virtual_samples():
    term = m.SP(weight=7.0)
    distiller, history = distil(term, steps=1)
    student, teacher = zoo_model(), zoo_model("resnet14")
    images, rows = first_batch()
    mixed, _, _ = distiller.virtual_samples(images, rows, None, tf.constant(0, tf.int64))
    mine = models.features(student, ["stage3"])(mixed, training=True)
    its = models.features(teacher, ["stage3"])(mixed, training=False)
    expected = float(m.SP()(mine, its, rows))
    assert expected > 0
    np.testing.assert_allclose(history["sp"][0], expected, rtol=1e-3)
    parts = 0.1 * history["label_loss"][0] + 0.9 * history["soft_loss"][0]
    np.testing.assert_allclose(history["loss"][0], parts + 7 * history["sp"][0], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(m.METHODS))
def test_every_method_trains_with_the_distiller_and_leaves_a_plain_student(name, tmp_path):
    method = m.METHODS[name]
    options = dict(method.options)
    if method.term.needs_index:
        options |= {"num_images": len(DIGITS.train), "image_labels": DIGITS.train.labels}
        options["num_negatives"] = 32
    if method.pretraining_epochs:
        options["pretraining_steps"] = 1
    term = method.term(**options)
    mixing = None if term.refuses_mixing else Mixup()
    distiller, history = distil(
        term, steps=2, mixing=mixing, label_weight=method.label_weight, soft_weight=0.0
    )
    assert np.isfinite(history[name]).all()
    assert np.isfinite(history["loss"]).all()
    teacher_weights = {id(v) for v in distiller.teacher._members[0].snapshot.weights}
    assert not teacher_weights & {id(v) for v in distiller.variables}
    distiller.student.save(tmp_path / "student.keras")
    saved = keras.saving.load_model(tmp_path / "student.keras")
    assert saved.count_params() == zoo_model().count_params()
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    for mine, its in zip(distiller.terms[0].weights, loaded.terms[0].weights, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_kd_with_mixup_is_stkd_and_stkd_without_mixing_is_kd_step_for_step():
    def run(method, **explicit):
        settings = method_settings(method, **explicit)
        _, history = distil(
            mixing=make_mixing(settings), steps=4, temperature=settings["temperature"],
            soft_weight=settings["soft_weight"], label_weight=settings["label_weight"],
        )  # fmt: skip
        return history

    given = {"temperature": 3.0, "soft_weight": 0.7, "label_weight": 0.2}
    stkd, kd = run("stkd", **given), run("kd", **given)
    assert run("kd", mixing="mixup", **given) == stkd
    assert run("stkd", mixing="none", **given) == kd
    assert stkd["loss"] != kd["loss"]


def test_a_mixed_soft_target_is_the_mixture_of_the_softened_answers_on_the_clean_images():
    distiller, history = distil(soft_target="mixed", mixing=Mixup(num_images=3), steps=1)
    images, rows = first_batch()
    mixing, seed = distiller.mixing, distiller.mixing_seed(0)
    mixed, _, _ = mixing(images, rows, None, seed=seed)
    partners, weights = (t.numpy() for t in mixing.draw(16, seed=seed))
    answers = softmax(np.float64(zoo_model("resnet14")(images, training=False)) / 4)
    target = sum(weights[:, k, None] * answers[partners[:, k]] for k in range(3))
    logits = np.float64(zoo_model()(mixed, training=True))
    np.testing.assert_allclose(
        history["soft_loss"][0], 16 * kl(target, softmax(logits / 4)).mean(), rtol=1e-3
    )


def test_a_recording_of_the_clean_images_serves_a_mixed_soft_target(tmp_path):
    teacher = zoo_model("resnet14")
    batches = data.pipeline(DIGITS, "train", 16, data_seed=0)
    path = tmp_path / "clean"
    recorded = record_teacher(path, teacher, batches, None, 0, steps=3, dtype="float32")
    distiller, _ = distil(teacher=recorded, soft_target="mixed")
    replayed = distiller.fit(
        recorded.attach(batches), steps_per_epoch=1, epochs=3, verbose=0, shuffle=False
    )
    _, asked = distil(soft_target="mixed", steps=3)
    np.testing.assert_allclose(replayed.history["loss"], asked["loss"], rtol=1e-4)
    with pytest.raises(InputError, match="recorded for something else"):
        distil(teacher=recorded)


def test_in_its_pretraining_a_methods_own_stage_is_all_that_is_trained():
    term = m.FT(pretraining_steps=2, weight=3.0)
    distiller, history = distil(term, steps=4)
    loss, stage = history["loss"], history["ft_pretraining"]
    np.testing.assert_allclose(loss[:2], stage[:2], rtol=1e-6)
    whole = [
        0.9 * soft + 0.1 * label + 3 * ft
        for soft, label, ft in zip(
            history["soft_loss"], history["label_loss"], history["ft"], strict=True
        )
    ]
    np.testing.assert_allclose(loss[2:], whole[2:], rtol=1e-5)
    assert distiller.pretraining_steps == 2


def test_what_only_a_stage_beforehand_trains_adds_nothing_later():
    _, history = distil(m.AB(pretraining_steps=1), steps=2)
    later = 0.9 * history["soft_loss"][1] + 0.1 * history["label_loss"][1]
    np.testing.assert_allclose(history["loss"][1], later, rtol=1e-5)
    assert history["ab"][1] > 0


def test_the_paraphraser_learns_in_its_stage_and_the_student_afterwards_whatever_the_optimizer():
    distiller, _ = distil(m.FT(pretraining_steps=2))
    distiller.compile(SGD(0.01, momentum=0.9, l2=0.1))
    seen = []
    for step in range(5):
        seen.append((distiller.terms[0].encoder.get_weights(), distiller.student.get_weights()))
        batches = data.pipeline(DIGITS, "train", 16, data_seed=0, start_step=step)
        distiller.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False)

    def changed(part, step):
        pairs = zip(seen[step][part], seen[step + 1][part], strict=True)
        return any((a != b).any() for a, b in pairs)

    assert [changed(0, step) for step in range(4)] == [True, True, False, False]
    assert [changed(1, step) for step in range(4)] == [False, False, True, True]


def test_sample_weights_count_in_terms_of_samples():
    x, y = networks.images(16)
    results = []
    for images, labels, weights in (
        (x, y, np.repeat([0.0, 2.0], 8)),
        (x[8:], y[8:], None),
    ):
        keras.utils.set_random_seed(0)
        student = networks.small_convolutional_classifier()
        teacher = networks.small_convolutional_classifier()
        distiller = SimilarityTransferDistiller(
            student, teacher, mixing=None, soft_weight=0.0, label_weight=0.0,
            terms=[m.StandardizedKD()],
        )  # fmt: skip
        distiller.student.trainable = True
        for layer in student.layers:  # Else the batch's statistics would see all samples.
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        distiller.compile("sgd")
        history = distiller.fit(
            images, labels, batch_size=16, sample_weight=weights, verbose=0, shuffle=False
        )
        results.append(history.history["kd_standardized"][0])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_features_of_a_folded_teacher_are_those_of_the_model_it_was_made_of():
    model = zoo_model("resnet14")
    names = ["stem", "stage1", "stage2_preactivation", "stage3", "embedding"]
    images = networks.images(8)[0]
    answer, shapes = FrozenTeacher(model).with_features(names)
    folded = answer(images)
    expected = models.features(model, [*names, "logits"])(images, training=False)
    for name in (*names, "logits"):
        np.testing.assert_allclose(
            folded[name], expected[name], atol=1e-3 * np.std(expected[name]) + 1e-6
        )
        assert shapes[name].is_compatible_with(folded[name].shape)


def test_a_model_with_other_names_is_told_which_layers_give_the_features():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", name="second")(x)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    term = m.AT(features=("map",))
    layers = {"student_features": {"map": "stage1"}, "teacher_features": {"map": "first"}}
    _, history = distil(term, teacher=model, steps=1, **layers)
    assert history["at"][0] > 0
    with pytest.raises(InputError, match=r"'stage3'.*teacher_features"):
        distil(m.SP(), teacher=model)
    _, history = distil(m.RKD(), teacher=model, steps=1)  # The head says what the embedding is.
    assert np.isfinite(history["rkd"]).all()


def test_a_layer_that_took_in_its_normalisation_gives_no_feature():
    model = networks.trained_looking(networks.small_convolutional_classifier())
    name = next(x.name for x in model.layers if isinstance(x, keras.layers.Conv2D))
    with_features(model, [name])
    fold_batch_normalization(model)
    with pytest.raises(InputError, match="was folded into it"):
        with_features(model, [name])


class Opaque(keras.Model):
    """A model without a graph."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(10)

    def call(self, x):
        return self.head(keras.ops.reshape(x, (-1, 64)))


def opaque():
    model = Opaque()
    model(np.zeros((1, 8, 8, 1), "float32"))
    return model


REFUSED = {
    "crd mixes": (lambda: distil(m.CRD(4)), "CRD is keyed by image.*mixing=None"),
    "dkd mixes": (lambda: distil(m.DKD(), mixing=CutMix()), "several targets"),
    "no teacher": (
        lambda: SimilarityTransferDistiller(zoo_model(), None, soft_weight=0.0, terms=[m.AT()]),
        "at compares with a teacher",
    ),
    "no term": (lambda: distil(keras.layers.Dense(3)), "DistillationTerm"),
    "same names": (lambda: distil(m.AT(), m.AT()), "called 'at'.*name="),
    "a taken name": (lambda: distil(m.AT(name="soft_loss")), "called 'soft_loss'"),
    "teacher without a graph": (
        lambda: distil(m.AT(), teacher=FrozenTeacher(opaque(), outputs="logits")),
        "features",
    ),
    "student without a graph": (
        lambda: distil(m.AT(), student=opaque(), student_outputs="logits"),
        "no graph to take features from",
    ),
    "several teachers": (
        lambda: distil(m.AT(), teacher=[zoo_model(), zoo_model()]),
        "2 teachers have no inner features",
    ),
    "no index": (
        lambda: distil(m.CRD(40), mixing=None)[0].fit(*networks.images(16), verbose=0),
        "index of each image",
    ),
    "soft target": (lambda: distil(soft_target="clean"), "'clean'; the nearest known"),
    "mixed of nothing": (lambda: distil(soft_target="mixed", mixing=None), "nothing is mixed"),
    "mixing without outputs": (
        lambda: distil(soft_target="mixed", mixing=lambda x, y, w, seed: (x, y, w)),
        "mixes no outputs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(case):
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_recording_holds_no_features(tmp_path):
    batches = data.pipeline(DIGITS, "train", 16, data_seed=0)
    recorded = record_teacher(tmp_path / "r", zoo_model(), batches, None, 0, steps=1)
    with pytest.raises(InputError, match="holds the teacher's logits, but at needs"):
        distil(m.AT(), teacher=recorded, mixing=None)
    distil(m.DKD(), teacher=recorded, mixing=None)
