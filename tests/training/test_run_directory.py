"""The directory of a run: what may be written to it, and what it replaces."""

import networks
import pytest
import stkd_keras.run_directory

from stkd_keras import InputError
from stkd_keras.files.json_files import read_json, write_json
from stkd_keras.training.run_directory import RunDirectory

SETTINGS = {"epochs": 3, "shape": (8, 8)}


def test_public_names_are_importable_from_their_old_path():
    for name in ("RunDirectory", "read_json", "write_json", "write_model"):
        assert callable(getattr(stkd_keras.run_directory, name))


def test_a_run_starts_resumes_and_completes(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.check(SETTINGS)
    assert not run.path.exists()
    run.start({"settings": SETTINGS, "version": 1})
    assert read_json(run.config) == {"settings": {"epochs": 3, "shape": [8, 8]}, "version": 1}
    (run.path / ".unfinished-1-student.keras").write_text("")
    run.start({"settings": SETTINGS})
    assert sorted(path.name for path in run.path.iterdir()) == ["backup", "config.json"]
    with pytest.raises(InputError, match=r"other settings \(epochs was 3 and is 4\).*--overwrite"):
        run.check({**SETTINGS, "epochs": 4})
    run.save_model(networks.dense_classifier())
    assert not run.is_complete
    write_json(run.metrics, {})
    assert run.is_complete
    with pytest.raises(InputError, match="has a complete run; choose another --run_dir"):
        run.check(SETTINGS)


def test_the_calibration_temperature_is_read_from_metrics_json(tmp_path):
    run = RunDirectory(tmp_path)
    for metrics, expected in [
        (None, None), ({"test": {}}, None), ({"calibration": {"temperature": 2.5}}, 2.5)
    ]:  # fmt: skip
        if metrics is not None:
            write_json(run.metrics, metrics)
        assert run.calibration_temperature == expected
    for wrong in ([], {"temperature": "2"}, {"temperature": 0}):
        write_json(run.metrics, {"calibration": wrong})
        with pytest.raises(InputError, match=r"metrics.json has the calibration .* a positive"):
            run.calibration_temperature  # noqa: B018


def test_overwrite_removes_the_whole_run_and_nothing_else(tmp_path):
    run = RunDirectory(tmp_path)
    run.start({"settings": SETTINGS})
    run.save_model(networks.dense_classifier())
    for path in (
        run.metrics,
        run.model_card,
        run.history,
        run.backup / "step-1",
        tmp_path / "other",
    ):
        path.write_text("{}")
    run.tensorboard.mkdir()
    run.start({"settings": {"epochs": 4}}, overwrite=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"backup", "backup/lock", "config.json", "other"}
    assert run.settings == {"epochs": 4}


@pytest.mark.parametrize("content", [{"notes.txt": ""}, {"config.json": "{}"}])
def test_a_folder_of_something_else_is_refused(content, tmp_path):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="isn't a run directory; choose another --run_dir"):
            RunDirectory(tmp_path).check(SETTINGS, overwrite)
