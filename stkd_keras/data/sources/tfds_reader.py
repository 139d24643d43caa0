"""Loads data sets of TensorFlow Datasets (TFDS) into memory, or streams them."""

import dataclasses
import functools
import http.client
import os
import pathlib
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from stkd_keras.data.dataset import AnySplit, Split, aligned_empty, split_without
from stkd_keras.data.sources.decoding import decode_image
from stkd_keras.data.sources.tfrecords import RecordSplit, buffer_size
from stkd_keras.data.sources.threads import calls_from_tensorflow, in_threads, with_progress
from stkd_keras.errors import InputError, one_line
from stkd_keras.files.untrusted import check_tfds_features

BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A data set's splits by TFDS's names, and "NAME: REASON" of each image that was skipped."""

    version: str
    class_names: tuple[str, ...]
    splits: Mapping[str, AnySplit]
    skipped: list[str]


def load_tfds(
    name: str,
    data_dir: str | os.PathLike | None,
    *,
    size: tuple[int, int] | None,
    memory_limit: int,
    skip_bad_images: bool,
) -> Loaded:
    """Loads an image classification data set, which is downloaded if it isn't prepared yet.

    Args:
        name: TFDS's name of the data set, or "NAME/CONFIG".
        data_dir: folder of the prepared data sets, see `stkd_keras.data.load`.
        size: (height, width) that images are resized to, or None if all have the same size.
        memory_limit: bytes of decoded images in memory; a larger data set is streamed.
        skip_bad_images: whether to skip images that can't be decoded.

    Raises:
        InputError: if it isn't an image classification data set, is broken, or can't be
            downloaded.
    """
    root = tfds_root(data_dir)
    builder = _prepared_builder(name, root, size)
    try:
        reader = _Reader.of(builder, name, size)
        names = _useful_splits(builder, name)
        total = sum(reader.num_bytes(split) for split in names)
        if total > memory_limit:
            return Loaded(
                str(builder.version),
                reader.class_names,
                {split: reader.stream(split, memory_limit) for split in names},
                [],
            )
        skipped: list[str] = []
        splits = {
            split: reader.read(split, skipped if skip_bad_images else None) for split in names
        }
        return Loaded(str(builder.version), reader.class_names, splits, skipped)
    except InputError:
        raise
    except Exception as error:
        # TFDS and TensorFlow raise almost anything for broken files.
        raise _broken(builder.data_dir, name, error) from error


def tfds_root(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the folder of the prepared data sets; only the default one needn't exist."""
    root = default_root() if data_dir is None else pathlib.Path(data_dir).expanduser()
    if not root.is_dir() and (data_dir is not None or root.exists()):
        state = "is no folder" if root.exists() else "doesn't exist"
        what = "TFDS_DATA_DIR" if data_dir is None and "TFDS_DATA_DIR" in os.environ else "data_dir"
        raise InputError(
            f"{what} {str(root)!r} {state}, expected a folder of data sets prepared by TFDS: "
            f"correct {what} or make the folder"
        )
    return root


