"""File layout and TFDS builder of CINIC-10."""

import tensorflow_datasets as tfds

from stkd_keras.data.builders import ArchiveBuilder
from stkd_keras.data.sources.file_tree import FileTree, Layout, label_folders


def layout(tree: FileTree) -> Layout:
    """Returns the images and labels of CINIC-10, with its folder valid as validation split."""
    splits = {
        split: label_folders(tree, [f"{folder}/{name}" for name in _CLASS_NAMES], ".png", _EXPECTED)
        for split, folder in _FOLDERS.items()
    }
    return Layout(_CLASS_NAMES, splits)


class Cinic10(ArchiveBuilder):
    """TFDS builder that stores the original PNG files."""

    VERSION = tfds.core.Version("1.0.0")
    # From https://datashare.ed.ac.uk/handle/10283/3192. The commonly used bitstream/handle URLs no
    # longer return the archive.
    ADDRESS = (
        "https://datashare.ed.ac.uk/server/api/core/bitstreams/"
        "e8e186cc-2688-48f1-aa5a-3fda1a43f8b6/content"
    )
    MD5 = "6ee4d0c996905fe93221de577967a372"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Only needed if the archive can't be downloaded: manual_dir is the unpacked folder CINIC-10, or a
    folder that contains it or CINIC-10.tar.gz.
    """
    SHAPE = (32, 32, 3)
    LAYOUT = staticmethod(layout)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=self.features("png", names=_CLASS_NAMES),
            supervised_keys=("image", "label"),
            homepage="https://github.com/BayesWatch/cinic-10",
        )


_FOLDERS = {"train": "train", "validation": "valid", "test": "test"}
_CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_EXPECTED = f"CINIC-10 (train, valid and test, each with the folders {', '.join(_CLASS_NAMES)})"
