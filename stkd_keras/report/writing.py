"""From models to the file of the report: have them answer, count, time, and write."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from stkd_keras.classifiers.outputs import logits_function
from stkd_keras.data import Dataset
from stkd_keras.errors import InputError
from stkd_keras.evaluation import cost
from stkd_keras.evaluation.scores import compiled, fidelity, log_softmax, score
from stkd_keras.mixing import Mixup
from stkd_keras.report import numbers as counting
from stkd_keras.report.answers import (
    Answers,
    Classifier,
    answer_test_images,
    answer_virtual_samples,
    fetch_test_images,
)
from stkd_keras.report.page import Card, Report, check_report_file, write_page
from stkd_keras.report.run_files import read_run
from stkd_keras.report.text import printable
from stkd_keras.teacher.frozen import FrozenTeacher

NUM_DIFFERENT = 12


@dataclasses.dataclass(frozen=True)
class Student:
    """A student in a report.

    Attributes:
        name: what it is called there.
        model: any Keras classifier.
        run: the directory of the run that made it, or None.
        exported: the folder that it was exported to (default: `export/` in its run's directory).
    """

    name: str
    model: keras.Model
    run: str | os.PathLike | None = None
    exported: str | os.PathLike | None = None


def write_report(
    file: str | os.PathLike,
    students: Sequence[Student],
    teacher: FrozenTeacher | None,
    dataset: Dataset,
    teacher_name: str = "teacher",
) -> dict[str, dict[str, float]]:
    """Writes the report; see `stkd_keras.experiment.report`."""
    check_report_file(file)
    if not students:
        raise InputError("the report has no student; give at least one")
    runs = [read_run(student.run, student.exported) for student in students]
    run = runs[0]
    mixing, is_own = run.mixing, run.mixing is not None
    temperature, seed = run.settings.get("temperature", 1.0), run.settings.get("data_seed", 0)

    classifiers = [_traced(logits_function(s.model), dataset) for s in students]
    if teacher is not None:
        classifiers.insert(1, _traced(teacher, dataset))
    count = f"{len(classifiers)} model{'s' if len(classifiers) > 1 else ''}"
    print(f"report: {count} on {len(dataset.test):,} test images")
    test = answer_test_images(classifiers, dataset)
    print("report: on virtual samples made of them")
    virtual = answer_virtual_samples(classifiers, dataset, mixing or Mixup(), seed)
    entries = [counting.model_numbers(logits, test.labels, temperature) for logits in test.logits]
    names = [student.name for student in students]
    roles = ["student", *("other" for _ in students[1:])]
    if teacher is not None:
        names.insert(1, teacher_name)
        roles.insert(1, "teacher")
    for entry, name, role in zip(entries, _unique(names), roles, strict=True):
        entry |= {"name": name, "role": role}
    if teacher is not None:
        _add_fidelity(entries, test, virtual)
    print("report: timing them by turns")
    _add_costs(entries, students, teacher, dataset)
    print("report: drawing")
    different = _different_cards(dataset, test) if teacher is not None else []
    report = Report(
        models=entries,
        class_names=[printable(name) for name in dataset.class_names],
        dataset=dataset,
        runs=runs,
        temperature=temperature,
        mixing=mixing or Mixup(),
        mixing_is_own=is_own,
        different=different,
        virtual=_virtual_cards(virtual, entries),
        machine=cost.machine(),
    )
    write_page(file, report)
    return _metrics(test, teacher is not None)


def _traced(classifier: Classifier, dataset: Dataset) -> Classifier:
    # At once: TensorFlow warns of functions that are traced when they are called.
    return compiled(classifier, dataset.image_shape).get_concrete_function()


def _add_fidelity(entries: list[dict], test: Answers, virtual: Answers) -> None:
    """Adds to each student how faithful it is to the teacher, which is the second model."""
    for number, entry in enumerate(entries):
        if entry["role"] == "teacher":
            continue
        entry["fidelity"] = {
            name: counting.fidelity_numbers(answers.logits[number], answers.logits[1])
            for name, answers in (("test", test), ("virtual", virtual))
        }
        entry["similarity_correlation"] = counting.similarity_correlation(
            entry["similarity"], entries[1]["similarity"]
        )


def _add_costs(
    entries: list[dict],
    students: Sequence[Student],
    teacher: FrozenTeacher | None,
    dataset: Dataset,
) -> None:
    """Adds what each model costs."""
    frozen = [FrozenTeacher(student.model) for student in students]
    kept: list[Sequence[keras.Model] | None] = [[student.model] for student in students]
    if teacher is not None:
        frozen.insert(1, teacher)
        kept.insert(1, teacher.snapshots)
    calls = {str(n): _traced(model, dataset) for n, model in enumerate(frozen)}
    seconds = cost.median_seconds(calls, dataset.image_shape)
    for number, (entry, model, files) in enumerate(zip(entries, frozen, kept, strict=True)):
        one, many = (seconds[str(number)][size] for size in cost.BATCH_SIZES)
        entry["cost"] = {
            "parameters": model.num_parameters,
            "multiply_adds": cost.multiply_adds(model, dataset.image_shape),
            "file_bytes": None if files is None else cost.file_bytes(files),
            "latency_ms": 1e3 * one,
            "images_per_second_1": cost.BATCH_SIZES[0] / one,
            "images_per_second_128": cost.BATCH_SIZES[1] / many,
        }


def _different_cards(dataset: Dataset, test: Answers) -> list[Card]:
    """The images that student and teacher, the first two models, answer most differently."""
    places = counting.most_different(test.logits[0], test.logits[1], NUM_DIFFERENT)
    indices = [int(place["image"]) for place in places]
    images = fetch_test_images(dataset, indices)
    student, teacher = (np.exp(log_softmax(logits[indices])) for logits in test.logits[:2])
    rows = np.eye(dataset.num_classes)[test.labels[indices]]
    return [
        Card(images[n], rows[n], {"teacher": teacher[n], "student": student[n]}, index, place["kl"])
        for n, (index, place) in enumerate(zip(indices, places, strict=True))
    ]


def _virtual_cards(virtual: Answers, entries: list[dict]) -> list[Card]:
    """The first virtual samples, with what teacher and student answer."""
    count = len(virtual.images)
    roles = [entry["role"] for entry in entries[:2]]
    answers = {
        role: np.exp(log_softmax(logits[:count]))
        for role, logits in zip(roles, virtual.logits, strict=False)
        if role in ("teacher", "student")
    }
    images = np.rint(np.clip(virtual.images, 0, 255)).astype(np.uint8)
    return [
        Card(
            images[n],
            virtual.labels[n],
            {role: answers[role][n] for role in ("teacher", "student") if role in answers},
        )
        for n in range(count)
    ]


def _metrics(test: Answers, has_teacher: bool) -> dict[str, dict[str, float]]:
    """What `stkd_keras.experiment.evaluate` returns."""
    metrics: dict[str, Any] = {"test": score(test.logits[0], test.labels)}
    if has_teacher:
        metrics["teacher"] = score(test.logits[1], test.labels)
        metrics["fidelity"] = fidelity(test.logits[0], test.logits[1])
    return metrics


def _unique(names: Sequence[str]) -> list[str]:
    """The names, printable, and numbered where one is there twice."""
    result: list[str] = []
    for name in map(printable, names):
        same = sum(each == name or each.startswith(f"{name} (") for each in result)
        result.append(f"{name} ({same + 1})" if name in result else name)
    return result
