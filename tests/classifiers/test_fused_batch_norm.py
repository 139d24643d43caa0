"""Fused batch normalization computes what Keras's own computes."""

import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras.classifiers.fused_batch_norm import fuse_batch_normalization

SHAPE = (5, 4, 6, 3)
# Float32 sums in another order; half precision rounds outputs to 11 (float16) or 8 bits.
TOLERANCE = {"float32": 2e-5, "mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}


def _model(shape=SHAPE, input_dtype="float32", **options):
    """A model of one batch normalization with random weights and statistics."""
    options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": "float32", **options}
    inputs = keras.Input(shape[1:], dtype=input_dtype)
    layer = keras.layers.BatchNormalization(**options)
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2.0, w.shape) for w in model.get_weights()])
    return model


def _step(model, x, weights, training=True):
    """Outputs, and the gradients of their weighted sum for inputs and weights."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = model(x, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weights)
    return [outputs, *tape.gradient(loss, [x, *variables])]


def _train(model, shape=SHAPE, steps=3, jit_compile=None):
    """Results of some training steps, and the weights after each."""
    step = _step if jit_compile is None else tf.function(_step, jit_compile=jit_compile)
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(steps):
        x, weights = rng.normal(3.0, 2.0, (2, *shape)).astype("float32")
        seen += [np.asarray(value, "float32") for value in step(model, tf.constant(x), weights)]
        seen += model.get_weights()
    return seen


def _assert_same(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max()))


def _fused_ops(model, **arguments):
    """Number of fused ops in the graph of a training call."""
    call = tf.function(lambda x: model(x, training=True, **arguments))
    graph = call.get_concrete_function(tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype))
    return sum(op.type == "FusedBatchNormV3" for op in graph.graph.get_operations())


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    dtype=st.sampled_from(list(TOLERANCE)),
    scale=st.booleans(),
    center=st.booleans(),
    momentum=st.sampled_from([0.0, 0.9, 0.99]),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
    axis=st.sampled_from([-1, 3]),
)
def test_training_steps_equal_those_of_keras(shape, dtype, **options):
    own = _model(shape, dtype=dtype, **options)
    fused = fuse_batch_normalization(_model(shape, dtype=dtype, **options))
    assert _fused_ops(fused) == 1
    # The input's gradient is the difference of near numbers where a channel hardly varies.
    _assert_same(_train(fused, shape), _train(own, shape), 10 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("dtype", "jit_compile"),
    [("float32", False), ("float32", True), ("mixed_float16", True), ("mixed_bfloat16", True)],
)
def test_training_steps_equal_those_of_keras_when_compiled(dtype, jit_compile):
    fused = fuse_batch_normalization(_model(dtype=dtype))
    actual = _train(fused, jit_compile=jit_compile)
    _assert_same(actual, _train(_model(dtype=dtype)), TOLERANCE[dtype])


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_and_frozen_layers_use_and_keep_the_moving_statistics(frozen):
    own, fused = _model(), fuse_batch_normalization(_model())
    own.trainable = fused.trainable = not frozen
    before = fused.get_weights()
    x, weights = np.random.default_rng(2).normal(size=(2, *SHAPE)).astype("float32")
    actual, expected = (_step(m, tf.constant(x), weights, frozen) for m in (fused, own))
    _assert_same(actual, expected, 2e-5)
    _assert_same(fused.get_weights(), before, 0)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (SHAPE, {"renorm": True}),
        (SHAPE, {"synchronized": True}),
        (SHAPE, {"epsilon": 1e-6}),
        (SHAPE, {"axis": 1}),
        (SHAPE, {"dtype": "float64", "input_dtype": "float64"}),
        ((5, 3), {}),
        ((5, 4, 3), {}),
        ((5, 2, 4, 6, 3), {}),
        ((5, 2, 4, 6, 3), {"axis": 3}),
    ],
    ids=str,
)
def test_unsupported_layers_keep_kerass_computation(shape, options):
    own, fused = _model(shape, **options), fuse_batch_normalization(_model(shape, **options))
    assert _fused_ops(fused) == 0
    x = np.random.default_rng(2).normal(size=shape)
    np.testing.assert_array_equal(fused(x, training=True), own(x, training=True))
    _assert_same(fused.get_weights(), own.get_weights(), 0)


def test_a_mask_is_used():
    own, fused = _model(), fuse_batch_normalization(_model())
    x = np.random.default_rng(2).normal(size=SHAPE).astype("float32")
    mask = np.random.default_rng(3).random(SHAPE[:-1]) < 0.5
    outputs = [m.layers[-1](x, training=True, mask=mask) for m in (fused, own)]
    np.testing.assert_array_equal(*outputs)
    _assert_same(fused.get_weights(), own.get_weights(), 0)


def test_layers_inside_models_and_layers_are_fused_and_subclasses_are_not():
    class Special(keras.layers.BatchNormalization):
        pass

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def call(self, x, training=None):
            return self.norm(x, training=training)

    inner = keras.Sequential([keras.Input(SHAPE[1:]), keras.layers.BatchNormalization()])
    inputs = keras.Input(SHAPE[1:])
    model = keras.Model(
        inputs, Special()(Block()(inner(keras.layers.BatchNormalization()(inputs))))
    )
    assert _fused_ops(fuse_batch_normalization(model)) == 3


def test_fusing_again_changes_nothing():
    model = fuse_batch_normalization(_model())
    once = model.layers[-1].call
    assert fuse_batch_normalization(model) is model
    assert model.layers[-1].call is once


def test_a_fused_model_can_be_part_of_another():
    fused = fuse_batch_normalization(_model())
    inputs = keras.Input(SHAPE[1:])
    whole = keras.Model(inputs, keras.layers.ReLU()(fused(inputs)))
    assert whole.output_shape == (None, *SHAPE[1:])
    assert _fused_ops(whole) == 1


@pytest.mark.parametrize(
    ("dtype", "jit_compile"),
    [("float32", None), ("float32", True), ("mixed_float16", True), ("mixed_bfloat16", False)],
)
def test_an_empty_batch_keeps_statistics_and_finite_gradients(dtype, jit_compile):
    model = fuse_batch_normalization(_model(dtype=dtype))
    before = model.get_weights()
    results = _train(model, (0, *SHAPE[1:]), steps=1, jit_compile=jit_compile)
    assert all(np.isfinite(value).all() for value in results)
    _assert_same(model.get_weights(), before, 0)


UNEVEN_BATCHES = """
import keras, numpy as np, tensorflow as tf
from stkd_keras.classifiers.fused_batch_norm import fuse_batch_normalization

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.BatchNormalization(momentum=0.5)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = fuse_batch_normalization(keras.Model(inputs, keras.layers.Dense(2)(x)))
    model.compile(optimizer="sgd", loss=keras.losses.MeanSquaredError())
model.fit(np.ones((5, 4, 4, 3)), np.ones((5, 2)), batch_size=4, epochs=2, verbose=0)
copies = [copy for weight in model.weights for copy in weight.value.values]
assert len(copies) == 2 * len(model.weights)
assert all(np.isfinite(copy).all() for copy in copies)
"""


def test_a_replica_without_examples_keeps_finite_weights(repository):
    command = [sys.executable, "-c", UNEVEN_BATCHES]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_saved_model_is_plain_keras(tmp_path):
    model = fuse_batch_normalization(_model())
    _train(model)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert b"stkd_keras" not in file.read("config.json")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert "call" not in vars(loaded.layers[-1])
    x = np.random.default_rng(2).normal(size=SHAPE).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-5)
