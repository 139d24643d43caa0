"""Similarity Transfer for Knowledge Distillation in Keras."""

from stkd_keras.distiller import SimilarityTransferDistiller
from stkd_keras.errors import InputError
from stkd_keras.losses import SoftTargetLoss
from stkd_keras.mixing import CutMix, Mixup
from stkd_keras.normalization import fuse_batch_normalization
from stkd_keras.optimizers import SGD
from stkd_keras.replay import RecordedTeacher, record_teacher
from stkd_keras.teacher import FrozenTeacher
from stkd_keras.version import __version__

__all__ = [
    "SGD",
    "CutMix",
    "FrozenTeacher",
    "InputError",
    "Mixup",
    "RecordedTeacher",
    "SimilarityTransferDistiller",
    "SoftTargetLoss",
    "__version__",
    "fuse_batch_normalization",
    "record_teacher",
]
