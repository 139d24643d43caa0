"""What users get wrong, by kind: the list that test_bad_inputs.py goes through.

Each entry says which materials its folder holds, what is done to them, the command with its flags,
variables of the environment, and what the one line has to name.
"""

import io
import json
import os
import pathlib
import shutil
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import PIL.Image

Maker = Callable[[pathlib.Path], object]

FOLDER = "--dataset=folder --data_dir=photographs --student=resnet8 --batch_size=4"
CE = f"train.py {FOLDER} --method=ce --epochs=1"
KD = f"train.py {FOLDER} --method=kd --epochs=1"
SCORE = "evaluate.py --dataset=folder --data_dir=photographs"
RUN = (
    "train.py --method=kd --teacher=resnet8 --student=resnet8 --epochs=1 --teacher_epochs=1 "
    "--replay=answers.replay --run_dir=run"
)
"""What the material run was made with."""
WORKERS = "train.py --distribute=multi_worker --method=ce"


class Case(NamedTuple):
    """One bad input.

    Attributes:
        command: the script and its flags, as in a shell.
        names: what the one line has to have in it.
        needs: the materials that the folder starts with.
        make: what is done to the folder then.
        env: variables of the environment.
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
    """Makes a folder."""
    return lambda folder: (folder / name).mkdir(parents=True)


def remove(name: str) -> Maker:
    """Removes a file or a folder."""

    def make(folder: pathlib.Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def link(name: str, target: str) -> Maker:
    """Makes a symbolic link, to something or nothing."""
    return lambda folder: (folder / name).symlink_to(target)


def pipe(name: str) -> Maker:
    """Makes a named pipe, which who opens it waits at for ever."""
    return lambda folder: os.mkfifo(folder / name)


def cut(name: str, share: float = 0.5) -> Maker:
    """Leaves the beginning of a file."""

    def make(folder: pathlib.Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return make


def each_backup(spoil: Callable[[str], Maker]) -> Maker:
    """Spoils all the backups of the material run."""

    def make(folder: pathlib.Path) -> None:
        for path in (folder / "run" / "backup").glob("step-*"):
            spoil(str(path.relative_to(folder)))(folder)

    return make


def copy(name: str, to: str) -> Maker:
    """Copies a file."""
    return lambda folder: shutil.copyfile(folder / name, folder / to)


def image(name: str, mode: str = "RGB", size: tuple[int, int] = (16, 16), **options) -> Maker:
    """Writes a picture of one colour."""

    def make(folder: pathlib.Path) -> None:
        PIL.Image.new(mode, size).save(folder / name, **options)

    return make


def not_numbers(name: str) -> Maker:
    """Writes a picture of floats that are none."""
    pixels = np.full((16, 16), np.nan, np.float32)
    return lambda folder: PIL.Image.fromarray(pixels).save(folder / name)


def settings(**changes) -> Maker:
    """Changes what the material run's config.json says of its settings."""

    def make(folder: pathlib.Path) -> None:
        path = folder / "run" / "config.json"
        content = json.loads(path.read_text())
        content["settings"].update(changes)
        path.write_text(json.dumps(content))

    return make


def config(**changes) -> Maker:
    """Changes the material run's config.json."""

    def make(folder: pathlib.Path) -> None:
        path = folder / "run" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def unfinished(folder: pathlib.Path) -> None:
    """Makes of the material run one that was interrupted at its end."""
    (folder / "run" / "metrics.json").unlink()
    (folder / "run" / "student.keras").unlink()


def in_teacher_directory(make: Callable[[pathlib.Path], None]) -> Maker:
    """Does something in the folder of the trained teacher."""

    def make_there(folder: pathlib.Path) -> None:
        [teacher] = (folder / "teachers").iterdir()
        make(teacher)

    return make_there


def incomplete_teacher(config_content: str) -> Maker:
    """Makes of the trained teacher one whose training was interrupted, with another config.json."""

    def make(teacher: pathlib.Path) -> None:
        (teacher / "metrics.json").unlink()
        (teacher / "config.json").write_text(config_content)

    return in_teacher_directory(make)


def zipped(name: str, files: Mapping[str, str | bytes]) -> Maker:
    """Writes a zip archive."""

    def make(folder: pathlib.Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)

    return make


def tarred(name: str, files: Mapping[str, bytes]) -> Maker:
    """Writes a tar archive."""

    def make(folder: pathlib.Path) -> None:
        with tarfile.open(folder / name, "w") as archive:
            for file, content in files.items():
                entry = tarfile.TarInfo(file)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    return make


def edited_keras(name: str, member: str, content: bytes) -> Maker:
    """Puts something else in place of a part of a .keras file."""

    def make(folder: pathlib.Path) -> None:
        with zipfile.ZipFile(folder / name) as archive:
            parts = {part: archive.read(part) for part in archive.namelist()}
        zipped(name, {**parts, member: content})(folder)

    return make


def deep(depth: int = 100_000) -> str:
    """JSON that is nested deeper than Python reads."""
    return "[" * depth + "]" * depth


def cluster(*addresses, task="worker", index=0, **more) -> dict[str, str]:
    """TF_CONFIG."""
    content = {"cluster": {"worker": list(addresses), **more}, "task": {"type": task}}
    content["task"]["index"] = index
    return {"TF_CONFIG": json.dumps(content)}


def slurm(**variables) -> dict[str, str]:
    """Slurm's environment of the first of two tasks, with changes."""
    usual = {"PROCID": "0", "STEP_NUM_TASKS": "2", "STEP_NODELIST": "n[1-2]"}
    usual["STEP_TASKS_PER_NODE"] = "1(x2)"
    given = {**usual, **variables}
    return {f"SLURM_{name}": value for name, value in given.items() if value is not None}


# Bound for as long as the tests run, so that no worker can listen there.
_TAKEN = socket.socket()
_TAKEN.bind(("", 0))
_TAKEN.listen()
TAKEN_PORT = _TAKEN.getsockname()[1]

PHOTOGRAPHS = ("photographs",)
TEACHER = ("photographs", "small.keras")
WITH_RUN = ("run", "teachers", "answers.replay")
TABLE = f"{KD} --teacher=small.keras --teacher_classes=names.txt"
SCORE_TABLE = f"{SCORE} --model=two.keras --teacher=small.keras --teacher_classes=names.txt"
SCORED = ("photographs", "two.keras", "small.keras")

