"""Tests of the distiller: its losses, and its behavior as a Keras model."""

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
from stkd_keras.distillation.checks import check_training_data


@pytest.mark.parametrize(
    ("mixing", "softmax", "one_hot", "weighted"),
    [
        (Mixup(0.5, 3), False, True, True),
        (Mixup(1.0, probability=0.5), True, False, False),
        (Mixup(0.2, per_batch=True), False, True, False),
    ],
)
def test_the_losses_are_those_computed_with_numpy(mixing, softmax, one_hot, weighted):
    keras.utils.set_random_seed(0)
    distiller = make(
        networks.dense_classifier(width=6, softmax=softmax),
        networks.dense_classifier(width=16, softmax=softmax),
        eager=True,
        mixing=mixing,
        data_seed=5,
    )
    x, labels = networks.vectors(16)
    soft_labels = np.eye(5)[labels]
    weights = np.random.default_rng(1).uniform(0, 2, 16) if weighted else np.ones(16)
    expected = losses_by_hand(distiller, x, soft_labels, weights, step=0)
    logs = distiller.train_on_batch(
        x,
        soft_labels if one_hot else labels,
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
    soft_labels = np.eye(5)[labels].astype("float32")
    for step in range(4):
        mixed_x, mixed_y, _ = distiller.virtual_samples(x, soft_labels, None, tf.constant(step))
        assert np.allclose(mixed_x, x) == (step >= 2)
        assert np.allclose(mixed_y, soft_labels) == (step >= 2)


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


def test_labels_of_any_kind_score_the_same():
    keras.utils.set_random_seed(0)  # A sample that activates no unit would tie all logits.
    distiller = make(eager=True)
    distiller.compile(
        "sgd",
        metrics=[
            "accuracy",
            "sparse_categorical_accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top2"),
            keras.metrics.TopKCategoricalAccuracy(k=2, name="categorical_top2"),
        ],
        weighted_metrics=["accuracy"],
    )
    x, y = networks.vectors(48)
    logits = distiller.student(x).numpy()
    top1 = (logits.argmax(axis=1) == y).mean()
    top2 = (np.argsort(-logits)[:, :2] == y[:, None]).any(axis=1).mean()
    for labels in (y, y[:, None], np.eye(5)[y], y.astype("float32")):
        logs = distiller.evaluate(x, labels, verbose=0, return_dict=True)
        np.testing.assert_allclose(logs["accuracy"], top1, rtol=1e-6)
        np.testing.assert_allclose(logs["sparse_categorical_accuracy"], top1, rtol=1e-6)
        np.testing.assert_allclose(logs["top2"], top2, rtol=1e-6)
        np.testing.assert_allclose(logs["categorical_top2"], top2, rtol=1e-6)
        label_loss = -log_softmax(logits)[np.arange(48), y].mean()
        np.testing.assert_allclose(logs["loss"], label_loss, rtol=1e-5)
    distiller.fit(x, y, verbose=0)
    distiller.fit(x, np.eye(5)[y], verbose=0)


def test_fit_logs_training_values_and_validates_the_student_alone():
    regularizer = keras.regularizers.L2(0.1)
    student = keras.Sequential([keras.Input((4,)), layers.Dense(5, kernel_regularizer=regularizer)])
    distiller = make(student, eager=True)
    x, y = networks.vectors()
    teacher_calls = []
    teacher = distiller.teacher._members[0]
    call = teacher._call
    teacher._call = lambda *args, **kwargs: teacher_calls.append(1) or call(*args, **kwargs)
    before = 0.1 * np.square(student.layers[0].kernel.numpy()).sum()
    history = distiller.fit(x, y, 64, validation_data=(x, y), verbose=0).history
    logs = {name: values[0] for name, values in history.items()}
    assert set(logs) == {
        "loss", "soft_loss", "label_loss", "teacher_agreement", "accuracy", "val_loss",
        "val_accuracy",
    }  # fmt: skip
    expected = LABEL * logs["label_loss"] + SOFT * logs["soft_loss"] + before
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    after = 0.1 * np.square(student.layers[0].kernel.numpy()).sum()
    cross_entropy = -log_softmax(student(x))[np.arange(64), y].mean()
    np.testing.assert_allclose(logs["val_loss"], cross_entropy + after, rtol=1e-5)
    assert teacher_calls
    teacher_calls.clear()
    distiller.evaluate(x, y, verbose=0)
    distiller.test_on_batch(x[:8], y[:8])
    assert not teacher_calls


