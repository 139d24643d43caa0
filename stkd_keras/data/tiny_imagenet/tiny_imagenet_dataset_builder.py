"""File layout and TFDS builder of Tiny-ImageNet-200."""

import tensorflow_datasets as tfds

from stkd_keras.data.builders import ArchiveBuilder
from stkd_keras.data.sources.file_tree import (
    FileTree,
    Layout,
    is_visible,
    label_folders,
    unexpected_layout,
)
from stkd_keras.errors import InputError


def layout(tree: FileTree) -> Layout:
    """Returns the images and labels of Tiny-ImageNet-200.

    A label is the index of the WordNet identifier among the sorted ones of wnids.txt. The split
    "test" is the labeled val; the images of test have no labels and are ignored.
    """
    texts = _read_texts(tree)
    wnids = sorted(set(texts["wnids.txt"].split()))
    if len(wnids) != _NUM_CLASSES:
        raise _broken(tree, f"has {len(wnids)} classes in wnids.txt, not {_NUM_CLASSES}")
    train = [f"train/{wnid}/images" for wnid in wnids]
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    return Layout(
        class_names=_class_names(tree, wnids, texts["words.txt"]),
        splits={
            "train": label_folders(tree, train, ".jpeg", _EXPECTED),
            "test": _label_val(tree, labels, texts[_ANNOTATIONS]),
        },
    )


class TinyImagenet(ArchiveBuilder):
    """TFDS builder that stores the original JPEG files."""

    VERSION = tfds.core.Version("1.0.0")
    ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Only needed if the archive can't be downloaded: manual_dir is the unpacked folder
    tiny-imagenet-200, or a folder that contains it or tiny-imagenet-200.zip.
    """
    SHAPE = (64, 64, 3)
    LAYOUT = staticmethod(layout)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=self.features("jpeg", num_classes=_NUM_CLASSES),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )


_NUM_CLASSES = 200
_ANNOTATIONS = "val/val_annotations.txt"
_EXPECTED = f"Tiny-ImageNet (train/WNID/images, val/images, {_ANNOTATIONS}, wnids.txt, words.txt)"


def _read_texts(tree: FileTree) -> dict[str, str]:
    files = ("wnids.txt", "words.txt", _ANNOTATIONS)
    present = set(tree.names())
    for name in files:
        if name not in present:
            raise _broken(tree, f"has no {name}")
    # words.txt covers all of WordNet; the words of other classes may not be UTF-8.
    return {name: tree.read(name).decode(errors="replace") for name in files}


def _class_names(tree: FileTree, wnids: list[str], words: str) -> tuple[str, ...]:
    synonyms = {}
    for line in words.splitlines():
        wnid, _, names = line.partition("\t")
        synonyms[wnid] = [name.strip() for name in names.split(",") if name.strip()]
    chosen: dict[str, str] = {}
    for wnid in wnids:
        if not synonyms.get(wnid):
            raise _broken(tree, f"has no name of {wnid} in words.txt")
        unused = (name for name in synonyms[wnid] if name not in chosen)
        chosen[next(unused, f"{synonyms[wnid][0]} ({wnid})")] = wnid
    return tuple(chosen)


def _label_val(tree: FileTree, labels: dict[str, int], annotations: str) -> list[tuple[str, int]]:
    folder = "val/images/"
    images = [
        name.removeprefix(folder)
        for name in tree.names()
        if name.startswith(folder) and name.lower().endswith(".jpeg") and is_visible(name)
    ]
    present = set(images)
    labeled: dict[str, int] = {}
    for number, line in enumerate(annotations.splitlines(), 1):
        if not line.strip():
            continue
        file, wnid = [*line.split("\t"), ""][:2]
        where = f"in line {number} of {_ANNOTATIONS}"
        if wnid not in labels:
            raise _broken(tree, f"has the unknown class {wnid!r} {where}")
        if file in labeled:
            raise _broken(tree, f"has {file!r} again {where}")
        if file not in present:
            raise _broken(tree, f"has {file!r} {where}, but not in val/images")
        labeled[file] = labels[wnid]
    for file in images:
        if file not in labeled:
            raise _broken(tree, f"has {folder}{file}, but not in {_ANNOTATIONS}")
    if not images:
        raise _broken(tree, "has no images in val/images")
    return [(folder + file, label) for file, label in labeled.items()]


def _broken(tree: FileTree, problem: str) -> InputError:
    return unexpected_layout(tree, problem, _EXPECTED)
