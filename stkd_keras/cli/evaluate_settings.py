"""Reads and checks the flags of evaluate.py."""

import dataclasses
import os
import pathlib

from absl import flags

from stkd_keras import data, export
from stkd_keras.cli import evaluate_flags  # noqa: F401
from stkd_keras.data.description import describe
from stkd_keras.errors import InputError, differences, one_line
from stkd_keras.files.json_files import read_json
from stkd_keras.report import check_report_file

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The files to write."""

    report: str | None
    compared: dict[str, pathlib.Path]
    export: pathlib.Path | None

    @property
    def are_scores(self) -> bool:
        """Whether to score the model: always, unless it is only exported."""
        return self.report is not None or self.export is None


def names_a_run(model: str) -> bool:
    """Whether --model means a run directory, existing or not."""
    path = pathlib.Path(model)
    return path.is_dir() or ("/" in model and not path.exists() and not path.suffix)


def outputs_from_flags() -> Outputs:
    """Returns the files to write, after checking that they can be written."""
    names = ("weights", "normalization", "classes", "outputs")
    given = [f"--teacher_{name}" for name in names if FLAGS[f"teacher_{name}"].value]
    if FLAGS.teacher is None and given:
        raise InputError(f"{' and '.join(given)} need{'s' * (len(given) == 1)} --teacher")
    outputs = Outputs(_report_file(), _compared_runs(), _export_folder())
    if outputs.export is not None:
        export.check_export(FLAGS.export, outputs.export)
    return outputs


def check_same_data(folder: pathlib.Path, dataset: data.Dataset) -> None:
    """Raises an InputError if a run of --compare was trained on other data."""
    described = read_json(folder / "config.json").get("data")
    described = described if isinstance(described, dict) else {}
    description = describe(dataset, dataset.train, dataset.validation)
    expected = {key: description[key] for key in ("name", "version", "image_shape", "classes")}
    if differs := differences(described, expected):
        raise InputError(
            f"--compare={folder} is a run on other data than --model ({one_line(differs)}): leave "
            "it out"
        )


def _report_file() -> str | None:
    for name in ("report_file", "compare"):
        if FLAGS[name].value and not FLAGS.report:
            raise InputError(f"--{name} needs --report: add it, or leave --{name} out")
    if not FLAGS.report:
        return None
    if FLAGS.report_file is None and not names_a_run(FLAGS.model):
        raise InputError(
            f"--model={FLAGS.model} isn't a run directory, so the report needs a file: add "
            "--report_file=PATH"
        )
    file = FLAGS.report_file or os.path.join(FLAGS.model, "report.html")
    check_report_file(file)
    return file


def _compared_runs() -> dict[str, pathlib.Path]:
    """Returns the directories of --compare by their names, or by their paths if ambiguous."""
    folders = [pathlib.Path(folder) for folder in FLAGS.compare or []]
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(folders):
        raise InputError("--compare has a run twice; name each once")
    names = [folder.name for folder in resolved]
    return {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, folders, strict=True)
    }


def _export_folder() -> pathlib.Path | None:
    if FLAGS.export is None:
        if FLAGS.output_dir is not None:
            raise InputError(f"--output_dir={FLAGS.output_dir} needs --export")
        return None
    if FLAGS.teacher is not None and not FLAGS.report:
        raise InputError("--export doesn't use --teacher: leave one of them out, or add --report")
    if FLAGS.output_dir is not None:
        return pathlib.Path(FLAGS.output_dir)
    if not pathlib.Path(FLAGS.model).is_dir():
        raise InputError(
            f"--model={FLAGS.model} isn't a run directory, so --export needs --output_dir=FOLDER"
        )
    return pathlib.Path(FLAGS.model) / "export"
