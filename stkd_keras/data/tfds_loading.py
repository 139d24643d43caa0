"""Data sets of TensorFlow Datasets: found, downloaded, and read into memory or streamed."""

import concurrent.futures
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

from stkd_keras.data.dataset import AnySplit, Split, aligned_empty
from stkd_keras.data.images import decode_image
from stkd_keras.data.records import RecordSplit, buffer_size
from stkd_keras.errors import InputError

BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was read: the version, the classes, the splits by TFDS's names, what was left out."""

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
    """Reads an image classification data set through TFDS, downloading it if it isn't there.

    Args:
        name: TFDS's name of the data set, with "/CONFIG" where there is a choice.
        data_dir: folder of the prepared data sets, as `stkd_keras.data.load`.
        size: (height, width) that images are brought to; None for their own, if they share one.
        memory_limit: bytes of decoded images; if there are more, they are streamed.
        skip_bad_images: whether images that can't be decoded are left out.

    Raises:
        InputError: if it is no image classification data set, is broken, or is neither there nor
            can be downloaded.
    """
    root = tfds_root(data_dir)
    builder = _prepared_builder(name, root)
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
        # Broken files make TFDS and TensorFlow raise almost anything.
        raise InputError(
            f"{builder.data_dir} holds a broken or incomplete {name} ({_reason(error)}), expected "
            "what TFDS prepares: remove it and prepare it again, or give another --data_dir"
        ) from error


