"""Keras metrics for soft labels, of which some are missing."""

import keras
import tensorflow as tf


class Means(keras.metrics.Metric):
    """Means over all samples of several values of each batch.

    They share a variable, because each of Keras's metrics costs a dozen operations per step.
    """

    def __init__(self, names: list[str]):
        super().__init__(name="means")
        self.names = names
        self._totals = self.add_variable((1 + len(names),), "zeros", name="totals")

    def update_state(self, means: dict[str, tf.Tensor], batch_size):
        """Adds the means of a batch, which Keras divided by the number of replicas."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        values = tf.stack([1.0 / replicas, *(means.get(name, 0.0) for name in self.names)])
        self._totals.assign_add(values * (tf.cast(batch_size, tf.float32) * replicas))

    def result(self) -> dict:
        totals = tf.convert_to_tensor(self._totals)
        means = tf.math.divide_no_nan(totals[1:], totals[0])
        return dict(zip(self.names, tf.unstack(means), strict=True))


def adapt_metrics(metrics):
    """Adapts the metrics of `compile` to soft labels (B, C): rows of zeros are unlabeled."""
    if metrics is None:
        return None
    return keras.tree.map_structure(
        lambda m: OnHeaviestClass(m) if _is_sparse(m) else OnLabeled(m), metrics
    )


@keras.saving.register_keras_serializable("stkd_keras")
class OnLabeled(keras.metrics.Metric):
    """Passes labels (B, C) to a metric, with a weight of 0 for unlabeled samples.

    Removing these samples instead would make the shape depend on the data.
    """

    def __init__(self, metric, name: str | None = None, **kwargs):
        given = metric if isinstance(metric, str) else None
        if given in ("accuracy", "acc"):
            metric = keras.metrics.CategoricalAccuracy(name=given)
        resolved = keras.metrics.get(metric)
        if not isinstance(resolved, keras.metrics.Metric):
            resolved = keras.metrics.MeanMetricWrapper(resolved, name=_name(metric))
        super().__init__(name=name or given or resolved.name)
        self.metric = resolved
        if hasattr(resolved, "_direction"):
            # Keras's callbacks read it to see whether more is better.
            self._direction = resolved._direction

    def update_state(self, y_true, y_pred, sample_weight=None):
        weight = tf.cast(tf.reduce_any(y_true > 0, axis=1), tf.float32)
        if sample_weight is not None:
            weight *= tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
        self.metric.update_state(self._labels(y_true), y_pred, sample_weight=weight)

    def _labels(self, y_true):
        return y_true

    def result(self):
        return self.metric.result()

    def reset_state(self):
        self.metric.reset_state()

    def get_config(self) -> dict:
        return {"metric": keras.saving.serialize_keras_object(self.metric), "name": self.name}

    @classmethod
    def from_config(cls, config: dict) -> "OnLabeled":
        return cls(keras.saving.deserialize_keras_object(config["metric"]), name=config["name"])


@keras.saving.register_keras_serializable("stkd_keras")
class OnHeaviestClass(OnLabeled):
    """Passes the class with the largest share of each label (B, C) to a sparse metric."""

    def _labels(self, y_true):
        return tf.argmax(y_true, axis=-1)


def _is_sparse(metric) -> bool:
    if isinstance(metric, keras.metrics.Metric):
        return any("Sparse" in cls.__name__ for cls in type(metric).__mro__)
    return "sparse" in _name(metric).lower()


def _name(metric) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "")
