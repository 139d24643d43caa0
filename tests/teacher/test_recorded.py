"""A recorded teacher trains a student like the live one, and only with the recorded settings."""

import json
import os
import struct
import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
from recordings import MIXING, batches, make_distiller, record, train

from stkd_keras import FrozenTeacher, InputError, Mixup, RecordedTeacher, data, record_teacher


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    return FrozenTeacher(networks.convolutional_classifier())


@pytest.fixture(scope="module")
def recorded(digits, teacher, tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded") / "t", digits, teacher)


def refusal(function, *args, **options):
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.process
def test_one_recording_trains_several_students_like_the_live_teacher(digits, teacher, tmp_path):
    recorded = record(tmp_path / "t", digits, teacher, 25, mixing_steps=15)
    for settings in ({}, {"temperature": 1.0, "soft_weight": 0.3, "label_weight": 0.7}):
        settings["mixing_steps"] = 15
        live, expected = train(teacher, batches(digits), 25, **settings)
        replayed, losses = train(recorded, recorded.attach(batches(digits)), 25, **settings)
        np.testing.assert_allclose(losses, expected, rtol=1e-3)
        for a, b in zip(live.get_weights(), replayed.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_several_steps_at_once_use_the_recorded_logits_of_their_images(digits, recorded):
    losses = []
    for steps_per_execution in (1, 4):
        distiller = make_distiller(recorded)
        distiller.compile("sgd", steps_per_execution=steps_per_execution)
        epochs = {"steps_per_epoch": 5, "epochs": 2, "shuffle": False, "verbose": 0}
        history = distiller.fit(recorded.attach(batches(digits)), **epochs).history
        losses.append(history["soft_loss"])
        assert int(distiller.step) == 10
    np.testing.assert_allclose(*losses, rtol=1e-4)


DETERMINISTIC = """
import keras, networks, numpy as np, tensorflow as tf
from recordings import batches, record, train
from stkd_keras import FrozenTeacher, data
tf.config.experimental.enable_op_determinism()
keras.utils.set_random_seed(0)
digits = data.load("digits")
teacher = FrozenTeacher(networks.convolutional_classifier())
recorded = record("t", digits, teacher, 20, dtype="float32")
live, _ = train(teacher, batches(digits), 20)
replayed, _ = train(recorded, recorded.attach(batches(digits)), 20)
for a, b in zip(live.get_weights(), replayed.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)
"""


def test_students_are_bit_identical_with_float32_and_determinism(repository, tmp_path):
    paths = os.pathsep.join([str(repository), str(repository / "tests" / "support"), *sys.path])
    program = [sys.executable, "-c", DETERMINISTIC]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(program, cwd=tmp_path, env=environment, timeout=600, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 32}, "batch_size was 64 and is 32"),
        ({"data_seed": 4}, "pipeline_data_seed was 3 and is 4"),
        ({"augment": "none"}, "augment was standard and is none"),
        ({"split": "test"}, "images was"),
        ({"num_shards": 2}, "num_workers was 1 and is 2"),
    ],
)
def test_another_pipeline_is_refused_by_name(change, named, digits, teacher, recorded):
    changed = batches(digits, **change)
    assert named in refusal(recorded.attach, changed)
    again = (recorded.path, teacher, changed, MIXING, 5, 10)
    assert named in refusal(record_teacher, *again, verbose=False)


def test_other_images_or_another_order_are_refused(digits, recorded):
    images, labels = digits.train.images, digits.train.labels
    changed = images.copy()
    changed[700, 3, 3] ^= 1
    for other in (data.Split(images[::-1], labels[::-1]), data.Split(changed, labels)):
        assert "images was" in refusal(recorded.attach, batches(digits, split=other))
    copied = data.Split(images.copy(), labels.copy())
    assert recorded.attach(batches(digits, split=copied)) is not None


@pytest.mark.parametrize("before", [None, "shared by the last two batches"])
def test_recordings_of_batches_that_were_not_full_are_refused(before, digits, recorded, tmp_path):
    content = recorded.path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    settings = json.loads(header["__metadata__"]["stkd_keras"])
    assert settings["left_over"] == "begin the next epoch"
    settings["left_over"] = before
    header["__metadata__"]["stkd_keras"] = json.dumps(settings)
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    (tmp_path / "t").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    old = RecordedTeacher(tmp_path / "t")
    message = refusal(old.attach, batches(digits))
    assert f"left_over was {before} and is begin the next epoch; record to another" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data_seed": 6}, "data_seed was 5 and is 6"),
        ({"mixing": Mixup(0.5)}, "alpha=0.5, num_images=2"),
        ({"mixing": None}, "is None"),
        ({"mixing_steps": 4}, "mixing_steps was None and is 4"),
    ],
)
def test_another_distiller_is_refused_by_name(change, named, recorded):
    assert named in refusal(make_distiller, recorded, **change)


def test_data_without_the_recorded_logits_are_refused(digits, recorded):
    fit = make_distiller(recorded).fit
    assert "attach(train_ds)" in refusal(fit, batches(digits), steps_per_epoch=2, verbose=0)
    assert "without map" in refusal(recorded.attach, batches(digits).map(lambda x, y: (x, y)))


def test_more_steps_than_were_recorded_are_refused(recorded):
    distiller, epochs = make_distiller(recorded), {"steps_per_epoch": 6, "epochs": 2}
    batches_ = recorded.attach(batches(data.load("digits")))
    message = refusal(distiller.fit, batches_, verbose=0, **epochs)
    assert "2 epochs of 6 steps" in message
    assert "10 batches" in message


def test_a_saved_distiller_resumes_with_its_recording_at_its_step(digits, recorded, tmp_path):
    uninterrupted, _ = train(recorded, recorded.attach(batches(digits)), 10)
    distiller, _ = train(recorded, recorded.attach(batches(digits)), 6)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    at_the_start = loaded.teacher.attach(batches(digits))
    assert "start_step=6" in refusal(loaded.fit, at_the_start, steps_per_epoch=4, verbose=0)
    at_its_step = loaded.teacher.attach(batches(digits, 6))
    loaded.fit(at_its_step, steps_per_epoch=4, verbose=0, shuffle=False)
    for a, b in zip(uninterrupted.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
