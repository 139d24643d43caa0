"""Tests of how steps are compiled: many at once, with XLA, with deterministic operations."""

import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from distillers import make

SMALL = networks.small_convolutional_classifier


def endless(count=50, batch_size=8):
    """Batches that the number of examples doesn't divide."""
    x, y = networks.images(count)
    examples = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
    return examples.batch(batch_size, drop_remainder=True)


def train(steps_per_execution, jit_compile, batches):
    """Trains for two epochs of seven steps."""
    keras.utils.set_random_seed(0)
    distiller = make(SMALL(), SMALL())
    distiller.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"],
        steps_per_execution=steps_per_execution, jit_compile=jit_compile,
    )  # fmt: skip
    executions = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda n, logs: executions.append(n)
    )
    x, y = networks.images()
    history = distiller.fit(
        batches, epochs=2, steps_per_epoch=7, validation_data=(x, y), shuffle=False, verbose=0,
        callbacks=[callback],
    ).history  # fmt: skip
    assert int(distiller.step) == 14
    return history, distiller.get_weights(), len(executions)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_many_steps_at_once_equal_single_steps_and_end_each_epoch_exactly(jit_compile):
    history, weights, executions = train(1, False, endless())
    assert executions == 14
    for steps, count, batches in ((3, 6, endless().take(14)), (50, 2, endless())):
        other_history, other_weights, executions = train(steps, jit_compile, batches)
        assert executions == count
        assert set(other_history) == set(history)
        for name, values in history.items():
            np.testing.assert_allclose(other_history[name], values, rtol=1e-5, err_msg=name)
        for a, b in zip(weights, other_weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


class Recorder(keras.layers.Layer):
    """Records the first feature of each batch, by step; also with XLA."""

    def build(self, input_shape):
        self.seen = self.add_weight((40,), "zeros", trainable=False)
        self.count = self.add_weight((), "zeros", "int32", trainable=False)

    def call(self, x, training=False):
        if training:
            is_next = tf.range(40) == self.count.value
            self.seen.assign(tf.where(is_next, x[0, 0], self.seen.value))
            self.count.assign_add(1)
        return x


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}])
def test_each_epoch_takes_exactly_its_batches_in_order(options):
    numbers = np.arange(20, dtype="float32").repeat(8)
    x, y = numbers[:, None] * np.ones(4, "float32"), np.zeros(len(numbers), int)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)  # Of unknown size, for XLA.
    recorder = Recorder()
    inputs = keras.Input((4,))
    student = keras.Model(inputs, keras.layers.Dense(5)(recorder(inputs)))
    distiller = make(student, mixing=None)
    distiller.compile("sgd", steps_per_execution=4, **options)
    ends = []
    end = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(int(recorder.count))
    )
    distiller.fit(batches, epochs=2, steps_per_epoch=10, callbacks=[end], verbose=0)
    assert ends == [10, 20]
    np.testing.assert_array_equal(recorder.seen[:20], np.arange(20))


def test_xla_takes_a_smaller_last_batch_with_many_steps_at_once():
    x, y = networks.images(20)
    distiller = make(SMALL(), SMALL())
    distiller.compile("sgd", steps_per_execution=2, jit_compile=True)
    history = distiller.fit(x, y, batch_size=8, verbose=0).history
    assert int(distiller.step) == 3
    assert np.isfinite(history["loss"]).all()


def test_xla_that_has_no_effect_is_warned_of():
    with pytest.warns(UserWarning, match="run_eagerly"):
        make().compile("sgd", jit_compile=True, run_eagerly=True)


DETERMINISTIC = """
import numpy as np, tensorflow as tf
tf.config.experimental.enable_op_determinism()
from test_compilation import endless, train
(_, a, _), (_, b, _) = (train(4, True, endless()) for _ in range(2))
assert all((x == y).all() for x, y in zip(a, b, strict=True))
"""


@pytest.mark.process
def test_xla_is_deterministic_on_request(repository):
    folders = [repository, repository / "tests" / "support", repository / "tests" / "distillation"]
    program = f"import sys; sys.path[:0] = {[str(f) for f in folders]!r}\n{DETERMINISTIC}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "doesn't support" not in done.stderr
