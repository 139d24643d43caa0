"""A recorded teacher trains a student as the teacher itself would; no other recording is taken."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time

import keras
import networks
import numpy as np
import pytest
from safetensors.numpy import load_file

import stkd_keras
from stkd_keras import (
    FrozenTeacher,
    InputError,
    Mixup,
    RecordedTeacher,
    SimilarityTransferDistiller,
    data,
    record_teacher,
)

MIXING = Mixup(alpha=1.0, num_images=3)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    return FrozenTeacher(networks.convolutional_classifier())


def batches(digits, start_step=0, **changes):
    arguments = {"split": "train", "batch_size": 64, "data_seed": 3, **changes}
    return data.pipeline(digits, **arguments, start_step=start_step)


def record(path, digits, teacher, steps=10, mixing=MIXING, data_seed=5, **options):
    return record_teacher(
        path, teacher, batches(digits), mixing, data_seed, steps, verbose=False, **options
    )


def distiller(teacher, mixing=MIXING, data_seed=5, **settings):
    keras.utils.set_random_seed(1)
    made = SimilarityTransferDistiller(
        networks.small_convolutional_classifier(), teacher, mixing=mixing, data_seed=data_seed,
        **settings,
    )  # fmt: skip
    made.compile(stkd_keras.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    return made


class SoftLosses(keras.callbacks.Callback):
    """Keeps the soft loss of each step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(logs["soft_loss"] * (batch + 1) - sum(self.values))


def train(teacher, dataset, steps, **settings):
    model, losses = distiller(teacher, **settings), SoftLosses()
    model.fit(dataset, steps_per_epoch=steps, verbose=0, callbacks=[losses], shuffle=False)
    return model, np.array(losses.values)


def refusal(function, *args, **options):
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mixing", [MIXING, None])
def test_the_soft_loss_by_replay_is_the_live_one_over_a_hundred_steps(
    mixing, digits, teacher, tmp_path
):
    recorded = record(tmp_path / "t", digits, teacher, 100, mixing, mixing_steps=70)
    settings = {"mixing": mixing, "mixing_steps": 70}
    live, expected = train(teacher, batches(digits), 100, **settings)
    student, losses = train(recorded, recorded.attach(batches(digits)), 100, **settings)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    for a, b in zip(live.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_one_recording_serves_other_students_temperatures_and_weights(digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher, 30)
    for settings in ({"temperature": 1.0}, {"soft_weight": 0.3, "label_weight": 0.7}):
        _, expected = train(teacher, batches(digits), 30, **settings)
        _, losses = train(recorded, recorded.attach(batches(digits)), 30, **settings)
        np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_the_file_holds_the_logits_of_the_virtual_samples_by_step(digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher, 25, dtype="float32")
    logits = load_file(tmp_path / "t")["logits"]
    model = distiller(teacher)
    steps = data.steps_per_epoch(digits.train, 64)
    for step, (images, labels) in zip(range(25), batches(digits), strict=False):
        rows = keras.ops.one_hot(labels, 10)
        mixed, _, _ = MIXING(images, rows, seed=model.mixing_seed(step))
        np.testing.assert_allclose(logits[step, : len(images)], teacher(mixed), atol=1e-4)
        assert len(images) == 64 or step >= steps - 2
        np.testing.assert_array_equal(logits[step, len(images) :], 0)
    assert (recorded.steps, recorded.batch_size, recorded.num_classes) == (25, 64, 10)


BIT_IDENTICAL = """
import keras, tensorflow as tf, test_replay
from stkd_keras import data
import numpy as np
tf.config.experimental.enable_op_determinism()
keras.utils.set_random_seed(0)
digits = data.load("digits")
teacher = test_replay.FrozenTeacher(test_replay.networks.convolutional_classifier())
recorded = test_replay.record("t", digits, teacher, 60, dtype="float32")
live, _ = test_replay.train(teacher, test_replay.batches(digits), 60)
student, _ = test_replay.train(recorded, recorded.attach(test_replay.batches(digits)), 60)
for a, b in zip(live.get_weights(), student.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)
"""


def in_tests(repository, program, cwd, *arguments, **options):
    """Starts a program that can import what the tests import."""
    paths = os.pathsep.join([str(repository), str(repository / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths},
        **options,
    )


def test_in_float32_and_deterministic_the_students_are_bit_identical(repository, tmp_path):
    assert in_tests(repository, BIT_IDENTICAL, tmp_path).wait(170) == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 32}, "batch_size was 64 and is 32"),
        ({"data_seed": 4}, "pipeline_data_seed was 3 and is 4"),
        ({"augment": "none"}, "augment was standard and is none"),
        ({"augment": "cutout"}, "augment was standard and is cutout"),
        ({"split": "test"}, "images was"),
        ({"num_shards": 2}, "num_workers was 1 and is 2"),
    ],
)
def test_another_pipeline_is_refused_by_name(change, named, digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher)
    assert named in refusal(recorded.attach, batches(digits, **change))
    # And so by who would record it again.
    again = batches(digits, **change)
    assert named in refusal(
        record_teacher, tmp_path / "t", teacher, again, MIXING, 5, 10, verbose=False
    )


