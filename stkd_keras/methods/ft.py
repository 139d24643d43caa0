"""Factor transfer: FT."""

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import layers

from stkd_keras.errors import InputError
from stkd_keras.methods.adapters import Adapter, batch_normalization
from stkd_keras.methods.arithmetic import per_sample_mean, pooled_alike, squared_error
from stkd_keras.methods.attention import attention_map
from stkd_keras.methods.base import PretrainedTerm


@keras.saving.register_keras_serializable("stkd_keras")
class FT(PretrainedTerm):
    """Factor transfer: the student predicts compressed features ("factors") of the teacher.

    Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
    arXiv 1802.04977. In the pretraining stage, a paraphraser (encoder and decoder) learns to
    reconstruct the teacher's maps t by the mean squared error, and the student is frozen. In
    github.com/HobbitLong/RepDistiller this takes 30 epochs with a learning rate of 0.01, which is
    the upper bound here. After that, with the encoder fixed, the loss of a sample is

        mean over positions of |a(translator(s)) - a(encoder(t))|,  a(f) = q / |q|,
        q = mean over channels of f^2

    as in RepDistiller (p1 = 2, p2 = 1). Encoder and translator are three 3x3 convolutions with
    leaky ReLUs of slope 0.1, the last two with half of the teacher's channels. The translator also
    has batch normalization. The decoder is three transposed convolutions.

    Args:
        features: the name of one map (B, H, W, C). Defaults to the last stage.
        weight: float, 200 by default (RepDistiller, scripts/run_cifar_distill.sh).
        pretraining_steps: integer, at least 0, the length of the pretraining stage. With 0 the
            paraphraser keeps its random weights.
    """

    feature_rank = 4
    pretrains_student = False
    # With 0.1, a common rate of the main training, the paraphraser diverges.
    highest_pretraining_learning_rate = 0.01

    def __init__(
        self, features=("stage3",), weight=200.0, pretraining_steps=0, name="ft", **kwargs
    ):
        super().__init__(features, weight, pretraining_steps, name, **kwargs)
        if len(self.features) != 1:
            raise InputError(f"features of {name} is {features!r}; expected one name")

    def build(self, student_shape, teacher_shape, labels_shape):
        super().build(student_shape, teacher_shape, labels_shape)
        ((feature, student, teacher),) = self.shape_pairs(student_shape, teacher_shape)
        channels = teacher[-1]
        if channels < 2:
            raise InputError(
                f"{feature} of the teacher has {channels} channel, but {self.name} needs at least "
                "2, since it halves their number; choose another feature"
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
        ((s, t),) = self.pairs(student, teacher)
        return factor_loss(self.translator(s), tf.stop_gradient(self.encoder(t)))

    @property
    def pretrained_layers(self):
        """The paraphraser."""
        return self.encoder, self.decoder

    def pretraining_loss(self, student, teacher, labels):
        """Returns the paraphraser's reconstruction error of each sample, (B,)."""
        ((_, t),) = self.pairs(student, teacher)
        return squared_error(self.decoder(self.encoder(t)), t)


def factor_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Returns the mean absolute difference of the normalized factors of each sample, (B,)."""
    student, teacher = pooled_alike(student, teacher)
    return per_sample_mean(tf.abs(attention_map(student) - attention_map(teacher)))


def _block(kind: type[layers.Layer], widths: Sequence[int], normalize: bool = False) -> list:
    """Returns 3x3 convolutions, each with its activation."""
    block: list[layers.Layer] = []
    for width in widths:
        block.append(kind(width, 3, padding="same", dtype="float32"))
        if normalize:
            block.append(batch_normalization())
        block.append(layers.LeakyReLU(0.1, dtype="float32"))
    return block
