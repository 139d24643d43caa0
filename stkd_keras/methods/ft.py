"""The method that transfers factors of maps: FT."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from stkd_keras.errors import InputError
from stkd_keras.methods.adapters import Adapter, batch_normalization
from stkd_keras.methods.arithmetic import per_sample_mean, pooled_alike
from stkd_keras.methods.attention import attention_map
from stkd_keras.methods.base import PretrainedTerm


@keras.saving.register_keras_serializable("stkd_keras")
class FT(PretrainedTerm):
    """Factor transfer: a translator of the student's maps finds the factors of the teacher's.

    Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
    arXiv 1802.04977. First the paraphraser learns to encode and decode the teacher's maps t, by
    the mean squared error; the student isn't trained in this stage (in
    github.com/HobbitLong/RepDistiller 30 epochs with a learning rate of 0.01, which is the highest
    here). Then, with the encoder fixed, a sample's loss is

        mean over positions of |a(translator(s)) - a(encoder(t))|,  a(f) = q / |q|,
        q = mean over channels of f^2

    in RepDistiller's form (p1 = 2, p2 = 1). Encoder and translator are three 3x3 convolutions with
    leaky ReLUs of slope 0.1, the last two with half of the teacher's channels; the translator has
    batch normalisation as well, the decoder is three transposed convolutions.

    Args:
        features: name of maps (B, H, W, C), one; the last stage by default.
        weight: float, 200 by default (RepDistiller, scripts/run_cifar_distill.sh).
        pretraining_steps: integer, at least 0, the paraphraser's steps; with 0 it stays random.
        name: string.
    """

    feature_rank = 4
    pretrains_student = False
    # With 0.1, which suits the training, the error of the paraphraser soon isn't finite.
    highest_pretraining_learning_rate = 0.01

    def __init__(
        self,
        features: Sequence[str] = ("stage3",),
        weight: float = 200.0,
        pretraining_steps: int = 0,
        name: str = "ft",
        **kwargs: Any,
    ):
        super().__init__(features, weight, pretraining_steps, name, **kwargs)
        if len(self.features) != 1:
            raise InputError(f"features of {name} is {features!r}; expected one name")

    def build(self, student_shape, teacher_shape, labels_shape):
        """Makes the paraphraser, an encoder and a decoder, and the translator."""
        super().build(student_shape, teacher_shape, labels_shape)
        ((feature, student, teacher),) = self.shape_pairs(student_shape, teacher_shape)
        channels = teacher[-1]
        if channels < 2:
            raise InputError(
                f"{feature} of the teacher has {channels} channel, but {self.name} halves them; "
                "expected at least 2: name another feature"
            )
        factors = channels // 2
        self.encoder = Adapter(_block(layers.Conv2D, (channels, factors, factors)))
        self.decoder = Adapter(_block(layers.Conv2DTranspose, (factors, channels, channels)))
        widths = (student[-1], factors, factors)
        self.translator = Adapter(_block(layers.Conv2D, widths, normalize=True))
        self.encoder.build(teacher)
        self.decoder.build((*teacher[:-1], factors))
        self.translator.build(student)

    def call(self, student, teacher, labels):
        """Returns the loss of each sample, (B,)."""
        ((s, t),) = self.pairs(student, teacher)
        return factor_loss(self.translator(s), tf.stop_gradient(self.encoder(t)))

    @property
    def pretrained_layers(self):
        """The paraphraser."""
        return self.encoder, self.decoder

    def pretraining_loss(self, student, teacher, labels):
        """Returns the paraphraser's error of each sample, (B,); the layer has to be built."""
        ((_, t),) = self.pairs(student, teacher)
        return per_sample_mean(tf.math.squared_difference(self.decoder(self.encoder(t)), t))


def factor_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean difference of two normalised factors of each sample, (B,)."""
    student, teacher = pooled_alike(student, teacher)
    return per_sample_mean(tf.abs(attention_map(student) - attention_map(teacher)))


def _block(kind: type[layers.Layer], widths: Sequence[int], normalize: bool = False) -> list:
    """3x3 convolutions, each with its activation."""
    block: list[layers.Layer] = []
    for width in widths:
        block.append(kind(width, 3, padding="same", dtype="float32"))
        if normalize:
            block.append(batch_normalization())
        block.append(layers.LeakyReLU(0.1, dtype="float32"))
    return block