FLAGS = {
    "unknown": Case("train.py --epoch=3", "epoch"),
    "unknown, of evaluate": Case("evaluate.py --batch_size=3", "batch_size"),
    "without its value": Case("train.py --temperature", "temperature"),
    "an argument": Case("train.py digits", "digits"),
    "a word for a number": Case("train.py --epochs=three", "three"),
    "a fraction for an integer": Case("train.py --epochs=1.5", "epochs"),
    "no epochs": Case("train.py --epochs=0", "epochs"),
    "epochs for ever": Case("train.py --epochs=1000000000000000000000", "epochs"),
    "epochs of no digits": Case("train.py --teacher_epochs=", "teacher_epochs"),
    "temperature 0": Case("train.py --temperature=0", "temperature"),
    "temperature nan": Case("train.py --temperature=nan", "temperature is nan"),
    "temperature 1e400": Case("train.py --temperature=1e400", "temperature is inf"),
    "temperature whose square is none": Case("train.py --temperature=1e300", "temperature"),
    "soft_weight -inf": Case("train.py --soft_weight=-inf", "soft_weight"),
    "label_weight 1e39": Case("train.py --label_weight=1e39", "label_weight"),
    "alpha -1": Case("train.py --mixup_alpha=-1", "alpha"),
    "alpha of nearly 0": Case("train.py --mixup_alpha=1e-320", "alpha"),
    "probability 1.5": Case("train.py --mixup_probability=1.5", "probability"),
    "probability nan": Case("train.py --mixup_probability=nan", "probability"),
    "one image a mixture": Case("train.py --num_images=1", "num_images"),
    "a billion images a mixture": Case("train.py --num_images=1000000000", "num_images"),
    "mixing_epochs -1": Case("train.py --mixing_epochs=-1", "mixing_epochs"),
    "mixing_epochs 1e30": Case(f"train.py --mixing_epochs=1{'0' * 30}", "mixing_epochs"),
    "batch_size 0": Case("train.py --batch_size=0", "batch_size"),
    "batch_size 1e30": Case(f"train.py --batch_size=1{'0' * 30}", "batch_size"),
    "learning_rate nan": Case("train.py --learning_rate=nan", "learning rate is nan"),
    "learning_rate 1e39": Case("train.py --learning_rate=1e39", "learning rate"),
    "weight_decay -1": Case("train.py --weight_decay=-1", "weight decay"),
    "train_fraction 0": Case("train.py --train_fraction=0", "train_fraction"),
    "train_fraction of no image": Case("train.py --train_fraction=1e-9", "train_fraction"),
    "validation_fraction 1": Case("train.py --validation_fraction=1", "validation_fraction"),
    "validation_fraction nan": Case("train.py --validation_fraction=nan", "validation_fraction"),
    "too many images a class": Case("train.py --train_images_per_class=999999999999", "images_per"),
    "1e30 images a class": Case(
        f"train.py --train_images_per_class=1{'0' * 30}", "images_per_class"
    ),
    "seed -1": Case("train.py --seed=-1", "seed"),
    "seed 2**32": Case("train.py --seed=4294967296", "seed"),
    "data_seed 2**63": Case("train.py --data_seed=9223372036854775808", "data_seed"),
    "image_size 0": Case("train.py --image_size=0", "image_size"),
    "image_size of a terabyte": Case(f"{CE} --image_size=1000000", "image_size", PHOTOGRAPHS),
    "image_size 1e30": Case(f"{CE} --image_size=1{'0' * 30}", "image_size", PHOTOGRAPHS),
    "memory_limit -1": Case("train.py --memory_limit=-1", "memory_limit"),
    "steps_per_execution 0": Case("train.py --steps_per_execution=0", "steps_per_execution"),
    "steps_per_execution of several epochs": Case(
        "train.py --steps_per_execution=1000", "--steps_per_execution=1000 is more"
    ),
    "steps_per_execution 1e30": Case(
        f"train.py --method=ce --student=resnet8 --steps_per_execution=1{'0' * 30}",
        "steps_per_execution",
    ),
    "logical_devices -1": Case("train.py --logical_devices=-1", "logical_devices"),
    "logical_devices 1e9": Case(
        "train.py --distribute=mirrored --logical_devices=1000000000", "logical_devices"
    ),
    "perhaps": Case("train.py --overwrite=perhaps", "perhaps"),
    "unknown method": Case("train.py --method=hinton", "hinton"),
    "unknown data set": Case("train.py --dataset=cifar11", "cifar10"),
    "unknown data set of TFDS": Case("train.py --dataset=tfds:no_such_thing", "no_such_thing"),
    "nameless data set of TFDS": Case("train.py --dataset=tfds:", "tfds"),
    "a path for a data set of TFDS": Case("train.py --dataset=tfds:../../etc", "../../etc"),
    "unknown teacher": Case("train.py --teacher=resnet21", "resnet20"),
    "a comma after the teacher": Case("train.py --teacher=resnet8,", "unknown model ''"),
    "a second teacher that can't be built": Case(
        "train.py --teacher=resnet8,mobilenet_v2:width=nan", "width is nan"
    ),
    "unknown student": Case("train.py --student='resnet 8'", "resnet 8"),
    "unknown application": Case("train.py --student=keras.applications:", "''"),
    "a value of two lines": Case("train.py --student='one\ntwo\u2028three'", r"one\ntwo\u2028th"),
    "Unicode": Case("train.py --teacher=rèsnet🐈", "rèsnet🐈"),
    "bytes that are no text": Case("train.py --run_dir='\udce9t\udce9'", "--run_dir"),
    "a missing flagfile": Case("train.py --flagfile=nowhere", "nowhere"),
    "a flagfile of bytes": Case(
        "train.py --flagfile=file", "--flagfile", make=(write("file", b"--seed=\xff\xfe"),)
    ),
    "a name that is too long": Case(f"train.py --run_dir={'x' * 300}", "xxx"),
    **{
        f"{name} that is empty": Case(f"train.py --{name}=", f"--{name}")
        for name in ("run_dir", "data_dir", "unlabeled_dir", "replay", "teacher", "student")
    },
    "teacher_weights that are blank": Case("train.py --teacher_weights=' '", "--teacher_weights"),
    "no model": Case("evaluate.py", "--model is missing"),
    "an empty model": Case("evaluate.py --model=", "--model"),
    "a model without weights": Case("evaluate.py --model=resnet8", "--weights"),
    "memory_limit nan": Case("evaluate.py --model=digits.keras --memory_limit=nan", "memory_limit",
                             ("digits.keras",)),
    "image_size of evaluate": Case("evaluate.py --model=x.keras --image_size=-8", "image_size"),
    "json, perhaps": Case("evaluate.py --model=x.keras --json=perhaps", "perhaps"),
}  # fmt: skip

