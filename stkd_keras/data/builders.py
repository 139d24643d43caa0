"""Base class of TFDS builders for data sets distributed as image archives."""

import hashlib
import pathlib
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from stkd_keras.data.sources.archives import find_source
from stkd_keras.data.sources.decoding import decode_image
from stkd_keras.data.sources.file_tree import FileTree, Layout, open_tree
from stkd_keras.errors import InputError, explain_errors


class ArchiveBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base class of TFDS builders that store the image files of an archive as they are."""

    ADDRESS: str
    MD5: str | None = None
    SHAPE: tuple[int, int, int]
    LAYOUT: Callable[[FileTree], Layout]

    def features(self, encoding_format: str, **classes) -> tfds.features.FeaturesDict:
        image = tfds.features.Image(shape=self.SHAPE, encoding_format=encoding_format)
        label = tfds.features.ClassLabel(**classes)
        return tfds.features.FeaturesDict({"image": image, "label": label})

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        tree = open_tree(self._source(dl_manager))
        class_names, splits = self.LAYOUT(tree)
        self.info.features["label"].names = list(class_names)
        return {split: self._generate_examples(tree, images) for split, images in splits.items()}

    def _generate_examples(
        self, tree: FileTree, images: list[tuple[str, int]]
    ) -> Iterator[tuple[str, dict]]:
        for name, label in images:
            content = tree.read(name)
            # TFDS would store a bad image and only fail when the data set is read.
            found = decode_image(content, name, None).shape
            if found != self.SHAPE:
                raise InputError(
                    f"{name} of {tree.path!r} has the shape {found}, expected {self.SHAPE}: get it "
                    "again"
                )
            yield name, {"image": content, "label": label}

    def _source(self, dl_manager: tfds.download.DownloadManager) -> pathlib.Path:
        """Finds the folder or archive in TFDS's manual_dir, or downloads the archive."""
        try:
            source = find_source(dl_manager.manual_dir, self.name)
        except AssertionError:  # TFDS: manual_dir is missing or empty.
            source = None
        if source is None:
            source = _download(dl_manager, self.ADDRESS)
            if self.MD5 is not None:
                _check_md5(source, self.ADDRESS, self.MD5)
        return source


def _download(dl_manager, address: str) -> pathlib.Path:
    advice = "try again, or download it yourself and pass its folder as manual_dir"
    with explain_errors(f"the download of {address} failed", advice):
        return pathlib.Path(dl_manager.download(address))


def _check_md5(path: pathlib.Path, address: str, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == expected:
        return
    size = path.stat().st_size
    # TFDS skips a download whose file and .INFO file exist.
    path.unlink()
    path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
    raise InputError(
        f"the download of {address} has {size} bytes and the MD5 checksum {found}, expected "
        f"{expected}: try again, or download it yourself and pass its folder as manual_dir"
    )
