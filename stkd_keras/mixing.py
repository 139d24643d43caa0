"""Virtual samples: mixtures of several training images and their labels."""

import keras
import tensorflow as tf

from stkd_keras.errors import LARGEST, SMALLEST, InputError, is_positive, without_removed
from stkd_keras.randomness import (
    MIXING,
    dirichlet,
    fold_in,
    random_bits,
    split_seed,
    step_seed,
    uniforms,
)

# Options that were removed after commit 1f4727a, with the values that match the current behavior.
REMOVED = {"partners": "any", "labels": "mixed"}


class _Mixing:
    """Base class of mixings: draws partners and weights, and mixes the labels."""

    def __init__(
        self,
        alpha: float = 1.0,
        num_images: int = 2,
        probability: float = 1.0,
        per_batch: bool = False,
    ):
        if not is_positive(alpha):
            raise InputError(
                f"alpha is {alpha}, but must be a number from {SMALLEST:g} to {LARGEST:g}: the "
                "concentration of the Beta distribution of the mixing weights (pass probability=0 "
                "for no mixing)"
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
        """Mixes a batch."""
        x, y = _as_floats(x), _as_floats(y)
        _check_labels(x, y)
        partners, weights = self._draw(_batch_size(x), seed)
        x, weights = self._mix_images(x, partners, weights, seed)
        y = _weighted_sum(y, partners, weights)
        if sample_weight is not None:
            sample_weight = _weighted_sum(_as_floats(sample_weight), partners, weights)
        return x, y, sample_weight

    def mix_outputs(self, outputs, x, y, *, seed) -> tf.Tensor:
        """Mixes a model's outputs on a batch as `__call__` mixes the labels."""
        x = _as_floats(x)
        partners, weights = self._draw(_batch_size(x), seed)
        _, weights = self._mix_images(x, partners, weights, seed)
        return _weighted_sum(_as_floats(outputs), partners, weights)

    def draw(self, batch_size, *, seed) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws the image indices and weights of each mixture, both (B, num_images)."""
        partners, weights = self._draw(batch_size, seed)
        weights = [tf.broadcast_to(weight, tf.shape(partners[0])) for weight in weights]
        return tf.stack([tf.range(batch_size), *partners], 1), tf.stack(weights, 1)

    def _draw(self, batch_size, seed) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Draws the other images' indices (B,) and all weights (B,), or (1,) with `per_batch`."""
        seeds = tf.unstack(split_seed(seed, 3))
        order = random_bits((self.num_images - 1, batch_size), seeds[0])
        # Sorts stably in ascending order.
        others = tf.math.top_k(tf.bitwise.invert(order), batch_size).indices

        count = 1 if self.per_batch else batch_size
        weights = dirichlet(self.alpha, count, self.num_images, seeds[1])
        # Draws are strictly between 0 and 1, so probabilities 0 and 1 are exact.
        if self.probability < 1:
            is_mixed = uniforms((count, 1), seeds[2]) < self.probability
            weights = tf.where(
                is_mixed, weights, tf.one_hot([0], self.num_images, dtype=weights.dtype)
            )
        return tf.unstack(others), tf.unstack(tf.cast(weights, tf.float32), axis=1)

    def get_config(self) -> dict:
        return {
            "alpha": self.alpha,
            "num_images": self.num_images,
            "probability": self.probability,
            "per_batch": self.per_batch,
        }

    @classmethod
    def from_config(cls, config: dict):
        return cls(**without_removed(config, REMOVED))

    def _mix_images(self, x, partners, weights, seed):
        """Returns the mixed images and the share of each source image, as in `_draw`."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("stkd_keras")
class Mixup(_Mixing):
    """Mixes each sample of a batch with others of the same batch (arXiv 1710.09412).

    With a permutation p of the batch and l ~ Beta(alpha, alpha), sample i becomes
    `l * x[i] + (1 - l) * x[p(i)]`; labels and sample weights are mixed in the same way. With more
    than two images, the weights are drawn from Dirichlet(alpha, ..., alpha), and each additional
    image has its own permutation. Mixup is a pure function of its arguments, returns the same
    mixtures with and without XLA, and also works in a tf.data pipeline.

    Args:
        alpha: positive float, the concentration of the weights. Samples are almost unmixed near 0,
            weights are uniform at 1, and nearly equal for large values.
        num_images: integer, at least 2, the number of images in a mixture.
        probability: float in [0, 1], the fraction of samples (with `per_batch`, of batches) to mix.
        per_batch: whether to draw one weight vector per batch instead of one per sample.

    Raises:
        InputError: if an argument is out of range.

    Example:

    ```python
    mixup = stkd_keras.Mixup(alpha=1.0)
    images, labels, weights = mixup(images, one_hot_labels, None, seed=(1, 2))
    ```
    """

    def _mix_images(self, x, partners, weights, seed):
        return _weighted_sum(x, partners, weights), weights


@keras.saving.register_keras_serializable("stkd_keras")
class CutMix(_Mixing):
    """Pastes a box of another image of the batch into each image (arXiv 1905.04899).

    With l ~ Beta(alpha, alpha), the box has the share 1 - l of the image's area. Its center is
    uniform over the image, and the box is clipped at the image's edges. The labels are mixed by
    the clipped area. Unlike in the paper, each sample has its own box.

    Args:
        alpha: positive float, the concentration of the box's share.
        probability: see `Mixup`.
        per_batch: whether to draw one share per batch; the positions of the boxes still differ.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0, per_batch: bool = False):
        super().__init__(alpha, 2, probability, per_batch)

    def get_config(self) -> dict:
        config = super().get_config()
        del config["num_images"]
        return config

    def _mix_images(self, x, partners, weights, seed):
        if x.shape.rank != 4:
            raise InputError(
                f"inputs of shape {tuple(x.shape)} have no boxes to cut: CutMix takes images "
                "(B, H, W, channels); use Mixup"
            )
        seed = fold_in(seed, 0)
        center = uniforms((2, tf.shape(x)[0], 1), seed)
        side = tf.sqrt(tf.cast(weights[1], tf.float64))[:, None]
        rows, columns = (_is_within(center[axis], side, tf.shape(x)[axis + 1]) for axis in range(2))
        box = rows[:, :, None] & columns[:, None, :]
        share = tf.reduce_mean(tf.cast(box, tf.float32), axis=[1, 2])
        mixed = tf.where(box[..., None], tf.gather(x, partners[0]), x)
        return tf.ensure_shape(mixed, x.shape), [1 - share, share]


