"""Image classification data: loading, splitting, augmentation and tf.data pipelines.

Importing it registers `tiny_imagenet` and `cinic10` with TensorFlow Datasets.
"""

from stkd_keras.data.augmentation import AUGMENTATIONS, parse_augmentation
from stkd_keras.data.dataset import (
    AnySplit,
    Dataset,
    Joined,
    Split,
    aligned_empty,
    content_hash,
    from_arrays,
)
from stkd_keras.data.loading import DEFAULT_MEMORY_LIMIT, NAMES, check_name, join_unlabeled, load
from stkd_keras.data.normalization import parse_normalization
from stkd_keras.data.pipeline import evaluation_pipeline, left_over, pipeline, steps_per_epoch
from stkd_keras.data.sources.decoding import RESIZES
from stkd_keras.data.sources.tfrecords import RecordSplit
from stkd_keras.data.splitting import check_split_arguments, split_train

__all__ = [
    "AUGMENTATIONS", "DEFAULT_MEMORY_LIMIT", "NAMES", "RESIZES", "AnySplit", "Dataset", "Joined",
    "RecordSplit", "Split", "aligned_empty", "check_name", "check_split_arguments", "content_hash",
    "evaluation_pipeline", "from_arrays", "join_unlabeled", "left_over", "load",
    "parse_augmentation", "parse_normalization", "pipeline", "split_train", "steps_per_epoch",
]  # fmt: skip
