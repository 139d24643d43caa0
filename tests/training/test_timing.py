"""train.py --dry_run says how long a training will take, and leaves nothing."""

import json

import keras
import networks
import pytest

from stkd_keras.training.timing import in_words, training_seconds


def dry_run(command, folder, *flags):
    """What a dry run prints: its last two lines, the second as what it means."""
    completed = command("train.py", "--dry_run", *flags, cwd=folder)
    assert completed.returncode == 0, completed.stderr
    line, answer = completed.stdout.splitlines()[-2:]
    return line, json.loads(answer)


def test_it_times_student_and_teacher_and_writes_nothing(command, tmp_path):
    keras.utils.set_random_seed(0)
    networks.small_convolutional_classifier().save(tmp_path / "teacher.keras")
    line, answer = dry_run(
        command, tmp_path, "--teacher=teacher.keras", "--student=resnet8", "--epochs=3",
        "--train_images_per_class=20", "--batch_size=20", "--replay=answers.replay",
    )  # fmt: skip
    assert line.startswith("30 steps of ")
    assert " % of it for the teacher" in line
    assert answer["steps"] == 30
    assert 0 < answer["teacher_seconds"] < answer["step_seconds"] < 1
    assert 1 < answer["start_seconds"] < 100
    assert answer["evaluation_seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.keras"]


def test_a_teacher_that_has_yet_to_be_trained_is_named_and_not_trained(command, tmp_path):
    line, answer = dry_run(command, tmp_path, "--teacher=resnet20", "--teacher_epochs=7")
    assert line == "resnet20 would be trained first, for 7 epochs: ask again then"
    assert answer == {"teacher_untrained": True, "teacher_epochs": 7}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_durations_are_in_words(seconds, words):
    assert in_words(seconds) == words


def test_a_training_is_its_start_its_steps_and_its_evaluations():
    timing = {
        "steps": 100, "step_seconds": 0.5, "teacher_seconds": 0.2, "start_seconds": 10.0,
        "evaluation_seconds": 5.0,
    }  # fmt: skip
    assert training_seconds(timing) == 65
