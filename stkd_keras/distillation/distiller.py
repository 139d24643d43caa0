"""The model that is trained: a student that learns from a teacher on virtual samples."""

import contextlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from stkd_keras.classifiers.features import OUTPUTS, with_features
from stkd_keras.classifiers.fused_batch_norm import (
    fuse_batch_normalization,
    has_fused_batch_normalization,
)
from stkd_keras.classifiers.outputs import (
    input_shape,
    logits_of_probabilities,
    num_classes,
    precision_policy,
    resolve_outputs,
)
from stkd_keras.distillation.callbacks import SaveTheStudent
from stkd_keras.distillation.checks import (
    check_first_batch,
    check_inputs,
    check_not_empty,
    check_settings,
    check_soft_target,
    check_student,
    check_teacher,
    check_terms,
    warn_of_a_small_last_batch,
)
from stkd_keras.distillation.metrics import on_rows
from stkd_keras.distillation.objective import build_terms, loss_of
from stkd_keras.distillation.pretraining import hold_still
from stkd_keras.distribution.replicas import (
    average_batch_statistics,
    call_unless_empty,
    first_local_batch,
    reducible,
)
from stkd_keras.distribution.strategy import refuse_what_keras_cannot_do
from stkd_keras.errors import InputError, without_removed
from stkd_keras.labels import label_rows, weighted_distributions
from stkd_keras.losses import SoftTargetLoss
from stkd_keras.methods import DistillationTerm
from stkd_keras.methods.base import feature_names
from stkd_keras.mixing import Mixup, mixed_outputs, virtual_samples
from stkd_keras.randomness import MIXING, step_seed
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.teacher.recorded import RecordedTeacher

DEFAULT_MIXING = Mixup(alpha=1.0)
# What `fit` logs of data without any label.
WITHOUT_LABELS = ("loss", "soft_loss", "teacher_agreement")


