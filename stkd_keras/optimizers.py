"""Optimizers with the weight decay of published recipes and a lower rate for a backbone."""

import keras


class _Finetuning(keras.optimizers.Optimizer):
    """Base class of optimizers: the first variables, the backbone's, have their own learning rate.

    The rate is part of the update, so that nothing is retraced when the backbone starts to train,
    and an interrupted training resumes exactly.
    """

    def __init__(self, *args, backbone_variables=0, backbone_rate=1.0, frozen_steps=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone_variables = backbone_variables
        self.backbone_rate = backbone_rate
        self.frozen_steps = frozen_steps

    def build(self, variables):
        if not self.built:
            self._decays = [_decays(variable) for variable in variables]
        super().build(variables)

    def _rate_of(self, index: int, learning_rate, dtype):
        """Returns the learning rate of the variable with this index in the current step."""
        learning_rate = keras.ops.cast(learning_rate, dtype)
        if index >= self.backbone_variables:
            return learning_rate
        scale = keras.ops.where(self.iterations < self.frozen_steps, 0.0, self.backbone_rate)
        return learning_rate * keras.ops.cast(scale, dtype)

    def get_config(self) -> dict:
        names = ("backbone_variables", "backbone_rate", "frozen_steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("stkd_keras")
class SGD(_Finetuning, keras.optimizers.SGD):
    """Momentum SGD with PyTorch's definitions of weight decay and momentum.

    This is the update that published recipes mean by "learning rate 0.1, momentum 0.9, weight
    decay 5e-4":

        gradient = gradient + l2 * weight          (not for biases and normalization)
        velocity = momentum * velocity + gradient
        weight = weight - learning_rate * (gradient + momentum * velocity)   (Nesterov)

    Keras's own `SGD(weight_decay=...)` decouples the decay from momentum, which makes it about ten
    times weaker, and its velocity includes past learning rates.

    Args:
        learning_rate: float or schedule.
        momentum: float in [0, 1).
        nesterov: whether to use Nesterov momentum.
        l2: float, at least 0, the weight decay. It doesn't apply to weights named bias, gamma or
            beta, or with fewer than two dimensions.
        **kwargs: arguments of `keras.optimizers.SGD`, such as `clipnorm` or `use_ema`, and for
            fine-tuning: `backbone_variables`, how many of the first variables are the backbone's;
            `backbone_rate`, the factor of their learning rate; and `frozen_steps`, steps at the
            start in which they don't change at all.

    Example:

    ```python
    distiller.compile(stkd_keras.SGD(0.1, l2=5e-4), metrics=["accuracy"])
    ```
    """

    def __init__(
        self, learning_rate=0.1, momentum=0.9, nesterov=True, l2=0.0, name="SGD", **kwargs
    ):
        super().__init__(learning_rate, momentum, nesterov, name=name, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = self._rate_of(index, learning_rate, variable.dtype)
        gradient = keras.ops.cast(gradient, variable.dtype)
        if self.l2 and self._decays[index]:
            gradient = gradient + self.l2 * keras.ops.convert_to_tensor(variable)
        direction = gradient
        if self.momentum:
            velocity = self.momentums[index]
            new_velocity = self.momentum * keras.ops.convert_to_tensor(velocity) + gradient
            self.assign(velocity, new_velocity)
            direction = gradient + self.momentum * new_velocity if self.nesterov else new_velocity
        self.assign_sub(variable, learning_rate * direction)

    def get_config(self) -> dict:
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable("stkd_keras")
class AdamW(_Finetuning, keras.optimizers.AdamW):
    """Keras's AdamW without weight decay of biases and normalization.

    The decay is decoupled (arXiv 1711.05101): in addition to Adam's step, each step subtracts
    learning_rate * weight_decay * weight. It excludes the same weights as `SGD`.

    Args:
        **kwargs: arguments of `keras.optimizers.AdamW`, and `SGD`'s for a backbone.

    Example:

    ```python
    distiller.compile(stkd_keras.optimizers.AdamW(learning_rate=1e-3, weight_decay=0.05))
    ```
    """

    def build(self, variables):
        if not self.built:
            self.exclude_from_weight_decay(variables)  # Keras's decay has one rate for all.
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = self._rate_of(index, learning_rate, variable.dtype)
        if self.weight_decay and self._decays[index]:
            decay = keras.ops.cast(self.weight_decay, variable.dtype)
            self.assign_sub(variable, keras.ops.convert_to_tensor(variable) * decay * learning_rate)
        super().update_step(gradient, variable, learning_rate)


def _decays(variable) -> bool:
    """Whether weight decay applies to a variable."""
    return len(variable.shape) > 1 and variable.name not in ("bias", "gamma", "beta")


@keras.saving.register_keras_serializable("stkd_keras")
class AfterPretraining(keras.optimizers.schedules.LearningRateSchedule):
    """Uses a constant learning rate for `steps` steps, then starts a schedule."""

    def __init__(self, schedule, steps: int, learning_rate: float):
        super().__init__()
        self.schedule, self.steps, self.learning_rate = schedule, steps, learning_rate

    def __call__(self, step):
        later = self.schedule(keras.ops.maximum(step - self.steps, 0))
        return keras.ops.where(step < self.steps, self.learning_rate, later)

    def get_config(self):
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "steps": self.steps,
            "learning_rate": self.learning_rate,
        }

    @classmethod
    def from_config(cls, config):
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})
