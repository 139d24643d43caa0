"""The steps of train.py as functions."""

import networks
import numpy as np
import pytest

from stkd_keras import FrozenTeacher, data, experiment


def split_of(count, seed=0):
    pixels, labels = networks.images(count, classes=2, seed=seed)
    return data.Split(pixels.astype(np.uint8), labels)


@pytest.fixture(scope="module")
def dataset():
    """Ten training and six test images of two classes."""
    split = data.Split(networks.images(10)[0].astype(np.uint8), np.arange(10) % 2)
    return data.Dataset("noise", split, split_of(6, seed=1), ("cat", "dog"))


def test_a_tenth_of_the_images_is_held_out_unless_there_are_too_few(dataset, capsys):
    digits = data.load("digits")
    train_split, validation = experiment.split(digits)
    assert (len(train_split), len(validation)) == (1293, 144)
    train_split, validation = experiment.split(dataset)
    assert (len(train_split), validation) == (10, None)
    assert "too few images" in capsys.readouterr().out


def test_student_and_teacher_are_evaluated_by_split(dataset):
    student = networks.small_convolutional_classifier(2)
    teacher = FrozenTeacher(networks.small_convolutional_classifier(2))
    metrics = experiment.evaluate(student, teacher, dataset, {"train": dataset.train})
    assert list(metrics) == ["test", "teacher", "fidelity", "train"]
    predicted = np.argmax(student.predict(dataset.test.images, verbose=0), axis=1)
    expected = np.mean(predicted == np.asarray(dataset.test.labels))
    assert metrics["test"]["accuracy"] == pytest.approx(expected)
    assert set(experiment.evaluate(student, None, dataset, {})) == {"test"}


def test_metrics_are_printed_in_percent():
    metrics = {"test": {"accuracy": 0.5, "nll": 1.25}, "fidelity": {"agreement": 1.0, "kl": 0.1}}
    assert experiment.format_metrics(metrics).splitlines() == [
        "student (test):       accuracy 50.00 %, nll 1.2500",
        "student vs. teacher:  agreement 100.00 %, kl 0.1000",
    ]