def default_root() -> pathlib.Path:
    """Returns TFDS's default folder of prepared data sets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def newest_version(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the newest prepared version, if any."""
    # TFDS names folders that aren't complete yet incomplete.XYZ_VERSION.
    versions = [path for path in folder.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the splits of a prepared builder."""

    builder: tfds.core.DatasetBuilder
    image_key: str
    label_key: str
    image_shape: tuple[int, int, int]
    fits: bool  # Whether the stored images have that shape.
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, builder, name: str, size: tuple[int, int] | None) -> "_Reader":
        features = dict(builder.info.features.items())
        keys = builder.info.supervised_keys or ("image", "label")
        image, label = (features.get(key) if isinstance(key, str) else None for key in keys[:2])
        if not isinstance(image, tfds.features.Image) or not isinstance(
            label, tfds.features.ClassLabel
        ):
            raise InputError(
                f"{name} has the features {', '.join(features)}, expected an image and a class "
                "label: choose an image classification data set"
            )
        if image.np_dtype != np.uint8:
            raise InputError(f"the images of {name} are {image.np_dtype}, expected uint8")
        height, width, stored_channels = image.shape
        channels = 1 if stored_channels == 1 else 3
        if size is None and (height is None or width is None):
            raise InputError(
                f"the images of {name} have different sizes, expected an image_size to resize "
                "them to, such as image_size=64"
            )
        shape = (*(size or (height, width)), channels)
        names = label.names or [str(number) for number in range(label.num_classes or 0)]
        return cls(builder, keys[0], keys[1], shape, shape == image.shape, tuple(names))

    def num_bytes(self, split: str) -> int:
        return _num_examples(self.builder, split) * int(np.prod(self.image_shape))

    def read(self, split: str, skipped: list[str] | None) -> Split:
        """Reads a split into memory; adds bad images to `skipped`, or raises if it is None."""
        examples = self.builder.as_dataset(
            split=split,
            decoders=self._decoders,
            # Caching would hold a second copy of all images.
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        count = int(examples.cardinality())
        pairs = examples.map(lambda each: (each[self.image_key], each[self.label_key]))
        images = aligned_empty((count, *self.image_shape))
        labels = np.empty(count, np.int64)
        if self.fits:
            done = self._copy(pairs, images, labels)
            bad: dict[int, str] = {}
        else:
            done, bad = self._decode_all(pairs, images, labels, f"{self.builder.name}/{split}")
        if done != count:
            raise InputError(f"{done} of {count} images in {split}")
        if skipped is not None:
            skipped += bad.values()
        elif bad:
            reason = next(iter(bad.values()))
            raise InputError(f"{reason}; skip such images with skip_bad_images")
        return split_without(bad, images, labels)

    def _copy(self, pairs: tf.data.Dataset, images: np.ndarray, labels: np.ndarray) -> int:
        """Copies (image, label) pairs into arrays, and returns their number."""
        done = 0
        for some_images, some_labels in tfds.as_numpy(pairs.batch(BATCH).prefetch(1)):
            stop = done + len(some_labels)
            images[done:stop], labels[done:stop] = some_images, some_labels
            done = stop
        return done

    def _decode_all(
        self, pairs: tf.data.Dataset, images: np.ndarray, labels: np.ndarray, what: str
    ) -> tuple[int, dict[int, str]]:
        """Decodes (file, label) pairs into arrays; returns their number and errors by index."""

        def decode(number: int, content: bytes) -> str | None:
            try:
                images[number] = self._decode(content, f"{what}[{number}]")
            except InputError as error:
                return str(error)
            return None

        def jobs():
            for number, (content, label) in enumerate(tfds.as_numpy(pairs)):
                labels[number] = label
                yield number, content

        reasons = list(with_progress(in_threads(decode, jobs()), len(labels), f"reading {what}"))
        return len(reasons), {n: reason for n, reason in enumerate(reasons) if reason}

    def stream(self, split: str, memory_limit: int) -> RecordSplit:
        info = self.builder.info.splits[split]
        if self.builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise InputError(
                f"{self.builder.name} is larger than memory_limit and stored as "
                f"{self.builder.info.file_format.value}, but only TFRecords can be streamed: raise "
                "memory_limit or prepare it as TFRecords"
            )
        labels = self._labels(split, info)
        return RecordSplit(
            files=[str(file) for file in info.filepaths],
            lengths=list(info.shard_lengths),
            parse=self._parse,
            image_shape=self.image_shape,
            all_labels=labels,
            selected=np.ones(len(labels), bool),
            buffer_size=buffer_size(memory_limit, info.num_bytes / max(1, info.num_examples)),
        )

    @property
    def _undecoded(self) -> dict[str, tfds.decode.Decoder]:
        """Decoders that skip all images, including masks."""
        features = self.builder.info.features.items()
        images = (key for key, feature in features if isinstance(feature, tfds.features.Image))
        return {key: tfds.decode.SkipDecoding() for key in images}

    @property
    def _decoders(self) -> dict[str, tfds.decode.Decoder]:
        exactly = {self.image_key: _exactly_decoded()} if self.fits else {}
        return {**self._undecoded, **exactly}

    def _parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = self.builder.info.features
        example = features.deserialize_example(record, decoders=self._decoders)
        image, label = example[self.image_key], example[self.label_key]
        if not self.fits:
            image = tf.numpy_function(
                self._decode_for_tensorflow, [image], tf.uint8, stateful=False
            )
        return tf.ensure_shape(image, self.image_shape), tf.cast(label, tf.int64)

    def _labels(self, split: str, info) -> np.ndarray:
        """Reads the labels of all records in file order."""
        features, undecoded = self.builder.info.features, self._undecoded
        records = tf.data.TFRecordDataset([str(file) for file in info.filepaths]).map(
            lambda record: features.deserialize_example(record, decoders=undecoded)[self.label_key],
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        print(f"reading the labels of {self.builder.name}/{split}")
        progress = keras.utils.Progbar(info.num_examples, unit_name="image")
        labels = []
        for some in tfds.as_numpy(records.batch(BATCH).prefetch(1)):
            labels.append(some)
            progress.add(len(some))
        found = sum(map(len, labels))
        if found != info.num_examples:
            raise InputError(f"{found} of {info.num_examples} images in {split}")
        return np.concatenate(labels).astype(np.int64)

    def _decode(self, content: bytes, name: str) -> np.ndarray:
        height, width, channels = self.image_shape
        return decode_image(content, name, (height, width), channels)

    def _decode_for_tensorflow(self, content: bytes) -> np.ndarray:
        with calls_from_tensorflow:
            return self._decode(content, f"an image of {self.builder.name}")


@functools.cache
def _exactly_decoded() -> tfds.decode.Decoder:
    @tfds.decode.make_decoder()
    def decode(example, feature):
        # TFDS decodes JPEGs faster but less exactly than Pillow, which most models were trained
        # with: pixels differ by up to 4. PNGs are decoded as usual.
        return tf.io.decode_jpeg(example, channels=feature.shape[-1], dct_method="INTEGER_ACCURATE")

    return decode()


def _num_examples(builder, split: str) -> int:
    return builder.info.splits[split].num_examples if split in builder.info.splits else 0


def _useful_splits(builder, name: str) -> list[str]:
    # TFDS's mock has no list of splits and returns any.
    names = [each for each in ("train", "validation", "test") if each in builder.info.splits]
    if not builder.info.splits:
        return ["train", "test"]
    if "train" not in names:
        raise InputError(
            f"{name} has the splits {', '.join(builder.info.splits)}, expected one named train"
        )
    return names


def _prepared_builder(
    name: str, root: pathlib.Path, size: tuple[int, int] | None
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set, after downloading it if necessary."""
    check_tfds_features(root / re.split("[:/]", name)[0])
    folder = newest_version(root / name)
    if folder is not None:
        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:
            raise _broken(folder, name, error) from error
    try:
        builder = tfds.builder(name, data_dir=root)
    except Exception as error:
        raise InputError(
            f"TFDS has no data set {name!r} ({one_line(error)}), expected a name of "
            "https://www.tensorflow.org/datasets/catalog, such as beans"
        ) from error
    is_elsewhere = root.absolute() not in pathlib.Path(builder.data_dir).absolute().parents
    if not is_elsewhere and not pathlib.Path(builder.data_dir).exists():
        # This raises for data sets that aren't worth downloading.
        _Reader.of(builder, name, size)
        _download(builder, name, root)
    return builder


def _broken(folder: os.PathLike, name: str, error: Exception) -> InputError:
    return InputError(
        f"{folder} holds a broken or incomplete {name} ({one_line(error)}), expected what TFDS "
        "prepares: remove it and prepare it again, or give another data_dir"
    )


def _download(builder, name: str, root: pathlib.Path) -> None:
    """Downloads and prepares a data set, or raises within seconds if the host is unreachable."""
    # TFDS itself retries for over three minutes.
    # Our own builders have an address. Those of TFDS have checksums by address.
    address = getattr(builder, "ADDRESS", None) or next(iter(builder.url_infos or ()), None)
    if address is not None and not _is_reachable(address):
        host = urllib.parse.urlsplit(address).hostname
        prepare = f"tfds.builder('{name}', data_dir='tfds').download_and_prepare()"
        remedy = (
            'on a connected machine run `python -c "import tensorflow_datasets as tfds; '
            f'{prepare}"`, copy the folder tfds here and give it as data_dir'
        )
        if hasattr(builder, "ADDRESS"):
            remedy = f"get {address} on a connected machine, and give the archive as data_dir"
        raise InputError(
            f"no {name} found in {root / name} and {host} can't be reached to download it: {remedy}"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise InputError(
            f"{name} couldn't be downloaded and prepared in {root} ({one_line(error)}); it will be "
            "downloaded again the next time: try again"
        ) from error


def _is_reachable(address: str, seconds: float = 3.0) -> bool:
    """Returns whether the host of an address responds in time, through a proxy if one is set."""
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

    # A thread, because urlopen's timeout doesn't include looking up the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return responded.is_set()
