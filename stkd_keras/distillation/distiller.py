"""The Keras model that trains a student with a teacher on virtual samples."""

import contextlib
import functools
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from stkd_keras.classifiers.features import OUTPUTS
from stkd_keras.classifiers.outputs import (
    as_logits,
    input_shape,
    num_classes,
    outputs_and_logits,
    precision_policy,
    resolve_outputs,
    warn_of_rounded_probabilities,
)
from stkd_keras.distillation import batch, checks, pretraining
from stkd_keras.distillation.callbacks import with_own_callbacks
from stkd_keras.distillation.metrics import adapt_metrics
from stkd_keras.distillation.objective import LOGGED_WITHOUT_LABELS, Objective, connect_terms
from stkd_keras.distillation.saving import SavedDistiller
from stkd_keras.distillation.soft_targets import SoftTargets, freeze
from stkd_keras.distribution.replicas import average_batch_statistics, reducible, skip_empty_batch
from stkd_keras.errors import InputError
from stkd_keras.methods import DistillationTerm
from stkd_keras.mixing import Mixup, mix_batch, mix_batch_outputs
from stkd_keras.randomness import MIXING, step_seed

DEFAULT_MIXING = Mixup(alpha=1.0)


@keras.saving.register_keras_serializable("stkd_keras")
class SimilarityTransferDistiller(SavedDistiller):
    """Trains a student to reproduce a teacher's outputs on mixtures of images.

    Similarity Transfer for Knowledge Distillation (arXiv 2103.10047). Each step mixes the batch
    into virtual samples xm with mixed labels ym, computes the logits of the frozen teacher, and
    trains the student on

        label_weight * CE(ym, softmax(s(xm)))
        + soft_weight * T^2 * KL(softmax(t(xm) / T) || softmax(s(xm) / T))
        + the student's own regularization losses

    where s and t are the logits of student and teacher. With `mixing=None` this is Hinton's
    knowledge distillation (arXiv 1503.02531), with `soft_weight=0` mixup training (arXiv
    1710.09412), with both plain cross-entropy. Published losses of other kinds are added as
    `terms`.

    `fit` logs `loss`; `soft_loss` and `label_loss` without their weights, averaged over all
    samples (an unlabeled sample adds 0 to `label_loss`); `teacher_agreement`, the share of virtual
    samples for which student and teacher predict the same class; each term without its weight; and
    the compiled metrics. `val_*` values are those of the student alone on clean images: `val_loss`
    is the cross-entropy plus regularization. The teacher doesn't run in evaluation.

    Args:
        student: a keras.Model that takes one tensor (B, ...) and returns (B, C), or a dict with
            that as "logits". A single unit with a sigmoid, (B, 1), counts as two classes, of which
            it is the probability of the second.
        teacher: a keras.Model, a `FrozenTeacher`, or a list of these; a `RecordedTeacher`, whose
            `attach` then adds its logits to the training data; None if `soft_weight` is 0.
        mixing: a `Mixup` or another mixing, a callable with its signature, or None for no mixing.
        mixing_steps: integer, steps after which mixing stops; None to mix in every step.
        temperature: positive float, T.
        soft_weight: float, at least 0.
        label_weight: float, at least 0.
        label_smoothing: float in [0, 1), the share of each label that the label loss spreads evenly
            over all classes.
        soft_target: "virtual" for the teacher's logits on the virtual samples; "mixed" for the
            mixture of softmax(t(x) / T) of the clean images.
        terms: layers of `stkd_keras.methods`, each with its own weight, computed on the virtual
            samples.
        student_features: dict from a term's feature name to the name of the student's layer, where
            they differ.
        teacher_features: the same for the teacher.
        data_seed: integer; the mixtures are a pure function of (data_seed, step, replica).
        student_outputs: "logits", "probabilities", or "auto" to infer it from the last layer.
        name: string, the name of the model.

    Raises:
        InputError: if student and teacher don't fit together or an argument is out of range.

    Example:

    ```python
    distiller = stkd_keras.SimilarityTransferDistiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train_ds, validation_data=val_ds, epochs=10)
    distiller.student.save("student.keras")
    ```
    """

    def __init__(
        self,
        student: keras.Model,
        teacher=None,
        mixing=DEFAULT_MIXING,
        mixing_steps: int | None = None,
        temperature: float = 4.0,
        soft_weight: float = 0.9,
        label_weight: float = 0.1,
        soft_target: str = "virtual",
        terms: Sequence[DistillationTerm] = (),
        student_features: Mapping[str, str] | None = None,
        teacher_features: Mapping[str, str] | None = None,
        data_seed: int = 0,
        student_outputs: str = "auto",
        name: str | None = None,
        label_smoothing: float = 0.0,
    ):
        checks.check_student(student)
        checks.check_settings(
            mixing, mixing_steps, temperature, soft_weight, label_weight, label_smoothing,
            has_terms=bool(terms),
        )  # fmt: skip
        checks.check_soft_target(soft_target, mixing)
        checks.check_losses(terms, teacher, soft_weight, mixing)
        # The student's own policy decides where pixels are cast.
        super().__init__(name=name, dtype=precision_policy(student), autocast=False)
        self.student = student
        self.teacher = freeze(teacher, soft_target, mixing, mixing_steps, data_seed)
        self.mixing = mixing
        self.mixing_steps = mixing_steps
        self.temperature = float(temperature)
        self.soft_weight = float(soft_weight)
        self.label_weight = float(label_weight)
        self.label_smoothing = float(label_smoothing)
        self.soft_target = soft_target
        self.terms = list(terms)
        self.student_features = dict(student_features or {})
        self.teacher_features = dict(teacher_features or {})
        self.data_seed = int(data_seed)
        self.student_outputs = student_outputs
        self.supports_jit = self.teacher is None or self.teacher.supports_jit

        weights = self.soft_weight, self.label_weight, self.label_smoothing
        has_teacher = teacher is not None
        self._objective = Objective(self.temperature, *weights, list(terms), has_teacher)
        # Keras finds metrics only in the model's own attributes.
        self._means = self._objective.means
        self._hides_training_metrics = False
        self._has_labels = True
        self._counter = batch.step_counter()
        shape = input_shape(student)
        if shape is None and self.teacher is not None:
            shape = self.teacher.input_shape
        if shape is not None:
            self.build((None, *shape))

    @property
    def step(self) -> keras.Variable:
        """The number of batches trained on, over all epochs: an int64 variable."""
        return self._counter.step

    @property
    def pretraining_steps(self) -> int:
        """The number of steps at the start that train only what terms need in advance."""
        return pretraining.pretraining_steps(self.terms)

    @property
    def highest_pretraining_learning_rate(self) -> float | None:
        """Upper bound on the learning rate during pretraining, or None."""
        rates = [term.highest_pretraining_learning_rate for term in self.terms]
        return min([rate for rate in rates if rate is not None], default=None)

    def build(self, input_shape):
        if not self.student.built:
            self.student(keras.KerasTensor(input_shape))
        self.num_classes = num_classes(self.student, "student", tuple(input_shape[1:]))
        self._student_kind = resolve_outputs(self.student, self.student_outputs, "student")
        if self._student_kind == "probabilities":
            warn_of_rounded_probabilities(self.student, "student")
        if self.teacher is not None:
            checks.check_teacher(self.teacher, self.student, self.num_classes)
        student, self._student_shapes, *teacher = connect_terms(
            self.terms, self.student, self.teacher, self.student_features, self.teacher_features,
            self.num_classes,
        )  # fmt: skip
        # In a tuple, Keras doesn't save it a second time.
        self._feature_student = (student,)
        mix_outputs = functools.partial(
            mix_batch_outputs, self.mixing, self.mixing_steps, self.data_seed
        )
        self._soft_targets = SoftTargets(*teacher, self.soft_target, self.temperature, mix_outputs)
        self.built = True

    def call(self, x, training=None):
        """Returns the student's outputs, float32 (B, C); those of a single unit as two classes."""
        return self._student_outputs(x, training)[OUTPUTS]

    def _student_outputs(self, x, training) -> dict[str, tf.Tensor]:
        """Returns the student's outputs, its logits and, in training, the features of the terms."""
        needs_features = training and len(self._student_shapes) > 2
        model = self._feature_student[0] if needs_features else self.student
        names = self._student_shapes if needs_features else (OUTPUTS, "logits")
        shapes = {name: self._student_shapes[name] for name in names}

        def student(x):
            outputs = model(tf.cast(x, tf.float32), training=training)
            features = dict(outputs) if needs_features else {OUTPUTS: outputs}
            outputs, logits = outputs_and_logits(features.pop(OUTPUTS), self._student_kind)
            features = {name: tf.cast(value, tf.float32) for name, value in features.items()}
            return {OUTPUTS: outputs, "logits": logits, **features}

        # An activity regularization loss can't leave tf.cond.
        if any(layer.activity_regularizer for layer in self.student._flatten_layers()):
            return student(x)
        return skip_empty_batch(student, x, shapes)

    def student_logits(self, x) -> tf.Tensor:
        """Returns the student's logits in inference, float32 (B, C)."""
        return as_logits(self.student(x, training=False), self._student_kind)

    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None,
        weighted_metrics=None, **kwargs,
    ):  # fmt: skip
        """Configures training like `keras.Model.compile`, but without a loss.

        Args:
            optimizer: see Keras.
            loss: must be None, as must `loss_weights`; the method determines the losses.
            metrics: see Keras. They receive one-hot or soft labels; sparse metrics receive the
                class with the largest share of each label.
            weighted_metrics: see `metrics`.
            **kwargs: see Keras.

        Raises:
            InputError: if a loss is given, or an option that Keras doesn't support on several
                replicas.
        """
        optimizer = keras.optimizers.get(optimizer)
        checks.check_compile(
            self.distribute_strategy, self.terms, optimizer, loss, loss_weights, **kwargs
        )
        super().compile(
            optimizer=optimizer,
            metrics=adapt_metrics(metrics),
            weighted_metrics=adapt_metrics(weighted_metrics),
            **kwargs,
        )
        self._loss_tracker = None  # The loss is one of the objective's means.
        self._auto_scale_loss = kwargs.get("auto_scale_loss", True)

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """Trains like `keras.Model.fit`.

        `x` may also be any iterable of batches (images, labels), such as a DataLoader of PyTorch or
        Grain; it is iterated anew for each epoch. Labels are integers of shape (B,) or (B, 1), or
        soft labels (B, C). An image with the label -1 (or all zeros) is unlabeled: it is mixed with
        the others and counts in the soft loss, but not in the label loss and the metrics. With
        `label_weight=0` no labels are needed, as in `fit(x)`; then only `loss`, `soft_loss` and
        `teacher_agreement` are logged.

        `class_weight` multiplies the label loss and the soft loss of each image, as `sample_weight`
        does. A soft label has the mean weight of its classes, an unlabeled image the weight 1.

        A ModelCheckpoint in the callbacks saves the student alone. If the last batch is known to be
        too small for batch normalization, `fit` warns and suggests a batch size.

        Raises:
            InputError: if the data are empty or don't fit the models, or a label is out of range.
        """
        before = int(self.step.numpy())
        checks.check_training_data(x, batch_size, self.student, self.distribute_strategy, **kwargs)
        checks.check_recorded_batches(self.teacher, x, before, epochs, **kwargs)
        callbacks = with_own_callbacks(callbacks)
        history = super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        if epochs > kwargs.get("initial_epoch", 0) and int(self.step.numpy()) == before:
            raise InputError("the training data are empty; pass at least one batch")
        return history

    def evaluate(self, x=None, *args, **kwargs):
        """Evaluates the student like `keras.Model.evaluate`, without the teacher.

        Images with a sample weight of 0 don't count in `loss`, unlabeled ones not in the metrics.

        Raises:
            InputError: if the data are empty or don't fit the student, or a label is out of range.
        """
        checks.check_not_empty(x)
        average_batch_statistics(self)
        with self._student_metrics_only():
            return super().evaluate(x, *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        """Trains on a batch of arrays like `keras.Model.train_on_batch`; labels as in `fit`."""
        checks.check_recorded_batch(y, int(self.step.numpy()))
        return super().train_on_batch(x, y, *args, **kwargs)

    def train_step(self, data):
        step = tf.identity(tf.convert_to_tensor(self.step))
        restore_frozen = pretraining.freeze_during_stage(self.terms, self.student, step)
        variables = self.trainable_variables
        gradients, logs = self._on_replica(
            self._compute_gradients,
            when_empty=lambda: ([tf.zeros(v.shape) for v in variables], self.get_metrics_result()),
        )(data, step)
        if variables:
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        restore_frozen()
        # The step counts only if the data had another batch.
        with tf.control_dependencies(list(logs.values())):
            self.step.assign_add(1)
        return reducible(logs)

    def _compute_gradients(self, data, step):
        """Computes the losses of a batch; returns the gradients and the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self.checked_inputs(x)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        y, index, recorded = batch.split_targets(y, self.teacher, self.terms, self.label_weight)
        self._has_labels = y is not None
        labels = batch.soft_labels(y, x, self.num_classes)
        sample_weight = None if sample_weight is None else tf.cast(sample_weight, tf.float32)
        virtual_x, virtual_labels, sample_weight = self.virtual_samples(
            x, labels, sample_weight, step, replica
        )
        targets = {"labels": virtual_labels, "step": step, **index}
        if self.teacher is not None:
            targets["teacher"] = self._soft_targets(virtual_x, x, labels, recorded, step, replica)
        with tf.GradientTape() as tape:
            outputs = self._student_outputs(virtual_x, training=True)
            losses = self._compute_losses(targets, outputs, sample_weight, training=True)
            loss = self.optimizer.scale_loss(losses["loss"])
        self._objective.means.update_state(losses, batch.size(x))
        logs = self.compute_metrics(virtual_x, virtual_labels, outputs[OUTPUTS], sample_weight)
        return tape.gradient(loss, self.trainable_variables), logs

    def test_step(self, data):
        with self._student_metrics_only():
            score = self._on_replica(self._score, when_empty=self.get_metrics_result)
            return reducible(score(data))

    def _score(self, data) -> dict:
        """Scores the student on a batch; returns the logs."""
        x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None:
            raise InputError("the data have no labels to score against; pass (images, labels)")
        x = self.checked_inputs(x)
        labels = batch.soft_labels(labels, x, self.num_classes)
        outputs = self._student_outputs(x, training=False)
        weights, count = batch.without_padding(sample_weight, batch.size(x))
        losses = self._compute_losses({"labels": labels}, outputs, weights, training=False)
        self._objective.means.update_state(losses, count)
        return self.compute_metrics(x, labels, outputs[OUTPUTS], sample_weight)

    def _compute_losses(self, targets, outputs, sample_weight, training: bool) -> dict:
        """Returns "loss", the sum that is minimized, and what `fit` logs."""
        losses = self._objective(outputs, targets, sample_weight, training)
        # Without a compiled loss, Keras's own sum is that of the regularization losses.
        losses["loss"] += super().compute_loss() if self.losses else 0.0
        return losses

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        labels = y["labels"] if isinstance(y, dict) else y
        labels = batch.soft_labels(labels, y_pred, self.num_classes)
        return super().compute_metrics(x, labels, y_pred, sample_weight)

    def get_metrics_result(self) -> dict:
        results = super().get_metrics_result()
        if self._hides_training_metrics:
            hidden = [name for name in self._objective.means.names if name != "loss"]
            return {name: value for name, value in results.items() if name not in hidden}
        if self._has_labels:
            return results
        return {n: value for n, value in results.items() if n in LOGGED_WITHOUT_LABELS}

    def mixing_seed(self, step, replica=0) -> tf.Tensor:
        """Returns the seed, int64 (2,), that `mixing` receives in a step on a replica."""
        return step_seed(self.data_seed, MIXING, step, replica)

    def virtual_samples(self, x, y, sample_weight, step, replica=0):
        """Returns the virtual samples of a training step.

        Args:
            x: float32 tensor (B, ...).
            y: float32 tensor (B, C), soft labels.
            sample_weight: None, or float32 tensor (B,) or (B, 1).
            step: scalar integer tensor, the number of batches trained on before.
            replica: integer, the number of the replica.

        Returns:
            Mixed (x, y, sample_weight) of the same shapes.
        """
        return mix_batch(
            self.mixing, self.mixing_steps, self.data_seed, x, y, sample_weight, step, replica
        )

    @contextlib.contextmanager
    def _student_metrics_only(self):
        before, self._hides_training_metrics = self._hides_training_metrics, True
        try:
            yield
        finally:
            self._hides_training_metrics = before