COMBINATIONS = {
    "both weights 0": Case("train.py --soft_weight=0 --label_weight=0", "both 0"),
    "replay without a teacher": Case("train.py --method=ce --replay=r", "--replay"),
    "unlabelled images without a teacher": Case("train.py --method=mixup --unlabeled_dir=x",
                                                "--unlabeled_dir"),
    "two ways to say how many images": Case(
        "train.py --train_fraction=0.5 --train_images_per_class=5", "images_per_class"),
    "no mixing, with a wrong alpha": Case(
        "train.py --mixup_probability=0 --mixup_alpha=nan", "alpha is nan"),
    "no mixing, with a wrong number": Case(
        "train.py --mixup_probability=0 --num_images=-3", "num_images"),
    "devices that aren't used": Case("train.py --distribute=none --logical_devices=2",
                                     "--logical_devices"),
    "devices of a worker": Case("train.py --distribute=multi_worker --logical_devices=2",
                                "logical_devices"),
    "replay of several workers": Case("train.py --distribute=multi_worker --replay=r", "--replay"),
    "a batch that doesn't split": Case(
        "train.py --distribute=mirrored --logical_devices=2 --batch_size=33", "--batch_size is 33"),
    "steps on several devices": Case(
        "train.py --distribute=mirrored --logical_devices=2 --steps_per_execution=2",
        "steps_per_execution"),
    "more images a mixture than a batch": Case(
        "train.py --num_images=9 --batch_size=8", "--num_images=9"),
    "another size for digits": Case("train.py --image_size=16", "digits are 8x8"),
    "a folder without data_dir": Case("train.py --dataset=folder", "data_dir"),
    "weights of a whole student": Case(
        "train.py --student=digits.keras --student_weights=digits.keras", "brings its own weights",
        ("digits.keras",)),
    "normalisation of a fresh student": Case("train.py --student_normalization=imagenet",
                                             "--student_normalization"),
    "normalisation of a teacher to train": Case("train.py --teacher_normalization=imagenet",
                                                "--teacher_normalization"),
    "normalisation that is none": Case(
        f"{KD} --teacher=resnet8 --teacher_weights=two.safetensors --teacher_normalization=1,2,3",
        "1,2,3", ("photographs", "two.safetensors")),
    "more weights than teachers": Case(
        "train.py --teacher=resnet8 --teacher_weights=digits.keras,digits.keras",
        "--teacher_weights", ("digits.keras",)),
    "classes of a teacher to train": Case(
        "train.py --teacher=resnet8 --teacher_classes=names.txt", "--teacher_classes",
        ("names.txt",)),
    "application for grey images": Case("train.py --student=keras.applications:MobileNetV2",
                                        "color images"),
    "a batch of more images than there are": Case(f"{CE} --batch_size=100", "batch_size=100",
                                                  PHOTOGRAPHS),
    "teacher's weights without the teacher": Case(
        "evaluate.py --model=digits.keras --teacher_weights=digits.keras", "need --teacher",
        ("digits.keras",)),
    "weights of a whole model": Case(
        "evaluate.py --model=digits.keras --weights=digits.keras", "brings its own weights",
        ("digits.keras",)),
    "normalisation of a whole model": Case(
        "evaluate.py --model=digits.keras --normalization=imagenet",
        "--normalization=imagenet", ("digits.keras",)),
    "a teacher without weights": Case("evaluate.py --model=digits.keras --teacher=resnet8",
                                      "--teacher=resnet8", ("digits.keras",)),
    "a run, with weights": Case("evaluate.py --model=run --weights=digits.keras",
                                "student.keras", ("run", "digits.keras")),
    "a report's file without a report": Case(
        "evaluate.py --model=digits.keras --report_file=report.html", "add --report",
        ("digits.keras",)),
    "other runs without a report": Case("evaluate.py --model=run --compare=run", "add --report",
                                        ("run",)),
    "a report that has no place": Case("evaluate.py --model=digits.keras --report",
                                       "--report_file=PATH", ("digits.keras",)),
    "a report in no folder": Case("evaluate.py --model=run --report --report_file=no/report.html",
                                  "no/report.html", ("run",)),
    "a report that is a folder": Case("evaluate.py --model=run --report --report_file=run",
                                      "is a folder", ("run",)),
    "another run that is none": Case("evaluate.py --model=run --report --compare=photographs",
                                     "--compare=photographs", ("run", "photographs")),
    "another run twice": Case("evaluate.py --model=run --report --compare=run,run", "twice",
                              ("run",)),
    "a report on other data than the compared run's": Case(
        "evaluate.py --model=two.keras --dataset=folder --data_dir=photographs --report "
        "--report_file=report.html --compare=run", "expected folder",
        ("two.keras", "run", "photographs")),
    "a run on other data": Case("evaluate.py --model=run --dataset=folder --data_dir=photographs",
                                "student.keras", ("run", "photographs")),
    "an unknown format to export to": Case(
        "evaluate.py --model=run --export=litert,tflite_int8", "litert_int8", ("run",)),
    "no format to export to": Case("evaluate.py --model=run --export=", "no format", ("run",)),
    "an export of a file to nowhere": Case(
        f"{SCORE} --model=two.keras --export=litert", "--output_dir=FOLDER", SCORED),
    "an export of a model without weights": Case(
        f"{SCORE} --model=resnet8 --export=litert --output_dir=new", "--weights", SCORED),
    "an export into a file": Case(
        f"{SCORE} --model=two.keras --export=litert --output_dir=names.txt/new",
        "names.txt is no folder", (*SCORED, "names.txt")),
    "an export in place of a folder": Case(
        f"{SCORE} --model=two.keras --export=litert --output_dir=.",
        "student.tflite exists and isn't from an export", SCORED, (directory("student.tflite"),)),
    "an export in place of another's folder": Case(
        f"{SCORE} --model=two.keras --export=saved_model --output_dir=.",
        "saved_model exists and isn't from an export", SCORED, (write("saved_model/own.txt"),)),
    "an export beside a teacher": Case(
        f"{SCORE} --model=two.keras --teacher=small.keras --export=litert --output_dir=new",
        "--teacher", SCORED),
    "a folder for an export that isn't asked for": Case(
        f"{SCORE} --model=two.keras --output_dir=new", "--output_dir", SCORED),
}  # fmt: skip

