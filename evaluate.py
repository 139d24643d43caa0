"""Evaluates, reports on and exports an image classifier."""

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import keras
from absl import flags

import models
from models.finished_runs import FinishedRun, load_student, read_run
from models.loading import check_normalization, is_whole_model
from models.teachers import TeacherSource, load_teachers, parse_teachers
from stkd_keras import data, experiment, export
from stkd_keras.cli import app, evaluate_settings, loading
from stkd_keras.cli.evaluate_flags import COMMON, GROUPS
from stkd_keras.errors import InputError
from stkd_keras.files.json_files import read_json
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.training.model_card import model_name, student_name
from stkd_keras.training.run_directory import RunDirectory

DESCRIPTION = """
python evaluate.py --model=runs/digits-resnet20-resnet8-stkd-s0

Prints accuracy, negative log-likelihood and expected calibration error (15 equal-width bins) on
the test split and, with a teacher, how often student and teacher agree and the KL divergence
between them. --report writes all that and more to an HTML file. --export converts the model for
other runtimes and tests each file on the test split.
"""

FLAGS = flags.FLAGS


def main() -> None:
    """Runs the command."""
    if FLAGS.model is None:
        raise InputError("--model is missing: a run directory, a .keras file or a zoo model")
    run = read_run(FLAGS.model, "--model") if evaluate_settings.names_a_run(FLAGS.model) else None
    source = FLAGS.model if run is None else run.student
    check_source(source)
    outputs = evaluate_settings.outputs_from_flags()
    for folder in outputs.compared.values():
        read_run(folder, "--compare")

    # With --json, standard output is pure JSON.
    notes = io.StringIO() if FLAGS.json else sys.stdout
    with contextlib.redirect_stdout(notes):
        sources = get_teachers(run) if outputs.are_scores else []
        dataset = loading.load_dataset(run or FinishedRun(student="", dataset="digits"))
        loading.list_skipped(dataset.skipped)
        for folder in outputs.compared.values():
            evaluate_settings.check_same_data(folder, dataset)
        step = None
        if run is None:
            student = models.load_for(dataset, source, FLAGS.weights, FLAGS.normalization)
        else:
            student, step = load_student(run, dataset)
        temperature = None if run is None else RunDirectory(FLAGS.model).calibration_temperature
        result: dict[str, Any] = {}
        if outputs.export is not None:
            result = experiment.export(student, dataset, FLAGS.export, outputs.export, temperature)
            print(export.format_export(result))
        if outputs.are_scores:
            dtype = run.teacher_dtype if run is not None and FLAGS.teacher is None else None
            teacher = load_teachers(dataset, sources, dtype=dtype)[0] if sources else None
            result = score(student, step, teacher, dataset, outputs, sources, temperature)
            print(experiment.format_metrics(result))
    if isinstance(notes, io.StringIO):
        print(notes.getvalue(), end="", file=sys.stderr)
        print(json.dumps(result, indent=2))


def check_source(source: str) -> None:
    """Raises an InputError if the flags don't describe a trained model."""
    models.check_source(source, weights=FLAGS.weights)
    if FLAGS.weights is None and not is_whole_model(source):
        raise InputError(f"--model={source} has random weights; add --weights=FILE")
    check_normalization(FLAGS.normalization, source, FLAGS.weights)


def get_teachers(run: FinishedRun | None) -> Sequence[TeacherSource]:
    """Returns the teachers given by the flags or the run, if any."""
    sources: Sequence[TeacherSource] = run.teachers if run is not None else ()
    if FLAGS.teacher is not None:
        sources = parse_teachers(
            FLAGS.teacher, FLAGS.teacher_weights, FLAGS.teacher_normalization,
            FLAGS.teacher_classes, FLAGS.teacher_outputs,
        )  # fmt: skip
    files = [file for source in sources for file in source.files]
    if FLAGS.teacher is None and (missing := [file for file in files if not os.path.isfile(file)]):
        print(f"continuing without the run's teacher, which no longer exists: {missing[0]}")
        return ()
    for source in sources:
        if not source.is_trained:
            raise InputError(
                f"--teacher={source.source} has random weights; add --teacher_weights=FILE"
            )
    return sources


def score(
    student: keras.Model,
    step: int | None,
    teacher: FrozenTeacher | None,
    dataset: data.Dataset,
    outputs: evaluate_settings.Outputs,
    sources: Sequence[TeacherSource],
    temperature: float | None,
) -> dict[str, dict[str, float]]:
    """Evaluates the student, of an unfinished run at a step, and writes the report if requested."""
    if outputs.report is None:
        return experiment.evaluate(student, teacher, dataset, {}, temperature)
    run = FLAGS.model if evaluate_settings.names_a_run(FLAGS.model) else None
    name = model_name(FLAGS.model)
    if run is not None:
        finished = RunDirectory(run)
        name = student_name(read_json(finished.config)) or finished.path.resolve().name
    students = [experiment.Student(marked(name, step), student, run, outputs.export)]
    for name, folder in outputs.compared.items():
        other, other_step = load_student(read_run(folder), dataset)
        students.append(experiment.Student(marked(name, other_step), other, folder))
    # None for the name of the run's own teacher.
    named = " + ".join(model_name(source.name) for source in sources) if FLAGS.teacher else None
    metrics = experiment.report(outputs.report, students, teacher, dataset, named)
    print(f"report: {outputs.report}")
    if run is not None and step is not None:
        experiment.write_model_card(RunDirectory(run), student, metrics, step)
    return metrics


def marked(name: str, step: int | None) -> str:
    """Returns a student's name in the report, which says if its run is unfinished."""
    return name if step is None else f"{name} (unfinished, step {step:,})"


if __name__ == "__main__":
    app.run(main, DESCRIPTION, GROUPS, COMMON)
