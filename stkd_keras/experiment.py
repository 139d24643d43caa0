"""The steps of train.py, as functions that user code can call."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from stkd_keras.backup import newest_step
from stkd_keras.callbacks import ReturnFreedMemory
from stkd_keras.data import (
    AnySplit,
    Dataset,
    evaluation_pipeline,
    pipeline,
    split_train,
    steps_per_epoch,
)
from stkd_keras.distiller import SimilarityTransferDistiller
from stkd_keras.distribution import (
    check_alike,
    distributed,
    distributed_by_example,
    is_chief,
    wait_for_all,
)
from stkd_keras.errors import InputError, unknown_name
from stkd_keras.evaluation import (
    EVALUATION_BATCH,
    compiled,
    fidelity,
    predict_logits,
    score,
)
from stkd_keras.export import export as export
from stkd_keras.model_card import model_card
from stkd_keras.optimizers import SGD, AdamW, AfterPretraining
from stkd_keras.outputs import logits_function
from stkd_keras.panel import NUM_SAMPLES, VirtualSamplePanel
from stkd_keras.recipes import check_optimizer, check_recipe
from stkd_keras.replay import RecordedTeacher
from stkd_keras.report import Student, write_report
from stkd_keras.resumable import ON_NAN, Place, Training, fit_resumably, largest_divisor
from stkd_keras.run_directory import RunDirectory, read_json, write_json
from stkd_keras.teacher import FrozenTeacher
from stkd_keras.tensorboard import RunTensorBoard, write_result
from stkd_keras.whole_files import unwritable_named, write_whole

DEFAULT_VALIDATION_FRACTION = 0.1
WARMUP_SHARE = 0.05
BACKUP_STEPS = 500


def split(
    dataset: Dataset,
    validation_fraction: float | None = None,
    train_fraction: float = 1.0,
    seed: int = 0,
    *,
    images_per_class: int | None = None,
) -> tuple[AnySplit, AnySplit | None]:
    """Returns the images to train on and those to watch.

    Args:
        dataset: the data set.
        validation_fraction: as in `split_train`. None for the data set's own validation split or,
            where it has none, a tenth of the training images if they suffice for that.
        train_fraction: as in `split_train`.
        seed: as in `split_train`.
        images_per_class: as in `split_train`.

    Raises:
        InputError: as `split_train`.
    """
    own = dataset.validation if validation_fraction is None else None
    if validation_fraction is None:
        validation_fraction = _default_validation_fraction(dataset, seed)
    train_split, validation_split = split_train(
        dataset, validation_fraction, train_fraction, seed, images_per_class=images_per_class
    )
    return train_split, validation_split if own is None else own


def make_optimizer(
    learning_rate: float,
    weight_decay: float,
    total_steps: int,
    optimizer: str = "sgd",
    pretraining_steps: int = 0,
    highest_pretraining_learning_rate: float | None = None,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer with a linear warm-up and a cosine decay to 0.

    Args:
        learning_rate: the highest; the warm-up reaches it after 5 % of the steps.
        weight_decay: of kernels; with "sgd" L2 added to the gradient, with "adamw" decoupled.
        total_steps: steps of the whole training, but for those of a pretraining.
        optimizer: "sgd" (with Nesterov momentum 0.9) or "adamw".
        pretraining_steps: steps before them, with the highest learning rate.
        highest_pretraining_learning_rate: of these steps, None for that of the others.

    Raises:
        InputError: as `check_recipe`, or for an unknown optimizer.
    """
    check_optimizer(optimizer)
    check_recipe(learning_rate, weight_decay)
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total_steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )
    if pretraining_steps:
        before = min(learning_rate, highest_pretraining_learning_rate or learning_rate)
        schedule = AfterPretraining(schedule, pretraining_steps, before)
    if optimizer == "adamw":
        return AdamW(schedule, weight_decay=weight_decay)
    return SGD(schedule, momentum=0.9, nesterov=True, l2=weight_decay)


def start(
    run: RunDirectory,
    config: dict[str, Any],
    strategy: tf.distribute.Strategy,
    overwrite: bool = False,
) -> None:
    """Starts a run: of several workers one does, once all have looked at what is there.

    Args:
        run: the run's directory, which all share.
        config: as in `RunDirectory.start`.
        strategy: that of the training.
        overwrite: as in `RunDirectory.start`.
    """
    wait_for_all(strategy)
    if is_chief(strategy):
        run.start(config, overwrite)
    wait_for_all(strategy)