def test_a_recording_of_another_cut_into_batches_is_refused(digits, teacher, tmp_path):
    record(tmp_path / "t", digits, teacher)
    content = (tmp_path / "t").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    # As they were before the last two batches shared what is left over.
    recorded_with = json.loads(header["__metadata__"]["stkd_keras"])
    del recorded_with["left_over"]
    header["__metadata__"]["stkd_keras"] = json.dumps(recorded_with)
    text = json.dumps(header).encode().ljust(length)
    (tmp_path / "t").write_bytes(content[:8] + text + content[8 + length :])
    recorded = RecordedTeacher(tmp_path / "t")
    assert "left_over was None" in refusal(recorded.attach, batches(digits))


def test_another_order_or_other_images_are_refused(digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher)
    images, labels = digits.train.images.copy(), digits.train.labels.copy()
    other = images.copy()
    other[700, 3, 3] ^= 1
    for changed in (
        data.Split(images[::-1].copy(), labels[::-1].copy()),
        data.Split(other, labels),
    ):
        assert "images was" in refusal(recorded.attach, batches(digits, split=changed))
    same = data.Split(images, labels)
    assert recorded.attach(batches(digits, split=same)) is not None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data_seed": 6}, "data_seed was 5 and is 6"),
        ({"mixing": Mixup(0.5, num_images=3)}, "alpha=0.5"),
        ({"mixing": Mixup(1.0)}, "num_images=2"),
        ({"mixing": None}, "is None"),
        ({"mixing_steps": 4}, "mixing_steps was None and is 4"),
    ],
)
def test_another_distiller_is_refused_by_name(change, named, digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher)
    assert named in refusal(distiller, recorded, **change)


def test_another_teacher_is_refused_and_the_same_one_loaded_again_is_not(digits, teacher, tmp_path):
    keras.utils.set_random_seed(0)
    model = networks.convolutional_classifier()
    model.save(tmp_path / "m.keras")
    record(tmp_path / "t", digits, model)
    before = (tmp_path / "t").stat().st_mtime_ns
    record(tmp_path / "t", digits, keras.saving.load_model(tmp_path / "m.keras"))
    assert (tmp_path / "t").stat().st_mtime_ns == before
    kernel = model.layers[-1].kernel
    kernel.assign(kernel.numpy() * 1.001)
    assert "teacher was" in refusal(record, tmp_path / "t", digits, model)
    chosen = FrozenTeacher(model, class_indices=[1, 0, *range(2, 10)])
    assert chosen.fingerprint() != FrozenTeacher(model).fingerprint()


def test_fewer_recorded_steps_than_needed_are_refused_and_more_serve(digits, teacher, tmp_path):
    record(tmp_path / "t", digits, teacher, 20)
    assert record(tmp_path / "t", digits, teacher, 10).steps == 20
    assert "holds 20 steps, but 21" in refusal(record, tmp_path / "t", digits, teacher, 21)


def test_training_goes_on_from_a_later_step_and_from_no_other(digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher, 40)
    model, _ = train(recorded, recorded.attach(batches(digits)), 25)
    again = recorded.attach(batches(digits))
    assert "start_step=25" in refusal(model.fit, again, steps_per_epoch=5, verbose=0)
    model.fit(recorded.attach(batches(digits, 25)), steps_per_epoch=15, verbose=0, shuffle=False)
    whole, _ = train(recorded, recorded.attach(batches(digits)), 40)
    for a, b in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_batches_without_the_answers_are_refused(digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher)
    message = refusal(distiller(recorded).fit, batches(digits), steps_per_epoch=2, verbose=0)
    assert "attach(train_ds)" in message
    plain = batches(digits).map(lambda x, y: (x, y))
    assert "without map" in refusal(recorded.attach, plain)
    assert "without map" in refusal(record_teacher, tmp_path / "u", teacher, plain, None, 0, 5)


def test_a_function_can_teach(digits, tmp_path):
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype("float32") / 255

    def ask(pixels):
        assert isinstance(pixels, np.ndarray)
        assert pixels.dtype == np.float32
        assert pixels.max() > 100
        return pixels.reshape(len(pixels), -1) @ weights

    recorded = record(tmp_path / "t", digits, None, 30, predict=ask)
    inputs = keras.Input((8, 8, 1))
    dense = keras.layers.Dense(10, use_bias=False)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.kernel.assign(weights)
    _, expected = train(model, batches(digits), 30)
    _, losses = train(recorded, recorded.attach(batches(digits)), 30)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert "ask" in refusal(record, tmp_path / "t", digits, "another", 30, predict=ask)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda x: np.zeros((len(x), 7), "float32"), "shape (64, 7)"),
        (lambda x: np.full((len(x), 10), np.nan), "a logit of nan"),
        (lambda x: np.full((len(x), 10), 1e5), "float16 can't hold"),
    ],
)
def test_answers_that_cannot_be_recorded_end_in_one_line(answer, named, digits, tmp_path):
    assert named in refusal(record, tmp_path / "t", digits, None, predict=answer)
    assert not (tmp_path / "t").exists()


