"""The distiller trains on the losses that it says, as a Keras model like any other."""

import re
import warnings

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import LABEL, SOFT, T, log_softmax, losses_by_hand, make
from keras import layers

from stkd_keras import (
    SGD,
    FrozenTeacher,
    InputError,
    Mixup,
    SimilarityTransferDistiller,
    fuse_batch_normalization,
)


@pytest.mark.parametrize(
    ("mixing", "softmax", "one_hot", "weighted"),
    [
        (Mixup(0.5, 3), False, True, True),
        (Mixup(1.0, probability=0.5), True, False, False),
        (Mixup(0.2, per_batch=True), False, True, False),
    ],
)
def test_the_losses_are_those_of_numpy_by_hand(mixing, softmax, one_hot, weighted):
    keras.utils.set_random_seed(0)
    distiller = make(
        networks.dense_classifier(width=6, softmax=softmax),
        networks.dense_classifier(width=16, softmax=softmax),
        mixing=mixing,
        data_seed=5,
    )
    x, labels = networks.vectors(16)
    rows = np.eye(5)[labels]
    weights = np.random.default_rng(1).uniform(0, 2, 16) if weighted else np.ones(16)
    expected = losses_by_hand(distiller, x, rows, weights, step=0)
    logs = distiller.train_on_batch(
        x,
        rows if one_hot else labels,
        sample_weight=weights if weighted else None,
        return_dict=True,
    )
    np.testing.assert_allclose(logs["label_loss"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(logs["soft_loss"], expected[1], rtol=1e-5)
    np.testing.assert_allclose(logs["teacher_agreement"], expected[2])
    np.testing.assert_allclose(logs["loss"], LABEL * expected[0] + SOFT * expected[1], rtol=1e-5)


def test_each_step_mixes_with_the_seed_of_its_step():
    keras.utils.set_random_seed(0)
    distiller = make(mixing=Mixup(1.0), data_seed=9)
    x, labels = networks.vectors(16)
    for step in range(3):
        expected = losses_by_hand(distiller, x, np.eye(5)[labels], np.ones(16), step)
        logs = distiller.train_on_batch(x, labels, return_dict=True)
        np.testing.assert_allclose(logs["soft_loss"], expected[1], rtol=1e-5)
    assert int(distiller.step) == 3


def test_mixing_stops_after_mixing_steps():
    distiller = make(mixing=Mixup(1.0), mixing_steps=2)
    x, labels = networks.vectors(32)
    rows = np.eye(5)[labels].astype("float32")
    for step in range(4):
        mixed_x, mixed_y, _ = distiller.virtual_samples(x, rows, None, tf.constant(step))
        assert np.allclose(mixed_x, x) == (step >= 2)
        assert np.allclose(mixed_y, rows) == (step >= 2)


def test_without_mixing_it_is_keras_distillation():
    label_weight = 0.4
    keras.utils.set_random_seed(0)
    student, teacher = networks.dense_classifier(width=6), networks.dense_classifier(width=16)
    twin = keras.models.clone_model(student)
    twin.set_weights(student.get_weights())
    theirs = keras.distillation.Distiller(
        teacher=teacher,
        student=twin,
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=T, loss=keras.losses.KLDivergence()
        ),
        student_loss_weight=label_weight,
    )
    theirs.compile(
        keras.optimizers.SGD(0.5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ours = make(
        student, teacher, mixing=None, soft_weight=1 - label_weight, label_weight=label_weight
    )
    ours.compile(keras.optimizers.SGD(0.5))
    before = student.get_weights()
    for step in range(3):
        x, y = networks.vectors(32, seed=step)
        theirs.train_on_batch(x, y)
        ours.train_on_batch(x, y)
    for a, b, start in zip(student.get_weights(), twin.get_weights(), before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(a - start).max() > 1e-3


def test_labels_of_any_kind_score_the_same_one_after_the_other():
    distiller = make()
    distiller.compile(
        "sgd",
        metrics=[
            "accuracy",
            "sparse_categorical_accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top2"),
            keras.metrics.TopKCategoricalAccuracy(k=2, name="top2_of_rows"),
        ],
        weighted_metrics=["accuracy"],
    )
    x, y = networks.vectors(48)
    kinds = [y, y[:, None], np.eye(5)[y], y.astype("float32")]
    logits = distiller.student(x).numpy()
    top1 = (logits.argmax(axis=1) == y).mean()
    top2 = (np.argsort(-logits)[:, :2] == y[:, None]).any(axis=1).mean()
    for labels in kinds:
        logs = distiller.evaluate(x, labels, verbose=0, return_dict=True)
        np.testing.assert_allclose(logs["accuracy"], top1, rtol=1e-6)
        np.testing.assert_allclose(logs["sparse_categorical_accuracy"], top1, rtol=1e-6)
        np.testing.assert_allclose(logs["top2"], top2, rtol=1e-6)
        np.testing.assert_allclose(logs["top2_of_rows"], top2, rtol=1e-6)
        label_loss = -log_softmax(logits)[np.arange(48), y].mean()
        np.testing.assert_allclose(logs["loss"], label_loss, rtol=1e-5)
    distiller.fit(x, kinds[0], epochs=1, verbose=0)
    distiller.fit(x, kinds[2], epochs=1, verbose=0)


def test_fit_logs_training_values_and_validates_the_student_alone():
    regularizer = keras.regularizers.L2(0.1)
    student = keras.Sequential([keras.Input((4,)), layers.Dense(5, kernel_regularizer=regularizer)])
    distiller = make(student)
    x, y = networks.vectors()
    asked = []
    answer = distiller.teacher._members[0]._call
    distiller.teacher._members[0]._call = lambda *a, **k: asked.append(1) or answer(*a, **k)
    history = distiller.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    assert set(history) == {
        "loss", "soft_loss", "label_loss", "teacher_agreement", "accuracy", "val_loss",
        "val_accuracy",
    }  # fmt: skip
    penalty = 0.1 * np.square(student.layers[0].kernel.numpy()).sum()
    plain = -log_softmax(student(x))[np.arange(64), y].mean()
    np.testing.assert_allclose(history["val_loss"][-1], plain + penalty, rtol=1e-5)
    asked.clear()
    distiller.evaluate(x, y, verbose=0)
    distiller.test_on_batch(x[:8], y[:8])
    assert not asked


def test_the_students_regularisation_is_part_of_the_loss():
    student = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, kernel_regularizer=keras.regularizers.L2(0.5))]
    )
    penalty = 0.5 * np.square(student.layers[0].kernel.numpy()).sum()
    logs = make(student).train_on_batch(*networks.vectors(16), return_dict=True)
    expected = LABEL * logs["label_loss"] + SOFT * logs["soft_loss"] + penalty
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_the_teacher_is_bit_identical_after_fit_even_when_all_is_made_trainable():
    teacher = networks.convolutional_classifier(softmax=True)
    frozen = FrozenTeacher(teacher)
    distiller = make(networks.small_convolutional_classifier(), frozen)
    distiller.trainable = True
    distiller.compile("sgd")
    snapshot = frozen._members[0].snapshot
    before = [w.copy() for w in teacher.get_weights() + snapshot.get_weights()]
    distiller.fit(*networks.images(), epochs=2, verbose=0)
    after = teacher.get_weights() + snapshot.get_weights()
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_no_teacher_is_needed_without_a_soft_loss():
    distiller = SimilarityTransferDistiller(
        networks.dense_classifier(), soft_weight=0, label_weight=1
    )
    distiller.compile("sgd")
    history = distiller.fit(*networks.vectors(), verbose=0).history
    assert set(history) == {"loss", "label_loss"}
    np.testing.assert_allclose(history["loss"], history["label_loss"], rtol=1e-6)


