"""Writes training images without their labels, to distil with `train.py --unlabeled_dir`.

    python benchmarks/unlabeled_images.py --dataset=cifar10 --data_dir=../shared/data/tfds \
        --folder=unlabeled

takes the images of each class that `train.py --train_images_per_class=100 --validation_fraction=0`
would train on if it were given 1,000 of each, but for the 100 that it does train on, and writes
them as PNG files: what a person has who could label only a tenth of the images.
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
DATA_DIR = flags.DEFINE_string("data_dir", None, "as of train.py")
FOLDER = flags.DEFINE_string("folder", "unlabeled", "where the images go; it must not exist yet")
LABELLED = flags.DEFINE_integer("labelled", 100, "images of each class left out", lower_bound=1)
PER_CLASS = flags.DEFINE_integer(
    "per_class", 1000, "images of each class with those", lower_bound=2
)


def main() -> None:
    """Runs the command."""
    folder = pathlib.Path(FOLDER.value)
    if folder.exists():
        raise InputError(f"--folder={folder} exists; name another")
    dataset = data.load(DATASET.value, DATA_DIR.value)
    labelled, _ = data.split_train(dataset, images_per_class=LABELLED.value)
    both, _ = data.split_train(dataset, images_per_class=PER_CLASS.value)
    rows = sorted(set(both.indices) - set(labelled.indices))
    folder.mkdir(parents=True)
    for row in rows:
        Image.fromarray(dataset.train.images[row].squeeze()).save(folder / f"{row:06d}.png")
    print(f"{len(rows)} images in {folder}")


if __name__ == "__main__":
    app.run(main, __doc__)
