import http.server
import io
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from stkd_keras import data
from stkd_keras.data.sources import tfds_reader
from stkd_keras.errors import InputError


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def noise(count) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def cifar10(shared):
    return data.load("cifar10", shared / "data" / "tfds")


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory):
    """A prepared cifar10 of 20 training and 10 test images, as TFDS writes it."""
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
        monkeypatch.setattr(tfds_reader, "_is_reachable", lambda address: False)
        version = tiny / "cifar10" / "3.0.2"
        version.rename(f"{version}.incompleteABC")
        with pytest.raises(InputError, match="no cifar10 found"):
            data.load("cifar10", tiny)


def store(root, name, splits, shape=(None, None, 3), label=None):
    """Prepares a data set as TFDS does: `splits` has (image, label) pairs by name."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": label or tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )
    signature = {
        "image": tf.TensorSpec(shape, tf.uint8),
        "label": tf.TensorSpec((), tf.int64),
    }

    def dataset(pairs):
        return tf.data.Dataset.from_generator(
            lambda: ({"image": image, "label": label} for image, label in pairs),
            output_signature=signature,
        )

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.2.3",
        features=features,
        split_datasets={split: dataset(pairs) for split, pairs in splits.items()},
        data_dir=root,
        disable_shuffling=True,
    )


def pictures(count, sizes=((20, 30), (40, 16), (12, 12))):
    random = np.random.default_rng(count)
    shapes = (sizes[n % len(sizes)] for n in range(count))
    return [(random.integers(0, 256, (*s, 3), np.uint8), n % 2) for n, s in enumerate(shapes)]


class TestAnyOtherOfTfds:
    def test_images_of_all_sizes_are_brought_to_one(self, tmp_path):
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

    def test_the_size_has_to_be_said_where_sizes_differ(self, tmp_path):
        store(tmp_path, "pets", {"train": pictures(4)})
        with pytest.raises(InputError, match="image_size") as error:
            data.load("tfds:pets", tmp_path)
        one_line(error)

    def test_validation_is_the_test_where_there_is_no_other(self, tmp_path):
        store(tmp_path, "pets", {"train": pictures(12), "validation": pictures(4)})
        dataset = data.load("tfds:pets", tmp_path, image_size=10)
        assert (len(dataset.train), len(dataset.test), dataset.validation) == (12, 4, None)

    def test_a_fifth_of_train_is_the_test_where_nothing_else_is(self, tmp_path, capsys):
        store(tmp_path, "pets", {"train": pictures(20)})
        first, again = (data.load("tfds:pets", tmp_path, image_size=10) for _ in range(2))
        assert np.bincount(first.test.labels).tolist() == [2, 2]
        np.testing.assert_array_equal(first.test.images, again.test.images)
        both = np.concatenate([first.train.images, first.test.images])
        assert len({image.tobytes() for image in both}) == 20
        assert "no test split" in capsys.readouterr().out

    def test_a_test_split_without_labels_is_left_out(self, tmp_path):
        unlabeled = [(image, -1) for image, _ in pictures(4)]
        splits = {"train": pictures(12), "validation": pictures(6), "test": unlabeled}
        store(tmp_path, "pets", splits)
        assert len(data.load("tfds:pets", tmp_path, image_size=10).test) == 6

    def test_grey_stays_grey(self, tmp_path):
        grey = [(image[:12, :12, :1], label) for image, label in pictures(8)]
        store(tmp_path, "pets", {"train": grey, "test": grey}, shape=(12, 12, 1))
        dataset = data.load("tfds:pets", tmp_path)
        assert dataset.image_shape == (12, 12, 1)
        np.testing.assert_array_equal(dataset.train.images, [image for image, _ in grey])

    @pytest.mark.parametrize("size", [None, 8])
    def test_what_is_streamed_is_what_is_in_memory(self, tmp_path, size):
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
            for (x, y), (other_x, other_y) in zip(*batches, strict=True):
                np.testing.assert_array_equal(x, other_x)
                np.testing.assert_array_equal(y, other_y)

    def test_what_is_no_classification_is_refused(self, tmp_path):
        store(
            tmp_path,
            "ages",
            {"train": pictures(4)},
            label=tfds.features.Scalar(tf.int64),
        )
        with pytest.raises(InputError, match="class label") as error:
            data.load("tfds:ages", tmp_path, image_size=8)
        one_line(error)

    def test_a_name_that_tfds_doesnt_have_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="no data set 'mnits'") as error:
            data.load("tfds:mnits", tmp_path)
        one_line(error)

    def test_cifar100_through_tfds_mock(self):
        with tfds.testing.mock_data(num_examples=300):
            dataset = data.load("cifar100")
        assert dataset.train.images.shape == (300, 32, 32, 3)
        assert dataset.num_classes == 100
        assert dataset.mean == (0.5071, 0.4867, 0.4408)


@pytest.mark.alone
@pytest.mark.parametrize("name", ["cifar100", "cinic10", "tiny_imagenet"])
def test_what_cannot_be_downloaded_is_said_at_once(tmp_path, monkeypatch, name):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match="can't be reached") as error:
        data.load(name, tmp_path)
    assert time.monotonic() - start < 10
    assert "data_dir" in one_line(error)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_ends_while_images_are_still_streamed(tmp_path, repository):
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


def test_a_stored_image_that_is_broken_is_named_or_left_out(tmp_path):
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
    expected = data.load("tfds:pets", tmp_path, image_size=8, skip_bad_images=True).test
    np.testing.assert_array_equal(whole.train.images, np.delete(expected.images, 7, axis=0))
    np.testing.assert_array_equal(whole.train.labels, np.delete(expected.labels, 7))


class LocalPictures(tfds.core.GeneratorBasedBuilder):
    """A data set of TFDS whose archive comes from this machine."""

    VERSION = tfds.core.Version("1.0.0")
    address = ""

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(12, 12, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        folder = dl_manager.download_and_extract(self.address)
        return {split: self._generate_examples(folder) for split in ("train", "test")}

    def _generate_examples(self, folder):
        for file in sorted(folder.glob("*.png")):
            yield file.name, {"image": file, "label": int(file.stem) % 2}


class TestDownload:
    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        """Serves a zip of 40 pictures; the first `server.broken` times only half of it."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for number, (pixels, _) in enumerate(pictures(40, sizes=[(12, 12)])):
                picture = io.BytesIO()
                PIL.Image.fromarray(pixels).save(picture, "png")
                archive.writestr(f"{number}.png", picture.getvalue())

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content.getvalue())))
                self.end_headers()
                is_broken, server.broken = server.broken > 0, server.broken - 1
                end = len(content.getvalue()) // (2 if is_broken else 1)
                self.wfile.write(content.getvalue()[:end])

        monkeypatch.setenv("no_proxy", "*")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.broken = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/pictures.zip"
        monkeypatch.setattr(LocalPictures, "address", address)
        yield server
        server.shutdown()

    def test_what_isnt_there_is_downloaded(self, server, tmp_path):
        dataset = data.load("tfds:local_pictures", tmp_path)
        expected = {image.tobytes() for image, _ in pictures(40, sizes=[(12, 12)])}
        assert {image.tobytes() for image in dataset.train.images} == expected

    def test_a_download_that_breaks_is_not_taken_for_complete(self, server, tmp_path):
        server.broken = 1
        with pytest.raises(InputError, match="couldn't be downloaded") as error:
            data.load("tfds:local_pictures", tmp_path)
        one_line(error)
        assert len(data.load("tfds:local_pictures", tmp_path).train) == 40

    def test_a_full_disk_leaves_nothing_that_is_taken_for_complete(self, server, tmp_path):
        # The largest file that this process may write stands for the end of the disk.
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            with pytest.raises(InputError, match="couldn't be downloaded") as error:
                data.load("tfds:local_pictures", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        one_line(error)
        assert len(data.load("tfds:local_pictures", tmp_path).train) == 40


class TestBadData:
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
        "import stkd_keras.data\n"
        "try:\n"
        "    stkd_keras.data.load('cifar10')\n"
        "except stkd_keras.InputError as error:\n"
        "    print(error)\n"
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
        "data_dir",
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
        assert tfds_reader._is_reachable(f"http://127.0.0.1:{server.server_port}/file")
        server.server_close()

    def test_a_host_that_refuses(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert not tfds_reader._is_reachable(f"http://127.0.0.1:{port}/")

    def test_a_host_that_keeps_silent_costs_no_more_than_the_time_given(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            start = time.monotonic()
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            assert not tfds_reader._is_reachable(address, 0.5)
            assert time.monotonic() - start < 1.5

    def test_a_name_server_that_keeps_silent_likewise(self, monkeypatch):
        ended = threading.Event()

        def look_up(*_, **__):
            ended.wait()
            raise socket.gaierror

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        start = time.monotonic()
        assert not tfds_reader._is_reachable("http://example.com/", 0.5)
        assert time.monotonic() - start < 1.5
        ended.set()
