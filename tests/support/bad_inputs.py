"""Mistakes that users make, by kind, for test_bad_inputs.py."""

import json
import os
import pathlib
import shutil
import socket
import zipfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

Maker = Callable[[pathlib.Path], object]

FOLDER = "--dataset=folder --data_dir=photos --student=two.keras --batch_size=4"
CE = f"train.py {FOLDER} --method=ce --epochs=1"
KD = f"train.py {FOLDER} --method=kd --epochs=1"
RUN = f"{KD} --teacher=resnet8 --teacher_epochs=1 --replay=teacher.replay --run_dir=run"
"""The command that makes the run."""
TABLE = f"{KD} --teacher=three.keras --teacher_classes=names.txt"
SCORE = "evaluate.py --dataset=folder --data_dir=photos --model=two.keras"
SCORE_RUN = "evaluate.py --model=run"
WORKERS = "train.py --distribute=multi_worker --method=ce"

# Materials that the commands above need.
PHOTOS = ("photos", "two.keras")
TEACHER = (*PHOTOS, "three.keras")
WITH_RUN = (*PHOTOS, "run", "teachers", "teacher.replay")


class Case(NamedTuple):
    """A bad input.

    Attributes:
        command: the script and its flags, as in a shell.
        names: a part of the error message.
        needs: materials to copy to the folder.
        make: changes to the folder.
        env: environment variables.
    """

    command: str
    names: str
    needs: tuple[str, ...] = ()
    make: tuple[Maker, ...] = ()
    env: Mapping[str, str] = {}


def write(name: str, content: str | bytes = "") -> Maker:
    """Writes a file."""

    def make(folder: pathlib.Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def directory(name: str) -> Maker:
    """Creates a directory."""
    return lambda folder: (folder / name).mkdir(parents=True)


def remove(name: str) -> Maker:
    """Removes a file or a directory."""

    def make(folder: pathlib.Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def pipe(name: str) -> Maker:
    """Creates a named pipe, which blocks its reader."""
    return lambda folder: os.mkfifo(folder / name)


def cut(pattern: str) -> Maker:
    """Removes the second half of files."""

    def make(folder: pathlib.Path) -> None:
        for path in folder.glob(pattern):
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])

    return make


def edit_config(change: Callable[[dict], object]) -> Maker:
    """Changes the run's config.json."""

    def make(folder: pathlib.Path) -> None:
        path = folder / "run" / "config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return make


def unfinished(folder: pathlib.Path) -> None:
    """Makes the run look interrupted just before its end."""
    (folder / "run" / "metrics.json").unlink()
    (folder / "run" / "student.keras").unlink()


def unfinished_teacher(folder: pathlib.Path) -> None:
    """Makes the teacher's run look unfinished, with a broken config.json."""
    [teacher] = (folder / "teachers").iterdir()
    (teacher / "metrics.json").unlink()
    (teacher / "config.json").write_text("{")


def zipped(name: str, files: Mapping[str, str | bytes]) -> Maker:
    """Writes a zip archive."""

    def make(folder: pathlib.Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)

    return make