def test_a_sequential_student_that_is_not_built_yet_and_integer_pixels():
    student = keras.Sequential(
        [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10, activation="softmax")]
    )
    distiller = make(student, networks.convolutional_classifier(softmax=True))
    x, y = networks.images()
    history = distiller.fit(x.astype("uint8"), y, validation_split=0.25, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert distiller.predict(x, verbose=0).shape == (64, 10)


@pytest.mark.parametrize(
    ("policy", "optimizer", "jit_compile"),
    [
        ("mixed_float16", lambda: keras.optimizers.SGD(0.1), True),
        ("mixed_bfloat16", lambda: keras.optimizers.SGD(0.1, clipnorm=0.5), False),
        ("float32", lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), False),
        (
            "float32",
            lambda: keras.optimizers.AdamW(1e-3, use_ema=True, ema_overwrite_frequency=2),
            True,
        ),
        ("float32", lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1, l2=1e-3)), False),
    ],
)
def test_precision_and_optimizer_options_work_and_mixing_follows_the_step(
    policy, optimizer, jit_compile
):
    keras.config.set_dtype_policy(policy)
    try:
        student = fuse_batch_normalization(networks.small_convolutional_classifier())
    finally:
        keras.config.set_dtype_policy("float32")
    seeds = []

    class Recorder(Mixup):
        def __call__(self, x, y, sample_weight=None, *, seed):
            assert x.dtype == tf.float32
            tf.py_function(lambda s: seeds.append(tuple(s.numpy())), [seed], []) if (
                not jit_compile
            ) else None
            return super().__call__(x, y, sample_weight, seed=seed)

    distiller = make(student, networks.small_convolutional_classifier(), mixing=Recorder(1.0))
    distiller.compile(optimizer(), jit_compile=jit_compile)
    if policy == "mixed_float16":
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    history = distiller.fit(*networks.images(), batch_size=16, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][1] < history["loss"][0] * 1.5
    assert int(distiller.step) == 8
    assert distiller.compute_dtype == student.dtype_policy.compute_dtype
    if not jit_compile:
        assert seeds == [tuple(distiller.mixing_seed(s).numpy()) for s in range(8)]


