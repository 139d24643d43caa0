"""The user's own images: one folder per split, with one folder per class in it."""

import os
import pathlib
from collections.abc import Iterable, Sequence

from stkd_keras.data.sources.file_tree import Layout, is_visible, open_tree
from stkd_keras.errors import InputError, is_text

VALIDATION_FOLDERS = ("val", "valid", "validation")


def folder_layout(directory: str | os.PathLike) -> Layout:
    """Finds the images in DIRECTORY/{train,val,test}/CLASS, including its subfolders.

    The classes are the folders of train in alphabetical order. The folder val, valid or validation
    is optional.
    """
    root = pathlib.Path(directory)
    folders = _split_folders(root)
    class_names = _class_folders(root / "train")
    if len(class_names) == 1:
        raise InputError(
            f"{root / 'train'} has only one class folder, {class_names[0]!r}, expected two or more"
        )
    names = _image_names(root)
    splits = {
        split: _labeled(root, folder, names, class_names) for split, folder in folders.items()
    }
    return Layout(class_names, splits)


def unlabeled_files(directory: str | os.PathLike) -> list[str]:
    """Returns the sorted names of all images below a folder; raises if there are none."""
    names = _image_names(pathlib.Path(directory))
    if not names:
        raise InputError(f"{directory} and its subfolders contain no images")
    return names


def _split_folders(root: pathlib.Path) -> dict[str, str]:
    """Returns each split's folder name; validation is optional."""
    if not root.is_dir():
        raise InputError(f"{root} isn't a folder, expected one with train/CLASS/FILE and test/...")
    validation = [name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if len(validation) > 1:
        raise InputError(f"{root} has {' and '.join(validation)}, expected one of them")
    if not (root / "train").is_dir():
        raise InputError(f"{root} has no folder train, expected the images in train/CLASS/FILE")
    if not (root / "test").is_dir():
        raise InputError(
            f"{root} has no folder test, expected one for the final score: move some images of "
            "each class from train/CLASS to test/CLASS"
        )
    optional = {"validation": validation[0]} if validation else {}
    return {"train": "train", **optional, "test": "test"}


def _class_folders(folder: pathlib.Path) -> tuple[str, ...]:
    names = (path.name for path in folder.iterdir() if path.is_dir())
    visible = sorted(name for name in names if is_visible(name))
    for name in visible:
        if not is_text(name):
            raise InputError(
                f"{str(folder / name)!r} isn't UTF-8, expected a class name in UTF-8: rename the "
                "folder"
            )
    if not visible:
        raise InputError(f"{folder} has no class folders, expected one for each class")
    return tuple(visible)


def _image_names(root: pathlib.Path) -> list[str]:
    return [name for name in open_tree(root).names() if is_visible(name)]


def _labeled(
    root: pathlib.Path, folder: str, names: Iterable[str], class_names: Sequence[str]
) -> list[tuple[str, int]]:
    """Returns (name, label) of each image of a split."""
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    present = _class_folders(root / folder)
    for class_name in present:
        if class_name not in labels:
            raise InputError(
                f"{root / folder / class_name} is of a class that {root / 'train'} doesn't have, "
                "expected a folder of the same name there"
            )
    files = []
    for name in names:
        split, *inside = name.split("/")
        if split != folder:
            continue
        if len(inside) == 1:
            raise InputError(f"{root / name} isn't in a class folder, expected it in one")
        files.append((name, labels[inside[0]]))
    found = {label for _, label in files}
    for class_name in present:
        if labels[class_name] not in found:
            raise InputError(f"{root / folder / class_name} has no images, expected some")
    return files
