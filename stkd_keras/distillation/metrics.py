"""Keras metrics for soft labels."""

import keras


def adapt_sparse_metrics(metrics):
    """Adapts the sparse metrics among those of `compile` to one-hot or soft labels."""
    if metrics is None:
        return None
    return keras.tree.map_structure(lambda m: OnHeaviestClass(m) if _is_sparse(m) else m, metrics)


@keras.saving.register_keras_serializable("stkd_keras")
class OnHeaviestClass(keras.metrics.Metric):
    """Passes the class with the largest share of each label (B, C) to a sparse metric."""

    def __init__(self, metric, name: str | None = None, **kwargs):
        resolved = keras.metrics.get(metric)
        if not isinstance(resolved, keras.metrics.Metric):
            resolved = keras.metrics.MeanMetricWrapper(resolved, name=_name(metric))
        super().__init__(name=name or (metric if isinstance(metric, str) else resolved.name))
        self.metric = resolved
        if hasattr(resolved, "_direction"):
            # Keras's callbacks read it to see whether more is better.
            self._direction = resolved._direction

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.metric.update_state(keras.ops.argmax(y_true, axis=-1), y_pred, sample_weight)

    def result(self):
        return self.metric.result()

    def reset_state(self):
        self.metric.reset_state()

    def get_config(self) -> dict:
        return {"metric": keras.saving.serialize_keras_object(self.metric), "name": self.name}

    @classmethod
    def from_config(cls, config: dict) -> "OnHeaviestClass":
        return cls(keras.saving.deserialize_keras_object(config["metric"]), name=config["name"])


def _is_sparse(metric) -> bool:
    if isinstance(metric, keras.metrics.Metric):
        return any("Sparse" in cls.__name__ for cls in type(metric).__mro__)
    return "sparse" in _name(metric).lower()


def _name(metric) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "")
