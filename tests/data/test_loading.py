import collections
import dataclasses
import io
import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from stkd_keras import data
from stkd_keras.errors import InputError


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


class TestSplit:
    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            (np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int64)),
            (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64)),
            (np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3, np.int64)),
            (np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 1), np.int64)),
            (np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.float32)),
            (np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64)),
        ],
    )
    def test_refuses_arrays_of_other_shapes_and_dtypes(self, images, labels):
        with pytest.raises(InputError, match="expected") as error:
            data.Split(images, labels)
        one_line(error)

    def test_a_label_without_class_is_refused(self):
        with pytest.raises(InputError, match="expected 0 to 1"):
            dataclasses.replace(data.load("digits"), class_names=("a", "b"))


class TestDigits:
    def test_every_image_of_sklearn_is_loaded_once(self):
        digits = data.load("digits")
        ours = np.concatenate([digits.train.images, digits.test.images])
        labels = np.concatenate([digits.train.labels, digits.test.labels])
        theirs = sklearn.datasets.load_digits()
        expected = [(round_up(x), y) for x, y in zip(theirs.images, theirs.target, strict=True)]
        assert collections.Counter(
            (x.tobytes(), y) for x, y in zip(ours, labels, strict=True)
        ) == collections.Counter(expected)
        assert (ours.dtype, ours.min(), ours.max()) == (np.uint8, 0, 255)

    def test_metadata(self):
        digits = data.load("digits")
        assert digits.image_shape == digits.test.images.shape[1:] == (8, 8, 1)
        assert digits.num_classes == 10
        assert digits.class_names == tuple("0123456789")
        assert not digits.flip
        pixels = digits.train.images / 255
        np.testing.assert_allclose(
            (digits.mean[0], digits.std[0]), (pixels.mean(), pixels.std()), atol=1e-3
        )

    def test_a_fixed_fifth_of_each_class_is_the_test_split(self):
        first, second = data.load("digits"), data.load("digits")
        assert (len(first.train.labels), len(first.test.labels)) == (1437, 360)
        train, test = (np.bincount(s.labels) for s in (first.train, first.test))
        assert (np.abs(test - (train + test) * 360 / 1797) < 1).all()
        np.testing.assert_array_equal(first.test.images, second.test.images)


def round_up(image) -> bytes:
    return (image * 255 / 16 + 0.5).astype(np.uint8).tobytes()


class TestTinyImagenet:
    @pytest.mark.slow
    def test_the_real_subset_from_the_zip(self, shared):
        source = shared / "data" / "tiny-imagenet-200-subset.zip"
        dataset = data.load("tiny_imagenet", source)
        assert (len(dataset.train), len(dataset.test)) == (12_000, 4_000)
        assert dataset.image_shape == (64, 64, 3)
        assert len(set(dataset.class_names)) == 200
        with zipfile.ZipFile(source) as archive:
            names = {name.split("/", 1)[1]: name for name in archive.namelist()}
            wnids = sorted(archive.read(names["wnids.txt"]).decode().split())
            lines = archive.read(names["val/val_annotations.txt"]).decode().splitlines()
            annotations = [line.split("\t")[:2] for line in lines]
            expected = [
                (decoded(archive.read(names[f"val/images/{file}"])), wnids.index(wnid))
                for file, wnid in annotations
            ]
        ours = zip(dataset.test.images, dataset.test.labels, strict=True)
        assert collections.Counter(
            (image.tobytes(), label) for image, label in ours
        ) == collections.Counter(expected)


def decoded(content) -> bytes:
    return np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB")).tobytes()


class TestCinic10:
    NAMES = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    )  # fmt: skip

    def write(self, root, count, seed=0):
        random = np.random.default_rng(seed)
        for split in ("train", "valid", "test"):
            for name in self.NAMES:
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
                    PIL.Image.fromarray(pixels).save(folder / f"{number}.png")

    @pytest.mark.parametrize("given", ["parent", "tar.gz", "zip"])
    def test_is_loaded_from_a_folder_or_an_archive(self, tmp_path, given):
        root = tmp_path / "cinic" / "CINIC-10"
        self.write(root, 2)
        source = root.parent if given == "parent" else None
        if source is None:
            archive_format = {"tar.gz": "gztar", "zip": "zip"}[given]
            source = shutil.make_archive(tmp_path / "CINIC-10", archive_format, root)
        dataset = data.load("cinic10", source)
        assert dataset.class_names == self.NAMES
        assert [len(split) for split in dataset.splits.values()] == [20, 20, 20]
        truth = np.asarray(PIL.Image.open(root / "valid" / "cat" / "1.png"))
        (row,) = np.flatnonzero((dataset.validation.images == truth).all((1, 2, 3)))
        assert dataset.class_names[dataset.validation.labels[row]] == "cat"

    def test_is_found_in_tfds_folder_of_manual_downloads(self, tmp_path):
        self.write(tmp_path / "downloads" / "manual" / "CINIC-10", 1)
        assert len(data.load("cinic10", tmp_path).train) == 10

    def test_the_version_depends_on_the_images_but_not_on_the_location(self, tmp_path):
        self.write(tmp_path / "few", 1)
        self.write(tmp_path / "more", 2)
        shutil.make_archive(tmp_path / "few", "zip", tmp_path / "few")
        versions = [data.load("cinic10", tmp_path / name).version for name in ("few", "more")]
        assert versions[0] != versions[1]
        assert data.load("cinic10", tmp_path / "few.zip").version == versions[0]

    def test_splits_beyond_the_memory_limit_are_read_for_every_batch(self, tmp_path):
        self.write(tmp_path, 2)
        held = data.load("cinic10", tmp_path)
        # With the first limit, only the training images fit.
        for limit in (20 * 3072, 0):
            streamed = data.load("cinic10", tmp_path, memory_limit=limit)
            assert [isinstance(split, data.Split) for split in streamed.splits.values()] == [
                limit > 0, False, False,
            ]  # fmt: skip
            for augment in ("standard",):
                pairs = zip(
                    data.pipeline(held, "train", 8, 0, augment),
                    data.pipeline(streamed, "train", 8, 0, augment),
                    range(5),
                    strict=False,
                )
                for (x, y), (other_x, other_y), _ in pairs:
                    np.testing.assert_array_equal(x, other_x)
                    np.testing.assert_array_equal(y, other_y)


@pytest.mark.parametrize("name", ["cifar-10", ""])
def test_an_unknown_name_is_refused_with_similar_ones(name):
    with pytest.raises(InputError, match="nearest known") as error:
        data.load(name)
    one_line(error)
