"""Similarity Transfer for Knowledge Distillation in Keras."""

import importlib
import sys
import types

from stkd_keras.classifiers.fused_batch_norm import fuse_batch_normalization
from stkd_keras.distillation.distiller import SimilarityTransferDistiller
from stkd_keras.errors import InputError
from stkd_keras.losses import SoftTargetLoss
from stkd_keras.mixing import CutMix, Mixup, MixupOrCutMix
from stkd_keras.optimizers import SGD
from stkd_keras.teacher.frozen import FrozenTeacher
from stkd_keras.teacher.recorded import RecordedTeacher
from stkd_keras.teacher.recording import record_teacher

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "CutMix",
    "FrozenTeacher",
    "InputError",
    "Mixup",
    "MixupOrCutMix",
    "RecordedTeacher",
    "SimilarityTransferDistiller",
    "SoftTargetLoss",
    "__version__",
    "fuse_batch_normalization",
    "record_teacher",
]


def _keep_old_path(old: str, new: str) -> None:
    """Keeps a module importable by its path in version 0.1."""
    module = types.ModuleType(old)
    module.__dict__["__getattr__"] = lambda name: getattr(importlib.import_module(new), name)
    sys.modules[old] = module
    globals()[old.rpartition(".")[2]] = module


_keep_old_path("stkd_keras.dry_run", "stkd_keras.training.timing")
_keep_old_path("stkd_keras.run_directory", "stkd_keras.training.run_directory")
