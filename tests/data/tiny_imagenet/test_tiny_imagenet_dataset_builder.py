import pathlib
import zipfile

import numpy as np
import pytest
from archive_files import pack
from image_folders import tiny_imagenet_files

from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.data.tiny_imagenet import TinyImagenet, layout
from stkd_keras.errors import InputError


@pytest.fixture(scope="module")
def subset(shared) -> pathlib.Path:
    """The zip archive of a subset of Tiny-ImageNet."""
    return shared / "data" / "tiny-imagenet-200-subset.zip"


def test_the_layout_of_the_subset(subset):
    with zipfile.ZipFile(subset) as archive:
        wnids = archive.read("tiny-imagenet-200/wnids.txt").decode().split()
        lines = archive.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()
    annotations = {
        file: sorted(wnids).index(wnid) for file, wnid, *_ in (line.split("\t") for line in lines)
    }
    class_names, splits = layout(open_tree(subset))
    assert len(set(class_names)) == 200
    assert class_names[:2] == ("goldfish", "European fire salamander")
    train = dict(splits["train"])
    assert np.bincount(list(train.values())).tolist() == [60] * 200
    assert all(name.split("/")[1] == sorted(wnids)[label] for name, label in train.items())
    assert {pathlib.PurePath(name).name: label for name, label in splits["test"]} == annotations
    assert len(annotations) == 4000


def layout_of(folder, changes):
    files = tiny_imagenet_files()
    for name, change in changes.items():
        files[name] = change(files.get(name))
    files = {name: content for name, content in files.items() if content is not None}
    return layout(open_tree(pack("folder", folder, files)))


def test_labels_are_indices_into_the_sorted_wnids(tmp_path):
    class_names, splits = layout_of(tmp_path, {})
    assert class_names[1] == "name of n00000007"
    assert dict(splits["train"])["train/n00000014/images/n00000014_0.JPEG"] == 2
    assert splits["test"] == [(f"val/images/val_{n}.JPEG", n) for n in range(200)]


def test_duplicate_class_names(tmp_path):
    words = ["crane", "crane, derrick", "crane, derrick, hoist", "crane, derrick"]
    lines = [f"n{7 * number:08}\t{names}\n" for number, names in enumerate(words)]

    def prepend(content):
        return b"\n".join(content.splitlines()[4:]) + b"\n" + "".join(lines).encode()

    class_names, _ = layout_of(tmp_path, {"words.txt": prepend})
    assert class_names[:4] == ("crane", "derrick", "hoist", "crane (n00000021)")


def test_other_files_are_ignored(tmp_path):
    clutter = (
        "train/n00000000/images/._n00000000_0.JPEG",
        "train/n00000000/n00000000_boxes.txt",
        "val/images/.DS_Store",
        "test/images/test_0.JPEG",
    )
    _, splits = layout_of(tmp_path, {name: lambda _: b"-" for name in clutter})
    assert not set(clutter) & {name for images in splits.values() for name, _ in images}


@pytest.mark.parametrize("ending", [b"\r\n", b"\n\n"])
def test_any_line_endings(tmp_path, ending):
    names = ("wnids.txt", "words.txt", "val/val_annotations.txt")
    changes = {name: lambda content: content.replace(b"\n", ending) for name in names}
    assert layout_of(tmp_path / "a", changes) == layout_of(tmp_path / "b", {})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("words.txt", lambda _: None, "no words.txt"),
        ("words.txt", lambda _: b"\xff\xfe\0", "name of n00000000 in words.txt"),
        ("wnids.txt", lambda text: text + b"\nn9", "201 classes in wnids.txt"),
        (
            "wnids.txt",
            lambda text: text.replace(b"n00000014", b"n9"),
            "name of n9 in words.txt",
        ),
        (
            "train/n9/images/n9_0.JPEG",
            lambda _: b"",
            "images in train/n9/images, which isn't a class",
        ),
        ("train/n00000014/images/n00000014_0.JPEG", lambda _: None, "train/n00000014/images"),
        ("val/images/val_7.JPEG", lambda _: None, "'val_7.JPEG' in line 8"),
        ("val/images/val_x.JPEG", lambda _: b"", "val/images/val_x.JPEG"),
        (
            "val/val_annotations.txt",
            lambda text: text * 2,
            "'val_0.JPEG' again in line 201",
        ),
        ("val/val_annotations.txt", lambda text: text + b"x\tn9\t0\n", "'n9' in line 201"),
        ("val/val_annotations.txt", lambda text: text + b"x\n", "'' in line 201"),
    ],
)
def test_a_copy_that_is_not_official(tmp_path, name, change, said):
    with pytest.raises(InputError) as error:
        layout_of(tmp_path, {name: change})
    message = str(error.value)
    assert said in message
    assert str(tmp_path) in message
    assert "files of Tiny-ImageNet" in message
    assert "\n" not in message


def test_val_sorted_into_class_folders(tmp_path):
    files = tiny_imagenet_files()
    files = {name: content for name, content in files.items() if "val/images" not in name}
    with pytest.raises(InputError, match="not in val/images"):
        layout(open_tree(pack("folder", tmp_path, files)))


def test_tfds_has_its_checksum():
    assert TinyImagenet.url_infos[TinyImagenet.ADDRESS].size == 248_100_043
    assert TinyImagenet.url_infos[TinyImagenet.ADDRESS].filename == "tiny-imagenet-200.zip"
