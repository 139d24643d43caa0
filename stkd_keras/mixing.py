"""Virtual samples: mixtures of several training images, with their mixed labels."""

import keras
import tensorflow as tf

from stkd_keras.errors import (
    LARGEST,
    SMALLEST,
    InputError,
    is_positive,
    without_removed,
)
from stkd_keras.randomness import MIXING, dirichlet, random_bits, step_seed, uniforms

# Options of commit 1f4727a, each with the value that files of today stand for.
REMOVED = {"partners": "any", "labels": "mixed"}


class _Mixing:
    """What all mixings share: who is mixed with whom and how much, and the labels."""

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
            x: tensor of shape (B, ...), images (B, H, W, channels) for `CutMix`; integers become
                float32, floats keep their dtype.
            y: tensor of shape (B, C): labels as rows (one-hot, or any other distribution).
            sample_weight: None, or tensor of shape (B,) or (B, 1).
            seed: pair of integers, as in `tf.random.stateless_uniform`.

        Returns:
            (x, y, sample_weight), each of the shape that was given.

        Raises:
            InputError: where `y` isn't rows.
        """
        x, y = _as_floats(x), _as_floats(y)
        _check_rows(x, y)
        partners, weights = self.draw(tf.shape(x)[0], seed=seed)
        x, weights = self._mix_images(x, partners, weights, seed)
        y = _weighted_sum(y, partners, weights)
        if sample_weight is not None:
            sample_weight = _weighted_sum(_as_floats(sample_weight), partners, weights)
        return x, y, sample_weight

    def mix_outputs(self, outputs, x, y, *, seed) -> tf.Tensor:
        """Mixes what a model gave for each sample in the shares that `__call__` mixes them in.

        Args:
            outputs: float tensor (B, C).
            x: as in `__call__`.
            y: likewise.
            seed: likewise.

        Returns:
            Tensor of the shape and dtype of `outputs`.
        """
        x, y = _as_floats(x), _as_floats(y)
        partners, weights = self.draw(tf.shape(x)[0], seed=seed)
        _, weights = self._mix_images(x, partners, weights, seed)
        return _weighted_sum(_as_floats(outputs), partners, weights)

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
        order = random_bits((self.num_images - 1, batch_size), seeds[0])
        others = tf.argsort(order, axis=1, stable=True)
        partners = tf.concat([tf.range(batch_size)[None], others], axis=0)

        rows = 1 if self.per_batch else batch_size
        weights = dirichlet(self.alpha, rows, self.num_images, seeds[1])
        # A uniform draw below 1 is never below probability 0 and always below probability 1.
        is_mixed = uniforms((rows, 1), seeds[2]) < self.probability
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
    def from_config(cls, config: dict):
        """Makes it anew from what `get_config` returned."""
        return cls(**without_removed(config, REMOVED))

    def _mix_images(self, x, partners, weights, seed):
        """Returns the mixed images, and the share that each image has in them."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("stkd_keras")
class Mixup(_Mixing):
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

    def _mix_images(self, x, partners, weights, seed):
        return _weighted_sum(x, partners, weights), weights


@keras.saving.register_keras_serializable("stkd_keras")
class CutMix(_Mixing):
    """Pastes a box of another image of the batch into each image (arXiv 1905.04899).

    With l ~ Beta(alpha, alpha), the box has the share 1 - l of the image's area, its centre is
    uniform over the image, and what lies outside is cut off. The label is mixed by the area that
    is left. Otherwise as `Mixup`, but each sample has a box of its own (in the paper one a batch)
    and there are two images.

    Args:
        alpha: positive float, the concentration of the box's share.
        probability: as of `Mixup`.
        per_batch: whether one share is drawn for the whole batch; each sample has a place of its
            own all the same.

    Raises:
        InputError: where an argument is outside its range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        probability: float = 1.0,
        per_batch: bool = False,
    ):
        super().__init__(alpha, 2, probability, per_batch)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        config = super().get_config()
        del config["num_images"]
        return config

    def _mix_images(self, x, partners, weights, seed):
        if x.shape.rank != 4:
            raise InputError(
                f"inputs of shape {tuple(x.shape)} have no boxes to cut: CutMix takes images "
                "(B, H, W, channels); use Mixup"
            )
        seed = tf.random.experimental.stateless_fold_in(
            tf.cast(seed, tf.int64), tf.constant(0, tf.int64), alg="philox"
        )
        centre = uniforms((2, tf.shape(x)[0], 1), seed)
        side = tf.sqrt(tf.cast(weights[:, 1:], tf.float64))
        inside = [
            _between(centre[axis], side, tf.shape(x)[axis + 1]) for axis in range(2)
        ]  # (B, H) and (B, W)
        box = inside[0][:, :, None] & inside[1][:, None, :]
        share = tf.reduce_mean(tf.cast(box, tf.float32), axis=[1, 2])[:, None]
        mixed = tf.where(box[..., None], tf.gather(x, partners[:, 1]), x)
        return tf.ensure_shape(mixed, x.shape), tf.concat([1 - share, share], axis=1)


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


def mixed_outputs(mixing, mixing_steps: int | None, data_seed: int, outputs, x, y, step, replica=0):
    """Returns the mixtures of a model's outputs on the clean images of a training's step.

    Args:
        mixing: a `Mixup` or `CutMix`; None for no mixing.
        mixing_steps: as in `virtual_samples`.
        data_seed: likewise.
        outputs: float32 tensor (B, C), of the clean images.
        x: the clean images.
        y: their labels, rows.
        step: as in `virtual_samples`.
        replica: likewise.

    Returns:
        float32 tensor (B, C).
    """
    if mixing is None:
        return outputs

    def mix():
        seed = step_seed(data_seed, MIXING, step, replica)
        return mixing.mix_outputs(outputs, x, y, seed=seed)

    if mixing_steps is None:
        return mix()
    return tf.cond(step < mixing_steps, mix, lambda: outputs)


def _as_floats(values) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values if values.dtype.is_floating else tf.cast(values, tf.float32)


def _check_rows(x, y) -> None:
    if y.shape.rank != 2:
        raise InputError(
            f"labels of shape {tuple(y.shape)} can't be mixed: they must be rows (B, C); "
            "make integers one-hot first, as with keras.ops.one_hot(labels, num_classes)"
        )
    if None not in (x.shape[0], y.shape[0]) and x.shape[0] != y.shape[0]:
        raise InputError(f"there are {x.shape[0]} samples and {y.shape[0]} labels")


def _weighted_sum(values, partners, weights) -> tf.Tensor:
    """The sums of each sample's and its partners' values, (B, ...)."""
    shape = tf.concat([tf.shape(weights)[:1], [1] * (values.shape.rank - 1)], axis=0)
    total = 0.0
    for k in range(weights.shape[1]):
        share = tf.reshape(tf.cast(weights[:, k], values.dtype), shape)
        total += share * (values if k == 0 else tf.gather(values, partners[:, k]))
    return tf.ensure_shape(total, values.shape)


def _between(centre, side, size) -> tf.Tensor:
    """Which pixels of a row the box covers, bool (B, size).

    Args:
        centre: float64 (B, 1), in [0, 1) of the size.
        side: float64 (B, 1), the box's, likewise.
        size: scalar integer tensor, pixels.
    """
    length = tf.floor(side * tf.cast(size, tf.float64))
    first = tf.floor(centre * tf.cast(size, tf.float64)) - tf.floor(length / 2)
    pixel = tf.cast(tf.range(size), tf.float64)[None]
    return (pixel >= first) & (pixel < first + length)
