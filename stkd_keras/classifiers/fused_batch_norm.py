"""Batch normalization with TensorFlow's fused op in plain Keras models."""

import types

import keras
import tensorflow as tf

_FUSED_DTYPES = (tf.float32, tf.float16, tf.bfloat16)


def fuse_batch_normalization(model: keras.Model) -> keras.Model:
    """Makes a model compute batch normalization with TensorFlow's fused op.

    The results are those of Keras, which uses several ops, but take less time. Classes, configs
    and weights don't change, so a saved model is plain Keras. Call this function again on a
    cloned or loaded model.

    It applies to every `keras.layers.BatchNormalization` (but not its subclasses) in the model
    and its nested models and layers. A layer keeps Keras's computation if the fused op doesn't
    support its case: `renorm`, `synchronized`, `epsilon` below 1e-5 (cuDNN's minimum), an axis
    other than the last of four, float64 or integer inputs, or a mask.

    With an empty batch, which a replica of a `tf.distribute.MirroredStrategy` may get, the moving
    statistics keep their values; those of Keras become NaN.

    Args:
        model: the model, changed in place; a second call has no effect.

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
    """Whether `fuse_batch_normalization` was applied to a model."""
    return any(
        getattr(vars(layer).get("call"), "__func__", None) is _call
        for layer in model._flatten_layers()
    )


def _has_fused_form(layer: keras.layers.BatchNormalization) -> bool:
    is_plain = not (layer.renorm or layer.synchronized or "call" in vars(layer))
    return is_plain and layer.axis in (-1, 3) and layer.epsilon >= 1e-5


def _call(layer: keras.layers.BatchNormalization, inputs, training=None, mask=None):
    """Replaces `keras.layers.BatchNormalization.call`."""
    is_image_batch = len(inputs.shape) == 4 and inputs.dtype in _FUSED_DTYPES
    if mask is not None or not is_image_batch:
        return keras.layers.BatchNormalization.call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1]
    scale = _float32(layer.gamma) if layer.scale else tf.ones([channels])
    mean, variance = _float32(layer.moving_mean), _float32(layer.moving_variance)
    uses_batch_statistics = bool(training and layer.trainable)
    if uses_batch_statistics:
        count = tf.cast(tf.size(inputs, out_type=tf.int64) // channels, tf.float32)
        # For an empty batch, XLA's gradient of the scale is NaN; ones have no gradient.
        scale = tf.where(count > 0, scale, tf.ones_like(scale))
        # The op would average given statistics with the batch's in its own way.
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
    # The op's variance is unbiased, Keras averages the biased one. For one value both are zero.
    biased = tf.where(count > 1, variance * ((count - 1) / count), tf.zeros_like(variance))
    for moving, batch in ((layer.moving_mean, mean), (layer.moving_variance, biased)):
        old = _float32(moving)
        new = old * layer.momentum + batch * (1.0 - layer.momentum)
        moving.assign(tf.where(count > 0, new, old))


def _float32(variable) -> tf.Tensor:
    return keras.ops.cast(variable, "float32")
