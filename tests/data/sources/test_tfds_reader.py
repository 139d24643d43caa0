import io
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from prepared_data import pictures, store

from stkd_keras import data
from stkd_keras.errors import InputError


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="session")
def cifar10(shared):
    return data.load("cifar10", shared / "data" / "tfds")


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    splits = {split: pictures(count, [(32, 32)]) for split, count in (("train", 20), ("test", 10))}
    label = tfds.features.ClassLabel(num_classes=10)
    store(root, "cifar10", splits, (32, 32, 3), label, "3.0.2")
    return root


@pytest.fixture
def tiny(tiny_source, tmp_path):
    """A copy of a prepared cifar10 of 20 training and 10 test images."""
    shutil.copytree(tiny_source, tmp_path / "tfds")
    return tmp_path / "tfds"


class TestCifar10:
    def test_all_images_are_there(self, cifar10):
        assert cifar10.train.images.shape == (50_000, 32, 32, 3)
        assert cifar10.test.images.shape == (10_000, 32, 32, 3)
        assert np.bincount(cifar10.train.labels).tolist() == [5_000] * 10
        assert np.bincount(cifar10.test.labels).tolist() == [1_000] * 10
        assert cifar10.version == "3.0.2"
        assert cifar10.class_names[:2] == ("airplane", "automobile")
        assert cifar10.flip

    def test_the_common_statistics_are_close_to_its_own(self, cifar10):
        pixels = cifar10.train.images[::50] / 255
        # This copy is stored as JPEG.
        np.testing.assert_allclose(cifar10.mean, pixels.mean((0, 1, 2)), atol=0.01)
        np.testing.assert_allclose(cifar10.std, pixels.std((0, 1, 2)), atol=0.01)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_images_are_decoded_as_by_pillow(self, cifar10, shared, split):
        stored = tfds.load(
            "cifar10",
            split=f"{split}[:50]",
            data_dir=shared / "data" / "tfds",
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        ours = getattr(cifar10, split)
        for index, example in enumerate(tfds.as_numpy(stored)):
            pixels = np.asarray(PIL.Image.open(io.BytesIO(example["image"])))
            np.testing.assert_array_equal(ours.images[index], pixels)
            assert ours.labels[index] == example["label"]


class TestOtherDataSets:
    def test_images_are_resized(self, tmp_path):
        stored = pictures(12)
        store(tmp_path, "pets", {"train": stored, "validation": pictures(4), "test": pictures(6)})
        dataset = data.load("tfds:pets", tmp_path, image_size=10)
        assert (dataset.name, dataset.version) == ("tfds:pets", "1.2.3")
        assert dataset.class_names == ("cat", "dog")
        assert dataset.image_shape == (10, 10, 3)
        assert [len(split) for split in dataset.splits.values()] == [12, 6, 4]
        np.testing.assert_array_equal(dataset.train.labels, [label for _, label in stored])
        for ours, (pixels, _) in zip(dataset.train.images, stored, strict=True):
            image = PIL.Image.fromarray(pixels)
            fitted = PIL.ImageOps.fit(image, (10, 10), PIL.Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(ours, np.asarray(fitted))

    def test_image_size_is_required_if_sizes_differ(self, tmp_path):
        store(tmp_path, "pets", {"train": pictures(4)})
        with pytest.raises(InputError, match="image_size") as error:
            data.load("tfds:pets", tmp_path)
        one_line(error)

    def test_validation_is_the_test_split_if_there_is_no_other(self, tmp_path):
        store(tmp_path, "pets", {"train": pictures(12), "validation": pictures(4)})
        dataset = data.load("tfds:pets", tmp_path, image_size=10)
        assert (len(dataset.train), len(dataset.test), dataset.validation) == (12, 4, None)

    def test_a_fifth_of_train_is_the_test_split_if_there_is_no_other(self, tmp_path, capsys):
        store(tmp_path, "pets", {"train": pictures(20)})
        first, again = (data.load("tfds:pets", tmp_path, image_size=10) for _ in range(2))
        assert np.bincount(first.test.labels).tolist() == [2, 2]
        np.testing.assert_array_equal(first.test.images, again.test.images)
        both = np.concatenate([first.train.images, first.test.images])
        assert len({image.tobytes() for image in both}) == 20
        assert "no test split" in capsys.readouterr().out

    def test_a_test_split_without_labels_is_ignored(self, tmp_path):
        unlabeled = [(image, -1) for image, _ in pictures(4)]
        splits = {"train": pictures(12), "validation": pictures(6), "test": unlabeled}
        store(tmp_path, "pets", splits)
        assert len(data.load("tfds:pets", tmp_path, image_size=10).test) == 6

    def test_grayscale_keeps_one_channel(self, tmp_path):
        gray = [(image[:12, :12, :1], label) for image, label in pictures(8)]
        store(tmp_path, "pets", {"train": gray, "test": gray}, shape=(12, 12, 1))
        dataset = data.load("tfds:pets", tmp_path)
        assert dataset.image_shape == (12, 12, 1)
        np.testing.assert_array_equal(dataset.train.images, [image for image, _ in gray])

    @pytest.mark.parametrize("size", [None, 8])
    def test_streamed_images_are_the_same_as_in_memory(self, tmp_path, size):
        square = pictures(40, sizes=[(12, 12)])
        store(tmp_path, "pets", {"train": square, "test": square}, shape=(12, 12, 3))
        held = data.load("tfds:pets", tmp_path, image_size=size)
        streamed = data.load("tfds:pets", tmp_path, image_size=size, memory_limit=1000)
        assert isinstance(streamed.train, data.RecordSplit)
        assert (held.mean, held.std) == (streamed.mean, streamed.std)
        for split in ("train", "test"):
            batches = [
                list(data.evaluation_pipeline(dataset.splits[split], 16))
                for dataset in (held, streamed)
            ]
            for (x, y, _), (other_x, other_y, _) in zip(*batches, strict=True):
                np.testing.assert_array_equal(x, other_x)
                np.testing.assert_array_equal(y, other_y)

    def test_a_data_set_without_classes(self, tmp_path):
        store(
            tmp_path,
            "ages",
            {"train": pictures(4)},
            label=tfds.features.Scalar(tf.int64),
        )
        with pytest.raises(InputError, match="class label") as error:
            data.load("tfds:ages", tmp_path, image_size=8)
        one_line(error)

    def test_an_unknown_name(self, tmp_path):
        with pytest.raises(InputError, match="no data set 'mnits'") as error:
            data.load("tfds:mnits", tmp_path)
        one_line(error)

    def test_cifar100_through_tfds_mock(self):
        with tfds.testing.mock_data(num_examples=300):
            dataset = data.load("cifar100")
        assert dataset.train.images.shape == (300, 32, 32, 3)
        assert dataset.num_classes == 100
        assert dataset.mean == (0.5071, 0.4867, 0.4408)


@pytest.mark.slow
def test_a_process_can_exit_while_images_are_streamed(tmp_path, repository):
    square = pictures(400, sizes=[(12, 12)])
    store(tmp_path, "pets", {"train": square, "test": square}, shape=(12, 12, 3))
    program = (
        "import sys\n"
        "from stkd_keras import data\n"
        "dataset = data.load('tfds:pets', sys.argv[1], image_size=64, memory_limit=1000)\n"
        "batches = iter(data.pipeline(dataset, 'train', 16, 0))\n"
        "for _ in range(3): next(batches)\n"
    )
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=repository,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr


def test_a_broken_image_is_named_or_skipped(tmp_path):
    square = pictures(40, sizes=[(12, 12)])
    store(tmp_path, "pets", {"train": square, "test": square}, shape=(12, 12, 3))
    (file,) = (tmp_path / "pets" / "1.2.3").glob("*train.tfrecord*")
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    broken = tf.train.Example.FromString(records[7])
    broken.features.feature["image"].bytes_list.value[0] = b"no image"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for number, record in enumerate(records):
            writer.write(broken.SerializeToString() if number == 7 else record)
    with pytest.raises(InputError, match=r"pets/train\[7\].*skip_bad_images") as error:
        data.load("tfds:pets", tmp_path, image_size=8)
    one_line(error)
    whole = data.load("tfds:pets", tmp_path, image_size=8, skip_bad_images=True)
    assert len(whole.train) == 39
    assert "pets/train[7]" in whole.skipped[0]
    expected = whole.test
    np.testing.assert_array_equal(whole.train.images, np.delete(expected.images, 7, axis=0))
    np.testing.assert_array_equal(whole.train.labels, np.delete(expected.labels, 7))


class TestBrokenData:
    def remove_info(self, folder):
        (folder / "dataset_info.json").unlink()

    def remove_features(self, folder):
        (folder / "features.json").unlink()

    def cut_record(self, folder):
        file = next(folder.glob("*train.tfrecord*"))
        file.write_bytes(file.read_bytes()[:-100])

    def swap_splits(self, folder):
        train, test = (next(folder.glob(f"*{split}.tfrecord*")) for split in ("train", "test"))
        shutil.copy(test, train)

    def spoil_image(self, folder):
        file = next(folder.glob("*train.tfrecord*"))
        content = bytearray(file.read_bytes())
        content[500:600] = bytes(100)
        file.write_bytes(content)

    @pytest.mark.parametrize(
        "damage",
        [
            remove_info,
            remove_features,
            cut_record,
            swap_splits,
            spoil_image,
        ],
    )
    def test_broken(self, tiny, damage):
        damage(self, tiny / "cifar10" / "3.0.2")
        with pytest.raises(InputError, match="broken or incomplete cifar10") as error:
            data.load("cifar10", tiny)
        assert str(tiny) in one_line(error)
