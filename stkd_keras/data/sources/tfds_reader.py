"""Loads or streams data sets of TensorFlow Datasets (TFDS)."""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from stkd_keras.data.dataset import AnySplit, Split, aligned_empty, split_without
from stkd_keras.data.sources.decoding import decode_image
from stkd_keras.data.sources.tfds_download import explain_errors_of, prepared_builder
from stkd_keras.data.sources.tfrecords import RecordSplit, buffer_size
from stkd_keras.data.sources.threads import (
    calls_from_tensorflow,
    in_threads,
    weak_method,
    with_progress,
)
from stkd_keras.errors import InputError

BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A data set's splits by TFDS's names, and "NAME: REASON" for each skipped image."""

    version: str
    class_names: tuple[str, ...]
    splits: Mapping[str, AnySplit]
    skipped: list[str]


def load_tfds(
    name: str,
    data_dir: str | os.PathLike | None,
    *,
    size: tuple[int, int] | None,
    resize: str = "crop",
    memory_limit: int,
    skip_bad_images: bool,
) -> Loaded:
    """Loads an image classification data set; downloads it if it isn't prepared yet."""
    builder = prepared_builder(name, data_dir, lambda each: _Reader(each, name, size, resize))
    skipped: list[str] = []
    splits: dict[str, AnySplit] = {}
    with explain_errors_of(builder.data_dir, name):
        reader = _Reader(builder, name, size, resize)
        names = _useful_splits(builder, name)
        fits = sum(map(reader.num_bytes, names)) <= memory_limit
        for split in names:
            if fits:
                splits[split], bad = reader.read(split)
                if bad and not skip_bad_images:
                    raise InputError(f"{bad[0]}; skip such images with skip_bad_images")
                skipped += bad
            else:
                splits[split] = reader.stream(split, memory_limit)
        return Loaded(str(builder.version), reader.class_names, splits, skipped)


class _Reader:
    """Reads the splits of a prepared builder, which must have images and class labels."""

    def __init__(self, builder, name: str, size: tuple[int, int] | None, resize: str):
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
        if size is None and (height is None or width is None):
            raise InputError(
                f"the images of {name} have different sizes, expected an image_size to resize "
                "them to, such as image_size=64"
            )
        self.builder = builder
        self.resize = resize
        self.image_key: str = keys[0]
        self.label_key: str = keys[1]
        self.image_shape = (*(size or (height, width)), 1 if stored_channels == 1 else 3)
        self.class_names = tuple(label.names or map(str, range(label.num_classes or 0)))
        self.needs_decoding = self.image_shape != image.shape
        # For reading labels only: decodes no image, including masks.
        self.undecoded = {
            key: tfds.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, tfds.features.Image)
        }
        exactly = {} if self.needs_decoding else {self.image_key: _exact_decoder()}
        self.decoders = {**self.undecoded, **exactly}

    def num_bytes(self, split: str) -> int:
        splits = self.builder.info.splits
        num_examples = splits[split].num_examples if split in splits else 0
        return num_examples * math.prod(self.image_shape)

    def read(self, split: str) -> tuple[Split, list[str]]:
        """Reads a split into memory; returns it and "NAME: REASON" for each bad image."""
        examples = self.builder.as_dataset(
            split=split,
            decoders=self.decoders,
            # Caching would hold a second copy of all images.
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        count = int(examples.cardinality())
        pairs = examples.map(lambda each: (each[self.image_key], each[self.label_key]))
        images = aligned_empty((count, *self.image_shape))
        labels = np.empty(count, np.int64)
        errors: Sequence[str | None]
        if self.needs_decoding:
            errors = self._decode_all(pairs, images, labels, f"{self.builder.name}/{split}")
        else:
            errors = _copy(pairs, images, labels)
        if len(errors) != count:
            raise InputError(f"{len(errors)} of {count} images in {split}")
        bad = {number: error for number, error in enumerate(errors) if error is not None}
        return split_without(bad, images, labels), list(bad.values())

    def _decode_all(
        self, pairs: tf.data.Dataset, images: np.ndarray, labels: np.ndarray, what: str
    ) -> list[str | None]:
        """Decodes (file, label) pairs into arrays; returns an error or None for each."""

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

        return list(with_progress(in_threads(decode, jobs()), len(labels), f"reading {what}"))

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

    def _parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = self.builder.info.features
        example = features.deserialize_example(record, decoders=self.decoders)
        image, label = example[self.image_key], example[self.label_key]
        if self.needs_decoding:
            image = tf.numpy_function(
                weak_method(self._decode_for_tensorflow), [image], tf.uint8, stateful=False
            )
        return tf.ensure_shape(image, self.image_shape), tf.cast(label, tf.int64)

    def _labels(self, split: str, info) -> np.ndarray:
        """Reads all labels in file order."""
        features = self.builder.info.features
        records = tf.data.TFRecordDataset([str(file) for file in info.filepaths]).map(
            lambda record: features.deserialize_example(record, decoders=self.undecoded)[
                self.label_key
            ],
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        batches = tfds.as_numpy(records.batch(BATCH).prefetch(1))
        what = f"reading the labels of {self.builder.name}/{split}"
        total = -(-info.num_examples // BATCH)
        labels = np.concatenate(list(with_progress(batches, total, what, "batch")))
        if len(labels) != info.num_examples:
            raise InputError(f"{len(labels)} of {info.num_examples} images in {split}")
        return labels.astype(np.int64)

    def _decode(self, content: bytes, name: str) -> np.ndarray:
        height, width, channels = self.image_shape
        return decode_image(content, name, (height, width), channels, resize=self.resize)

    def _decode_for_tensorflow(self, content: bytes) -> np.ndarray:
        with calls_from_tensorflow:
            return self._decode(content, f"an image of {self.builder.name}")


def _copy(pairs: tf.data.Dataset, images: np.ndarray, labels: np.ndarray) -> list[None]:
    """Copies (image, label) pairs into arrays; returns None for each, as `_decode_all` may."""
    done = 0
    for some_images, some_labels in tfds.as_numpy(pairs.batch(BATCH).prefetch(1)):
        stop = done + len(some_labels)
        images[done:stop], labels[done:stop] = some_images, some_labels
        done = stop
    return [None] * done


@functools.cache
def _exact_decoder() -> tfds.decode.Decoder:
    @tfds.decode.make_decoder()
    def decode(example, feature):
        # TFDS decodes JPEGs faster, but its pixels differ by up to 4 from Pillow's, with which most
        # models were trained. PNGs are decoded as usual.
        return tf.io.decode_jpeg(example, channels=feature.shape[-1], dct_method="INTEGER_ACCURATE")

    return decode()


def _useful_splits(builder, name: str) -> list[str]:
    # TFDS's mock (tfds.testing) lists no splits, but returns any.
    names = [each for each in ("train", "validation", "test") if each in builder.info.splits]
    if not builder.info.splits:
        return ["train", "test"]
    if "train" not in names:
        raise InputError(
            f"{name} has the splits {', '.join(builder.info.splits)}, expected one named train"
        )
    return names
