"""The settings of a run: frozen, stored in config.json, and compared when a run resumes."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from stkd_keras import InputError, data, recipes
from stkd_keras.training.run_directory import RunDirectory
from stkd_keras.training.settings import RunSettings


def make(method="stkd", **changes):
    """Settings of a run on digits."""
    chosen = {
        "dataset": "digits", "image_size": None, "resize": None, "skip_bad_images": False,
        "train_fraction": 1.0, "train_images_per_class": None,
        "validation_fraction": None, "augment": "standard",
        "flip": None, "data_seed": 0, "teacher_normalization": None, "teacher_classes": None,
        "teacher_dtype": None, "teacher_outputs": None,
        "student_weights": None, "student_normalization": None,
        "student_features": None, "teacher_features": None, "mixed_precision": "none", "seed": 0,
        "calibrate": None, "deterministic": False, "replay": False,
    }  # fmt: skip
    chosen |= dataclasses.asdict(recipes.recipe_for("digits"))
    chosen |= {**recipes.method_settings(method), "pretraining_epochs": 0}
    return RunSettings(**{"method": method, **chosen, **changes})


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().epochs = 5


def test_config_json_stores_every_setting_known_so_far():
    settings = make()
    loaded = {"images", "left_over", "replicas", "teacher_weights"}
    names = {field.name for field in dataclasses.fields(settings)}
    assert set(settings.stored()) == names - loaded
    complete = dataclasses.replace(
        settings, images="a1", left_over="shared", replicas=2, teacher_weights="b2"
    )
    assert set(complete.stored()) == names


def test_files_are_stored_by_their_content(tmp_path):
    (tmp_path / "a.keras").write_bytes(b"weights")
    content = hashlib.sha256(b"weights").hexdigest()
    stored = make(teacher=f"resnet8,{tmp_path / 'a.keras'}", student="resnet8").stored()
    assert (stored["teacher"], stored["student"]) == (f"resnet8,{content}", "resnet8")
    assert stored["student_weights"] is None


@pytest.mark.parametrize(
    ("method", "needs_teacher", "can_replay"),
    [
        ("stkd", True, True), ("kd", True, True), ("mixup", False, False), ("ce", False, False),
        ("dkd", True, True), ("fitnet", True, False),
    ],
)  # fmt: skip
def test_the_method_decides_whether_a_teacher_is_needed(method, needs_teacher, can_replay):
    settings = make(method)
    assert (settings.needs_teacher, settings.can_replay) == (needs_teacher, can_replay)


def test_a_recording_depends_on_the_mixing_only_if_the_teacher_sees_mixed_images():
    arguments = {"mixing": "mixup", "mixing_steps": 5, "data_seed": 7, "temperature": 4.0}
    recorded = make(soft_target="virtual").recorded_samples(arguments)
    assert recorded == {"mixing": "mixup", "mixing_steps": 5, "data_seed": 7}
    recorded = make(soft_target="mixed").recorded_samples(arguments)
    assert recorded == {"mixing": None, "mixing_steps": None, "data_seed": 7}


def start(folder, settings):
    """Starts a run in a folder."""
    run = RunDirectory(folder / "run")
    run.start({"settings": settings.stored()})
    return run


def test_resuming_with_another_setting_is_refused_by_name(tmp_path):
    run = start(tmp_path, make(epochs=1))
    run.check(make(epochs=1).stored())
    with pytest.raises(InputError, match="epochs was 1 and is 2"):
        run.check(make(epochs=2).stored())
    run.check(make(epochs=2).stored(), overwrite=True)


def test_an_unfinished_run_of_an_earlier_version_resumes_without_the_options_it_lacks(tmp_path):
    run = start(tmp_path, make())
    later = (*recipes.OPTIONAL, "calibrate")
    before = {k: v for k, v in make().stored().items() if k not in later}
    run.config.write_text(json.dumps({"settings": before}))
    run.check(make().stored())
    with pytest.raises(InputError, match=r"ema was None and is 0\.9"):
        run.check(make(ema=0.9).stored())


def test_resuming_accepts_a_moved_teacher_and_refuses_another(tmp_path):
    old, moved = tmp_path / "old.keras", tmp_path / "moved.keras"
    old.write_bytes(b"weights")
    run = start(tmp_path, make(teacher=str(old)))
    old.rename(moved)
    run.check(make(teacher=str(moved)).stored())
    moved.write_bytes(b"other weights")
    with pytest.raises(InputError, match="teacher was"):
        run.check(make(teacher=str(moved)).stored())


def test_resuming_compares_what_is_known_only_after_loading(tmp_path):
    run = start(tmp_path, make(images="a1", replicas=1))
    run.check(make().stored())
    with pytest.raises(InputError, match="images was a1 and is b2"):
        run.check(make(images="b2", replicas=1).stored())


@pytest.mark.parametrize("before", [None, "shared by the last two batches"])
def test_an_unfinished_run_of_batches_that_were_not_full_is_refused(before, tmp_path):
    train_split = data.Split(np.zeros((10, 2, 2, 1), np.uint8), np.arange(10))
    now = make().with_images(train_split, 4, 1)
    run = start(tmp_path, dataclasses.replace(now, left_over=before))
    with pytest.raises(InputError) as caught:
        run.check(now.stored())
    assert f"(left_over was {before} and is begin the next epoch); choose" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_whose_images_divide_evenly_resumes(tmp_path):
    train_split = data.Split(np.zeros((10, 2, 2, 1), np.uint8), np.arange(10))
    now = make().with_images(train_split, 5, 1)
    assert now.left_over is None
    start(tmp_path, now).check(now.stored())
