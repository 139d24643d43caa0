"""What the builders of data sets that come as archives of images share."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import tensorflow as tf

from stkd_keras.data.sources.file_tree import FileTree, reason
from stkd_keras.errors import InputError


def find_source(path: str | os.PathLike, name: str) -> pathlib.Path | None:
    """Finds the files of a data set, unpacked or as an archive.

    Args:
        path: an archive, or the unpacked folder (it has a folder train), or a folder that either
            is in. There they are found by their names, which begin as the data set's does, in any
            case and with any hyphens: "tiny-imagenet-200.zip", "CINIC-10". An unpacked folder is
            preferred.
        name: the data set, such as "tiny_imagenet".

    Returns:
        The folder or the file for `open_tree`, or None if there is neither.
    """
    path = pathlib.Path(path)
    if path.is_file() or (path / "train").is_dir():
        return path
    if not path.is_dir():
        return None
    # The shortest name first: "NAME.zip" before "NAME (1).zip".
    entries = sorted(path.iterdir(), key=lambda entry: (len(entry.name), entry.name))
    named = [entry for entry in entries if _plain(entry.name).startswith(_plain(name))]
    folders = (find_source(entry, name) for entry in named if entry.is_dir())
    archives = (entry for entry in named if entry.is_file() and _is_archive(entry.name))
    return next(filter(None, (*folders, *archives)), None)


def obtain(dl_manager, name: str, address: str, md5: str | None = None) -> pathlib.Path:
    """Returns the files of a data set from TFDS's manual_dir or, if not there, downloads them.

    Args:
        dl_manager: TFDS's download manager, of a builder with MANUAL_DOWNLOAD_INSTRUCTIONS:
            without them it has no manual_dir.
        name: the data set.
        address: of the archive.
        md5: hexadecimal checksum of the archive, for a data set without one in checksums.tsv.

    Returns:
        The folder or the file for `open_tree`.

    Raises:
        InputError: if the download fails or isn't the file that the checksum is of; what was
            downloaded won't be taken for complete by a later run.
    """
    try:
        source = find_source(dl_manager.manual_dir, name)
    except AssertionError:
        # So TFDS says that there is no such folder, or nothing in it.
        source = None
    if source is not None:
        return source
    path = _download(dl_manager, address)
    if md5 is not None:
        _check_md5(path, address, md5)
    return path


def examples(
    tree: FileTree, images: Iterable[tuple[str, int]], shape: tuple[int, int, int]
) -> Iterator[tuple[str, dict]]:
    """Yields what a TFDS builder generates: (key, {"image": the file's bytes, "label"}).

    Args:
        tree: the files.
        images: (name in the tree, label).
        shape: (height, width, 3) that every image has to have once it is decoded as RGB.

    Raises:
        InputError: if an image is broken or has another shape.
    """
    labels = dict(images)
    for name, content in tree.read_all(labels):
        # TFDS itself would store anything, and fail when the data set is read.
        try:
            found = tf.io.decode_image(content, channels=3, expand_animations=False).shape
        except tf.errors.InvalidArgumentError as error:
            raise _not_an_image(tree, name, reason(error), shape) from error
        if tuple(found) != shape:
            raise _not_an_image(tree, name, f"its shape is {tuple(found)}", shape)
        yield name, {"image": content, "label": labels[name]}


_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _is_archive(name: str) -> bool:
    return name.lower().endswith(_ARCHIVES)


def _download(dl_manager, address: str) -> pathlib.Path:
    import tensorflow_datasets as tfds

    wrong_checksum = tfds.download.download_manager.NonMatchingChecksumError
    try:
        return pathlib.Path(dl_manager.download(address))
    # Those of requests are OSErrors.
    except (OSError, tfds.download.DownloadError, wrong_checksum) as error:
        raise InputError(
            f"the download of {address} failed ({reason(error)}), expected the complete archive: "
            "try again, or get it otherwise and give the folder it is in as manual_dir"
        ) from error


def _check_md5(path: pathlib.Path, address: str, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == expected:
        return
    size = path.stat().st_size
    # TFDS wouldn't download a file again that is there together with its description.
    path.unlink()
    path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
    raise InputError(
        f"what came from {address} has {size} bytes and the MD5 checksum {found}, expected "
        f"{expected}: try again, or get it otherwise and give the folder it is in as manual_dir"
    )


def _not_an_image(tree: FileTree, name: str, why: str, shape: tuple) -> InputError:
    return InputError(
        f"{name}: not a good image of {tree.path!r} ({why}), expected one of shape {shape}: get it "
        "again"
    )
