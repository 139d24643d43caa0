import collections
import dataclasses
import http.server
import io
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras import data
from stkd_keras.data import loading
from stkd_keras.errors import InputError


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def labelled(labels) -> data.Dataset:
    """A data set whose image number i is black but for i, written in its four pixels."""
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2, 1)
    split = data.Split(images, labels)
    names = tuple(f"class{label}" for label in range(labels.max() + 1))
    return data.Dataset("made", "1.0.0", names, (0.5,), (0.5,), False, split, split)


def numbers(split: data.Split) -> np.ndarray:
    return np.ascontiguousarray(split.images).reshape(-1, 4).view(np.uint32)[:, 0]


def noise(count) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def cifar10(shared):
    return data.load("cifar10", shared / "data" / "tfds")


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory):
    """A prepared cifar10 of 20 training and 10 test images, as TFDS writes it."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=[f"class{i}" for i in range(10)]),
        }
    )

    def images(count):
        return tf.data.Dataset.from_tensor_slices(
            {"image": noise(count), "label": np.arange(count, dtype=np.int64) % 10}
        )

    root = tmp_path_factory.mktemp("prepared")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version="3.0.2",
        features=features,
        split_datasets={"train": images(20), "test": images(10)},
        data_dir=root,
        disable_shuffling=True,
    )
    return root


@pytest.fixture
def tiny(tiny_source, tmp_path):
    shutil.copytree(tiny_source, tmp_path / "tfds")
    return tmp_path / "tfds"


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
    def test_refuses_what_isnt_images_with_labels(self, images, labels):
        with pytest.raises(InputError, match="expected") as error:
            data.Split(images, labels)
        one_line(error)

    def test_a_label_without_class_is_refused(self):
        with pytest.raises(InputError, match="expected 0 to 1"):
            dataclasses.replace(labelled([0, 1, 2]), class_names=("a", "b"))


class TestDigits:
    def test_are_sklearns_images_each_once(self):
        digits = data.load("digits")
        ours = np.concatenate([digits.train.images, digits.test.images])
        labels = np.concatenate([digits.train.labels, digits.test.labels])
        theirs = sklearn.datasets.load_digits()
        expected = [(round_up(x), y) for x, y in zip(theirs.images, theirs.target, strict=True)]
        assert collections.Counter(
            (x.tobytes(), y) for x, y in zip(ours, labels, strict=True)
        ) == collections.Counter(expected)
        assert (ours.dtype, ours.min(), ours.max()) == (np.uint8, 0, 255)

    def test_describes_itself(self):
        digits = data.load("digits")
        assert digits.image_shape == digits.test.images.shape[1:] == (8, 8, 1)
        assert digits.num_classes == 10
        assert digits.class_names == tuple("0123456789")
        assert not digits.flip
        pixels = digits.train.images / 255
        np.testing.assert_allclose(
            (digits.mean[0], digits.std[0]), (pixels.mean(), pixels.std()), atol=1e-3
        )

    def test_a_fifth_of_each_class_is_the_test_split_and_always_the_same(self):
        first, second = data.load("digits"), data.load("digits")
        assert (len(first.train.labels), len(first.test.labels)) == (1437, 360)
        train, test = (np.bincount(s.labels) for s in (first.train, first.test))
        assert (np.abs(test - (train + test) * 360 / 1797) < 1).all()
        np.testing.assert_array_equal(first.test.images, second.test.images)


def round_up(image) -> bytes:
    return (image * 255 / 16 + 0.5).astype(np.uint8).tobytes()


class TestSplitTrain:
    @settings(max_examples=50, deadline=None)
    @given(
        counts=st.lists(st.integers(20, 60), min_size=2, max_size=6),
        validation=st.floats(0.06, 0.5),
        fractions=st.tuples(st.floats(0.12, 1), st.floats(0.12, 1)).map(sorted),
        seed=st.integers(0, 2**40),
    )
    def test_every_class_gives_its_share(self, counts, validation, fractions, seed):
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
        dataset = labelled(labels)
        smaller, held_out = data.split_train(dataset, validation, fractions[0], seed)
        larger, again = data.split_train(dataset, validation, fractions[1], seed)
        np.testing.assert_array_equal(numbers(held_out), numbers(again))
        assert set(numbers(smaller)) <= set(numbers(larger))
        assert not set(numbers(larger)) & set(numbers(held_out))

        rest = np.array(counts) - np.bincount(held_out.labels)
        for part, fraction, source in (
            (held_out, validation, np.array(counts)),
            (smaller, fractions[0], rest),
            (larger, fractions[1], rest),
        ):
            np.testing.assert_array_equal(part.labels, labels[numbers(part)])
            assert len(part.labels) == round(fraction * source.sum())
            exact = source * len(part.labels) / source.sum()
            assert (np.abs(np.bincount(part.labels) - exact) < 1).all()

    def test_cifar10s_counts(self):
        dataset = labelled(np.arange(50_000) % 10)
        train, validation = data.split_train(dataset, 0.02, 0.1, 0)
        assert np.bincount(validation.labels).tolist() == [100] * 10
        assert np.bincount(train.labels).tolist() == [490] * 10

    def test_takes_nothing_away_by_default(self):
        dataset = labelled([0, 1, 0, 1])
        train, validation = data.split_train(dataset)
        assert train is dataset.train
        assert validation is None

    def test_the_seed_decides(self):
        dataset = labelled(np.arange(1000) % 10)
        parts = [data.split_train(dataset, 0.1, 0.5, seed) for seed in (0, 0, 1)]
        for index in (0, 1):
            same, again, other = (numbers(part[index]) for part in parts)
            np.testing.assert_array_equal(same, again)
            assert set(same) != set(other)

    def test_almost_all_of_the_rest(self):
        train, _ = data.split_train(labelled(np.arange(1000) % 10), 0.0, 0.999, 0)
        assert len(train.labels) == 999

    def test_images_per_class(self):
        dataset = labelled(np.repeat([0, 1, 2], [30, 40, 50]))
        train, validation = data.split_train(dataset, 0.1, seed=3, images_per_class=20)
        assert np.bincount(train.labels).tolist() == [20, 20, 20]
        assert np.bincount(validation.labels).tolist() == [3, 4, 5]
        with pytest.raises(InputError, match="at most 27") as error:
            data.split_train(dataset, 0.1, seed=3, images_per_class=28)
        assert "'class0'" in one_line(error)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"validation_fraction": -0.1},
            {"validation_fraction": 1},
            {"validation_fraction": float("nan")},
            {"validation_fraction": 0.01},
            {"validation_fraction": 0.99},
            {"train_fraction": 0},
            {"train_fraction": 1.5},
            {"train_fraction": 0.01},
            {"images_per_class": 0},
            {"images_per_class": 2, "train_fraction": 0.5},
            {"seed": -1},
        ],
    )
    def test_refuses(self, arguments):
        with pytest.raises(InputError) as error:
            data.split_train(labelled(np.arange(100) % 10), **arguments)
        assert next(iter(arguments)) in one_line(error)


class TestCifar10:
    def test_all_images_are_there(self, cifar10):
        assert cifar10.train.images.shape == (50_000, 32, 32, 3)
        assert cifar10.test.images.shape == (10_000, 32, 32, 3)
        assert np.bincount(cifar10.train.labels).tolist() == [5_000] * 10
        assert np.bincount(cifar10.test.labels).tolist() == [1_000] * 10
        assert cifar10.version == "3.0.2"
        assert cifar10.class_names[:2] == ("airplane", "automobile")
        assert cifar10.flip

    def test_the_usual_figures_are_near_its_own(self, cifar10):
        pixels = cifar10.train.images[::10] / 255
        # Not nearer, because this copy's pixels have been through JPEG.
        np.testing.assert_allclose(cifar10.mean, pixels.mean((0, 1, 2)), atol=0.01)
        np.testing.assert_allclose(cifar10.std, pixels.std((0, 1, 2)), atol=0.01)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_they_are_those_of_tfds_as_pillow_decodes_them(self, cifar10, shared, split):
        import tensorflow_datasets as tfds

        image = pytest.importorskip("PIL.Image")
        stored = tfds.load(
            "cifar10",
            split=f"{split}[:50]",
            data_dir=shared / "data" / "tfds",
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        ours = getattr(cifar10, split)
        for index, example in enumerate(tfds.as_numpy(stored)):
            pixels = np.asarray(image.open(io.BytesIO(example["image"])))
            np.testing.assert_array_equal(ours.images[index], pixels)
            assert ours.labels[index] == example["label"]


class TestWhereCifar10Is:
    def test_data_dir(self, tiny):
        # As TFDS itself prepares it, the images are PNGs: exact.
        dataset = data.load("cifar10", tiny)
        np.testing.assert_array_equal(dataset.train.images, noise(20))
        np.testing.assert_array_equal(dataset.train.labels, np.arange(20) % 10)
        np.testing.assert_array_equal(dataset.test.images, noise(10))

    def test_environment(self, tiny, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
        assert len(data.load("cifar10").train.labels) == 20

    def test_home(self, tiny, monkeypatch):
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
        monkeypatch.setenv("HOME", str(tiny.parent))
        tiny.rename(tiny.parent / "tensorflow_datasets")
        assert len(data.load("cifar10").test.labels) == 10

    def test_what_tfds_was_still_writing_is_not_there(self, tiny, monkeypatch):
        monkeypatch.setattr(loading, "_is_reachable", lambda address: False)
        version = tiny / "cifar10" / "3.0.2"
        version.rename(f"{version}.incompleteABC")
        with pytest.raises(InputError, match="no cifar10 found"):
            data.load("cifar10", tiny)

    def test_download(self, tiny_source, tmp_path, monkeypatch):
        import tensorflow_datasets as tfds

        class Builder:
            def __init__(self, name, data_dir):
                self.arguments = name, data_dir

            def download_and_prepare(self):
                name, data_dir = self.arguments
                shutil.copytree(tiny_source / name, pathlib.Path(data_dir) / name)

        monkeypatch.setattr(loading, "_is_reachable", lambda address: True)
        monkeypatch.setattr(tfds, "builder", Builder)
        assert len(data.load("cifar10", tmp_path).train.labels) == 20


class TestBadData:
    def test_unknown_name(self):
        with pytest.raises(InputError, match="cifar10") as error:
            data.load("cifar-10")
        one_line(error)

    def test_data_dir_that_doesnt_exist(self, tmp_path):
        with pytest.raises(InputError, match="doesn't exist") as error:
            data.load("cifar10", tmp_path / "nowhere")
        one_line(error)

    def test_data_dir_that_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="is no folder"):
            data.load("cifar10", tmp_path / "file")

    def remove_info(self, folder):
        (folder / "dataset_info.json").unlink()

    def spoil_info(self, folder):
        (folder / "dataset_info.json").write_text("{")

    def remove_features(self, folder):
        (folder / "features.json").unlink()

    def remove_test_split(self, folder):
        next(folder.glob("*test.tfrecord*")).unlink()

    def cut_record(self, folder):
        file = next(folder.glob("*train.tfrecord*"))
        file.write_bytes(file.read_bytes()[:-100])

    def cut_between_records(self, folder):
        next(folder.glob("*train.tfrecord*")).write_bytes(b"")

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
            spoil_info,
            remove_features,
            remove_test_split,
            cut_record,
            cut_between_records,
            swap_splits,
            spoil_image,
        ],
    )
    def test_broken(self, tiny, damage):
        damage(self, tiny / "cifar10" / "3.0.2")
        with pytest.raises(InputError, match="broken or incomplete cifar10") as error:
            data.load("cifar10", tiny)
        assert str(tiny) in one_line(error)


@pytest.mark.alone
def test_missing_data_is_said_within_ten_seconds(repository, tmp_path):
    program = (
        "import sys, stkd_keras.data\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "try:\n"
        "    stkd_keras.data.load('cifar10')\n"
        "except stkd_keras.InputError as error:\n"
        "    print(error)\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
    )
    # A proxy that nobody runs stands for a machine without network, wherever the test runs.
    offline = {"https_proxy": "http://127.0.0.1:9", "TFDS_DATA_DIR": str(tmp_path)}
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repository,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.monotonic() - start < 10
    assert run.stdout.count("\n") == 1
    for part in (
        str(tmp_path / "cifar10"),
        "www.cs.toronto.edu",
        "download_and_prepare",
        "--data_dir",
    ):
        assert part in run.stdout


class TestIsReachable:
    @pytest.fixture(autouse=True)
    def without_proxy(self, monkeypatch):
        monkeypatch.setenv("no_proxy", "*")

    def test_a_host_that_answers(self):
        # Also with an error, as this server does to HEAD.
        server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert loading._is_reachable(f"http://127.0.0.1:{server.server_port}/file")
        server.server_close()

    def test_a_host_that_refuses(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert not loading._is_reachable(f"http://127.0.0.1:{port}/")

    def test_a_host_that_keeps_silent_costs_no_more_than_the_time_given(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            start = time.monotonic()
            assert not loading._is_reachable(f"http://127.0.0.1:{listener.getsockname()[1]}/", 0.5)
            assert time.monotonic() - start < 1.5

    def test_a_name_server_that_keeps_silent_likewise(self, monkeypatch):
        ended = threading.Event()

        def look_up(*_, **__):
            ended.wait()
            raise socket.gaierror

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        start = time.monotonic()
        assert not loading._is_reachable("http://example.com/", 0.5)
        assert time.monotonic() - start < 1.5
        ended.set()