def tfds_root(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the folder of the prepared data sets, which need not exist if it is a default.

    Raises:
        InputError: if `data_dir` is no folder.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(default if data_dir is None else data_dir).expanduser()
    if not root.is_dir() and (data_dir is not None or root.exists()):
        state = "is no folder" if root.exists() else "doesn't exist"
        raise InputError(
            f"data_dir {str(root)!r} {state}, expected a folder of data sets prepared by TFDS: "
            "correct --data_dir or make the folder"
        )
    return root


def newest_version(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the newest prepared version, or None if there is none."""
    # TFDS names what it is still writing VERSION.incompleteXYZ.
    versions = [path for path in folder.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the splits of a prepared builder."""

    builder: tfds.core.DatasetBuilder
    image_key: str
    label_key: str
    image_shape: tuple[int, int, int]
    fits: bool  # Whether the stored images already have that shape.
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
                "label: only image classification can be distilled"
            )
        if image.np_dtype != np.uint8:
            raise InputError(f"the images of {name} are {image.np_dtype}, expected uint8")
        height, width, stored_channels = image.shape
        channels = 1 if stored_channels == 1 else 3
        if size is None and (height is None or width is None):
            raise InputError(
                f"the images of {name} have different sizes; give the one they shall be brought "
                "to with --image_size, such as --image_size=64"
            )
        shape = (*(size or (height, width)), channels)
        names = label.names or [str(number) for number in range(label.num_classes or 0)]
        return cls(builder, keys[0], keys[1], shape, shape == image.shape, tuple(names))

    def num_bytes(self, split: str) -> int:
        return _num_examples(self.builder, split) * int(np.prod(self.image_shape))

    def read(self, split: str, skipped: list[str] | None) -> Split:
        """Reads a split into memory; names of bad images go to `skipped`, or raise if None."""
        decoder = _exactly_decoded() if self.fits else tfds.decode.SkipDecoding()
        examples = self.builder.as_dataset(
            split=split,
            decoders={self.image_key: decoder},
            # It would hold all the images once more.
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        count = int(examples.cardinality())
        images = aligned_empty((count, *self.image_shape))
        labels = np.empty(count, np.int64)
        good = np.ones(count, bool)
        done = 0
        pairs = examples.map(lambda each: (each[self.image_key], each[self.label_key]))
        progress = None if self.fits else keras.utils.Progbar(count, unit_name="image")
        for some_images, some_labels in tfds.as_numpy(pairs.batch(BATCH).prefetch(1)):
            rows = slice(done, done + len(some_labels))
            if self.fits:
                images[rows] = some_images
            else:
                names = [f"{self.builder.name}/{split}[{n}]" for n in range(rows.start, rows.stop)]
                good[rows] = self._decode_into(images[rows], some_images, names, skipped)
            labels[rows] = some_labels
            done = rows.stop
            if progress:
                progress.update(done)
        if done != count:
            raise InputError(f"{done} of {count} images in {split}")
        return Split(images, labels) if good.all() else Split(images[good], labels[good])

    def stream(self, split: str, memory_limit: int) -> RecordSplit:
        """Describes a split that is read whenever it is needed."""
        info = self.builder.info.splits[split]
        if self.builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise InputError(
                f"{self.builder.name} is larger than the memory limit and kept as "
                f"{self.builder.info.file_format.value}, but only TFRecords are streamed: raise "
                "--memory_limit or prepare it as TFRecords"
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

    def _parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        decoder = _exactly_decoded() if self.fits else tfds.decode.SkipDecoding()
        features = self.builder.info.features
        example = features.deserialize_example(record, decoders={self.image_key: decoder})
        image, label = example[self.image_key], example[self.label_key]
        if not self.fits:
            image = tf.numpy_function(self._decode, [image], tf.uint8, stateful=False)
        return tf.ensure_shape(image, self.image_shape), tf.cast(label, tf.int64)

    def _labels(self, split: str, info) -> np.ndarray:
        """Reads the labels of all records, in the order of the files."""
        features = self.builder.info.features
        skip = {self.image_key: tfds.decode.SkipDecoding()}
        records = tf.data.TFRecordDataset([str(file) for file in info.filepaths]).map(
            lambda record: features.deserialize_example(record, decoders=skip)[self.label_key],
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

    def _decode(self, content: bytes, name: str | None = None) -> np.ndarray:
        height, width, channels = self.image_shape
        name = name or f"an image of {self.builder.name}"
        return decode_image(content, name, (height, width), channels)

    def _decode_into(
        self, images: np.ndarray, contents, names: list[str], skipped: list[str] | None
    ) -> np.ndarray:
        """Decodes a batch in parallel and returns which of its images are good."""

        def decode(row: int) -> str | None:
            try:
                images[row] = self._decode(contents[row], names[row])
            except InputError as error:
                return str(error)
            return None

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            errors = list(threads.map(decode, range(len(names))))
        bad = [error for error in errors if error is not None]
        if bad and skipped is None:
            raise InputError(f"{bad[0]}; leave such images out with --skip_bad_images")
        if skipped is not None:
            skipped += bad
        return np.array([error is None for error in errors])


@functools.cache
def _exactly_decoded() -> tfds.decode.Decoder:
    @tfds.decode.make_decoder()
    def decode(example, feature):
        # Where images are kept as JPEG, TFDS decodes them faster and less exactly than Pillow,
        # by which most models were trained: a pixel differs by up to 4. Of a PNG all is as usual.
        return tf.io.decode_jpeg(example, channels=feature.shape[-1], dct_method="INTEGER_ACCURATE")

    return decode()


def _num_examples(builder, split: str) -> int:
    return builder.info.splits[split].num_examples if split in builder.info.splits else 0


def _useful_splits(builder, name: str) -> list[str]:
    """Returns which of the splits train, validation and test there are."""
    # TFDS's mock knows no splits and gives any.
    names = [each for each in ("train", "validation", "test") if each in builder.info.splits]
    if not builder.info.splits:
        return ["train", "test"]
    if "train" not in names:
        raise InputError(
            f"{name} has the splits {', '.join(builder.info.splits)}, expected one named train"
        )
    return names


def _prepared_builder(name: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set that is there, or is now."""
    folder = newest_version(root / name)
    if folder is not None:
        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:
            raise InputError(
                f"{folder} holds a broken or incomplete {name} ({_reason(error)}), expected what "
                "TFDS prepares: remove it and prepare it again, or give another --data_dir"
            ) from error
    try:
        builder = tfds.builder(name, data_dir=root)
    except Exception as error:
        raise InputError(
            f"TFDS has no data set {name!r} ({_reason(error)}), expected a name of "
            "https://www.tensorflow.org/datasets/catalog, as in --dataset=tfds:beans"
        ) from error
    is_elsewhere = root.absolute() not in pathlib.Path(builder.data_dir).absolute().parents
    if not is_elsewhere and not pathlib.Path(builder.data_dir).exists():
        _download(builder, name, root)
    return builder


def _download(builder, name: str, root: pathlib.Path) -> None:
    """Has TFDS download and prepare a data set, or raises within seconds if it can't."""
    # TFDS itself would try again for over three minutes before it gives up.
    address = next(iter(builder.url_infos or ()), None)
    if address is not None and not _is_reachable(address):
        host = urllib.parse.urlsplit(address).hostname
        prepare = f"tfds.builder('{name}', data_dir='tfds').download_and_prepare()"
        raise InputError(
            f"no {name} found in {root / name} and {host} can't be reached to download it: on a "
            f'connected machine run `python -c "import tensorflow_datasets as tfds; {prepare}"`, '
            "bring the folder tfds here and give it with --data_dir=tfds"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise InputError(
            f"{name} couldn't be downloaded and prepared in {root} ({_reason(error)}); nothing of "
            "it is taken for complete: run the same again"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _is_reachable(address: str, seconds: float = 3.0) -> bool:
    """Returns whether the host of an address answers in time, through a proxy if one is set."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            # An answer all the same, if only to this client.
            answered.set()
        except (OSError, http.client.HTTPException, ValueError):
            return
        answered.set()

    # A thread, because urlopen's timeout doesn't bound the look-up of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
