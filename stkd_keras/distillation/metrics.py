"""Metrics of class indices, on labels that are rows."""

import keras


def on_rows(metrics):
    """Makes the sparse metrics among those of `compile` take labels that are rows.

    Args:
        metrics: None, or a metric, a name, a function, or a list or dict of them.

    Returns:
        The same structure, in which each sparse metric receives the index of the heaviest class
        of the label. Names stay what they were.
    """
    if metrics is None:
        return None
    return keras.tree.map_structure(lambda m: OnHeaviestClass(m) if _is_sparse(m) else m, metrics)


@keras.saving.register_keras_serializable("stkd_keras")
class OnHeaviestClass(keras.metrics.Metric):
    """A sparse metric that receives the index of the heaviest class of each label.

    Args:
        metric: a metric of integer labels: an instance, a name, or a function.
    """

    def __init__(self, metric, name: str | None = None, **kwargs):
        resolved = keras.metrics.get(metric)
        if not isinstance(resolved, keras.metrics.Metric):
            resolved = keras.metrics.MeanMetricWrapper(resolved, name=_name(metric))
        super().__init__(name=name or (metric if isinstance(metric, str) else resolved.name))
        self.metric = resolved
        if hasattr(resolved, "_direction"):
            # By this Keras's callbacks see whether more of it is better.
            self._direction = resolved._direction

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Takes labels of shape (B, C)."""
        self.metric.update_state(keras.ops.argmax(y_true, axis=-1), y_pred, sample_weight)

    def result(self):
        """Returns the metric's own result."""
        return self.metric.result()

    def reset_state(self):
        """Resets the metric."""
        self.metric.reset_state()

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {"metric": keras.saving.serialize_keras_object(self.metric), "name": self.name}

    @classmethod
    def from_config(cls, config: dict) -> "OnHeaviestClass":
        """Makes it anew from what `get_config` returned."""
        return cls(keras.saving.deserialize_keras_object(config["metric"]), name=config["name"])


def _is_sparse(metric) -> bool:
    if isinstance(metric, keras.metrics.Metric):
        return any("Sparse" in cls.__name__ for cls in type(metric).__mro__)
    return "sparse" in _name(metric).lower()


def _name(metric) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "")
