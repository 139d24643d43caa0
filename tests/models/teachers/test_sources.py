"""The flags that name teachers, and files of class names."""

import pytest

from models.teachers.sources import TeacherSource, parse_teachers, read_class_names, slug
from stkd_keras import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with files that are named but not read."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.keras", "a.onnx", "w.pth", "w.weights.h5", "names.txt"):
        (tmp_path / name).touch()
    return tmp_path


def refusal(function, *args):
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_are_split_at_commas(folder):
    sources = parse_teachers("a.keras,resnet8,resnet20", ",w.pth,", "cifar10", "names.txt,,")
    names = str(folder / "names.txt")
    assert sources == [
        TeacherSource(str(folder / "a.keras"), classes=names),
        TeacherSource("resnet8", str(folder / "w.pth"), "cifar10"),
        TeacherSource("resnet20"),
    ]
    assert [source.is_trained for source in sources] == [True, True, False]
    assert parse_teachers("a.keras,a.keras", classes="names.txt")[1].classes == names
    mixed = parse_teachers("a.onnx,a.keras", None, "none", "names.txt", "probabilities")
    onnx = TeacherSource(str(folder / "a.onnx"), None, "none", names, "probabilities")
    assert mixed[0] == onnx
    assert (onnx.is_trained, onnx.files, slug(onnx.name)) == (True, [onnx.source, names], "a")
    assert mixed[1].normalization is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("a.keras,resnet8", "w.pth"), "is 1 files, but --teacher is 2 teachers"),
        (("a.keras", None, None, "names.txt,names.txt"), "is 2 files, but --teacher is 1"),
        (("resnet9",), "resnet8"),
        (("a.keras,",), "unknown model ''"),
        (("a.keras", "w.pth"), "has its own weights"),
        (("a.onnx", "w.pth"), "has its own weights"),
        (("no.onnx",), "no file no.onnx"),
        (("resnet8", "no.pth"), "no file no.pth"),
        (("no.keras",), "no file no.keras"),
        (("w.pth",), "has weights but no architecture"),
        (("a.keras", None, None, "no.txt"), "no file no.txt"),
        (("resnet8", None, None, "names.txt"), "add --teacher_weights=FILE"),
        (("resnet8", None, "imagenet"), "is only for --teacher_weights"),
        (("keras.applications:VGG16", "w.weights.h5", "imagenet"), "is only for --teacher_weights"),
        (("keras.applications:VGG61",), "VGG16"),
        (("keras.applications:VGG16", "w.pth"), "can't be the weights"),
    ],
)
def test_invalid_flags_are_refused(flags, named, folder):
    assert named in refusal(parse_teachers, *flags)


def test_class_names_are_read_with_any_line_ends(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffwasp\r\ncat\r\nant\r\n\r\n".encode())
    assert read_class_names(tmp_path / "names.txt") == ["wasp", "cat", "ant"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"ant\nbee\ncat\nant\n", "'ant' at lines 1 and 4"),
        (b"ant\n\nbee\ncat\n", "blank at line 2"),
        (b"\n\n", "0 class names"),
        ("ant\n".encode("utf-16"), "expected UTF-8 text"),
    ],
)
def test_invalid_files_of_class_names_are_refused(content, named, tmp_path):
    (tmp_path / "names.txt").write_bytes(content)
    message = refusal(read_class_names, tmp_path / "names.txt")
    assert named in message
    assert "names.txt" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/models/a.b.keras", "a.b"),
        ("keras.applications:VGG16", "VGG16"),
        ("mobilenet_v2:width=0.75", "mobilenet_v2-width=0.75"),
        ("tfds:mnist/3.0.1", "tfds-mnist-3.0.1"),
    ],
)
def test_a_slug_is_a_part_of_a_path(name, expected):
    assert slug(name) == expected