@pytest.mark.parametrize(
    ("alpha", "mixing"), [(0.01, {}), (1.0, {"num_images": 3, "per_batch": True})]
)
def test_xla_trains_on_the_same_mixtures(alpha, mixing):
    logs = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        distiller = make(mixing=Mixup(alpha, **mixing))
        distiller.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        x, y = networks.vectors()
        history = distiller.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
        logs.append(history["soft_loss"] + history["label_loss"])
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-4)


def test_a_label_out_of_range_is_an_error_and_not_a_row_of_zeros():
    x, y = networks.vectors(8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="integers from 0 to 4"):
        make().train_on_batch(x, y + 5)


class Subclassed(keras.Model):
    """A student whose shapes are known only once it has seen a batch."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = layers.Dense(8, activation="relu"), layers.Dense(5)

    def call(self, x):
        return self.head(self.hidden(x))


def test_a_subclassed_student_is_built_from_the_first_batch():
    distiller = SimilarityTransferDistiller(
        Subclassed(), soft_weight=0, label_weight=1, student_outputs="logits"
    )
    distiller.compile("sgd", metrics=["accuracy"])
    distiller.fit(*networks.vectors(), verbose=0)
    assert distiller.num_classes == 5


@pytest.mark.parametrize("jit_compile", [False, True])
def test_integer_sample_weights_go_with_mixing_steps(jit_compile):
    distiller = make(mixing_steps=1)
    distiller.compile("sgd", jit_compile=jit_compile)
    x, y = networks.vectors(32)
    weights = np.ones((32, 1), "int64")
    history = distiller.fit(x, y, sample_weight=weights, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_labels_whose_second_dimension_is_not_known_are_told_apart():
    x, y = networks.vectors(16)
    losses = []
    for labels in (y[:, None], np.eye(5, dtype="int64")[y]):
        dataset = tf.data.Dataset.from_generator(
            lambda labels=labels: iter([(x, labels)]),
            output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, None), tf.int64)),
        )
        keras.utils.set_random_seed(0)
        history = make(mixing=None).fit(dataset, verbose=0).history
        losses.append(history["label_loss"][0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_the_step_counts_batches_also_where_the_data_end_unannounced():
    x, y = networks.vectors(32)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: True).batch(8)
    for steps_per_execution in (1, 3):
        distiller = make(mixing=None)
        distiller.compile("sgd", steps_per_execution=steps_per_execution)
        distiller.fit(batches, epochs=3, verbose=0)
        assert distiller.step.numpy() == 12
    with pytest.raises(InputError, match="no batch"):
        make().fit(batches.filter(lambda x, y: False), verbose=0)


def test_bringing_back_the_best_weights_does_not_turn_the_step_back():
    distiller = make()
    x, y = networks.vectors(32)
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", mode="max", patience=1, restore_best_weights=True
    )
    history = distiller.fit(
        x, y, batch_size=8, epochs=5, validation_data=(x, y), verbose=0, callbacks=[stopping]
    )
    assert distiller.step.numpy() == 4 * len(history.epoch)


def test_a_student_in_half_precision_is_known_by_its_layers(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = networks.dense_classifier(width=6)
    finally:
        keras.config.set_dtype_policy("float32")
    student.save(tmp_path / "student.keras")
    for each in (student, keras.saving.load_model(tmp_path / "student.keras")):
        distiller = make(each)
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)


def test_eager_batches_pixels_in_bytes_and_lists_of_one_input_are_taken():
    distiller = make()
    distiller.compile("sgd", run_eagerly=True)
    x, y = networks.vectors(8)
    distiller.train_on_batch(x, y)
    distiller.test_on_batch(x, y)
    distiller.fit([x], y, verbose=0)
    pixels, _ = networks.images(4)
    student = networks.small_convolutional_classifier()
    distiller = make(student, networks.small_convolutional_classifier())
    assert distiller.predict(pixels.astype("uint8"), verbose=0).dtype == np.float32


@pytest.mark.parametrize(
    ("count", "batch_size", "warned"),
    [(65, 64, "a last batch of 1,"), (67, 32, "a last batch of 3,"), (64, 32, ""), (72, 32, "")],
)
def test_a_last_batch_too_small_for_batch_normalisation_is_warned_of(count, batch_size, warned):
    x, y = networks.images(count)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        student = networks.small_convolutional_classifier()
        make(student, networks.small_convolutional_classifier()).fit(x, y, batch_size, verbose=0)
        make().fit(*networks.vectors(count), batch_size, verbose=0)
    told = [str(each.message) for each in caught if "batch normalization" in str(each.message)]
    assert len(told) == bool(warned)
    for message in told:
        assert warned in message
        better = int(re.search(r"batch_size=(\d+)", message)[1])
        left = count % better or better
        assert better <= batch_size
        assert left >= better / 2
        assert message.endswith(f"the last batch has {left}")
