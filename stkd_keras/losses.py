"""Distillation losses."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("stkd_keras")
class SoftTargetLoss(keras.losses.Loss):
    """KL divergence between softened teacher and student predictions (arXiv 1503.02531).

    `T^2 * KL(softmax(t / T) || softmax(s / T))`, summed over the classes, computed in float32.
    The factor T^2 keeps the scale of the gradients roughly independent of T.

    Args:
        temperature: positive float, T.
        name: name of the loss.

    Call arguments:
        y_true: (B, C), the teacher's logits t.
        y_pred: (B, C), the student's logits s.
    """

    def __init__(self, temperature: float = 4.0, name: str = "soft_loss", **kwargs):
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        self.temperature = temperature

    def call(self, y_true, y_pred):
        teacher = tf.nn.log_softmax(y_true / self.temperature)
        student = tf.nn.log_softmax(y_pred / self.temperature)
        divergence = tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)
        return self.temperature**2 * divergence

    def get_config(self) -> dict:
        return {**super().get_config(), "temperature": self.temperature}
