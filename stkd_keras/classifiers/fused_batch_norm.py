"""Batch normalisation by TensorFlow's fused op, in models that stay plain Keras."""

import types

import keras
import tensorflow as tf

_FUSED_DTYPES = (tf.float32, tf.float16, tf.bfloat16)


def fuse_batch_normalization(model: keras.Model) -> keras.Model:
    """Makes a model's batch normalisation run as one fused op, forward and backward.

    Keras computes batch normalisation from its parts, mean and variance first; TensorFlow's fused
    op gives the same numbers and takes less time.
    Only how the layers compute changes: class, configuration and weights are as before, so a
    saved model is plain Keras. A model that is cloned or loaded computes as Keras does until it
    is given to this function again.

    Every `keras.layers.BatchNormalization` (not its subclasses) of the model and of the models and
    layers inside it is treated. One keeps Keras's own computation where the fused op doesn't have
    its meaning: `renorm`, `synchronized`, `epsilon` under 1e-5 (cuDNN's least), an axis that isn't
    the last of four, float64 or integer inputs, and any call with a mask.

    One difference is meant: from a batch of zero examples, such as a replica of a
    `tf.distribute.MirroredStrategy` may get, the moving statistics stay as they are, where Keras's
    own turn into NaN.

    Args:
        model: the model; treating it again changes nothing.

    Returns:
        The same model.

    Example:

    ```python
    model = fuse_batch_normalization(keras.applications.MobileNetV2(weights=None))
    ```
    """
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.BatchNormalization and _has_fused_form(layer):
            layer.call = types.MethodType(_call, layer)
    return model


def has_fused_batch_normalization(model: keras.Model) -> bool:
    """Whether `fuse_batch_normalization` has treated a model."""
    return any(
        getattr(vars(layer).get("call"), "__func__", None) is _call
        for layer in model._flatten_layers()
    )


def _has_fused_form(layer: keras.layers.BatchNormalization) -> bool:
    """Whether the fused op can have the layer's meaning, going by its settings."""
    has_own_call = "call" in vars(layer)
    return (
        layer.axis in (-1, 3)
        and layer.epsilon >= 1e-5
        and not (layer.renorm or layer.synchronized or has_own_call)
    )


def _call(layer: keras.layers.BatchNormalization, inputs, training=None, mask=None):
    """Stands in for `keras.layers.BatchNormalization.call`, with the same arguments."""
    is_image_batch = len(inputs.shape) == 4 and inputs.dtype in _FUSED_DTYPES
    if mask is not None or not is_image_batch:
        return keras.layers.BatchNormalization.call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1]
    scale = _float32(layer.gamma) if layer.scale else tf.ones([channels])
    mean, variance = _float32(layer.moving_mean), _float32(layer.moving_variance)
    uses_batch_statistics = bool(training and layer.trainable)
    if uses_batch_statistics:
        count = tf.cast(tf.size(inputs, out_type=tf.int64) // channels, tf.float32)
        # XLA's gradient of the scale is NaN for zero examples; the ones have no gradient.
        scale = tf.where(count > 0, scale, tf.ones_like(scale))
        # Given statistics, the op would average them with the batch's by its own rule.
        mean = variance = tf.zeros([0])
    outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=_float32(layer.beta) if layer.center else tf.zeros([channels]),
        mean=mean,
        variance=variance,
        epsilon=layer.epsilon,
        is_training=uses_batch_statistics,
    )
    if uses_batch_statistics:
        _update_moving_statistics(layer, batch_mean, batch_variance, count)
    return tf.cast(outputs, layer.compute_dtype)


def _update_moving_statistics(layer, mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor):
    """Moves the layer's moving statistics towards a batch's."""
    # With one value the correction divides by zero; the variance of one value is zero.
    biased = tf.where(count > 1, variance * ((count - 1) / count), tf.zeros_like(variance))
    for moving, batch in ((layer.moving_mean, mean), (layer.moving_variance, biased)):
        old = _float32(moving)
        new = old * layer.momentum + batch * (1.0 - layer.momentum)
        moving.assign(tf.where(count > 0, new, old))


def _float32(variable) -> tf.Tensor:
    return keras.ops.cast(variable, "float32")