@keras.saving.register_keras_serializable("stkd_keras")
class MixupOrCutMix(CutMix):
    """Mixes each sample by `Mixup` or by `CutMix`, with equal probability.

    Args:
        alpha: positive float, the concentration of the weights of both.
        probability: see `Mixup`.
        per_batch: see `Mixup`; each sample still draws one of the two.

    Raises:
        InputError: if an argument is out of range.
    """

    def _mix_images(self, x, partners, weights, seed):
        cut, shares = super()._mix_images(x, partners, weights, seed)
        is_cut = uniforms((_batch_size(x),), fold_in(seed, 1)) < 0.5
        blended = _weighted_sum(x, partners, weights)
        mixed = tf.where(is_cut[:, None, None, None], cut, blended)
        return mixed, [tf.where(is_cut, *pair) for pair in zip(shares, weights, strict=True)]


def mix_batch(
    mixing, mixing_steps: int | None, data_seed: int, x, y, sample_weight, step, replica=0
):
    """Returns the virtual samples (x, y, sample_weight) of a training step."""
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


def mix_batch_outputs(
    mixing, mixing_steps: int | None, data_seed: int, outputs, x, y, step, replica=0
) -> tf.Tensor:
    """Mixes a model's outputs (B, C) on the original images as `mix_batch` mixes the labels."""

    def mix():
        return mixing.mix_outputs(outputs, x, y, seed=step_seed(data_seed, MIXING, step, replica))

    if mixing_steps is None:
        return mix()
    return tf.cond(step < mixing_steps, mix, lambda: outputs)


def _as_floats(values) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values if values.dtype.is_floating else tf.cast(values, tf.float32)


def _check_labels(x, y) -> None:
    if y.shape.rank != 2:
        raise InputError(
            f"labels of shape {tuple(y.shape)} can't be mixed: they must be one-hot or soft labels "
            "(B, C); convert integers with keras.ops.one_hot(labels, num_classes)"
        )
    if None not in (x.shape[0], y.shape[0]) and x.shape[0] != y.shape[0]:
        raise InputError(f"there are {x.shape[0]} samples and {y.shape[0]} labels")


def _batch_size(x: tf.Tensor):
    return x.shape[0] or tf.shape(x)[0]


def _weighted_sum(values, partners, weights) -> tf.Tensor:
    """Returns the weighted sum of each sample and its partners, (B, ...)."""
    shape = [-1] + [1] * (values.shape.rank - 1)
    sources = [values, *(tf.gather(values, each) for each in partners)]
    shares = [tf.reshape(tf.cast(weight, values.dtype), shape) for weight in weights]
    total = shares[0] * sources[0]
    for share, source in zip(shares[1:], sources[1:], strict=True):
        total += share * source
    return total if total.shape == values.shape else tf.ensure_shape(total, values.shape)


def _is_within(center, side, size) -> tf.Tensor:
    """Returns which pixels along an axis the box covers, bool (B, size)."""
    length = tf.floor(side * tf.cast(size, tf.float64))
    first = tf.floor(center * tf.cast(size, tf.float64)) - tf.floor(length / 2)
    pixel = tf.cast(tf.range(size), tf.float64)[None]
    return (pixel >= first) & (pixel < first + length)