CAT = "photographs/train/cat/0.png"
OF_TINY_IMAGENET = {
    "wnids.txt": "n01\nn02\n",
    "words.txt": "n01\tcat\nn02\tdog\n",
    "val/val_annotations.txt": "",
    "train/n01/images/1.JPEG": b"",
}
DATA_FILES = {
    "a picture cut short": Case(CE, "0.png", PHOTOGRAPHS, (cut(CAT),)),
    "an empty picture": Case(CE, "the file is empty", PHOTOGRAPHS, (write(CAT),)),
    "text as a picture": Case(CE, "0.png", PHOTOGRAPHS, (write(CAT, "no picture"),)),
    "text between pictures": Case(CE, "notes.txt", PHOTOGRAPHS,
                                  (write("photographs/test/dog/notes.txt", "notes"),)),
    "a TIFF cut short": Case(
        CE, "cut.tif", PHOTOGRAPHS,
        (image("photographs/train/cat/cut.tif", compression="tiff_lzw"),
         cut("photographs/train/cat/cut.tif", 0.7))),
    "a JPEG cut short": Case(
        CE, "cut.jpg", PHOTOGRAPHS,
        (image("photographs/train/cat/cut.jpg", size=(99, 99)),
         cut("photographs/train/cat/cut.jpg"))),
    "floats that are no numbers": Case(CE, "nan.tif", PHOTOGRAPHS,
                                       (not_numbers("photographs/test/cat/nan.tif"),)),
    "another size": Case(CE, "image_size", PHOTOGRAPHS,
                         (image("photographs/test/cat/large.png", size=(17, 16)),)),
    "more pixels than can be": Case(
        CE, "implausibly large", PHOTOGRAPHS,
        (write(CAT, b"P1 20000 20000\n" + b"0" * 100),)),
    "nothing but broken pictures": Case(
        f"{CE} --skip_bad_images", "can't be read", ("photographs",),
        tuple(write(f"photographs/train/{c}/{n}.png", "x") for c in ("cat", "dog")
              for n in range(4))),
    "a name of two lines": Case(CE, "two lines", PHOTOGRAPHS,
                                (write("photographs/train/cat/two\nlines.png", "x"),)),
    "a name that is no text": Case(CE, ".png", PHOTOGRAPHS,
                                   (write("photographs/train/cat/\udce9.png", "x"),)),
    "an unlabelled picture cut short": Case(
        f"{KD} --unlabeled_dir=more", "0.png", PHOTOGRAPHS,
        (directory("more"), copy(CAT, "more/0.png"), cut("more/0.png"))),
    "a zip cut short": Case(
        "train.py --dataset=tiny_imagenet --data_dir=a.zip", "a.zip",
        make=(zipped("a.zip", OF_TINY_IMAGENET), cut("a.zip"))),
    "a zip that points elsewhere": Case(
        "train.py --dataset=tiny_imagenet --data_dir=a.zip", "points out of the archive",
        make=(zipped("a.zip", {**OF_TINY_IMAGENET, "../../evil": "x"}),)),
    "a zip of something else": Case(
        "evaluate.py --model=digits.keras --dataset=tiny_imagenet --data_dir=a.zip", "wnids.txt",
        ("digits.keras",), (zipped("a.zip", {"readme": "x"}),)),
    "a tar cut short": Case(
        "train.py --dataset=cinic10 --data_dir=a.tar", "a.tar",
        make=(tarred("a.tar", {"train/cat/1.png": b"x" * 5000}), cut("a.tar", 0.2))),
    "text as an archive": Case("train.py --dataset=cinic10 --data_dir=a.tar.gz", "a.tar.gz",
                               make=(write("a.tar.gz", "no archive"),)),
    "an empty archive": Case("train.py --dataset=cinic10 --data_dir=a.tar.gz", "a.tar.gz",
                             make=(write("a.tar.gz"),)),
    "a recording that is none": Case("train.py --replay=answers.replay", "answers.replay",
                                     make=(write("answers.replay", "no recording"),)),
    "an empty recording": Case("train.py --replay=answers.replay", "answers.replay",
                               make=(write("answers.replay"),)),
    "a recording cut short": Case(f"{RUN}2", "answers.replay", WITH_RUN, (cut("answers.replay"),)),
    "a recording of another training": Case(
        f"{RUN}2 --data_seed=7", "data_seed was 0 and is 7", ("answers.replay",)),
    "a recording of fewer steps": Case(
        f"{RUN}2 --epochs=3", "answers.replay holds", ("answers.replay",)),
    "a recording of another augmentation": Case(
        f"{RUN}2 --augment=none", "augment was", ("answers.replay",)),
    "a picture cut short, of evaluate": Case(
        f"{SCORE} --model=two.keras", "0.png", ("photographs", "two.keras"),
        (cut("photographs/test/cat/0.png"),)),
    "text as a picture, of evaluate": Case(
        f"{SCORE} --model=two.keras --json", "0.png", ("photographs", "two.keras"),
        (write("photographs/test/cat/0.png", "text"),)),
}  # fmt: skip

