"""The steps of train.py as functions."""

import keras
import networks
import numpy as np
import pytest

from stkd_keras import FrozenTeacher, data, experiment
from stkd_keras.evaluation import fit_temperature


def split_of(count):
    return data.Split(networks.images(count)[0].astype(np.uint8), np.arange(count) % 2)


@pytest.fixture(scope="module")
def dataset():
    """Four training and six test images of two classes."""
    return data.Dataset(
        name="noise",
        version="1",
        class_names=("cat", "dog"),
        mean=(0.5,),
        std=(0.25,),
        flip=False,
        train=split_of(4),
        test=split_of(6),
    )


def test_a_tenth_of_the_images_is_held_out_unless_there_are_too_few(dataset, capsys):
    digits = data.load("digits")
    train_split, validation = experiment.split(digits)
    assert (len(train_split), len(validation)) == (1293, 144)
    train_split, validation = experiment.split(dataset)
    assert (len(train_split), validation) == (4, None)
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


def test_a_student_is_calibrated_on_the_validation_split(dataset):
    keras.utils.set_random_seed(0)
    student = networks.small_convolutional_classifier(2)
    logits = student.predict(dataset.test.images, verbose=0)
    labels = np.argmax(logits, axis=1)
    labels[np.abs(logits[:, 0] - logits[:, 1]).argmin()] ^= 1
    expected = fit_temperature(logits, labels)
    assert expected != 1
    validation = data.Split(dataset.test.images, labels)
    temperature = experiment.calibrate(student, dataset, validation)
    assert temperature == pytest.approx(expected, rel=1e-4)
    metrics = experiment.evaluate(student, None, dataset, {}, temperature)
    assert metrics["calibration"] == {"temperature": temperature}
    assert set(metrics["test"]) == {"accuracy", "nll", "ece", "calibrated_nll", "calibrated_ece"}


def test_a_student_that_cannot_be_calibrated_is_reported(dataset, capsys):
    student = networks.small_convolutional_classifier(2)
    assert experiment.calibrate(student, dataset, None) is None
    assert "no validation images: the student's probabilities" in capsys.readouterr().out
    student.weights[-1].assign([np.nan, 0])
    assert experiment.calibrate(student, dataset, dataset.test) is None
    assert "aren't calibrated: logits have NaN" in capsys.readouterr().out


def test_metrics_are_printed_in_percent():
    metrics = {"test": {"accuracy": 0.5, "nll": 1.25}, "fidelity": {"agreement": 1.0, "kl": 0.1}}
    assert experiment.format_metrics(metrics).splitlines() == [
        "student (test):       accuracy 50.00 %, nll 1.2500",
        "student vs. teacher:  agreement 100.00 %, kl 0.1000",
    ]
