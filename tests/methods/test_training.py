"""Each method alone trains a student: its loss falls on images that weren't trained on."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from every_method import NAMES

import models
import stkd_keras.data
from stkd_keras.methods import METHODS

NUM_CLASSES = 10
UNSEEN, BATCH = 64, 32
FEATURES = [
    "stem",
    *(f"stage{i}" for i in (1, 2, 3)),
    *(f"stage{i}_preactivation" for i in (1, 2, 3)),
    "embedding",
    "logits",
]
# Times as many steps: the variances of VID start far from their end, and CRD's banks lag behind.
TIMES_AS_MANY_STEPS = {"vid": 5, "crd": 7}
LEARNING_RATES = {"crd": 3e-3}


class Trainer:
    """Trains a student and a term's adapters with the term alone."""

    def __init__(self, name, images, labels, answers, steps):
        keras.utils.set_random_seed(0)
        method = METHODS[name]
        options = dict(method.options)
        if name == "crd":
            options |= {
                "num_images": len(images),
                "image_labels": labels,
                "num_negatives": 64,
            }
        self.term, self.steps = method.term(**options), steps
        self.training = len(images) - UNSEEN
        student = models.build("resnet8", images.shape[1:], NUM_CLASSES)
        self.student = models.features(student, self.term.features)
        self.images, self.rows = tf.constant(images), tf.one_hot(labels, NUM_CLASSES)
        self.teacher = {feature: tf.constant(answers[feature]) for feature in self.term.features}
        self.optimizer = keras.optimizers.Adam(LEARNING_RATES.get(name, 1e-2))
        self.loss(tf.range(BATCH))
        self.step = tf.function(self._step)

    def loss(self, index, pretrains=False):
        student = self.student(tf.gather(self.images, index), training=True)
        teacher = {name: tf.gather(values, index) for name, values in self.teacher.items()}
        labels = tf.gather(self.rows, index)
        if pretrains:
            return tf.reduce_mean(self.term.pretraining_loss(student, teacher, labels))
        options = {"index": index} if self.term.needs_index else {}
        return tf.reduce_mean(self.term(student, teacher, labels, training=True, **options))

    def _step(self, index, pretrains):
        with tf.GradientTape() as tape:
            loss = self.loss(index, pretrains)
        variables = [*self.student.trainable_variables, *self.term.trainable_variables]
        gradients = tape.gradient(loss, variables)
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(gradients, variables, strict=True)
            if gradient is not None
        ]
        self.optimizer.apply(*zip(*pairs, strict=True))

    def train(self, pretrains=False):
        variables = [*self.student.trainable_variables, *self.term.trainable_variables]
        self.optimizer.build(variables)
        rng = np.random.default_rng(0)
        for _ in range(self.steps):
            index = rng.choice(self.training, BATCH, replace=False)
            self.step(tf.constant(index, tf.int32), pretrains)

    def unseen_loss(self):
        batches = tf.reshape(tf.range(self.training, self.training + UNSEEN), [-1, BATCH])
        for _ in range(2 if self.term.needs_index else 0):
            # The unseen images' own embeddings have to be in the banks.
            for index in batches:
                self.loss(index)
        return np.mean([self.loss(index) for index in batches])


def relative_loss(name, images, labels, answers, steps):
    """Returns the loss on unseen images after training, as a share of that before."""
    trainer = Trainer(name, images, labels, answers, TIMES_AS_MANY_STEPS.get(name, 1) * steps)
    if name == "ft":
        trainer.train(pretrains=True)
    before = trainer.unseen_loss()
    trainer.train()
    return trainer.unseen_loss() / before


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits and the features of a teacher that has learned them for a while."""
    split = stkd_keras.data.load("digits").train
    images = split.images[: 512 + UNSEEN].astype("float32")
    labels = split.labels[: 512 + UNSEEN]
    keras.utils.set_random_seed(1)
    teacher = models.build("resnet14", images.shape[1:], NUM_CLASSES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(1e-2), loss)
    teacher.fit(images[:-UNSEEN], labels[:-UNSEEN], BATCH, epochs=2, verbose=0)
    return images, labels, models.features(teacher, FEATURES).predict(images, BATCH, verbose=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_alone_trains_a_student_of_digits(digits, name):
    assert relative_loss(name, *digits, steps=30) < 0.7


@pytest.fixture(scope="module")
def cifar10(shared):
    """Images of CIFAR-10 and the features of the trained ResNet-56."""
    split = stkd_keras.data.load("cifar10", data_dir=shared / "data" / "tfds").train
    index = tf.range(2048 + UNSEEN)
    images, labels = (each.numpy() for each in split.fetch(index))
    images = images.astype("float32")
    teacher = models.load(
        "resnet56",
        input_shape=images.shape[1:],
        num_classes=NUM_CLASSES,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights=shared / "weights" / "resnet56-cifar10.safetensors",
    )
    return images, labels, models.features(teacher, FEATURES).predict(images, BATCH, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_alone_trains_a_student_of_cifar10(cifar10, name):
    assert relative_loss(name, *cifar10, steps=300) < 0.7