FOLDERS = {
    "data_dir that isn't there": Case(f"{CE} --data_dir=nowhere", "nowhere"),
    "data_dir that is a file": Case(CE, "photographs", make=(write("photographs"),)),
    "data_dir that is empty": Case(CE, "no folder train", make=(directory("photographs"),)),
    "a pipe for data_dir": Case(CE, "photographs", make=(pipe("photographs"),)),
    "a broken link for data_dir": Case(CE, "photographs", make=(link("photographs", "nowhere"),)),
    "no test folder": Case(CE, "no folder test", PHOTOGRAPHS, (remove("photographs/test"),)),
    "a file for train": Case(CE, "train", PHOTOGRAPHS, (remove("photographs/train"),
                                                        write("photographs/train"))),
    "no classes": Case(CE, "no class folders", PHOTOGRAPHS, (
        remove("photographs/train"), directory("photographs/train"))),
    "one class": Case(CE, "only one class folder, 'cat'", PHOTOGRAPHS,
                      (remove("photographs/train/dog"),)),
    "a class that train hasn't": Case(CE, "test/cow", PHOTOGRAPHS,
                                      (directory("photographs/test/cow"),)),
    "an empty class": Case(CE, "train/cow", PHOTOGRAPHS, (directory("photographs/train/cow"),)),
    "a picture in no class": Case(CE, "lost.png", PHOTOGRAPHS,
                                  (copy(CAT, "photographs/test/lost.png"),)),
    "two validation folders": Case(CE, "val and valid", PHOTOGRAPHS, (
        directory("photographs/val"), directory("photographs/valid"))),
    "a folder in itself": Case(CE, "loop", PHOTOGRAPHS, (
        link("photographs/train/cat/loop", ".."),)),
    "a link to nothing": Case(CE, "gone.png", PHOTOGRAPHS,
                              (link("photographs/train/cat/gone.png", "nowhere"),)),
    "a pipe among the pictures": Case(CE, "pipe.png", PHOTOGRAPHS,
                                      (pipe("photographs/train/cat/pipe.png"),)),
    "a class that is no text": Case(CE, "photographs/train", PHOTOGRAPHS, (
        directory("photographs/train/\udce9"), copy(CAT, "photographs/train/\udce9/0.png"))),
    "one picture a class, half of it to watch": Case(
        f"{CE} --validation_fraction=0.5 --train_images_per_class=4 --batch_size=2",
        "images_per_class=4", PHOTOGRAPHS),
    "unlabeled_dir that isn't there": Case(f"{KD} --unlabeled_dir=nowhere", "nowhere", PHOTOGRAPHS),
    "unlabeled_dir that is empty": Case(f"{KD} --unlabeled_dir=more", "more", PHOTOGRAPHS,
                                        (directory("more"),)),
    "a pipe for unlabeled_dir": Case(f"{KD} --unlabeled_dir=more", "more", PHOTOGRAPHS,
                                     (pipe("more"),)),
    "a device for unlabeled_dir": Case(f"{KD} --unlabeled_dir=/dev/zero", "/dev/zero", PHOTOGRAPHS),
    "run_dir that is a file": Case("train.py --run_dir=run", "run", make=(write("run"),)),
    "run_dir in a file": Case("train.py --run_dir=file/run", "file/run", make=(write("file"),)),
    "run_dir that is a broken link": Case("train.py --run_dir=run", "run",
                                          make=(link("run", "nowhere/run"),)),
    "run_dir that is no run's": Case("train.py --run_dir=run --overwrite", "isn't a run's",
                                     make=(write("run/thesis.tex", "years of work"),)),
    "run_dir of a model of others": Case(
        "train.py --run_dir=run --overwrite", "isn't a run's directory",
        make=(write("run/config.json", '{"model_type": "bert"}'),)),
    "teacher_dir that is a file": Case("train.py --teacher_dir=file", "--teacher_dir",
                                       make=(write("file"),)),
    "teacher_dir in a file": Case("train.py --teacher_dir=file/there", "--teacher_dir",
                                  make=(write("file"),)),
    "replay that is a folder": Case("train.py --replay=folder", "folder",
                                    make=(directory("folder"),)),
    "replay in a file": Case("train.py --replay=file/answers", "file", make=(write("file"),)),
    "TFDS's folder that isn't there": Case("train.py --dataset=cifar10 --data_dir=nowhere",
                                           "nowhere"),
    "TFDS's folder that is empty": Case("train.py --dataset=cifar10 --data_dir=tfds", "cifar10",
                                        make=(directory("tfds"),)),
    "TFDS's folder of something else": Case("train.py --dataset=tiny_imagenet --data_dir=tfds",
                                            "tiny_imagenet", make=(directory("tfds"),)),
    "CINIC-10 without a class": Case("train.py --dataset=cinic10 --data_dir=CINIC-10",
                                     "train/airplane", make=(directory("CINIC-10/train"),)),
    "a run that is an empty folder": Case("evaluate.py --model=run", "run",
                                          make=(directory("run"),)),
    "a run without a student": Case("evaluate.py --model=run", "student.keras", ("run",),
                                    (remove("run/student.keras"),)),
    "a student that is a folder": Case("evaluate.py --model=run", "student.keras", ("run",), (
        remove("run/student.keras"), directory("run/student.keras"))),
    "no test folder, of evaluate": Case(f"{SCORE} --model=two.keras", "no folder test",
                                        ("photographs", "two.keras"),
                                        (remove("photographs/test"),)),
    "data_dir that isn't there, of evaluate": Case(
        "evaluate.py --model=two.keras --dataset=folder --data_dir=nowhere", "nowhere",
        ("two.keras",)),
}  # fmt: skip