def train(
    distiller: SimilarityTransferDistiller,
    dataset: Dataset,
    train_split: AnySplit,
    validation_split: AnySplit | None,
    run: RunDirectory,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    optimizer: str = "sgd",
    augment: str = "standard",
    steps_per_execution: int = 1,
    backup_steps: int = BACKUP_STEPS,
    on_nan: str = "stop",
    validation_freq: int = 1,
    histogram_freq: int = 0,
    profile_steps: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains a distiller's student, from the run's last backup if there is one, and saves it.

    Of several workers all have to call it, and one writes.

    Args:
        distiller: made under the strategy that it shall be trained under.
        dataset: what the splits are of.
        train_split: the images to train on; those without label have -1.
        validation_split: the images to watch, or None.
        run: the started directory for what it leaves.
        epochs: passes over the training images, after those of a pretraining.
        batch_size: images a step, over all replicas.
        learning_rate: the highest.
        weight_decay: as in `make_optimizer`.
        optimizer: likewise.
        augment: as in `stkd_keras.data.pipeline`.
        steps_per_execution: as in `keras.Model.compile`; the largest number up to it that divides
            the steps of an epoch is taken.
        backup_steps: steps between two backups within an epoch; there is one after each epoch, too.
        on_nan: "stop" at a loss that isn't finite, or "restore" the last backup once, and go on
            with half the learning rate.
        validation_freq: epochs from one look at the validation images, and picture of virtual
            samples, to the next.
        histogram_freq: epochs from one set of histograms of the weights in TensorBoard to the
            next; 0 for none.
        profile_steps: steps that TensorFlow's profiler looks at, from the third on; 0 for none.
        callbacks: further ones. What Keras's EarlyStopping, ModelCheckpoint and ReduceLROnPlateau
            remember is backed up, too.

    Raises:
        InputError: where numbers are outside their ranges, the loss stops being finite, or a file
            can't be written.
        Interrupted: after SIGTERM or SIGINT, when the step is done and backed up.
    """
    if on_nan not in ON_NAN:
        raise unknown_name("way to go on after a loss of NaN", on_nan, ON_NAN)
    for name, number, lowest in (
        ("backup_steps", backup_steps, 1),
        ("validation_freq", validation_freq, 1),
        ("histogram_freq", histogram_freq, 0),
        ("profile_steps", profile_steps, 0),
    ):
        if number < lowest:
            raise InputError(f"{name} is {number}, but must be {lowest} or more")
    strategy = distiller.distribute_strategy
    chief = is_chief(strategy)
    steps = steps_per_epoch(train_split, batch_size)
    together = largest_divisor(steps_per_execution, steps)
    if together != steps_per_execution:
        print(f"{together} steps an execution: the most that divide the {steps} of an epoch")
    check_alike(f"the run's directory {run.path}", newest_step(run.backup), strategy)
    metrics: list = ["accuracy"]
    if dataset.num_classes > 10:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(k=5, name="top5_accuracy"))

    highest = distiller.highest_pretraining_learning_rate

    def compile_for(learning_rate_scale: float, steps_done: int) -> None:
        distiller.compile(
            make_optimizer(
                learning_rate * learning_rate_scale,
                weight_decay,
                epochs * steps,
                optimizer,
                distiller.pretraining_steps,
                highest and highest * learning_rate_scale,
            ),
            metrics=metrics,
            steps_per_execution=largest_divisor(steps_per_execution, steps, steps_done),
        )

    def batches(first_step: int):
        share_of = functools.partial(
            pipeline, dataset, train_split, batch_size, distiller.data_seed, augment,
            start_step=first_step, with_index=any(t.needs_index for t in distiller.terms),
        )  # fmt: skip
        if isinstance(distiller.teacher, RecordedTeacher):
            return distiller.teacher.attach(share_of())
        return distributed(share_of, strategy)

    def loggers(resumes: bool) -> list:
        if not chief:
            return []
        first = pipeline(dataset, train_split, batch_size, distiller.data_seed, augment)
        tensorboard = RunTensorBoard(run.tensorboard, histogram_freq, profile_steps)
        return [
            tensorboard,
            *_loggers(run, resumes, first, batch_size, dataset, validation_freq),
        ]

    validation = validation_split and distributed_by_example(
        evaluation_pipeline(validation_split, EVALUATION_BATCH), strategy
    )
    all_epochs = epochs + -(-distiller.pretraining_steps // steps)
    training = Training(
        distiller, compile_for, batches, validation, all_epochs, steps, validation_freq
    )
    place = Place(run.backup, run.settings, run.history, backup_steps)
    with unwritable_named(run.path):
        if chief:
            _write_description(run, describe(dataset, train_split, validation_split))
        fit_resumably(training, place, loggers, callbacks, on_nan)
    if chief:
        run.save_model(distiller.student)


def evaluate(
    student: keras.Model,
    teacher: FrozenTeacher | None,
    dataset: Dataset,
    splits: dict[str, AnySplit],
) -> dict[str, dict[str, float]]:
    """Scores a student, and its teacher on the test split.

    Args:
        student: any Keras classifier.
        teacher: the teacher, or None.
        dataset: the data set; its test split is always scored.
        splits: further splits by name, as "train" and "validation".

    Returns:
        The content of metrics.json: the scores under the split's name, and with a teacher
        "teacher" and "fidelity", both on the test split.
    """
    classifier = compiled(logits_function(student), dataset.image_shape)
    metrics = {}
    for name, split in {"test": dataset.test, **splits}.items():
        print(f"evaluating on the {name} split")
        batches = evaluation_pipeline(split, EVALUATION_BATCH)
        logits, labels = predict_logits(classifier, batches)
        metrics[name] = score(logits, labels)
        if name == "test" and teacher is not None:
            print("evaluating the teacher on the test split")
            answers, _ = predict_logits(compiled(teacher, dataset.image_shape), batches)
            metrics["teacher"] = score(answers, labels)
            metrics["fidelity"] = fidelity(logits, answers)
    return metrics


def complete(run: RunDirectory, student: keras.Model, metrics: dict[str, dict[str, float]]) -> None:
    """Writes a run's scores: to TensorBoard's HParams, the model card, and at last metrics.json.

    Args:
        run: the run, whose model is there.
        student: that model.
        metrics: what `evaluate` returned.

    Raises:
        InputError: where they can't be written.
    """
    with unwritable_named(run.path):
        write_result(run.tensorboard, run.path.name, run.settings, metrics)
    card = model_card(student, read_json(run.config), metrics)
    write_whole(run.model_card, card.encode(errors="backslashreplace"))
    write_json(run.metrics, metrics)


def report(
    file: str | os.PathLike,
    students: Sequence[Student],
    teacher: FrozenTeacher | None,
    dataset: Dataset,
    teacher_name: str = "teacher",
) -> dict[str, dict[str, float]]:
    """Writes an HTML file that stands alone on students, and on their teacher if there is one.

    Every model answers the test split once, and virtual samples made of it; then all are timed by
    turns. docs/report.md says what is on the page.

    Args:
        file: the file to write; one that is there is replaced, whole or not at all.
        students: at least one. The report is about the first; the others stand beside it, on the
            same images.
        teacher: the teacher, or None.
        dataset: the data set.
        teacher_name: what the teacher is called.

    Returns:
        The scores of the first student, as `evaluate` returns them.

    Raises:
        InputError: where the file can't be written, or a run's directory holds what a run doesn't
            write.

    Example:

    ```python
    student = keras.saving.load_model("runs/digits/student.keras")
    students = [experiment.Student("resnet8", student, run="runs/digits")]
    experiment.report("report.html", students, None, stkd_keras.data.load("digits"))
    ```
    """
    return write_report(file, students, teacher, dataset, teacher_name)


def describe(
    dataset: Dataset, train_split: AnySplit, validation_split: AnySplit | None
) -> dict[str, Any]:
    """Returns what a report says of the data: names, shape, classes, and images by split."""
    labelled = int((train_split.labels >= 0).sum())
    counts = {
        "train": labelled,
        "unlabeled": len(train_split) - labelled,
        "validation": len(validation_split) if validation_split is not None else 0,
        "test": len(dataset.test),
    }
    return {
        "name": dataset.name,
        "version": dataset.version,
        "image_shape": list(dataset.image_shape),
        "images": {name: count for name, count in counts.items() if count},
        "classes": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "flip": dataset.flip,
        # File names may hold bytes that no text has.
        "skipped": [s.encode(errors="backslashreplace").decode() for s in dataset.skipped],
    }


def format_description(description: dict[str, Any]) -> str:
    """Returns the line of a terminal for what `describe` says."""
    counts = ", ".join(f"{count:,} {name}" for name, count in description["images"].items())
    shape = "x".join(map(str, description["image_shape"]))
    name = f"{description['name']} {description['version']}"
    return f"{name}: {counts} images of {shape}, {len(description['classes'])} classes"


def format_metrics(metrics: dict[str, dict[str, float]]) -> str:
    """Returns metrics as lines for a terminal, accuracies and agreement in percent."""
    lines = []
    for name, values in metrics.items():
        shown = [
            f"{k.replace('_', ' ')} {100 * v:.2f} %"
            if k.endswith("accuracy") or k == "agreement"
            else f"{k} {v:.4f}"
            for k, v in values.items()
        ]
        lines.append(f"{name + ':':12}{', '.join(shown)}")
    return "\n".join(lines)


def _default_validation_fraction(dataset: Dataset, seed: int) -> float:
    if dataset.validation is not None:
        return 0.0
    try:
        split_train(dataset, DEFAULT_VALIDATION_FRACTION, seed=seed)
    except InputError:
        print("too few images for a validation split: all are trained on")
        return 0.0
    return DEFAULT_VALIDATION_FRACTION


def _write_description(run: RunDirectory, description: dict[str, Any]) -> None:
    """Writes what is said of the data to TensorBoard, under Text."""
    rows = [f"| {key} | {value} |" for key, value in description.items()]
    with tf.summary.create_file_writer(f"{run.tensorboard}/train").as_default():
        tf.summary.text("dataset", "\n".join(["| | |", "|---|---|", *rows]), step=0)


def _loggers(run, resumes: bool, batches, batch_size: int, dataset: Dataset, freq: int) -> list:
    """What leaves a run's artefacts, epoch by epoch."""
    callbacks = [keras.callbacks.CSVLogger(str(run.history), append=resumes)]
    if batch_size >= NUM_SAMPLES:
        panel = VirtualSamplePanel(run.tensorboard, batches, dataset.class_names, freq)
        callbacks.append(panel)
    return [*callbacks, ReturnFreedMemory(freq)]
