"""Finds or downloads data sets of TensorFlow Datasets (TFDS)."""

import contextlib
import http.client
import os
import pathlib
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

import tensorflow_datasets as tfds

from stkd_keras.errors import InputError, explain_errors
from stkd_keras.files.untrusted import check_tfds_features


def prepared_builder(
    name: str,
    data_dir: str | os.PathLike | None,
    check: Callable[[tfds.core.DatasetBuilder], object],
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set, which is downloaded if necessary."""
    root = _tfds_root(data_dir)
    check_tfds_features(root / re.split("[:/]", name)[0])
    folder = newest_version(root / name)
    if folder is not None:
        with explain_errors_of(folder, name):
            return tfds.builder_from_directory(folder)
    advice = "expected a name of https://www.tensorflow.org/datasets/catalog, such as beans"
    with explain_errors(f"TFDS has no data set {name!r}", advice):
        builder = tfds.builder(name, data_dir=root)
    is_elsewhere = root.absolute() not in pathlib.Path(builder.data_dir).absolute().parents
    if not is_elsewhere and not pathlib.Path(builder.data_dir).exists():
        check(builder)
        _download(builder, name, root)
    return builder


def default_root() -> pathlib.Path:
    """Returns TFDS's default folder of prepared data sets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def newest_version(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the newest prepared version, if any."""
    # TFDS names incomplete folders incomplete.XYZ_VERSION.
    versions = [path for path in folder.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def explain_errors_of(folder: os.PathLike, name: str) -> contextlib.AbstractContextManager[None]:
    """Explains errors in reading a prepared data set."""
    return explain_errors(
        f"{folder} has a broken or incomplete {name}",
        "remove it and prepare it again, or pass another data_dir",
    )


def _tfds_root(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the folder of the prepared data sets, which must exist unless it is the default."""
    root = default_root() if data_dir is None else pathlib.Path(data_dir).expanduser()
    if not root.is_dir() and (data_dir is not None or root.exists()):
        state = "isn't a folder" if root.exists() else "doesn't exist"
        raise InputError(
            f"{str(root)!r} {state}, expected a folder of data sets prepared by TFDS: correct "
            "data_dir (or TFDS_DATA_DIR), or create the folder"
        )
    return root


def _download(builder, name: str, root: pathlib.Path) -> None:
    """Downloads and prepares a data set; fails within seconds if the host is unreachable."""
    # TFDS would retry for over three minutes. Our builders have an address, those of TFDS have
    # checksums by address.
    address = getattr(builder, "ADDRESS", None) or next(iter(builder.url_infos or ()), None)
    if address is not None and not _is_reachable(address):
        host = urllib.parse.urlsplit(address).hostname
        prepare = f"tfds.builder('{name}', data_dir='tfds').download_and_prepare()"
        remedy = (
            'on a connected machine run `python -c "import tensorflow_datasets as tfds; '
            f'{prepare}"`, copy the folder tfds here and pass it as data_dir'
        )
        if hasattr(builder, "ADDRESS"):
            remedy = f"download {address} on a connected machine, and pass the archive as data_dir"
        raise InputError(
            f"no {name} found in {root / name} and {host} can't be reached to download it: {remedy}"
        )
    problem = f"{name} couldn't be downloaded and prepared in {root}"
    with explain_errors(problem, "it will be downloaded again the next time: try again"):
        builder.download_and_prepare()


def _is_reachable(address: str, seconds: float = 3.0) -> bool:
    """Whether the host of an address responds in time, through a proxy if one is set."""
    responded = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # The host responded.
        except (OSError, http.client.HTTPException, ValueError):
            return
        responded.set()

    # A thread, because urlopen's timeout doesn't cover the DNS lookup.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return responded.is_set()
