"""Each method alone trains a student: its loss falls on images that it wasn't trained on."""

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
STEPS = 30
# VID's variances start far from their final values, and CRD's memory banks lag behind.
MORE_STEPS = {"vid": 5, "crd": 7}
LEARNING_RATES = {"crd": 3e-3}
# Adapters, a pretraining stage, a loss of maps, a loss of logits: the other methods are slow tests.
EVERY_RUN = ("at", "dkd", "fitnet", "ft")


class Trainer:
    """Trains a student and a term's adapters with the term alone."""

    def __init__(self, name, images, labels, teacher_features, steps):
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
        self.images, self.soft_labels = tf.constant(images), tf.one_hot(labels, NUM_CLASSES)
        self.teacher = {
            feature: tf.constant(teacher_features[feature]) for feature in self.term.features
        }
        self.optimizer = keras.optimizers.Adam(LEARNING_RATES.get(name, 1e-2))
        self.loss(tf.range(BATCH))
        self.step = tf.function(self._step)

    def loss(self, index, pretrains=False):
        student = self.student(tf.gather(self.images, index), training=True)
        teacher = {name: tf.gather(values, index) for name, values in self.teacher.items()}
        labels = tf.gather(self.soft_labels, index)
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
            # Fills the memory banks with the embeddings of the unseen images.
            for index in batches:
                self.loss(index)
        return np.mean([self.loss(index) for index in batches])


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits, and the features of a teacher that was trained on them briefly."""
    split = stkd_keras.data.load("digits").train
    images = split.images[: 512 + UNSEEN].astype("float32")
    labels = split.labels[: 512 + UNSEEN]
    keras.utils.set_random_seed(1)
    teacher = models.build("resnet8", images.shape[1:], NUM_CLASSES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(1e-2), loss)
    teacher.fit(images[:-UNSEEN], labels[:-UNSEEN], BATCH, epochs=2, verbose=0)
    return images, labels, models.features(teacher, FEATURES).predict(images, BATCH, verbose=0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in EVERY_RUN else pytest.mark.slow) for n in NAMES]
)
def test_a_method_alone_trains_a_student(digits, name):
    trainer = Trainer(name, *digits, MORE_STEPS.get(name, 1) * STEPS)
    if name == "ft":
        trainer.train(pretrains=True)
    before = trainer.unseen_loss()
    trainer.train()
    assert trainer.unseen_loss() / before < 0.7