WEIGHTS = {
    "no such teacher": Case(f"{KD} --teacher=no.keras", "no.keras", PHOTOGRAPHS),
    "a folder for a teacher": Case(f"{KD} --teacher=a.keras", "a.keras", PHOTOGRAPHS,
                                   (directory("a.keras"),)),
    "a broken link for a teacher": Case(f"{KD} --teacher=a.keras", "a.keras", PHOTOGRAPHS,
                                        (link("a.keras", "nowhere.keras"),)),
    "a pipe for a teacher": Case(f"{KD} --teacher=a.keras", "a.keras", PHOTOGRAPHS,
                                 (pipe("a.keras"),)),
    "an empty teacher": Case(f"{KD} --teacher=a.keras", "a.keras", PHOTOGRAPHS,
                             (write("a.keras"),)),
    "a teacher cut short": Case(f"{KD} --teacher=two.keras", "two.keras",
                                ("photographs", "two.keras"), (cut("two.keras"),)),
    "a zip of something else as a teacher": Case(
        f"{KD} --teacher=a.keras", "a.keras", PHOTOGRAPHS, (zipped("a.keras", {"a": "b"}),)),
    "a teacher without its numbers": Case(
        f"{KD} --teacher=two.keras", "two.keras", ("photographs", "two.keras"),
        (edited_keras("two.keras", "model.weights.h5", b""),)),
    "a teacher whose numbers are cut short": Case(
        f"{KD} --teacher=two.keras", "two.keras", ("photographs", "two.keras"),
        (edited_keras("two.keras", "model.weights.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 99),)),
    "a teacher of NaNs": Case(f"{KD} --teacher=nan.keras", "NaNs", ("photographs", "nan.keras")),
    "a teacher of other classes": Case(f"{KD} --teacher=small.keras", "--teacher_classes",
                                       TEACHER),
    "a teacher of grey images": Case(f"{KD} --teacher=digits.keras", "digits.keras",
                                     ("photographs", "digits.keras")),
    "a teacher that ends in a ReLU": Case(f"{KD} --teacher=relu.keras", "relu.keras can't be",
                                          ("photographs", "relu.keras")),
    "a teacher of two outputs": Case(f"{KD} --teacher=heads.keras", "heads",
                                     ("photographs", "heads.keras")),
    "a broken teacher beside one to train": Case(
        f"{KD} --teacher=resnet8,a.keras", "a.keras", PHOTOGRAPHS, (write("a.keras", "x"),)),
    "weights for a teacher": Case("train.py --teacher=a.weights.h5", "no architecture"),
    "no such weights": Case("train.py --teacher_weights=no.safetensors", "no.safetensors"),
    "weights cut short": Case(
        f"{KD} --teacher=resnet8 --teacher_weights=two.safetensors", "two.safetensors",
        ("photographs", "two.safetensors"), (cut("two.safetensors"),)),
    "weights with a header that never ends": Case(
        f"{KD} --teacher=resnet8 --teacher_weights=a.safetensors", "a.safetensors", PHOTOGRAPHS,
        (write("a.safetensors", struct.pack("<Q", 2**63) + b"{}"),)),
    "weights of another architecture": Case(
        f"{KD} --teacher=resnet20 --teacher_weights=two.safetensors", "resnet20",
        ("photographs", "two.safetensors")),
    "text as HDF5": Case(
        f"{KD} --teacher=resnet8 --teacher_weights=a.weights.h5", "a.weights.h5", PHOTOGRAPHS,
        (write("a.weights.h5", "text"),)),
    "text as PyTorch's": Case(
        f"{KD} --teacher=resnet8 --teacher_weights=a.pth", "a.pth", PHOTOGRAPHS,
        (write("a.pth", "text"),)),
    "a student of another size": Case(f"{CE} --student=large.keras", "large.keras",
                                      ("photographs", "large.keras")),
    "a student of other classes": Case(f"{CE} --student=small.keras", "small.keras", TEACHER),
    "a student's weights that are a folder": Case(
        f"{CE} --student_weights=a.h5", "a.h5", PHOTOGRAPHS, (directory("a.h5"),)),
    "a student that ends in a ReLU": Case(f"{CE} --student=relu.keras", "relu.keras is no",
                                          ("photographs", "relu.keras")),
    "a student that ends in a ReLU, beside a teacher to train": Case(
        f"{KD} --teacher=resnet8 --student=relu.keras", "relu.keras is no classifier",
        ("photographs", "relu.keras")),
    "a model that ends in a ReLU": Case(f"{SCORE} --model=relu.keras", "relu.keras",
                                        ("photographs", "relu.keras")),
    "a cached teacher cut short": Case(
        f"{RUN}2", "teacher.keras", ("teachers",),
        (in_teacher_directory(cut("teacher.keras")),)),
    "no such model": Case("evaluate.py --model=no.keras", "no.keras"),
    "a model cut short": Case("evaluate.py --model=digits.keras", "digits.keras",
                              ("digits.keras",), (cut("digits.keras", 0.9),)),
    "an empty model": Case("evaluate.py --model=a.keras --json", "a.keras",
                           make=(write("a.keras"),)),
    "a model of other data": Case("evaluate.py --model=two.keras", "two.keras", ("two.keras",)),
    "a broken teacher beside a good model": Case(
        "evaluate.py --model=digits.keras --teacher=digits.keras,a.keras --json", "a.keras",
        ("digits.keras",), (write("a.keras", "x"),)),
    "a run whose student is cut short, its teacher gone": Case(
        "evaluate.py --model=run --json", "student.keras", ("run",), (cut("run/student.keras"),)),
    "weights of evaluate": Case("evaluate.py --model=resnet8 --weights=a.pt", "a.pt",
                                make=(write("a.pt", "x"),)),
}  # fmt: skip

CONFIGURATIONS = {
    "no JSON": Case(RUN, "config.json", WITH_RUN, (unfinished, write("run/config.json", "{"))),
    "an empty file": Case(RUN, "config.json", WITH_RUN, (unfinished, write("run/config.json"))),
    "a list": Case(RUN, "a list", WITH_RUN, (unfinished, write("run/config.json", "[1]"))),
    "no text": Case(RUN, "config.json", WITH_RUN,
                    (unfinished, write("run/config.json", b"\xff\xfe\0{"))),
    "JSON without an end": Case(RUN, "config.json", WITH_RUN,
                                (unfinished, write("run/config.json", deep()))),
    "settings that are a list": Case(RUN, "settings", WITH_RUN, (unfinished, config(settings=[1]))),
    "settings that are null": Case(RUN, "settings", WITH_RUN, (unfinished, config(settings=None))),
    "another run": Case(f"{RUN} --temperature=2", "temperature was 4.0 and is 2.0", WITH_RUN,
                        (unfinished,)),
    "a folder": Case(RUN, "run", WITH_RUN, (
        unfinished, remove("run/config.json"), directory("run/config.json"))),
    "a complete run": Case(RUN, "holds a complete run", WITH_RUN),
    "a history that is a folder": Case(RUN, "history.csv", WITH_RUN, (
        unfinished, remove("run/history.csv"), directory("run/history.csv"))),
    "backups cut short": Case(RUN, "isn't a whole backup", WITH_RUN,
                              (unfinished, each_backup(cut))),
    "backups that are text": Case(RUN, "isn't a whole backup", WITH_RUN, (
        unfinished, each_backup(lambda name: write(name, "text")))),
    "a backup of another run": Case(f"{RUN} --seed=7", "seed was 0 and is 7", WITH_RUN,
                                    (unfinished, settings(seed=7))),
    "a student that will be a folder": Case(RUN, "student.keras", WITH_RUN,
                                            (unfinished, directory("run/student.keras"))),
    "tensorboard that is a file": Case(RUN, "tensorboard", WITH_RUN, (
        unfinished, remove("run/tensorboard"), write("run/tensorboard"))),
    "a teacher's that is no JSON": Case(f"{RUN}2", "config.json", ("teachers",),
                                        (incomplete_teacher("{"),)),
    "a teacher's that is empty": Case(f"{RUN}2", "config.json", ("teachers",),
                                      (incomplete_teacher(""),)),
    "a teacher's that is a list": Case(f"{RUN}2", "config.json", ("teachers",),
                                       (incomplete_teacher("[]"),)),
    "TFDS's that is no JSON": Case(
        "train.py --dataset=cifar10 --data_dir=tfds", "3.0.2",
        make=(write("tfds/cifar10/3.0.2/dataset_info.json", "{"),)),
    "TFDS's that is missing": Case("train.py --dataset=cifar10 --data_dir=tfds", "3.0.2",
                                   make=(directory("tfds/cifar10/3.0.2"),)),
    "TFDS's that is empty": Case(
        "evaluate.py --model=two.keras --dataset=cifar10 --data_dir=tfds", "3.0.2",
        ("two.keras",), (write("tfds/cifar10/3.0.2/dataset_info.json", "{}"),
                         write("tfds/cifar10/3.0.2/features.json", "{}"))),
    "a model's that is no JSON": Case(
        "evaluate.py --model=digits.keras", "digits.keras", ("digits.keras",),
        (edited_keras("digits.keras", "config.json", b"{"),)),
    "a model's of an unknown class": Case(
        "evaluate.py --model=digits.keras", "digits.keras", ("digits.keras",),
        (edited_keras("digits.keras", "config.json", json.dumps(
            {"module": "mine", "class_name": "Mine", "config": {}, "registered_name": "Mine"}
        ).encode()),)),
    "a model's without an end": Case(
        "evaluate.py --model=digits.keras", "digits.keras", ("digits.keras",),
        (edited_keras("digits.keras", "config.json", deep().encode()),)),
    "no JSON, of evaluate": Case("evaluate.py --model=run", "config.json", ("run",),
                                 (write("run/config.json", "{"),)),
    "a list, of evaluate": Case("evaluate.py --model=run", "config.json", ("run",),
                                (write("run/config.json", "[]"),)),
    "JSON without an end, of evaluate": Case("evaluate.py --model=run", "config.json", ("run",),
                                             (write("run/config.json", deep()),)),
    "no settings": Case("evaluate.py --model=run", "config.json", ("run",),
                        (write("run/config.json", "{}"),)),
    "settings that are a word": Case("evaluate.py --model=run", "config.json", ("run",),
                                     (config(settings="dataset"),)),
    "a data set that is a number": Case("evaluate.py --model=run", "dataset 5", ("run",),
                                        (settings(dataset=5),)),
    "a data set that is unknown": Case("evaluate.py --model=run", "cifar11", ("run",),
                                       (settings(dataset="cifar11"),)),
    "a data_dir that is a list": Case("evaluate.py --model=run", "data_dir", ("run",),
                                      (settings(dataset="folder", data_dir=["a"]),)),
    "an image_size that is a word": Case("evaluate.py --model=run", "image_size", ("run",),
                                         (settings(image_size="8"),)),
    "an image_size of -8": Case("evaluate.py --model=run", "image_size", ("run",),
                                (settings(image_size=-8),)),
    "teachers that are words": Case("evaluate.py --model=run", "teachers", ("run",),
                                    (config(teachers=["resnet8"]),)),
    "teachers of another version": Case("evaluate.py --model=run", "teachers", ("run",),
                                        (config(teachers=[{"path": "resnet8"}]),)),
    "a teacher that is a number": Case("evaluate.py --model=run", "teachers", ("run",),
                                       (config(teachers=[{"source": 8}]),)),
    "a teacher without weights": Case("evaluate.py --model=run", "resnet8", ("run",),
                                      (config(teachers=[{"source": "resnet8"}]),)),
    "a teacher that is unknown": Case("evaluate.py --model=run", "resnet21", ("run",), (
        write("w.pth", "x"), config(teachers=[{"source": "resnet21", "weights": "w.pth"}]))),
}  # fmt: skip

CLASS_TABLES = {
    "missing": Case(f"{TABLE}2", "names.txt2", TEACHER),
    "a folder": Case(TABLE, "names.txt", TEACHER, (directory("names.txt"),)),
    "a pipe": Case(TABLE, "names.txt", TEACHER, (pipe("names.txt"),)),
    "empty": Case(TABLE, "names.txt", TEACHER, (write("names.txt"),)),
    "blank": Case(TABLE, "names.txt", TEACHER, (write("names.txt", "\n \n\n"),)),
    "a name twice": Case(TABLE, "'cat' at the lines 1 and 3", TEACHER,
                         (write("names.txt", "cat\ndog\ncat\n"),)),
    "a blank line": Case(TABLE, "blank at line 2", TEACHER,
                         (write("names.txt", "cat\n\ndog\nrat\n"),)),
    "a class missing": Case(TABLE, "no line 'dog'", TEACHER,
                            (write("names.txt", "cat\nrat\nhen\n"),)),
    "too few": Case(TABLE, "names.txt names 2 classes", TEACHER, (write("names.txt", "cat\ndog"),)),
    "too many": Case(TABLE, "names.txt names 4 classes", TEACHER,
                     (write("names.txt", "cat\ndog\nrat\nhen"),)),
    "another case": Case(TABLE, "no line 'cat'", TEACHER, (write("names.txt", "Cat\nDog\nRat\n"),)),
    "with commas": Case(TABLE, "names.txt", TEACHER, (write("names.txt", "cat,dog,rat"),)),
    "numbered": Case(TABLE, "no line 'cat'", TEACHER, (write("names.txt", "0 cat\n1 dog\n2 rat"),)),
    "bytes": Case(TABLE, "names.txt isn't UTF-8", TEACHER,
                  (write("names.txt", bytes(range(256))),)),
    "UTF-16": Case(TABLE, "names.txt", TEACHER,
                   (write("names.txt", "cat\ndog\nrat\n".encode("utf-16")),)),
    "a model": Case(f"{KD} --teacher=small.keras --teacher_classes=small.keras", "small.keras",
                    TEACHER),
    "two for a teacher": Case(
        f"{KD} --teacher=small.keras --teacher_classes=names.txt,names.txt", "--teacher_classes",
        (*TEACHER, "names.txt")),
    "of a teacher to train": Case(f"{KD} --teacher=resnet8 --teacher_classes=names.txt",
                                  "--teacher_classes", ("photographs", "names.txt")),
    "of ImageNet's teacher, too few": Case(
        f"{KD} --teacher=keras.applications:MobileNetV2 --teacher_classes=names.txt", "names.txt",
        ("photographs", "names.txt")),
    "a name twice, of evaluate": Case(SCORE_TABLE, "'dog' at the lines 1 and 2", SCORED,
                                      (write("names.txt", "dog\ndog\ncat\n"),)),
    "missing, of evaluate": Case(SCORE_TABLE, "names.txt", SCORED),
    "too few, of evaluate": Case(SCORE_TABLE, "names.txt names 2", SCORED,
                                 (write("names.txt", "cat\ndog"),)),
    "bytes, of evaluate": Case(f"{SCORE_TABLE} --json", "names.txt", SCORED,
                               (write("names.txt", b"\x80\x81"),)),
    "wnids.txt of too few classes": Case(
        "train.py --dataset=tiny_imagenet --data_dir=a.zip", "2 classes in wnids.txt",
        make=(zipped("a.zip", OF_TINY_IMAGENET),)),
    "words.txt without a class": Case(
        "train.py --dataset=tiny_imagenet --data_dir=a.zip", "words.txt",
        make=(zipped("a.zip", {**OF_TINY_IMAGENET, "wnids.txt": "\n".join(
            f"n{n:02}" for n in range(200))}),)),
}  # fmt: skip

ENVIRONMENT = {
    "no cluster": Case(WORKERS, "TF_CONFIG"),
    "no JSON": Case(WORKERS, "TF_CONFIG", env={"TF_CONFIG": "{'cluster': {}}"}),
    "a blank": Case(WORKERS, "TF_CONFIG", env={"TF_CONFIG": " "}),
    "a list": Case(WORKERS, "TF_CONFIG", env={"TF_CONFIG": "[1]"}),
    "JSON without an end": Case(WORKERS, "TF_CONFIG", env={"TF_CONFIG": deep(20_000)}),
    "no task": Case(WORKERS, "task", env={"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}),
    "an empty cluster": Case(WORKERS, "nobody", env={
        "TF_CONFIG": '{"cluster": {}, "task": {"type": "worker", "index": 0}}'}),
    "nobody in a cluster": Case(WORKERS, "0 worker", env=cluster()),
    "an index beyond": Case(WORKERS, "worker 2", env=cluster("a:1", "b:1", index=2)),
    "an index before": Case(WORKERS, "worker -1", env=cluster("a:1", "b:1", index=-1)),
    "an infinite index": Case(WORKERS, "TF_CONFIG", env=cluster("a:1", index=float("inf"))),
    "an index that is a word": Case(WORKERS, "first", env=cluster("a:1", index="first")),
    "an unknown job": Case(WORKERS, "ps", env=cluster("a:1", ps=["b:1"])),
    "a job that is a list": Case(WORKERS, "TF_CONFIG", env=cluster("a:1", task=["worker"])),
    "two chiefs": Case(WORKERS, "2 chief", env=cluster("a:1", chief=["b:1", "c:1"])),
    "an address twice": Case(WORKERS, "'a:1'", env=cluster("a:1", "a:1")),
    "an address without a port": Case(WORKERS, "'localhost'", env=cluster("localhost", "b:1")),
    "a port that can't be": Case(WORKERS, "'a:99999'", env=cluster("a:99999")),
    "a port that is a word": Case(WORKERS, "'a:ssh'", env=cluster("a:ssh")),
    "an address that is a number": Case(WORKERS, "TF_CONFIG", env=cluster(1, 2)),
    "addresses that are one text": Case(WORKERS, "TF_CONFIG", env={"TF_CONFIG": json.dumps({
        "cluster": {"worker": "a:1,b:1"}, "task": {"type": "worker", "index": 0}})}),
    "a port that is taken": Case(WORKERS, str(TAKEN_PORT),
                                 env=cluster(f"localhost:{TAKEN_PORT}", "localhost:1")),
    "half of Slurm": Case(WORKERS, "SLURM_STEP_", env={"SLURM_PROCID": "0"}),
    "a number of Slurm's that is none": Case(WORKERS, "Slurm", env=slurm(PROCID="zero")),
    "a task that Slurm hasn't": Case(WORKERS, "SLURM_PROCID is 2", env=slurm(PROCID="2")),
    "hosts that can't be read": Case(WORKERS, "n[a-", env=slurm(STEP_NODELIST="n[a-")),
    "fewer hosts than tasks": Case(WORKERS, "Slurm", env=slurm(STEP_NODELIST="n1")),
    "no hosts": Case(WORKERS, "Slurm", env=slurm(STEP_NODELIST="")),
    "TFDS_DATA_DIR that is a file": Case("train.py --dataset=cifar10", "TFDS_DATA_DIR",
                                         make=(write("file"),), env={"TFDS_DATA_DIR": "file"}),
    "TFDS_DATA_DIR that isn't there": Case("train.py --dataset=cifar10", "nowhere",
                                           env={"TFDS_DATA_DIR": "nowhere"}),
    "TFDS_DATA_DIR with a broken data set": Case(
        "train.py --dataset=cifar10", "tfds/cifar10/3.0.2",
        make=(directory("tfds/cifar10/3.0.2"),), env={"TFDS_DATA_DIR": "tfds"}),
    "KERAS_HOME without weights, and no network": Case(
        f"{KD} --teacher=keras.applications:MobileNetV2 --teacher_classes=names.txt",
        "--teacher_weights=FILE", PHOTOGRAPHS,
        (write("names.txt", "\n".join(["cat", "dog", *map(str, range(998))])),),
        {"KERAS_HOME": "nowhere"}),
    "TFDS_DATA_DIR that is a file, of evaluate": Case(
        "evaluate.py --model=two.keras --dataset=cifar10", "TFDS_DATA_DIR", ("two.keras",),
        (write("file"),), {"TFDS_DATA_DIR": "file"}),
    "TFDS_DATA_DIR that isn't there, of evaluate": Case(
        "evaluate.py --model=two.keras --dataset=cifar100 --json", "nowhere", ("two.keras",),
        env={"TFDS_DATA_DIR": "nowhere"}),
    "a run whose data are gone": Case(
        "evaluate.py --model=run", "nowhere", ("run",), (settings(dataset="cinic10"),),
        env={"TFDS_DATA_DIR": "nowhere"}),
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
