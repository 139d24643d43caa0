"""The models that the benchmarks of training steps time, on batches of noise."""

import os
import tempfile

import keras
import numpy as np
import tensorflow as tf

import models
import stkd_keras
import stkd_keras.data

TEMPERATURE, SOFT_WEIGHT, LABEL_WEIGHT = 4.0, 0.9, 0.1


def noise(batch_size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images (B, 32, 32, 3) and integer labels (B,)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    return images, rng.integers(0, num_classes, batch_size)


def repeated(images: np.ndarray, labels: np.ndarray, num_classes: int) -> tf.data.Dataset:
    """Returns an endless data set of one batch, with float32 one-hot labels."""
    one_hot = np.eye(num_classes, dtype="float32")[labels]
    batches = tf.data.Dataset.from_tensors((images.astype("float32"), one_hot))
    return batches.repeat().prefetch(4)


def build(name: str, num_classes: int) -> keras.Model:
    """Returns a model of the zoo with RepDistiller's shortcuts and fused batch normalization."""
    options = {"shortcut": "projection"} if name.startswith("resnet") else {}
    return models.build(name, (32, 32, 3), num_classes, **options)


def as_keras_does(name: str, num_classes: int) -> keras.Model:
    """Returns the model with Keras's own batch normalization."""
    return keras.Model.from_config(build(name, num_classes).get_config())


def with_statistics(model: keras.Model, images: np.ndarray) -> keras.Model:
    """Sets batch statistics, because with the initial ones the logits explode."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(images.astype("float32"), training=True)
    for norm in norms:
        norm.momentum = 0.9
    return model


def optimizer() -> keras.optimizers.Optimizer:
    """Returns SGD as PyTorch defines it."""
    return stkd_keras.SGD(0.01, momentum=0.9, nesterov=True, l2=5e-4)


def student_alone(name: str, num_classes: int) -> keras.Model:
    """Returns the student, compiled for Keras's training loop."""
    model = build(name, num_classes)
    model.compile(optimizer(), keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


def distiller(student: keras.Model, teacher, compile_options=None, **settings) -> keras.Model:
    """Returns the compiled distiller."""
    model = stkd_keras.SimilarityTransferDistiller(student, teacher, **settings)
    model.compile(optimizer(), **(compile_options or {}))
    return model


def record(teacher, images, labels, num_classes: int, steps: int):
    """Returns a recording of the teacher and the batches it is attached to, with one-hot labels."""
    split = stkd_keras.data.Split(images, labels)
    classes = tuple(map(str, range(num_classes)))
    dataset = stkd_keras.data.Dataset(
        "noise", "1", classes, (0.5,) * 3, (0.5,) * 3, True, split, split
    )
    batches = stkd_keras.data.pipeline(dataset, "train", len(images), 0, "none")
    # The recording is memory-mapped, so the file isn't needed once it is open.
    with tempfile.TemporaryDirectory() as folder:
        recorded = stkd_keras.record_teacher(
            os.path.join(folder, "teacher.replay"), teacher, batches, stkd_keras.Mixup(), 0, steps,
            verbose=False,
        )  # fmt: skip

    def with_soft_labels(images, targets):
        labels = targets["labels"]
        if labels.dtype.is_integer:
            labels = tf.one_hot(labels, num_classes)
        return images, {**targets, "labels": labels}

    return recorded, recorded.attach(batches).map(with_soft_labels).prefetch(4)


def keras_distiller(
    teacher: keras.Model, student: keras.Model, batches: tf.data.Dataset
) -> tuple[keras.Model, tf.data.Dataset]:
    """Returns Keras's distiller, compiled, and the batches mixed by `keras.layers.MixUp`."""
    mixup = keras.layers.MixUp(alpha=1.0)

    def mixed(images, labels):
        both = mixup({"images": images, "labels": labels}, training=True)
        return both["images"], both["labels"]

    model = keras.distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=TEMPERATURE, loss=keras.losses.KLDivergence()
        ),
        student_loss_weight=LABEL_WEIGHT,
    )
    model.compile(optimizer(), loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    return model, batches.map(mixed).prefetch(tf.data.AUTOTUNE)
