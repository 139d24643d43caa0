"""Finished runs are read from their directories."""

import json

import pytest

from models.finished_runs import FinishedRun, read_run
from models.teachers.sources import TeacherSource
from stkd_keras.errors import InputError


def write_run(folder, settings, **content):
    (folder / "student.keras").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"settings": settings, **content}))


def test_a_run_names_its_student_data_and_teachers(tmp_path):
    settings = {
        "dataset": "folder", "image_size": [24, 32], "resize": "pad", "augment": "photo",
        "skip_bad_images": True,
        "teacher_dtype": "bfloat16", "temperature": 4.0,
    }  # fmt: skip
    teacher = {"source": "resnet56", "weights": "/a.pth", "normalization": None, "classes": None}
    write_run(tmp_path, settings, data_dir="/photographs", teachers=[teacher])
    assert read_run(tmp_path) == FinishedRun(
        student=str(tmp_path / "student.keras"),
        dataset="folder",
        data_dir="/photographs",
        image_size=[24, 32],
        resize="pad",
        augment="photo",
        skip_bad_images=True,
        teachers=(TeacherSource("resnet56", "/a.pth"),),
        teacher_dtype="bfloat16",
    )


def test_optional_settings_may_be_missing(tmp_path):
    write_run(tmp_path, {"dataset": "digits"})
    assert read_run(tmp_path) == FinishedRun(str(tmp_path / "student.keras"), "digits")


@pytest.mark.parametrize(
    ("settings", "content", "named"),
    [
        ([], {}, "settings"),
        ({}, {}, "data set"),
        ({"dataset": ["digits"]}, {}, "dataset"),
        ({"dataset": "digits"}, {"data_dir": 1}, "data_dir 1"),
        ({"dataset": "digits", "teacher_dtype": "int4"}, {}, "teacher_dtype int4"),
        ({"dataset": "digits", "teacher_dtype": 16}, {}, "teacher_dtype 16"),
        ({"dataset": "tfds:huggingface:evil"}, {}, "TFDS namespace"),
        ({"dataset": "digits"}, {"teachers": "resnet8"}, "teachers resnet8"),
        ({"dataset": "digits"}, {"teachers": [{"source": "resnet8", "nonsense": 1}]}, "nonsense"),
        ({"dataset": "digits"}, {"teachers": [{"weights": "a.pth"}]}, "teachers"),
    ],
)
def test_a_config_that_train_does_not_write_is_refused(tmp_path, settings, content, named):
    write_run(tmp_path, settings, **content)
    with pytest.raises(InputError, match=named) as refused:
        read_run(tmp_path)
    assert "config.json" in str(refused.value)


@pytest.mark.parametrize("missing", ["student.keras", "config.json"])
def test_a_directory_without_student_or_config_is_refused(tmp_path, missing):
    write_run(tmp_path, {"dataset": "digits"})
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=f"--compare=.* has no {missing}"):
        read_run(tmp_path, "--compare")
