"""Files of commit 1f4727a still load and train the same way.

tests/support/saved_by_1f4727a has a distiller with CutMix and attention transfer after four steps,
its student, and a recording of its teacher on Mixup samples.
"""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import stkd_keras
import stkd_keras.data

FOLDER = pathlib.Path(__file__).parent.parent / "support" / "saved_by_1f4727a"


@pytest.fixture(scope="module")
def expected():
    return np.load(FOLDER / "expected.npz")


def training_data():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    return pixels, rng.integers(0, 4, 32)


def test_the_student_loads_as_a_plain_keras_model(expected):
    code = (
        "import json, sys, keras, numpy as np\n"
        f"student = keras.saving.load_model({str(FOLDER / 'student.keras')!r})\n"
        f"pixels = np.load({str(FOLDER / 'expected.npz')!r})['pixels'].astype('float32')\n"
        "assert 'stkd_keras' not in sys.modules\n"
        "print(json.dumps(student(pixels).numpy().tolist()))\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    logits = json.loads(printed.splitlines()[-1])
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-5)


def test_the_distiller_loads_and_continues_training(expected):
    distiller = keras.saving.load_model(FOLDER / "distiller.keras")
    pixels = expected["pixels"].astype("float32")
    assert int(distiller.step) == expected["step"]
    np.testing.assert_allclose(distiller.student(pixels), expected["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        distiller.teacher(pixels), expected["teacher_logits"], rtol=1e-4, atol=1e-5
    )
    history = distiller.fit(*training_data(), batch_size=8, verbose=0).history
    assert set(history) == {
        "loss", "soft_loss", "label_loss", "teacher_agreement", "at", "accuracy",
    }  # fmt: skip
    assert int(distiller.step) == expected["step"] + 4


def test_a_student_trains_with_the_recording():
    pixels, labels = training_data()
    dataset = stkd_keras.data.from_arrays(
        pixels, labels, pixels[:8], labels[:8], class_names=["a", "b", "c", "d"], name="tiny"
    )
    batches = stkd_keras.data.pipeline(dataset, "train", 8, 3, "none")
    recorded = stkd_keras.RecordedTeacher(FOLDER / "recording.replay")
    student = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    distiller = stkd_keras.SimilarityTransferDistiller(
        student, recorded, mixing=stkd_keras.Mixup(), data_seed=3
    )
    distiller.compile("sgd")
    history = distiller.fit(recorded.attach(batches), steps_per_epoch=4, verbose=0).history
    assert np.isfinite(history["soft_loss"]).all()
    assert int(distiller.step) == 4


def test_an_option_that_was_removed_is_refused_unless_it_was_unused():
    distiller = keras.saving.load_model(FOLDER / "distiller.keras", compile=False)
    config = distiller.get_config()
    with pytest.raises(stkd_keras.InputError, match=r"clean_soft_weight is 0\.5.*removed"):
        type(distiller).from_config({**config, "clean_soft_weight": 0.5})
