"""Virtual samples: mixtures of several training images, with their mixed labels."""

import math

import keras
import tensorflow as tf

from stkd_keras.errors import LARGEST, SMALLEST, InputError, is_positive
from stkd_keras.randomness import MIXING, step_seed

# Marsaglia and Tsang accept a try with a probability of at least 0.95 where the shape is at
# least 1, so that all of these are refused about once in 10^10 draws.
GAMMA_TRIES = 8


@keras.saving.register_keras_serializable("stkd_keras")
class Mixup:
    """Mixes each sample of a batch with others of the same batch (arXiv 1710.09412).

    With a permutation p of the batch and l ~ Beta(alpha, alpha), sample i becomes
    `l * x[i] + (1 - l) * x[p(i)]`, and its label and its sample weight likewise. With more
    than two images the weights are drawn from Dirichlet(alpha, ..., alpha), and each further
    image comes from a permutation of its own. It is a pure function of its arguments, gives the
    same mixtures with and without XLA, and can be used in a tf.data pipeline too.

    Args:
        alpha: positive float, the concentration of the weights: near 0 hardly mixed, 1 uniform,
            large near equal shares.
        num_images: integer, at least 2: images a mixture.
        probability: float in [0, 1], the share of samples (with `per_batch`, of batches) that
            are mixed; the others stay as they are.
        per_batch: whether one weight vector is drawn for the whole batch in place of one for
            each sample.

    Raises:
        InputError: where an argument is outside its range.

    Example:

    ```python
    mixup = stkd_keras.Mixup(alpha=1.0)
    images, labels, weights = mixup(images, one_hot_labels, None, seed=(1, 2))
    ```
    """

    def __init__(
        self,
        alpha: float = 1.0,
        num_images: int = 2,
        probability: float = 1.0,
        per_batch: bool = False,
    ):
        if not is_positive(alpha):
            raise InputError(
                f"alpha is {alpha}, but must be a number from {SMALLEST:g} to {LARGEST:g}: it is "
                "the concentration of the Beta distribution of the mixing weights (no mixing is "
                "probability 0)"
            )
        if num_images != int(num_images) or num_images < 2:
            raise InputError(f"num_images is {num_images}, but a mixture has at least 2 images")
        if not 0 <= probability <= 1:
            raise InputError(f"probability is {probability}, but must be from 0 to 1")
        self.alpha = float(alpha)
        self.num_images = int(num_images)
        self.probability = float(probability)
        self.per_batch = bool(per_batch)

    def __call__(self, x, y, sample_weight=None, *, seed):
        """Mixes a batch.

        Args:
            x: tensor of shape (B, ...); integers become float32, floats keep their dtype.
            y: tensor of shape (B, C): labels as rows (one-hot, or any other distribution).
            sample_weight: None, or tensor of shape (B,) or (B, 1).
            seed: pair of integers, as in `tf.random.stateless_uniform`.

        Returns:
            (x, y, sample_weight), each of the shape that was given.

        Raises:
            InputError: where `y` isn't rows.
        """
        x, y = _as_floats(x), _as_floats(y)
        if y.shape.rank != 2:
            raise InputError(
                f"labels of shape {tuple(y.shape)} can't be mixed: they must be rows (B, C); "
                "make integers one-hot first, as with keras.ops.one_hot(labels, num_classes)"
            )
        if None not in (x.shape[0], y.shape[0]) and x.shape[0] != y.shape[0]:
            raise InputError(f"there are {x.shape[0]} samples and {y.shape[0]} labels")
        partners, weights = self.draw(tf.shape(x)[0], seed=seed)

        def mixed(values):
            values = _as_floats(values)
            shape = tf.concat([tf.shape(weights)[:1], [1] * (values.shape.rank - 1)], axis=0)
            total = 0.0
            for k in range(self.num_images):
                share = tf.reshape(tf.cast(weights[:, k], values.dtype), shape)
                total += share * (values if k == 0 else tf.gather(values, partners[:, k]))
            return tf.ensure_shape(total, values.shape)

        return mixed(x), mixed(y), None if sample_weight is None else mixed(sample_weight)

    def draw(self, batch_size, *, seed) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws who is mixed with whom and how much.

        Args:
            batch_size: integer, or scalar integer tensor.
            seed: pair of integers.

        Returns:
            partners: int32 tensor of shape (B, num_images): the images of each mixture; the
                first is the sample itself.
            weights: float32 tensor of shape (B, num_images) whose rows sum to 1.
        """
        seeds = tf.random.experimental.stateless_split(tf.cast(seed, tf.int64), num=3, alg="philox")
        order = _random_bits((self.num_images - 1, batch_size), seeds[0])
        permutations = tf.argsort(order, axis=1, stable=True)
        partners = tf.concat([tf.range(batch_size)[None], permutations], axis=0)

        rows = 1 if self.per_batch else batch_size
        weights = _dirichlet(self.alpha, rows, self.num_images, seeds[1])
        # A uniform draw below 1 is never below probability 0 and always below probability 1.
        is_mixed = _uniforms((rows, 1), seeds[2]) < self.probability
        alone = tf.one_hot([0], self.num_images, dtype=weights.dtype)
        weights = tf.where(is_mixed, weights, alone)
        weights = tf.broadcast_to(weights, (batch_size, self.num_images))
        return tf.transpose(partners), tf.cast(weights, tf.float32)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {
            "alpha": self.alpha,
            "num_images": self.num_images,
            "probability": self.probability,
            "per_batch": self.per_batch,
        }

    @classmethod
    def from_config(cls, config: dict) -> "Mixup":
        """Makes it anew from what `get_config` returned."""
        return cls(**config)


def virtual_samples(
    mixing, mixing_steps: int | None, data_seed: int, x, y, sample_weight, step, replica=0
):
    """Returns the virtual samples of a training's step; the samples where nothing is mixed.

    Args:
        mixing: a `Mixup`, or a callable with its signature; None for no mixing.
        mixing_steps: integer, steps after which mixing stops; None for never.
        data_seed: integer.
        x: float32 tensor (B, ...).
        y: float32 tensor (B, C), labels as rows.
        sample_weight: None, or float32 tensor (B,) or (B, 1).
        step: scalar integer tensor, the batches trained on before this one.
        replica: integer, or scalar integer tensor.

    Returns:
        (x, y, sample_weight).
    """
    if mixing is None:
        return x, y, sample_weight

    def mix():
        return mixing(x, y, sample_weight, seed=step_seed(data_seed, MIXING, step, replica))

    if mixing_steps is None:
        return mix()
    still_mixes = step < mixing_steps
    if sample_weight is None:
        return *tf.cond(still_mixes, lambda: mix()[:2], lambda: (x, y)), None
    return tf.cond(still_mixes, mix, lambda: (x, y, sample_weight))


def _as_floats(values) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values if values.dtype.is_floating else tf.cast(values, tf.float32)


def _random_bits(shape, seed) -> tf.Tensor:
    # Bits are the same on every device and under XLA; floating-point draws need not be.
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )


def _uniforms(shape, seed) -> tf.Tensor:
    """float64 draws strictly between 0 and 1, on a grid of 2^-32."""
    return (tf.cast(_random_bits(shape, seed), tf.float64) + 2.0**31 + 0.5) / 2.0**32


def _dirichlet(alpha: float, rows, columns: int, seed) -> tf.Tensor:
    """float64 draws of shape (rows, columns) from Dirichlet(alpha, ..., alpha).

    Normalised gamma draws, by Marsaglia and Tsang, "A simple method for generating gamma
    variables" (2000), with a fixed number of tries: TensorFlow's own gamma has no XLA kernel.
    Logarithms, because at alpha = 0.01 most gamma draws are below the smallest float.
    """
    uniforms = _uniforms((3 * GAMMA_TRIES + 1, rows, columns), seed)
    radius, angle, acceptance, boost = tf.split(uniforms, [GAMMA_TRIES] * 3 + [1])
    normal = tf.sqrt(-2.0 * tf.math.log(radius)) * tf.cos(2.0 * math.pi * angle)

    # The method needs a shape of at least 1; the boost below brings it back to alpha.
    d = alpha + (1.0 if alpha < 1 else 0.0) - 1.0 / 3.0
    v = tf.pow(tf.maximum(1.0 + normal / math.sqrt(9.0 * d), 1e-10), 3)
    bound = 0.5 * normal**2 + d * (1.0 - v + tf.math.log(v))
    accepted = (v > 1e-30) & (tf.math.log(acceptance) < bound)
    first_accepted = v[-1]
    for k in reversed(range(GAMMA_TRIES - 1)):
        first_accepted = tf.where(accepted[k], v[k], first_accepted)
    log_gamma = math.log(d) + tf.math.log(first_accepted)
    if alpha < 1:
        log_gamma += tf.math.log(boost[0]) / alpha
    return tf.nn.softmax(log_gamma, axis=1)