def cluster(*addresses: str, index: int = 0) -> dict[str, str]:
    """Returns the environment of a worker."""
    task = {"type": "worker", "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}


# Bound as long as the tests run, so that no worker can listen on it.
_TAKEN = socket.socket()
_TAKEN.bind(("", 0))
_TAKEN.listen()
TAKEN_PORT = _TAKEN.getsockname()[1]

FLAGS = {
    "unknown": Case("train.py --epoch=3", "epochs"),
    "unknown, evaluate": Case("evaluate.py --batch_size=3", "batch_size"),
    "no flag": Case("train.py digits", "unexpected argument 'digits'"),
    "a word as a number": Case("train.py --epochs=three", "three"),
    "out of range": Case("train.py --temperature=0", "temperature is 0"),
    "an image size of a terabyte": Case(f"{CE} --image_size=1000000", "image_size", PHOTOS),
    "a size of three sides": Case(f"{CE} --image_size=8x8x3", "HEIGHTxWIDTH"),
    "a side of 0": Case(f"{CE} --image_size=0x5", "from 1 to 8192", PHOTOS),
    "a resize without a size": Case(f"{CE} --resize=pad", "image_size", PHOTOS),
    "steps out of order": Case("train.py --augment=photo,erasing,randaugment", "then erasing"),
    "unknown data set": Case("train.py --dataset=cifar11", "cifar10"),
    "unknown teacher": Case("train.py --teacher=resnet21", "resnet20"),
    "unknown student of two lines": Case("train.py --student='a\nb\u2028c'", r"a\nb\u2028c"),
    "an unset shell variable": Case("train.py --teacher=", "--teacher is empty"),
    "a flag without its value": Case(
        "train.py --replay --run_dir=new",
        "--replay takes a value, but is followed by '--run_dir=new'",
    ),
    "a binary flag file": Case(
        "train.py --flagfile=file", "--flagfile", make=(write("file", b"--seed=\xff\xfe"),)),
    "no model": Case("evaluate.py", "--model is missing"),
    "a model without weights": Case("evaluate.py --model=resnet8", "add --weights=FILE"),
}  # fmt: skip

COMBINATIONS = {
    "both weights 0": Case("train.py --soft_weight=0 --label_weight=0", "both 0"),
    "a recording without a teacher": Case("train.py --method=ce --replay=r", "--replay"),
    "features of a method without any": Case(
        "train.py --method=kd --student_features=a=b", "--method=kd uses no features"),
    "an uneven batch": Case(
        "train.py --distribute=mirrored --logical_devices=2 --batch_size=33", "--batch_size is 33"),
    "a batch of more images than there are": Case(
        f"{CE} --batch_size=100", "batch_size=100", PHOTOS),
    "weights of a whole student": Case(
        "train.py --student=two.keras --student_weights=two.keras", "has its own weights",
        PHOTOS),
    "ImageNet weights of a model without any": Case(
        "train.py --student=resnet20 --student_weights=imagenet",
        "resnet20 has no ImageNet weights"),
    "a rate of a backbone that starts from random weights": Case(
        "train.py --backbone_learning_rate=0.001", "--student=resnet8 starts from random weights"),
    "weights without a teacher": Case(
        f"{SCORE} --teacher_weights=two.keras", "--teacher_weights needs --teacher", PHOTOS),
    "features of an ONNX teacher": Case(
        "train.py --method=fitnet --teacher=t.onnx", "an ONNX file gives the teacher's logits only",
        make=(write("t.onnx"),)),
    "an ONNX teacher on several machines": Case(
        "train.py --distribute=multi_worker --teacher=t.onnx", "an ONNX teacher is recorded",
        make=(write("t.onnx"),)),
    "a precision of an ONNX teacher": Case(
        "train.py --teacher=t.onnx --teacher_dtype=float16", "leave it out",
        make=(write("t.onnx"),)),
    "an ONNX student": Case(
        "train.py --student=s.onnx", "an ONNX file can only be a teacher", make=(write("s.onnx"),)),
    "an option of the report without a report": Case(
        f"{SCORE} --report_file=report.html", "needs --report", PHOTOS),
    "a comparison with a run on other data": Case(
        "evaluate.py --model=digits.keras --report --report_file=report.html --compare=run",
        "--compare=run is a run on other data than --model (name was", (*WITH_RUN, "digits.keras")),
    "an unknown export format": Case(
        f"{SCORE_RUN} --export=litert,tflite_int8", "litert_int8", WITH_RUN),
    "an export over a folder of the user": Case(
        f"{SCORE} --export=saved_model --output_dir=.", "saved_model exists and isn't from an",
        PHOTOS, (write("saved_model/own.txt"),)),
}  # fmt: skip

CAT = "photos/train/cat/0.png"
TINY_IMAGENET = {
    "wnids.txt": "n01\nn02\n", "words.txt": "n01\tcat\nn02\tdog\n", "val/val_annotations.txt": "",
    "train/n01/images/1.JPEG": b"",
}  # fmt: skip
DATA_FILES = {
    "a truncated image": Case(CE, "cat/0.png", PHOTOS, (cut(CAT),)),
    "a truncated photograph of the test split": Case(
        f"{CE} --augment=photo --image_size=8", "test/cat/0.png", PHOTOS,
        (cut("photos/test/cat/0.png"),)),
    "only unreadable images": Case(
        f"{CE} --skip_bad_images", "can't be read", PHOTOS, (cut("photos/train/*/*"),)),
    "a name of two lines": Case(
        CE, "two lines", PHOTOS, (write("photos/train/cat/two\nlines.png", "x"),)),
    "an unreadable unlabeled image": Case(
        f"{KD} --teacher=two.keras --unlabeled_dir=more", "0.png", PHOTOS,
        (write("more/0.png", "x"),)),
    "a truncated archive": Case(
        "train.py --dataset=tiny_imagenet --data_dir=a.zip", "a.zip",
        make=(zipped("a.zip", TINY_IMAGENET), cut("a.zip"))),
    "a truncated recording": Case(f"{RUN}2", "teacher.replay", WITH_RUN, (cut("teacher.replay"),)),
    "a recording of another training": Case(
        f"{RUN}2 --data_seed=7", "data_seed was 0 and is 7", (*PHOTOS, "teacher.replay")),
    "text as an image, evaluate": Case(
        f"{SCORE} --json", "0.png", PHOTOS, (write("photos/test/cat/0.png", "text"),)),
    "another archive, evaluate": Case(
        "evaluate.py --model=two.keras --dataset=tiny_imagenet --data_dir=a.zip", "wnids.txt",
        PHOTOS, (zipped("a.zip", {"readme": "x"}),)),
}  # fmt: skip

FOLDERS = {
    "no data": Case(f"{CE} --data_dir=nowhere", "nowhere", PHOTOS),
    "no test split": Case(CE, "no folder test", PHOTOS, (remove("photos/test"),)),
    "a pipe as an image": Case(CE, "pipe.png", PHOTOS, (pipe("photos/train/cat/pipe.png"),)),
    "a run directory in a file": Case("train.py --run_dir=file/run", "file/run",
                                      make=(write("file"),)),
    "a run directory of something else": Case(
        "train.py --run_dir=run --overwrite", "isn't a run directory",
        make=(write("run/thesis.tex", "years of work"),)),
    "no data set in TFDS's directory": Case(
        "train.py --dataset=cifar10 --data_dir=tfds", "cifar10", make=(directory("tfds"),)),
    "a run without a student": Case(
        SCORE_RUN, "student.keras", WITH_RUN,
        (remove("run/student.keras"), remove("run/backup"))),
    "no data, evaluate": Case(f"{SCORE} --data_dir=nowhere", "nowhere", PHOTOS),
}  # fmt: skip

WEIGHTS = {
    "no such teacher": Case(f"{KD} --teacher=no.keras", "no.keras", PHOTOS),
    "a truncated teacher": Case(f"{KD} --teacher=three.keras", "three.keras", TEACHER,
                                (cut("three.keras"),)),
    "an ONNX teacher that isn't one": Case(
        f"{KD} --teacher=t.onnx", "can't load", PHOTOS, (write("t.onnx", "x"),)),
    "a teacher of NaNs": Case(f"{KD} --teacher=nan.keras", "NaNs", (*PHOTOS, "nan.keras")),
    "a truncated trained teacher": Case(f"{RUN}2", "teacher.keras", WITH_RUN,
                                        (cut("teachers/*/teacher.keras"),)),
    "a student without logits, before a teacher is trained": Case(
        f"{KD} --teacher=resnet8 --student=relu.keras", "relu.keras isn't a classifier",
        (*PHOTOS, "relu.keras")),
    "a truncated model, evaluate": Case(SCORE, "two.keras", PHOTOS, (cut("two.keras"),)),
    "a broken second teacher, evaluate": Case(
        f"{SCORE} --teacher=two.keras,a.keras --json", "a.keras", PHOTOS,
        (write("a.keras", "x"),)),
}  # fmt: skip

CONFIGURATIONS = {
    "a broken config.json": Case(
        RUN, "config.json", WITH_RUN, (unfinished, write("run/config.json", "{"))),
    "endlessly nested JSON": Case(
        RUN, "config.json", WITH_RUN, (unfinished, write("run/config.json", "[" * 100_000))),
    "another run": Case(
        f"{RUN} --temperature=2", "temperature was 4.0 and is 2.0", WITH_RUN, (unfinished,)),
    "a complete run": Case(RUN, "has a complete run", WITH_RUN),
    "a teacher's broken config.json": Case(
        f"{RUN}2", "config.json", WITH_RUN, (unfinished_teacher,)),
    "no settings, evaluate": Case(
        SCORE_RUN, "doesn't name the data set", WITH_RUN, (write("run/config.json", "{}"),)),
    "an unknown data set, evaluate": Case(
        SCORE_RUN, "cifar11", WITH_RUN,
        (edit_config(lambda config: config["settings"].update(dataset="cifar11")),)),
    "teachers of another version, evaluate": Case(
        SCORE_RUN, "teachers", WITH_RUN,
        (edit_config(lambda config: config.update(teachers=[{"path": "resnet8"}])),)),
}  # fmt: skip

CLASS_TABLES = {
    "no file": Case(TABLE, "names.txt", TEACHER),
    "a class is missing": Case(
        TABLE, "no line 'dog'", TEACHER, (write("names.txt", "cat\nrat\nhen\n"),)),
    "binary": Case(TABLE, "expected UTF-8 text", TEACHER,
                   (write("names.txt", bytes(range(256))),)),
    "too few classes of Tiny-ImageNet": Case(
        "train.py --dataset=tiny_imagenet --data_dir=a.zip", "2 classes in wnids.txt",
        make=(zipped("a.zip", TINY_IMAGENET),)),
    "a class twice, evaluate": Case(
        f"{SCORE} --teacher=three.keras --teacher_classes=names.txt", "'dog' at lines 1 and 2",
        TEACHER, (write("names.txt", "dog\ndog\ncat\n"),)),
}  # fmt: skip

ENVIRONMENT = {
    "no cluster": Case(WORKERS, "set TF_CONFIG"),
    "a task out of range": Case(WORKERS, "worker 2", env=cluster("a:1", "b:1", index=2)),
    "a port in use": Case(WORKERS, str(TAKEN_PORT),
                          env=cluster(f"localhost:{TAKEN_PORT}", "localhost:1")),
    "no ImageNet weights and no network": Case(
        f"{KD} --teacher=keras.applications:MobileNetV2 --teacher_classes=names.txt",
        "copy Keras's file", PHOTOS,
        (write("names.txt", "\n".join(["cat", "dog", *map(str, range(998))])),),
        {"KERAS_HOME": "nowhere"}),
    "TFDS_DATA_DIR is a file, evaluate": Case(
        "evaluate.py --model=two.keras --dataset=cifar10", "TFDS_DATA_DIR", PHOTOS,
        (write("file"),), {"TFDS_DATA_DIR": "file"}),
}  # fmt: skip

KINDS: dict[str, dict[str, Case]] = {
    "flags": FLAGS,
    "combinations of flags": COMBINATIONS,
    "data files": DATA_FILES,
    "folders": FOLDERS,
    "weights": WEIGHTS,
    "configurations": CONFIGURATIONS,
    "class tables": CLASS_TABLES,
    "environment": ENVIRONMENT,
}
