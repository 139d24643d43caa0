"""A run's files are checked, since they may come from someone else."""

import json
import math

import pytest
import tensorflow as tf
from reports import write_run

from stkd_keras import InputError
from stkd_keras.report.run_files import read_run_files


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"flags": {"teacher": "resnet20"}}, "resnet20"),
        ({"flags": {"teacher": "models/large.keras,resnet56"}}, "large + resnet56"),
        ({}, "wrn_16_2"),
    ],
)
def test_the_teacher_is_named_as_in_the_command_or_by_its_file(config, named, tmp_path):
    source = "/teachers/digits-1.0.0-wrn_16_2-791e8f5c/teacher.keras"
    config |= {"teachers": [{"source": source, "weights": None}]}
    run = write_run(tmp_path / "run", config, teacher_weights="9d" * 32, teacher="ab" * 32)
    assert read_run_files(run).teacher == named


def test_a_run_without_a_teacher_names_none(tmp_path):
    run = write_run(tmp_path / "run", teacher="resnet20", teacher_weights=None)
    assert read_run_files(run).teacher is None


def test_the_history_has_nan_for_epochs_without_validation(tmp_path):
    history = read_run_files(write_run(tmp_path / "run")).history
    assert history["accuracy"] == [0.1, 0.4]
    assert math.isnan(history["val_accuracy"][0])
    assert history["val_accuracy"][1] == 0.3


def test_the_duration_excludes_pauses(tmp_path):
    run = write_run(tmp_path / "run")
    events = run / "tensorboard" / "train"
    events.mkdir(parents=True)
    for number, times in enumerate([(10, 15, 25), (20, 40), (100, 101)]):
        with tf.io.TFRecordWriter(str(events / f"events.out.tfevents.{number}")) as writer:
            for time in times:
                writer.write(tf.compat.v1.Event(wall_time=time).SerializeToString())
    assert read_run_files(run).seconds == 31


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "hot"}, {"temperature": 0}, {"data_seed": -1}, {"mixing": "blend"},
        {"mixup_alpha": "x"}, {"mixup_probability": [1]}, {"num_images": 1e9},
    ],
)  # fmt: skip
def test_invalid_settings_are_an_error(settings, tmp_path):
    with pytest.raises(InputError, match=r"config\.json has"):
        read_run_files(write_run(tmp_path / "run", **settings))


@pytest.mark.parametrize(
    "broken",
    [
        {"student": {}, "formats": []},
        {"student": {}},
        {"student": {"accuracy": "high"}, "formats": {}},
        {"student": {}, "formats": {"onnx": {"bytes": math.inf}}},
    ],
)
def test_an_invalid_export_json_is_an_error(broken, tmp_path):
    (tmp_path / "export.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match=r"export\.json has "):
        read_run_files(None, tmp_path)
