"""Shared by the TFDS builders of data sets that are archives of images."""

import hashlib
import pathlib
from collections.abc import Iterable, Iterator

import tensorflow as tf

from stkd_keras.data.sources.archives import find_source
from stkd_keras.data.sources.file_tree import FileTree
from stkd_keras.errors import InputError, one_line


def obtain(dl_manager, name: str, address: str, md5: str | None = None) -> pathlib.Path:
    """Returns the folder or archive in TFDS's manual_dir, or else downloads the archive.

    `md5` is the checksum of an archive that isn't in checksums.tsv. Raises an InputError if the
    download fails or has another checksum; it is then repeated the next time.
    """
    try:
        source = find_source(dl_manager.manual_dir, name)
    except AssertionError:  # TFDS raises it if the folder doesn't exist or is empty.
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
    """Yields TFDS examples with the original bytes of (file name, label) images.

    Raises an InputError for an image that is broken or has another (height, width, 3).
    """
    for name, label in images:
        content = tree.read(name)
        # TFDS would store a bad image, and fail only when the data set is read.
        try:
            found = tf.io.decode_image(content, channels=3, expand_animations=False).shape
            problem = None if tuple(found) == shape else f"its shape is {tuple(found)}"
        except tf.errors.InvalidArgumentError as error:
            problem = one_line(error)
        if problem is not None:
            raise InputError(
                f"{name}: not a good image of {tree.path!r} ({problem}), expected one of shape "
                f"{shape}: get it again"
            )
        yield name, {"image": content, "label": label}


def _download(dl_manager, address: str) -> pathlib.Path:
    import tensorflow_datasets as tfds

    wrong_checksum = tfds.download.download_manager.NonMatchingChecksumError
    try:
        return pathlib.Path(dl_manager.download(address))
    # The errors of requests are OSErrors.
    except (OSError, tfds.download.DownloadError, wrong_checksum) as error:
        raise InputError(
            f"the download of {address} failed ({one_line(error)}), expected the complete archive: "
            "try again, or get it otherwise and give its folder as manual_dir"
        ) from error


def _check_md5(path: pathlib.Path, address: str, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == expected:
        return
    size = path.stat().st_size
    # TFDS doesn't repeat a download whose file and .INFO file exist.
    path.unlink()
    path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
    raise InputError(
        f"the download of {address} has {size} bytes and the MD5 checksum {found}, expected "
        f"{expected}: try again, or get it otherwise and give its folder as manual_dir"
    )
