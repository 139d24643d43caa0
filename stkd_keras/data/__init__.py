"""Image classification data: loading, splitting, augmentation and tf.data pipelines."""

from stkd_keras.data.augmentation import AUGMENTATIONS
from stkd_keras.data.loading import NAMES, Dataset, Split, load, split_train
from stkd_keras.data.normalization import parse_normalization
from stkd_keras.data.pipeline import evaluation_pipeline, pipeline, steps_per_epoch

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "Dataset",
    "Split",
    "evaluation_pipeline",
    "load",
    "parse_normalization",
    "pipeline",
    "split_train",
    "steps_per_epoch",
]