def test_numbers_out_of_range_are_refused(digits, teacher, tmp_path):
    assert "steps is 0" in refusal(record, tmp_path / "t", digits, teacher, 0)
    assert "float64" in refusal(record, tmp_path / "t", digits, teacher, dtype="float64")
    assert "no file" in refusal(RecordedTeacher, tmp_path / "t")


RECORD = """
import sys, time, test_replay, numpy as np
from stkd_keras import data
def ask(pixels):
    time.sleep(float(sys.argv[2]))
    return pixels.reshape(len(pixels), -1)[:, 20:30] / 255
print("ready", flush=True)
test_replay.record(sys.argv[1], data.load("digits"), "ten pixels", 60, predict=ask)
"""


@pytest.mark.slow
def test_a_recording_that_is_killed_goes_on_to_the_same_file(repository, tmp_path):
    assert in_tests(repository, RECORD, tmp_path, "whole", 0).wait(170) == 0
    rng, kills = random.Random(0), 0
    while not (tmp_path / "killed").exists():
        process = in_tests(repository, RECORD, tmp_path, "killed", 0.02, stdout=subprocess.PIPE)
        process.stdout.readline()
        unfinished = tmp_path / "killed.unfinished"
        grown = unfinished.stat().st_size if unfinished.exists() else 0
        while process.poll() is None and (
            not unfinished.exists() or unfinished.stat().st_size == grown
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert not (tmp_path / "killed").exists() or kills
        kills += 1
        if kills == 3:
            assert in_tests(repository, RECORD, tmp_path, "killed", 0).wait(170) == 0
    assert kills >= 2
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not unfinished.exists()


def test_an_unfinished_recording_of_something_else_is_refused_by_name(digits, teacher, tmp_path):
    record(tmp_path / "t", digits, teacher)
    content = (tmp_path / "t").read_bytes()
    (tmp_path / "t").unlink()
    (tmp_path / "t.unfinished").write_bytes(content[:-700])
    assert "unfinished" in refusal(RecordedTeacher, tmp_path / "t")
    message = refusal(record, tmp_path / "t", digits, teacher, data_seed=6)
    assert "data_seed was 5 and is 6" in message
    assert "steps was 10 and is 11" in refusal(record, tmp_path / "t", digits, teacher, 11)
    record(tmp_path / "t", digits, teacher)
    assert (tmp_path / "t").read_bytes() == content


def test_a_broken_file_is_refused(digits, teacher, tmp_path):
    record(tmp_path / "t", digits, teacher)
    content = (tmp_path / "t").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["logits"]["shape"] = [10_000_000, 64, 10]
    text = json.dumps(header).encode()
    for broken in (
        b"",
        b"no recording",
        content[:-100],
        content + b"more",
        struct.pack("<Q", 2**62) + content[8:],
        struct.pack("<Q", len(text)) + text + content[8 + length :],
    ):
        (tmp_path / "t").write_bytes(broken)
        assert str(tmp_path / "t") in refusal(RecordedTeacher, tmp_path / "t")


def test_a_saved_distiller_finds_its_recording_again(digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher, 40)
    model, _ = train(recorded, recorded.attach(batches(digits)), 20)
    model.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    for each in (model, loaded):
        dataset = loaded.teacher.attach(batches(digits, 20))
        each.fit(dataset, steps_per_epoch=20, verbose=0, shuffle=False)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_command_records_once_and_replays_for_other_seeds(command, tmp_path):
    flags = ("--epochs=2", "--train_images_per_class=20", "--student=resnet8", "--replay=t.replay",
             "--teacher=resnet8", "--teacher_epochs=1")  # fmt: skip
    first = command("train.py", *flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "recording the teacher's answers to 8 steps of 64 images" in first.stdout
    written = (tmp_path / "t.replay").stat().st_mtime_ns
    second = command("train.py", *flags, "--seed=1", "--temperature=2", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "recording" not in second.stdout
    assert (tmp_path / "t.replay").stat().st_mtime_ns == written
    for changed, named in (
        ("--mixup_alpha=0.5", "alpha=0.5"),
        ("--data_seed=1", "data_seed was 0 and is 1"),
        ("--method=ce", "--replay records a teacher's answers"),
    ):
        wrong = command("train.py", *flags, changed, "--run_dir=wrong", cwd=tmp_path)
        assert wrong.returncode == 2
        assert named in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1
        assert not (tmp_path / "wrong").exists()
