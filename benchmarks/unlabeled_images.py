"""Writes training images without their labels, to distill with `train.py --unlabeled_dir`.

    python benchmarks/unlabeled_images.py --dataset=cifar10 --data_dir=../shared/data/tfds \
        --folder=unlabeled

simulates a user who could label only a tenth of the images, and writes the others as PNG files: in
each class the 1,000 images of `train.py --train_images_per_class=1000 --validation_fraction=0`,
without the 100 that `--train_images_per_class=100` trains on.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# isort: off
import quiet_tensorflow  # noqa: F401

# isort: on
from absl import flags
from PIL import Image

from stkd_keras import data
from stkd_keras.cli import app
from stkd_keras.errors import InputError

DATASET = flags.DEFINE_string("dataset", "cifar10", "data set")
DATA_DIR = flags.DEFINE_string("data_dir", None, "see train.py")
FOLDER = flags.DEFINE_string(
    "folder", "unlabeled", "folder for the images, which must not exist yet"
)
LABELED = flags.DEFINE_integer(
    "labelled", 100, "labeled images per class, which are left out", lower_bound=1
)
PER_CLASS = flags.DEFINE_integer(
    "per_class", 1000, "images per class, including the labeled ones", lower_bound=2
)


def main() -> None:
    """Runs the command."""
    folder = pathlib.Path(FOLDER.value)
    if folder.exists():
        raise InputError(f"--folder={folder} exists; choose another")
    dataset = data.load(DATASET.value, DATA_DIR.value)
    labeled, _ = data.split_train(dataset, images_per_class=LABELED.value)
    both, _ = data.split_train(dataset, images_per_class=PER_CLASS.value)
    indices = sorted(set(both.indices) - set(labeled.indices))
    folder.mkdir(parents=True)
    for index in indices:
        Image.fromarray(dataset.train.images[index].squeeze()).save(folder / f"{index:06d}.png")
    print(f"{len(indices)} images in {folder}")


if __name__ == "__main__":
    app.run(main, __doc__)