def test_the_teacher_does_not_change_even_if_everything_is_made_trainable():
    teacher = networks.small_convolutional_classifier()
    frozen = FrozenTeacher(teacher)
    distiller = make(networks.small_convolutional_classifier(), frozen)
    distiller.trainable = True
    distiller.compile("sgd", run_eagerly=True)
    snapshot = frozen._members[0].snapshot
    before = [w.copy() for w in teacher.get_weights() + snapshot.get_weights()]
    distiller.fit(*networks.images(), epochs=2, verbose=0)
    after = teacher.get_weights() + snapshot.get_weights()
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_no_teacher_is_needed_without_a_soft_loss():
    distiller = SimilarityTransferDistiller(
        networks.dense_classifier(), soft_weight=0, label_weight=1
    )
    distiller.compile("sgd", run_eagerly=True)
    history = distiller.fit(*networks.vectors(), verbose=0).history
    assert set(history) == {"loss", "label_loss"}
    np.testing.assert_allclose(history["loss"], history["label_loss"], rtol=1e-6)


def test_an_unbuilt_sequential_student_takes_integer_pixels():
    student = keras.Sequential(
        [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10, activation="softmax")]
    )
    distiller = make(student, networks.small_convolutional_classifier(), eager=True)
    x, y = networks.images()
    history = distiller.fit(x.astype("uint8"), y, validation_split=0.25, verbose=0).history
    assert np.isfinite(history["loss"][0])
    logits = distiller.predict(x.astype("uint8"), verbose=0)
    assert logits.shape == (64, 10)
    assert logits.dtype == np.float32


@pytest.mark.parametrize(
    ("policy", "optimizer"),
    [
        ("mixed_float16", lambda: keras.optimizers.SGD(0.1)),
        ("mixed_bfloat16", lambda: keras.optimizers.SGD(0.1, clipnorm=0.5)),
        ("float32", lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)),
        ("float32", lambda: keras.optimizers.AdamW(1e-3, use_ema=True, ema_overwrite_frequency=2)),
        ("float32", lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1, l2=1e-3))),
    ],
)
def test_mixing_follows_the_step_with_any_precision_and_optimizer(policy, optimizer):
    keras.config.set_dtype_policy(policy)
    try:
        student = fuse_batch_normalization(networks.small_convolutional_classifier())
    finally:
        keras.config.set_dtype_policy("float32")
    seeds = []

    class Recorder(Mixup):
        def __call__(self, x, y, sample_weight=None, *, seed):
            assert x.dtype == tf.float32
            seeds.append(tuple(seed.numpy()))
            return super().__call__(x, y, sample_weight, seed=seed)

    distiller = make(student, networks.small_convolutional_classifier(), mixing=Recorder(1.0))
    distiller.compile(optimizer(), run_eagerly=True)
    if policy == "mixed_float16":
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    history = distiller.fit(*networks.images(), batch_size=32, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][1] < history["loss"][0] * 1.5
    assert int(distiller.step) == 4
    assert distiller.compute_dtype == student.dtype_policy.compute_dtype
    # Keras builds the model on the first batch.
    assert seeds[-4:] == [tuple(distiller.mixing_seed(s).numpy()) for s in range(4)]


def test_xla_trains_on_the_same_mixtures_in_mixed_precision():
    logs = []
    x, y = networks.vectors()
    weights = np.arange(64)[:, None] % 3
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("mixed_float16")
        try:
            student = networks.dense_classifier(width=6)
        finally:
            keras.config.set_dtype_policy("float32")
        distiller = make(student, mixing=Mixup(0.4, num_images=3), mixing_steps=3)
        distiller.compile(SGD(0.1, momentum=0.9, l2=1e-3), **options)
        history = distiller.fit(
            x, y, 16, sample_weight=weights, epochs=2, shuffle=False, verbose=0
        ).history
        logs.append(history["soft_loss"] + history["label_loss"])
    np.testing.assert_allclose(logs[0], logs[1], rtol=5e-3)


