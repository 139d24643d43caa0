"""The steps of train.py and evaluate.py as functions."""

from typing import Any

import keras
import tensorflow as tf

from stkd_keras.classifiers.outputs import logits_function
from stkd_keras.data import AnySplit, Dataset, evaluation_pipeline, split_train
from stkd_keras.data.description import describe, format_description
from stkd_keras.distribution.workers import is_chief, wait_for_all
from stkd_keras.errors import InputError
from stkd_keras.evaluation.scores import (
    EVALUATION_BATCH,
    compiled,
    fidelity,
    fit_temperature,
    predict_logits,
    score,
)
from stkd_keras.export.formats import export
from stkd_keras.files.atomic import write_atomically
from stkd_keras.files.json_files import read_json, write_json
from stkd_keras.files.write_errors import unwritable_named
from stkd_keras.report import Student, report
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.model_card import model_card
from stkd_keras.training.run import BACKUP_STEPS, make_optimizer, train
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.tensorboard import write_result

__all__ = [
    "BACKUP_STEPS", "Student", "calibrate", "complete", "describe", "evaluate", "export",
    "format_description", "format_metrics", "make_optimizer", "report", "split", "start", "train",
    "write_model_card",
]  # fmt: skip

DEFAULT_VALIDATION_FRACTION = 0.1


def split(
    dataset: Dataset,
    validation_fraction: float | None = None,
    train_fraction: float = 1.0,
    seed: int = 0,
    *,
    images_per_class: int | None = None,
) -> tuple[AnySplit, AnySplit | None]:
    """Splits a data set into training and validation images.

    Args:
        dataset: the data set.
        validation_fraction: as in `split_train`. By default, uses the data set's own validation
            split or, if it has none, a tenth of the training images if there are enough.
        train_fraction: as in `split_train`.
        seed: as in `split_train`.
        images_per_class: as in `split_train`.

    Raises:
        InputError: as in `split_train`.
    """
    own = dataset.validation if validation_fraction is None else None
    if validation_fraction is None:
        validation_fraction = _default_validation_fraction(dataset, seed)
    train_split, validation_split = split_train(
        dataset, validation_fraction, train_fraction, seed, images_per_class=images_per_class
    )
    return train_split, validation_split if own is None else own


def start(
    run: RunDirectory,
    config: dict[str, Any],
    strategy: tf.distribute.Strategy,
    overwrite: bool = False,
) -> None:
    """Starts a run in its directory. All workers must call it; the chief writes the files.

    Args:
        run: the run directory, shared by all workers.
        config: as in `RunDirectory.start`.
        strategy: the strategy of the training.
        overwrite: as in `RunDirectory.start`.
    """
    wait_for_all(strategy)
    if is_chief(strategy):
        run.start(config, overwrite)
    wait_for_all(strategy)


def calibrate(student: keras.Model, dataset: Dataset, validation: AnySplit | None) -> float | None:
    """Fits the temperature that calibrates a student, see `stkd_keras.evaluation.fit_temperature`.

    Args:
        student: any Keras classifier.
        dataset: the data set.
        validation: the validation images, or None.

    Returns:
        The temperature; None, after printing why, if there are no validation images or the
        student's logits aren't finite.
    """
    if validation is None:
        print("no validation images: the student's probabilities aren't calibrated")
        return None
    print("calibrating on the validation split")
    classifier = compiled(logits_function(student), dataset.image_shape)
    logits, labels = predict_logits(classifier, evaluation_pipeline(validation, EVALUATION_BATCH))
    try:
        return fit_temperature(logits, labels)
    except InputError as error:
        print(f"the student's probabilities aren't calibrated: {error}")
        return None


def evaluate(
    student: keras.Model,
    teacher: FrozenTeacher | None,
    dataset: Dataset,
    splits: dict[str, AnySplit],
    temperature: float | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluates a student on several splits, and its teacher on the test split.

    Args:
        student: any Keras classifier.
        teacher: the teacher, or None.
        dataset: the data set; its test split is always evaluated.
        splits: additional splits by name, such as "train" and "validation".
        temperature: the result of `calibrate`.

    Returns:
        The content of metrics.json: scores by split, "teacher" and "fidelity" with a teacher (both
        on the test split), and "calibration" with a temperature.
    """
    classifier = compiled(logits_function(student), dataset.image_shape)
    metrics = {}
    for name, split in {"test": dataset.test, **splits}.items():
        print(f"evaluating on the {name} split")
        batches = evaluation_pipeline(split, EVALUATION_BATCH)
        logits, labels = predict_logits(classifier, batches)
        metrics[name] = score(logits, labels, temperature)
        if name == "test" and teacher is not None:
            print("evaluating the teacher on the test split")
            teacher_logits, _ = predict_logits(compiled(teacher, dataset.image_shape), batches)
            metrics["teacher"] = score(teacher_logits, labels)
            metrics["fidelity"] = fidelity(logits, teacher_logits)
    if temperature is not None:
        metrics["calibration"] = {"temperature": temperature}
    return metrics


def complete(run: RunDirectory, student: keras.Model, metrics: dict[str, dict[str, float]]) -> None:
    """Completes a run: writes its scores to TensorBoard, the model card and metrics.json.

    Removes a recording of the teacher that was made for this run alone.

    Args:
        run: the run directory, which already has the model.
        student: the trained student.
        metrics: the result of `evaluate`.

    Raises:
        InputError: if a file can't be written.
    """
    with unwritable_named(run.path):
        write_result(run.tensorboard, run.path.name, run.settings, metrics)
    write_model_card(run, student, metrics)
    write_json(run.metrics, metrics)
    run.remove_recordings()


def write_model_card(
    run: RunDirectory,
    student: keras.Model,
    metrics: dict[str, dict[str, float]],
    step: int | None = None,
) -> None:
    """Writes the model card of a run's student.

    Args:
        run: the run directory.
        student: the student.
        metrics: the result of `evaluate`.
        step: the step of the student's checkpoint if the run is unfinished.

    Raises:
        InputError: if the file can't be written.
    """
    card = model_card(student, read_json(run.config), metrics, step)
    write_atomically(run.model_card, card.encode(errors="backslashreplace"))


def format_metrics(metrics: dict[str, dict[str, float]]) -> str:
    """Formats metrics for the terminal, with accuracies and agreement in percent."""
    names = {
        "teacher": "teacher (test)",
        "fidelity": "student vs. teacher",
        "calibration": "calibration",
    }
    lines = []
    for name, values in metrics.items():
        shown = [
            f"{k} {100 * v:.2f} %" if k.endswith(("accuracy", "agreement")) else f"{k} {v:.4f}"
            for k, v in ((key.replace("_", " "), value) for key, value in values.items())
        ]
        lines.append(f"{names.get(name, f'student ({name})') + ':':22}{', '.join(shown)}")
    return "\n".join(lines)


def _default_validation_fraction(dataset: Dataset, seed: int) -> float:
    if dataset.validation is not None:
        return 0.0
    try:
        split_train(dataset, DEFAULT_VALIDATION_FRACTION, seed=seed)
    except InputError:
        print("too few images for a validation split: training on all of them")
        return 0.0
    return DEFAULT_VALIDATION_FRACTION
