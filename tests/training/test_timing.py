"""The dry run estimates the duration of a training."""

import json
import time

import keras
import networks
import numpy as np
import pytest

from stkd_keras import FrozenTeacher, SimilarityTransferDistiller, data
from stkd_keras.training.timing import in_words, say, time_training, training_seconds


def test_student_and_teacher_are_timed(capsys):
    keras.utils.set_random_seed(0)
    images, labels = networks.images(60)
    images = np.uint8(images)
    dataset = data.from_arrays(images, labels, images[:10], labels[:10])
    teacher = FrozenTeacher(networks.small_convolutional_classifier(width=8))
    distiller = SimilarityTransferDistiller(networks.small_convolutional_classifier(), teacher)
    timing = time_training(
        distiller, teacher, dataset, dataset.train, epochs=3, batch_size=20, augment="none",
        evaluated=100, started=time.monotonic() - 1,
    )  # fmt: skip
    assert timing["steps"] == 9
    assert timing["step_seconds"] > 0
    assert timing["teacher_seconds"] > 0
    assert timing["start_seconds"] > 1
    assert timing["evaluation_seconds"] > 0
    say(timing)
    line, content = capsys.readouterr().out.splitlines()[-2:]
    assert line.startswith("9 steps of ")
    assert " % of it for the teacher: about " in line
    assert json.loads(content) == pytest.approx(timing, abs=1e-6)


def test_an_untrained_teacher_is_named_and_not_trained(command, tmp_path):
    completed = command(
        "train.py", "--dry_run", "--teacher=resnet20", "--teacher_epochs=7", cwd=tmp_path
    )
    assert completed.returncode == 0, completed.stderr
    line, content = completed.stdout.splitlines()[-2:]
    assert line.startswith("resnet20 must be trained first, for 7 epochs")
    assert json.loads(content) == {"teacher_untrained": True, "teacher_epochs": 7}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "words"), [(89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations_are_readable(seconds, words):
    assert in_words(seconds) == words


def test_the_estimate_adds_start_steps_and_evaluations():
    timing = {
        "steps": 100, "step_seconds": 0.5, "teacher_seconds": 0.2, "start_seconds": 10.0,
        "evaluation_seconds": 5.0,
    }  # fmt: skip
    assert training_seconds(timing) == 65