def label_sources(x, y):
    """The same batches as each kind of data that `fit` takes."""

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return x[8 * index :][:8], y[8 * index :][:8]

    unknown = tf.data.Dataset.from_generator(
        lambda: iter([(x[:8], y[:8]), (x[8:], y[8:])]),
        output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec(None, y.dtype)),
    )
    return {
        "arrays": (x, y),
        "data set": (tf.data.Dataset.from_tensor_slices((x, y)).batch(8),),
        "data set of unknown rank": (unknown,),
        "PyDataset": (Batches(),),
        "generator": ((each for each in [(x[:8], y[:8]), (x[8:], y[8:])]),),
    }


@pytest.mark.parametrize("source", label_sources(*networks.vectors(16)))
def test_a_label_out_of_range_is_an_error(source):
    x, y = networks.vectors(16)
    y[12] = 5
    message = "the labels have a 5, but must be integers from 0 to 4, or -1 for an unlabeled image"
    distiller = make()
    for train in (distiller.fit, distiller.evaluate):
        with pytest.raises(InputError) as caught:
            train(*label_sources(x, y)[source], verbose=0)
        assert str(caught.value) == message
    with pytest.raises(InputError, match=message):
        distiller.fit(*networks.vectors(16), verbose=0, validation_data=label_sources(x, y)[source])


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
    distiller.compile("sgd", metrics=["accuracy"], run_eagerly=True)
    distiller.fit(*networks.vectors(), verbose=0)
    assert distiller.num_classes == 5


def test_the_kind_of_labels_of_unknown_shape_is_inferred():
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


def test_the_step_counts_batches_of_data_of_unknown_length():
    x, y = networks.vectors(32)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: True).batch(8)
    distiller = make(mixing=None)
    distiller.compile("sgd", steps_per_execution=3)
    distiller.fit(batches, epochs=3, verbose=0)
    assert distiller.step.numpy() == 12
    with pytest.raises(InputError, match="at least one batch"):
        make(mixing=None).fit(batches.filter(lambda x, y: False), verbose=0)


def test_restoring_the_best_weights_does_not_reset_the_step():
    distiller = make(eager=True)
    x, y = networks.vectors(32)
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", mode="max", patience=1, restore_best_weights=True
    )
    history = distiller.fit(
        x, y, batch_size=16, epochs=5, validation_data=(x, y), verbose=0, callbacks=[stopping]
    )
    assert distiller.step.numpy() == 2 * len(history.epoch)


def test_a_loaded_student_keeps_its_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = networks.dense_classifier(width=6)
    finally:
        keras.config.set_dtype_policy("float32")
    student.save(tmp_path / "student.keras")
    distiller = make(keras.saving.load_model(tmp_path / "student.keras"))
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)


def test_eager_batches_and_lists_of_one_input_are_accepted():
    distiller = make(eager=True)
    x, y = networks.vectors(8)
    distiller.train_on_batch(x, y)
    distiller.test_on_batch(x, y)
    distiller.fit([x], y, verbose=0)
    assert distiller.step.numpy() == 2


@pytest.mark.parametrize(
    ("count", "batch_size", "left"), [(65, 64, 1), (67, 32, 3), (64, 32, 0), (72, 32, 0)]
)
def test_a_last_batch_too_small_for_batch_normalization_is_warned_of(count, batch_size, left):
    x, _ = networks.images(count)
    strategy = tf.distribute.get_strategy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for student in (networks.small_convolutional_classifier(), networks.dense_classifier()):
            check_training_data(x, batch_size, student, strategy)
    messages = [str(each.message) for each in caught if "batch normalization" in str(each.message)]
    assert len(messages) == bool(left)
    for message in messages:
        assert f"a last batch of {left}," in message
        better = int(re.search(r"batch_size=(\d+)", message)[1])
        left = count % better or better
        assert better <= batch_size
        assert left >= better / 2
        assert message.endswith(f"the last batch has {left}")