@keras.saving.register_keras_serializable("stkd_keras")
class SimilarityTransferDistiller(keras.Model):
    """Trains a student to reproduce a teacher's answers on mixtures of images.

    Similarity Transfer for Knowledge Distillation (arXiv 2103.10047). In each step the batch is
    mixed into virtual samples xm with mixed labels ym, the frozen teacher answers them, and the
    student is trained on

        label_weight * CE(ym, softmax(s(xm)))
        + soft_weight * T^2 * KL(softmax(t(xm) / T) || softmax(s(xm) / T))
        + the student's own regularisation losses

    with s and t the logits of student and teacher. `mixing=None` makes it Hinton's knowledge
    distillation (arXiv 1503.02531), `soft_weight=0` mixup training (arXiv 1710.09412), both
    together plain cross-entropy. Published losses of other kinds join as `terms`.

    `fit` logs `loss`, `soft_loss`, `label_loss` (both without their weights, and means over all
    samples: those without label add 0 to `label_loss`),
    `teacher_agreement` (the share of virtual samples on which student and teacher name the same
    class), each further term without its weight, and the compiled metrics; `val_*` are the
    student's alone, on clean images, and never run the teacher: `val_loss` is the cross-entropy
    plus regularisation.

    Args:
        student: a keras.Model that takes one tensor (B, ...) and gives (B, C).
        teacher: a keras.Model, a `FrozenTeacher`, or a list of them; a `RecordedTeacher`, whose
            `attach` the training data then go through; None where `soft_weight` is 0.
        mixing: a `Mixup`, or a callable with its signature; None for no mixing.
        mixing_steps: integer, steps after which mixing stops; None for never.
        temperature: positive float, T.
        soft_weight: float, at least 0.
        label_weight: float, at least 0.
        soft_target: "virtual" for the teacher's answer on the virtual sample; "mixed" for the
            mixture of its answers on the clean images, softmax(t(x) / T) each.
        terms: layers of `stkd_keras.methods`, each with its own weight, on the virtual samples.
        student_features: where a term's feature has another name than the student's layer: the
            layer's, by the feature's.
        teacher_features: likewise.
        data_seed: integer; the mixtures are a pure function of (data_seed, step, replica).
        student_outputs: "logits", "probabilities", or "auto" to see from the last layer.

    Raises:
        InputError: where the two don't fit together or an argument is outside its range.

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
    ):
        check_student(student)
        check_settings(
            mixing, mixing_steps, temperature, soft_weight, label_weight, has_terms=bool(terms)
        )
        check_soft_target(soft_target, mixing)
        check_terms(terms, teacher, mixing)
        if teacher is None and soft_weight > 0:
            raise InputError(
                f"soft_weight is {soft_weight}, but there is no teacher; pass teacher=, or "
                "soft_weight=0 to train without one"
            )
        # Pixels must reach the student as they are: its own policy decides where they are cast.
        super().__init__(name=name, dtype=precision_policy(student), autocast=False)
        self.student = student
        if isinstance(teacher, RecordedTeacher):
            if soft_target == "mixed":
                teacher.check_distiller(None, None, data_seed)
            else:
                teacher.check_distiller(mixing, mixing_steps, data_seed)
        elif teacher is not None and not isinstance(teacher, FrozenTeacher):
            teacher = FrozenTeacher(teacher)
        self.teacher = teacher
        self.mixing = mixing
        self.mixing_steps = mixing_steps
        self.soft_weight = float(soft_weight)
        self.label_weight = float(label_weight)
        self.soft_target = soft_target
        self.terms = list(terms)
        self.student_features = dict(student_features or {})
        self.teacher_features = dict(teacher_features or {})
        self.data_seed = int(data_seed)
        self.student_outputs = student_outputs
        self.supports_jit = teacher is None or teacher.supports_jit

        self.soft_loss = SoftTargetLoss(float(temperature))
        self.label_loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, dtype="float32", name="label_loss"
        )
        names = ["label_loss"] + (["soft_loss", "teacher_agreement"] if teacher else [])
        names += [term.name for term in terms]
        names += [_pretraining_name(term) for term in terms if term.pretraining_steps]
        self._trackers = {n: keras.metrics.Mean(name=n) for n in names}
        self._hides_training_metrics = False
        self._has_labels = True
        self._counter = _Counter()
        shape = input_shape(student) or (teacher and teacher.input_shape)
        if shape is not None:
            self.build((None, *shape))

    @property
    def step(self) -> keras.Variable:
        """Batches trained on, over all epochs: an int64 variable, saved with the distiller."""
        return self._counter.variable

    @property
    def pretraining_steps(self) -> int:
        """Steps at the start in which only what terms learn beforehand is trained."""
        return max([term.pretraining_steps for term in self.terms], default=0)

    @property
    def highest_pretraining_learning_rate(self) -> float | None:
        """The learning rate that these steps can't do with more than, None for any."""
        rates = [term.highest_pretraining_learning_rate for term in self.terms]
        return min([rate for rate in rates if rate is not None], default=None)

    @property
    def temperature(self) -> float:
        """T of the soft loss."""
        return self.soft_loss.temperature

    def build(self, input_shape):
        """Builds the student for inputs of a shape, and sees whether all fits together."""
        if not self.student.built:
            self.student(keras.KerasTensor(input_shape))
        self.num_classes = num_classes(self.student, "student")
        if self.num_classes is None:
            raise InputError(
                f"the number of classes of the student {self.student.name!r} isn't known: call it "
                "on a batch first"
            )
        self._student_kind = resolve_outputs(self.student, self.student_outputs, "student")
        if self.teacher is not None:
            check_teacher(self.teacher, self.student, self.num_classes)
        self._connect()
        self.built = True

    def _connect(self) -> None:
        """Finds what the terms need of student and teacher, and builds them for it."""
        rows = tf.TensorShape([None, self.num_classes])
        names = feature_names(self.terms)
        # In a tuple, where Keras doesn't find them: they have nothing of their own to save.
        self._calls = (self.student, self.teacher)
        self._shapes = ({OUTPUTS: rows}, {"logits": rows})
        if names:
            student = with_features(self.student, names, self.student_features, "student")
            teacher, shapes = self.teacher.with_features(names, self.teacher_features)
            mine = {name: tf.TensorShape(tensor.shape) for name, tensor in student.output.items()}
            self._calls, self._shapes = (student, teacher), (mine, {**shapes, "logits": rows})
        mine, its = self._shapes
        build_terms(self.terms, {**mine, "logits": rows}, its, self.num_classes)

    def call(self, x, training=None):
        """Returns the student's outputs, float32 (B, C).

        In training with terms that need inner features it is a dict: these by name, and "outputs".
        """
        needs_features = training and len(self._shapes[0]) > 1
        model = self._calls[0] if needs_features else self.student
        shapes = self._shapes[0] if needs_features else self._shapes[0][OUTPUTS]

        def student(x):
            return model(tf.cast(x, tf.float32), training=training)

        # An activity's regularisation loss couldn't leave the condition.
        if any(layer.activity_regularizer for layer in self.student._flatten_layers()):
            return tf.nest.map_structure(lambda y: tf.cast(y, tf.float32), student(x))
        return call_unless_empty(student, x, shapes)

    def student_logits(self, x) -> tf.Tensor:
        """Returns the student's logits in inference, float32 (B, C), whatever its outputs are."""
        return self._logits(self.student(x, training=False))

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
    ):
        """Configures training, as `keras.Model.compile`, without a loss.

        Args:
            optimizer: as in Keras.
            loss: None. The losses follow from the method and from the student's outputs.
            loss_weights: None, likewise.
            metrics: as in Keras. Labels are rows to them; sparse metrics receive the index of
                the heaviest class.
            weighted_metrics: likewise.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: as in Keras.
            auto_scale_loss: as in Keras.

        Raises:
            InputError: where a loss is given, or what Keras can't do on several replicas.
        """
        if loss is not None or loss_weights is not None:
            given = f"loss={loss!r}" if loss is not None else f"loss_weights={loss_weights!r}"
            raise InputError(
                f"compile received {given}, but the losses follow from the method: the soft "
                "loss and the cross-entropy with the mixed labels; leave it out, and set "
                "soft_weight and label_weight"
            )
        optimizer = keras.optimizers.get(optimizer)
        refuse_what_keras_cannot_do(
            self.distribute_strategy, optimizer, steps_per_execution, jit_compile
        )
        for term in self.terms:
            if term.needs_one_replica and self.distribute_strategy.num_replicas_in_sync > 1:
                raise InputError(
                    f"{term.name} keeps a memory of all images, and can't be trained on several "
                    "replicas; take one (--distribute=none)"
                )
        super().compile(
            optimizer=optimizer,
            metrics=on_rows(metrics),
            weighted_metrics=on_rows(weighted_metrics),
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        self._auto_scale_loss = auto_scale_loss

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        **kwargs,
    ):
        """Trains, as `keras.Model.fit`.

        Labels are integers of shape (B,) or (B, 1), or rows (B, C). An image whose label is -1 (or
        a row of zeros) has none: it is mixed among the others, counts in the soft loss, and adds
        nothing to the label loss and the metrics. With `label_weight=0` there may be no labels
        at all, as in `fit(x)`; then only `loss` and what the teacher says is logged. A
        ModelCheckpoint among the callbacks writes the student alone. Of arrays whose last batch is
        too small for batch normalisation it warns, with a batch size that is better.

        Raises:
            InputError: where the data are empty, or don't fit the models.
        """
        check_not_empty(x)
        has_validation = kwargs.get("validation_data") is not None
        split = 0.0 if has_validation else kwargs.get("validation_split") or 0.0
        check_first_batch(x, batch_size, split, self.distribute_strategy)
        replicas = self.distribute_strategy.num_replicas_in_sync
        warn_of_a_small_last_batch(x, batch_size, split, self.student, replicas)
        before = int(self.step.numpy())
        if getattr(x, "first_step", before) != before:  # Of RecordedTeacher.attach.
            raise InputError(
                f"the recorded batches begin with step {x.first_step}, but the next step is "
                f"{before}; give attach a pipeline with start_step={before}"
            )
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        callbacks = keras.tree.flatten(callbacks or [])
        history = super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=[SaveTheStudent(callbacks), *callbacks],
            **kwargs,
        )
        if epochs > kwargs.get("initial_epoch", 0) and int(self.step.numpy()) == before:
            raise InputError("the training data are empty: they gave no batch")
        return history

    def evaluate(self, *args, **kwargs):
        """Scores the student, as `keras.Model.evaluate`; the teacher isn't asked."""
        if args or "x" in kwargs:
            check_not_empty(args[0] if args else kwargs["x"])
        average_batch_statistics(self)
        with self._student_metrics_only():
            return super().evaluate(*args, **kwargs)

    def train_step(self, data):
        """Mixes the batch, asks the teacher, and lets Keras do the rest."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self._checked_inputs(x)
        y, answers = self._recorded_answers(y)
        y, index = self._image_numbers(y)
        self._has_labels = y is not None
        if not self._has_labels and self.label_weight > 0:
            raise InputError(
                "the data have no labels; pass batches of (images, labels), with -1 for an image "
                "without, or set label_weight=0"
            )
        y = self._label_rows(x, y)
        if sample_weight is not None:
            sample_weight = tf.cast(sample_weight, tf.float32)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        step = tf.identity(tf.convert_to_tensor(self.step))
        clean = x, y, sample_weight
        x, y, sample_weight = self.virtual_samples(*clean, step, replica)
        targets = {"labels": y, "step": step, **index}
        if self.teacher is not None:
            targets["teacher"] = self._answers(x, clean, answers, step, replica)
        # At the end of data the batch never comes; nothing else would hold the count back.
        with tf.control_dependencies([x]):
            self.step.assign_add(1)
        release = hold_still(self.terms, self.student, step)
        logs = super().train_step((x, targets, sample_weight))
        release()
        return reducible(logs)

    def test_step(self, data):
        """Scores the student on clean images."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if y is None:
            raise InputError("the data have no labels to score against; pass (images, labels)")
        x = self._checked_inputs(x)
        with self._student_metrics_only():
            return reducible(super().test_step((x, self._label_rows(x, y), sample_weight)))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the loss of a batch.

        Args:
            x: the virtual samples.
            y: labels, or None; in training, a dict of "labels", "step" and, with a teacher,
                "teacher", what it says by name.
            y_pred: what `call` gave.
            sample_weight: None, or (B,) or (B, 1).
            training: whether the soft loss counts.

        Returns:
            A scalar, scaled for distribution as Keras's losses are.
        """
        targets = y if isinstance(y, dict) else {"labels": y}
        outputs = y_pred if isinstance(y_pred, dict) else {OUTPUTS: y_pred}
        student = {**outputs, "logits": self._logits(outputs[OUTPUTS])}
        if training:
            return self._training_loss(student, targets, sample_weight) + self._regularization()
        return self._label_loss(student, targets, sample_weight) + self._regularization()

    def _training_loss(self, student, targets, sample_weight):
        """The weighted sum of all losses but the regularisation's; each is logged."""
        size = tf.shape(targets["labels"])[0]
        teacher = targets.get("teacher", {})
        loss = self._label_loss(student, targets, sample_weight)
        self._track("label_loss", loss, size)
        total = self.label_weight * loss
        if not teacher:
            return total
        loss = _scalar(self.soft_loss(teacher["logits"], student["logits"], sample_weight))
        self._track("soft_loss", loss, size)
        total += self.soft_weight * loss
        agrees = tf.argmax(teacher["logits"], axis=-1) == tf.argmax(student["logits"], axis=-1)
        self._trackers["teacher_agreement"].update_state(tf.cast(agrees, tf.float32))
        return self._with_terms(total, student, teacher, targets, sample_weight)

    def _with_terms(self, total, student, teacher, targets, sample_weight):
        """Adds the terms; in their pretraining there is nothing else."""
        size = tf.shape(targets["labels"])[0]
        given = student, teacher, targets["labels"], sample_weight
        pretraining = 0.0
        for term in self.terms:
            index = {"index": targets["index"]} if term.needs_index else {}
            loss = loss_of(term, term, *given, training=True, **index)
            self._track(term.name, loss, size)
            if not term.only_in_pretraining:
                total += term.weight * loss
            if term.pretraining_steps:
                if not term.only_in_pretraining:
                    loss = self._own_loss(term, targets["step"], given)
                self._track(_pretraining_name(term), loss, size)
                pretraining += loss
        if not self.pretraining_steps:
            return total
        return tf.where(targets["step"] < self.pretraining_steps, pretraining, total)

    def _own_loss(self, term, step, given):
        """What a stage trains beside the term; 0 once it is over."""
        return tf.cond(
            step < term.pretraining_steps,
            lambda: loss_of(term.pretraining_loss, term, *given),
            lambda: tf.constant(0.0),
        )

    def _label_loss(self, student, targets, sample_weight):
        rows, weights = weighted_distributions(
            self._label_rows(student["logits"], targets["labels"]), sample_weight
        )
        return _scalar(self.label_loss(rows, student["logits"], weights))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the compiled metrics with the images that have labels, which are rows to them."""
        y_pred = y_pred[OUTPUTS] if isinstance(y_pred, dict) else y_pred
        rows = self._label_rows(y_pred, y["labels"] if isinstance(y, dict) else y)
        labelled = tf.reduce_any(rows > 0, axis=1)
        rows, y_pred = tf.boolean_mask(rows, labelled), tf.boolean_mask(y_pred, labelled)
        if sample_weight is not None:
            sample_weight = tf.boolean_mask(sample_weight, labelled)
        return super().compute_metrics(x, rows, y_pred, sample_weight)

    def get_metrics_result(self) -> dict:
        """Returns the metrics by name; in evaluation, those of the student alone."""
        results = super().get_metrics_result()
        if self._hides_training_metrics:
            return {name: value for name, value in results.items() if name not in self._trackers}
        if self._has_labels:
            return results
        # Nothing else has seen anything that it could be of.
        return {n: v for n, v in results.items() if n in WITHOUT_LABELS}

    def mixing_seed(self, step, replica=0) -> tf.Tensor:
        """Returns the seed that `mixing` is given in training.

        Args:
            step: integer, the batches trained on before this one.
            replica: integer, the number of the replica.

        Returns:
            int64 tensor of shape (2,).
        """
        return step_seed(self.data_seed, MIXING, step, replica)

    def virtual_samples(self, x, y, sample_weight, step, replica=0):
        """As `stkd_keras.mixing.virtual_samples`, with the distiller's settings."""
        return virtual_samples(
            self.mixing, self.mixing_steps, self.data_seed, x, y, sample_weight, step, replica
        )

    def get_config(self) -> dict:
        """Returns the student, the teacher's architecture and the settings."""
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "has_fused_student": has_fused_batch_normalization(self.student),
            "teacher": self.teacher and self.teacher.get_config(),
            "mixing": keras.saving.serialize_keras_object(self.mixing),
            "mixing_steps": self.mixing_steps,
            "temperature": self.temperature,
            "soft_weight": self.soft_weight,
            "label_weight": self.label_weight,
            "soft_target": self.soft_target,
            "terms": [keras.saving.serialize_keras_object(term) for term in self.terms],
            "student_features": self.student_features,
            "teacher_features": self.teacher_features,
            "data_seed": self.data_seed,
            "student_outputs": self.student_outputs,
        }

    @classmethod
    def from_config(cls, config: dict) -> "SimilarityTransferDistiller":
        """Makes a distiller from what `get_config` returned."""
        config = without_removed(config, {"clean_soft_weight": 0.0})
        for part in ("student", "mixing"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        config["terms"] = [
            keras.saving.deserialize_keras_object(term) for term in config.get("terms", ())
        ]
        if config.pop("has_fused_student"):
            fuse_batch_normalization(config["student"])
        if config["teacher"] is not None:
            recording = config["teacher"].get("recording")
            config["teacher"] = (
                RecordedTeacher(recording)
                if recording
                else FrozenTeacher.from_config(config["teacher"])
            )
        return cls(**config)

    def get_compile_config(self) -> dict:
        """Returns the arguments of `compile`."""
        config = super().get_compile_config()
        return {**config, "auto_scale_loss": self._auto_scale_loss} if config else config

    def compile_from_config(self, config: dict) -> None:
        """Compiles with what `get_compile_config` returned."""
        config = keras.saving.deserialize_keras_object(config)
        config.pop("loss_weights", None)
        self.compile(**config)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def save_own_variables(self, store) -> None:
        """Writes the step."""
        super().save_own_variables(store)
        store["step"] = self.step.numpy()

    def load_own_variables(self, store) -> None:
        """Reads the step."""
        self.step.assign(store["step"][()])

    def save_assets(self, dir_path: str) -> None:
        """Writes the teacher's weights; Keras calls it for `.keras` files only."""
        if isinstance(self.teacher, FrozenTeacher):
            self.teacher.save_weights(dir_path)

    def load_assets(self, dir_path: str) -> None:
        """Reads the teacher's weights."""
        if isinstance(self.teacher, FrozenTeacher):
            self.teacher.load_weights(dir_path)

    def save(self, *args, **kwargs) -> None:
        """Writes student, teacher, settings and optimizer, as `keras.Model.save`."""
        average_batch_statistics(self)
        super().save(*args, **kwargs)

    def _checked_inputs(self, x) -> tf.Tensor:
        """The inputs of a batch as float32, if they are what the student takes."""
        if isinstance(x, list | tuple) and len(x) == 1:
            (x,) = x
        if isinstance(x, np.ndarray):
            x = tf.convert_to_tensor(x)
        if not isinstance(x, tf.Tensor):
            raise InputError(
                f"a batch has inputs of type {type(x).__name__}, but must have one tensor (B, ...)"
            )
        if x.shape.rank is None:
            raise InputError(
                "the data don't say the shape of their inputs; give the generator an "
                "output_signature of tf.TensorSpec with shapes"
            )
        if not self.built:
            self.build(tuple(x.shape))
        check_inputs(x, self.student)
        return tf.cast(x, tf.float32)

    def _recorded_answers(self, y):
        """The labels of a batch, and what a recorded teacher answered on it (None without one)."""
        if not isinstance(self.teacher, RecordedTeacher):
            return y, None
        if not isinstance(y, dict) or "teacher_logits" not in y:
            raise InputError(
                f"the teacher is the recording {self.teacher.path}, but the data have no answers "
                "of it; pass fit its attach(train_ds)"
            )
        message = "the recorded answers aren't those of step"
        step = tf.cast(tf.convert_to_tensor(self.step), y["step"].dtype)
        is_next = tf.debugging.Assert(tf.reduce_all(y["step"] == step), [message, step])
        with tf.control_dependencies([is_next] if is_next is not None else []):
            return y["labels"], tf.identity(y["teacher_logits"])

    def _image_numbers(self, y):
        """The labels of a batch, and the numbers of its images where a term needs them."""
        needing = [term.name for term in self.terms if term.needs_index]
        has_index = isinstance(y, dict) and "index" in y
        if needing and not has_index:
            raise InputError(
                f"{needing[0]} needs the number of each image; pass fit batches of (images, "
                '{"labels": labels, "index": numbers}), as those of pipeline(..., with_index=True)'
            )
        if not has_index:
            return y, {}
        return y["labels"], {"index": y["index"]}

    def _answers(self, x, clean, recorded, step, replica) -> dict[str, tf.Tensor]:
        """What the teacher says of a step's samples: its logits, and the features that are needed.

        Args:
            x: the virtual samples.
            clean: the clean images, their labels and weights.
            recorded: what a recording has for the step, or None.
            step: scalar integer tensor.
            replica: likewise.
        """
        if self.soft_target == "virtual":
            if recorded is not None:
                return {"logits": recorded}
            return self._ask(x)
        logits = self._ask(clean[0])["logits"] if recorded is None else recorded
        shares = mixed_outputs(
            self.mixing,
            self.mixing_steps,
            self.data_seed,
            tf.nn.softmax(logits / self.temperature),
            clean[0],
            clean[1],
            step,
            replica,
        )
        return {"logits": self.temperature * logits_of_probabilities(shares)}

    def _ask(self, x) -> dict[str, tf.Tensor]:
        teacher, shapes = self._calls[1], self._shapes[1]
        if len(shapes) == 1:
            return {"logits": call_unless_empty(teacher, x, shapes["logits"])}
        return call_unless_empty(teacher, x, shapes)

    def _label_rows(self, batch: tf.Tensor, labels) -> tf.Tensor:
        """The labels of a batch as rows; zeros where there are none."""
        if labels is None:
            return tf.zeros((tf.shape(batch)[0], self.num_classes))
        return label_rows(labels, self.num_classes, tf.shape(batch)[0])

    def _logits(self, outputs):
        if self._student_kind == "probabilities":
            return logits_of_probabilities(outputs)
        return tf.cast(outputs, tf.float32)

    def _regularization(self):
        # Without a compiled loss, Keras's own sum is that of the regularisation losses.
        return super().compute_loss() if self.losses else 0.0

    def _track(self, name: str, loss, size) -> None:
        # Losses are divided by the number of replicas, so that their sum is the whole batch's.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._trackers[name].update_state(loss * replicas, sample_weight=size)

    @contextlib.contextmanager
    def _student_metrics_only(self):
        before, self._hides_training_metrics = self._hides_training_metrics, True
        try:
            yield
        finally:
            self._hides_training_metrics = before

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self._distribute_strategy is None:
            return
        for _, _, batches in iterator or ():
            data_batch = first_local_batch(next(batches), self.distribute_strategy)
            break
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)


class _Counter:
    """Holds the step where Keras doesn't find it: it isn't one of the weights.

    A callback that brings back the best weights must not turn the step back.
    """

    def __init__(self):
        self.variable = keras.Variable(
            0, dtype="int64", trainable=False, aggregation="only_first_replica", name="step"
        )


def _pretraining_name(term: DistillationTerm) -> str:
    return f"{term.name}_pretraining"


def _scalar(loss) -> tf.Tensor:
    # Keras gives an empty batch, a replica's at the end of data, back as it is.
    return tf.reduce_sum(loss)
