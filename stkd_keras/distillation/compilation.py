"""Compiles training and evaluation steps: with XLA, on several replicas, many steps at once."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from stkd_keras.distillation.inputs import PreparedInputs
from stkd_keras.distribution.replicas import compiled_on_replica, first_local_batch


class CompiledSteps(PreparedInputs):
    """Base class of the distiller: how Keras turns its steps into TensorFlow programs.

    Unlike in Keras, XLA also compiles with several replicas (each replica's forward and backward
    pass is a program; the gradients are reduced outside) and with deterministic operations.
    """

    # Of the current epoch, if it's known; set by EndEpochExactly.
    steps_left: int | None = None
    # Keras's, of the newest `fit` or `evaluate`; for EndEpochExactly.
    epoch_iterator: Callable[[], Any] | None = None

    def compile(self, jit_compile="auto", **kwargs):
        super().compile(jit_compile=False, **kwargs)
        self._requested_jit = jit_compile
        # Keras itself refuses XLA with deterministic operations, and "auto" with several replicas.
        wanted = self._prefers_xla() if jit_compile == "auto" else bool(jit_compile)
        supported = all(layer.supports_jit for layer in self._flatten_layers())
        self._jit_compile = wanted and supported and not self.run_eagerly
        if jit_compile is True and not self._jit_compile:
            reason = "run_eagerly is True" if self.run_eagerly else "a layer doesn't support it"
            warnings.warn(f"jit_compile=True has no effect: {reason}", stacklevel=3)

    def get_compile_config(self) -> dict:
        config = super().get_compile_config()
        return {**config, "jit_compile": self._requested_jit} if config else config

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            many = self.steps_per_execution > 1
            self.train_function = (
                self._many_steps() if many else self._make_function(self.train_step)
            )
        return self.train_function

    def _make_function(self, step_function):
        is_jit = self._jit_compile
        # XLA can't compile the reduction over replicas; `_on_replica` compiles what's before it.
        self._jit_compile = is_jit and self.distribute_strategy.num_replicas_in_sync == 1
        try:
            return super()._make_function(step_function)
        finally:
            self._jit_compile = is_jit

    def _on_replica(self, function: Callable, when_empty: Callable) -> Callable:
        """Compiles a part of a replica's step with XLA, unless the whole step is compiled."""
        if self.jit_compile and self.distribute_strategy.num_replicas_in_sync > 1:
            return compiled_on_replica(function, when_empty)
        return function

    def _prefers_xla(self) -> bool:
        """Whether "auto" means XLA."""
        # Apple's GPUs come with a plugin, which has no XLA.
        on_gpu = tf.test.is_built_with_gpu_support() and tf.config.list_physical_devices("GPU")
        return self._resolve_auto_jit_compile() or bool(on_gpu)

    def _many_steps(self) -> Callable:
        """Returns a train function that runs `steps_per_execution` steps, or those that are left.

        With XLA, all steps are one program. If batches may differ in size, each step is one.
        """
        most = self.steps_per_execution
        one_step = self.train_step
        if self.jit_compile:
            one_step = tf.function(
                one_step, autograph=False, reduce_retracing=True, jit_compile=True
            )

        def train_function(iterator) -> Any:
            count = tf.constant(min(self.steps_per_execution, self.steps_left or most))
            spec = tf.nest.flatten(iterator.element_spec)
            if self.jit_compile and all(each.shape.is_fully_defined() for each in spec):
                count, batches = collect(iterator, count)
                logs = program(count, batches) if count else {}
            else:
                count, logs = loop(iterator, count)
            if not count:
                raise StopIteration
            return logs

        def loop(iterator, count):
            def step(n, batch):
                one_step(batch)
                return (n + 1,)

            (taken,) = _for_each_batch(iterator, count, step, [tf.constant(0)])
            return taken, self.get_metrics_result()

        if not self.run_eagerly:
            loop = tf.function(loop, autograph=False)

        @tf.function(autograph=False)
        def collect(iterator, count):
            return _stacked(iterator, count, most)

        @tf.function(autograph=False, jit_compile=True)
        def program(count, batches):
            def step(n):
                self.train_step(tf.nest.map_structure(lambda each: each[n], batches))
                return n + 1

            tf.while_loop(lambda n: n < count, step, [tf.constant(0)])
            return self.get_metrics_result()

        return train_function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None:
            self.epoch_iterator = weakref.ref(iterator)
        if self._distribute_strategy is not None:
            data_batch = first_local_batch(iterator, data_batch, self.distribute_strategy)
            with self.distribute_strategy.scope():
                self._symbolic_build(data_batch=data_batch)


def _stacked(iterator, count: tf.Tensor, most: int):
    """Takes up to `count` batches; returns their number, and the batches stacked to (most, ...)."""
    spec = iterator.element_spec
    arrays = [
        tf.TensorArray(each.dtype, most, element_shape=each.shape) for each in tf.nest.flatten(spec)
    ]

    def write(n, arrays, batch):
        values = tf.nest.flatten(batch)
        return n + 1, [array.write(n, x) for array, x in zip(arrays, values, strict=True)]

    taken, arrays = _for_each_batch(iterator, count, write, [tf.constant(0), arrays])
    return taken, tf.nest.pack_sequence_as(spec, [array.stack() for array in arrays])


def _for_each_batch(iterator, count: tf.Tensor, step: Callable, state: list) -> list:
    """Calls step(*state, batch) for up to `count` batches; the state begins with their number."""

    def body(*state_and_next):
        *state, batch = state_and_next
        state = step(*state, batch.get_value())
        more = state[0] < count
        return *state, tf.cond(more, iterator.get_next_as_optional, lambda: batch)

    *state, _ = tf.while_loop(
        lambda n, *rest: (n < count) & rest[-1].has_value(),
        body,
        [*state, iterator.get_next_as_optional()],
    )
    return state
