"""Recording a teacher: the logits in the file, resuming, and refusals in one line."""

import os
import signal
import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
from recordings import MIXING, batches, make_distiller, record, train
from safetensors.numpy import load_file

from stkd_keras import FrozenTeacher, InputError, RecordedTeacher, data, record_teacher


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def refusal(function, *args, **options):
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ten_pixels(pixels):
    assert pixels.dtype == np.float32
    assert pixels.max() > 100
    return pixels.reshape(len(pixels), -1)[:, 20:30] / 255


def test_the_file_holds_the_logits_of_the_virtual_samples_by_step(digits, tmp_path):
    teacher = FrozenTeacher(networks.convolutional_classifier())
    dataset = batches(digits, batch_size=500)
    record_teacher(tmp_path / "t", teacher, dataset, MIXING, 5, 4, dtype="float32", verbose=False)
    logits = load_file(tmp_path / "t")["logits"]
    assert logits.shape == (4, 500, 10)
    distiller = make_distiller(teacher)
    for step, (images, labels) in zip(range(4), dataset, strict=False):
        labels = keras.ops.one_hot(labels, 10)
        mixed, _, _ = MIXING(images, labels, seed=distiller.mixing_seed(step))
        np.testing.assert_allclose(logits[step], teacher(mixed), atol=1e-4)


def test_a_function_can_teach(digits, tmp_path):
    recorded = record(tmp_path / "t", digits, None, predict=ten_pixels)
    inputs = keras.Input((8, 8, 1))
    dense = keras.layers.Dense(10, use_bias=False)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.kernel.assign(np.eye(64)[:, 20:30] / 255)
    _, expected = train(model, batches(digits), 10)
    _, losses = train(recorded, recorded.attach(batches(digits)), 10)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    message = refusal(record, tmp_path / "t", digits, "another", predict=ten_pixels)
    assert "ten_pixels and is another" in message


def test_another_teacher_is_refused_and_the_same_one_loaded_again_is_not(digits, tmp_path):
    model = networks.convolutional_classifier()
    model.save(tmp_path / "m.keras")
    record(tmp_path / "t", digits, model, 2)
    before = (tmp_path / "t").stat().st_mtime_ns
    record(tmp_path / "t", digits, keras.saving.load_model(tmp_path / "m.keras"), 2)
    assert (tmp_path / "t").stat().st_mtime_ns == before
    kernel = model.layers[-1].kernel
    kernel.assign(kernel.numpy() * 1.001)
    assert "teacher was" in refusal(record, tmp_path / "t", digits, model, 2)


def test_a_longer_recording_is_accepted_and_a_shorter_one_refused(digits, tmp_path):
    record(tmp_path / "t", digits, "pixels", 4, predict=ten_pixels)
    assert record(tmp_path / "t", digits, "pixels", 2, predict=ten_pixels).steps == 4
    message = refusal(record, tmp_path / "t", digits, "pixels", 5, predict=ten_pixels)
    assert "has 4 steps, but 5" in message


@pytest.mark.parametrize(
    ("predict", "named"),
    [
        (lambda x: np.zeros((len(x), 7), "float32"), "shape (64, 7), expected (64, 10)"),
        (lambda x: np.zeros((1, 10), "float32"), "shape (1, 10), expected (64, 10)"),
        (lambda x: np.full((len(x), 10), np.nan), "a logit of nan"),
        (lambda x: np.full((len(x), 10), 1e5), "float16 can't hold"),
    ],
)
def test_logits_that_cannot_be_recorded_are_refused(predict, named, digits, tmp_path):
    assert named in refusal(record, tmp_path / "t", digits, None, predict=predict)
    assert not (tmp_path / "t").exists()


def test_wrong_arguments_are_refused(digits, tmp_path):
    teacher = networks.convolutional_classifier()
    assert "steps is 0" in refusal(record, tmp_path / "t", digits, teacher, 0)
    assert "float64" in refusal(record, tmp_path / "t", digits, teacher, dtype="float64")
    assert "no file" in refusal(RecordedTeacher, tmp_path / "t")
    mapped = batches(digits).map(lambda x, y: (x, y))
    assert "without map" in refusal(record_teacher, tmp_path / "t", teacher, mapped, None, 0, 5)


KILLED = """
import os, signal, sys
from recordings import record
from test_recording import ten_pixels
from stkd_keras import data
calls = 0
def predict(pixels):
    global calls
    calls += 1
    if calls == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return ten_pixels(pixels)
record("killed", data.load("digits"), "pixels", 30, predict=predict)
"""


def test_a_killed_recording_resumes_to_the_same_file(repository, digits, tmp_path):
    folders = [repository, repository / "tests" / "support", repository / "tests" / "teacher"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, timeout=600, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    calls = []

    def predict(pixels):
        calls.append(len(pixels))
        return ten_pixels(pixels)

    record(tmp_path / "killed", digits, "pixels", 30, predict=predict)
    assert 11 <= len(calls) < 30
    record(tmp_path / "whole", digits, "pixels", 30, predict=ten_pixels)
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "killed.unfinished").exists()


def test_an_unfinished_recording_resumes_only_with_the_same_settings(digits, tmp_path):
    def again(steps=4, **settings):
        return record(tmp_path / "t", digits, "pixels", steps, predict=ten_pixels, **settings)

    content = again().path.read_bytes()
    for size in (100, len(content) - 700):
        (tmp_path / "t").unlink()
        (tmp_path / "t.unfinished").write_bytes(content[:size])
        assert "unfinished" in refusal(RecordedTeacher, tmp_path / "t")
        if size > 100:
            assert "data_seed was 5 and is 6" in refusal(again, data_seed=6)
            assert "steps was 4 and is 5" in refusal(again, steps=5)
        again()
        assert (tmp_path / "t").read_bytes() == content


def test_a_full_disk_is_refused_before_anything_is_written(digits, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    message = refusal(record, tmp_path / "t", digits, "pixels", predict=ten_pixels)
    assert "0.0 MB free" in message
    assert not list(tmp_path.iterdir())


def test_train_records_once_and_replays_for_other_seeds(commands, tmp_path):
    flags = ("--epochs=1", "--train_images_per_class=10", "--student=resnet8", "--replay=t.replay",
             "--teacher=resnet8", "--teacher_epochs=1")  # fmt: skip
    first = commands.run("train.py", *flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "recording the teacher's logits for 2 steps of 64 images" in first.stdout
    written = (tmp_path / "t.replay").stat().st_mtime_ns
    second = commands.run("train.py", *flags, "--seed=1", "--temperature=2", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "recording" not in second.stdout
    assert (tmp_path / "t.replay").stat().st_mtime_ns == written
