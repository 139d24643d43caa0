import hashlib
import http.server
import os
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from archive_files import pack
from image_folders import CINIC_CLASSES, cinic10_files, noise, tiny_imagenet_files

from stkd_keras.data.cinic10 import Cinic10
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.data.tiny_imagenet import TinyImagenet, layout
from stkd_keras.errors import InputError

RAW = {"image": tfds.decode.SkipDecoding()}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def load(name, data_dir, manual_dir=None, **arguments):
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    return tfds.load(
        name,
        data_dir=data_dir,
        download_and_prepare_kwargs={"download_config": config},
        **arguments,
    )


def examples(name, data_dir, split) -> list[tuple[bytes, int]]:
    """The prepared examples, as sorted (bytes of the image file, label)."""
    stored = tfds.load(name, data_dir=data_dir, split=split, decoders=RAW, download=False)
    return sorted((each["image"], each["label"]) for each in tfds.as_numpy(stored))


def assert_nothing_is_prepared(name, data_dir):
    assert not tfds.builder(name, data_dir=data_dir).data_path.exists()
    assert list((data_dir / name).glob("*")) == []


def assert_cinic10_is_complete(data_dir):
    files = cinic10_files()
    for split, folder in (("train", "train"), ("validation", "valid"), ("test", "test")):
        expected = [
            (content, CINIC_CLASSES.index(name.split("/")[1]))
            for name, content in files.items()
            if name.startswith(folder) and name.endswith(".png")
        ]
        assert examples("cinic10", data_dir, split) == sorted(expected)


@pytest.mark.slow
def test_the_prepared_subset_of_tiny_imagenet_has_the_original_files(shared, tmp_path):
    subset = shared / "data" / "tiny-imagenet-200-subset.zip"
    load("tiny_imagenet", tmp_path, subset.parent)
    tree = open_tree(subset)
    for split, images in layout(tree).splits.items():
        expected = sorted((tree.read(name), label) for name, label in images)
        assert examples("tiny_imagenet", tmp_path, split) == expected
    info = tfds.builder("tiny_imagenet", data_dir=tmp_path).info
    assert info.features["label"].names[:2] == ["goldfish", "European fire salamander"]


class TestManualDir:
    @pytest.mark.parametrize("where", ["itself", "archive in its folder"])
    def test_a_folder_or_an_archive(self, tmp_path, where):
        manual_dir = tmp_path / "manual"
        manual_dir.mkdir()
        if where == "itself":
            pack("folder", manual_dir, cinic10_files())
        else:
            (manual_dir / "cinic-10").mkdir()
            pack("tar.gz", manual_dir / "cinic-10" / "CINIC-10.tar.gz", cinic10_files())
        splits = load("cinic10", tmp_path / "tfds", manual_dir, as_supervised=True)
        assert list(splits) == ["train", "validation", "test"]
        assert_cinic10_is_complete(tmp_path / "tfds")
        for image, label in splits["test"]:
            assert image.shape == (32, 32, 3)
            expected = noise(10 * int(label) + 3, (32, 32, 1))
            np.testing.assert_array_equal(image, np.broadcast_to(expected, (32, 32, 3)))

    def test_the_default(self, tmp_path):
        pack("folder", tmp_path / "downloads" / "manual" / "CINIC-10", cinic10_files())
        tfds.load("cinic10", data_dir=tmp_path)
        assert_cinic10_is_complete(tmp_path)


@pytest.fixture
def server(monkeypatch):
    """Serves `content`, or only its first `sent` bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(self.server.status)
            if self.server.says_length:
                self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content[: self.server.sent])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.content, server.sent, server.says_length = 200, b"", None, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def serve_cinic10(server, monkeypatch, folder):
    server.content = pack("tar.gz", folder / "served-archive", cinic10_files()).read_bytes()
    address = f"http://127.0.0.1:{server.server_port}/bitstreams/0/content"
    monkeypatch.setattr(Cinic10, "ADDRESS", address)
    checksum = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(Cinic10, "MD5", checksum)


def serve_tiny_imagenet(server, monkeypatch, folder):
    server.content = pack("zip", folder / "served-archive", tiny_imagenet_files()).read_bytes()
    address = f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip"
    monkeypatch.setattr(TinyImagenet, "ADDRESS", address)
    info = tfds.download.checksums.UrlInfo(
        size=len(server.content),
        checksum=hashlib.sha256(server.content).hexdigest(),
        filename="tiny-imagenet-200.zip",
    )
    monkeypatch.setattr(TinyImagenet, "url_infos", {address: info})


@pytest.mark.parametrize(
    ("name", "serve", "sizes"),
    [
        ("cinic10", serve_cinic10, {"train": 20, "validation": 10, "test": 10}),
        ("tiny_imagenet", serve_tiny_imagenet, {"train": 200, "test": 200}),
    ],
)
class TestDownload:
    def sizes(self, name, data_dir):
        info = tfds.builder(name, data_dir=data_dir).info
        return {split: info.splits[split].num_examples for split in info.splits}

    def test_a_complete_download_is_reused(self, server, monkeypatch, tmp_path, name, serve, sizes):
        serve(server, monkeypatch, tmp_path)
        load(name, tmp_path)
        assert self.sizes(name, tmp_path) == sizes
        assert list((tmp_path / "downloads" / "extracted").iterdir()) == []

        server.status = 404
        builder = tfds.builder(name, data_dir=tmp_path / "again")
        builder.download_and_prepare(download_dir=tmp_path / "downloads")
        assert self.sizes(name, tmp_path / "again") == sizes

    @pytest.mark.parametrize("damage", ["break off", "end early", "404"])
    def test_a_failed_download_is_repeated(
        self, server, monkeypatch, tmp_path, name, serve, sizes, damage
    ):
        serve(server, monkeypatch, tmp_path)
        good = server.content
        if damage == "404":
            server.status = 404
        else:
            server.sent = len(good) // 2
            server.says_length = damage == "break off"
        for _ in range(2):
            with pytest.raises(InputError, match=r"http://127.0.0.1.*manual_dir") as error:
                load(name, tmp_path)
            one_line(error)
            assert_nothing_is_prepared(name, tmp_path)

        server.status, server.content, server.sent, server.says_length = 200, good, None, True
        load(name, tmp_path)
        assert self.sizes(name, tmp_path) == sizes


class TestPreparationThatFails:
    def fails(self, tmp_path, files, said):
        """Checks that bad files aren't prepared, but good ones are afterwards."""
        with pytest.raises(InputError) as error:
            load("cinic10", tmp_path / "tfds", pack("folder", tmp_path / "bad", files))
        assert said in one_line(error)
        assert_nothing_is_prepared("cinic10", tmp_path / "tfds")
        load("cinic10", tmp_path / "tfds", pack("folder", tmp_path / "good", cinic10_files()))
        assert_cinic10_is_complete(tmp_path / "tfds")

    def test_a_truncated_image(self, tmp_path):
        name = "test/ship/cifar10-3.png"
        files = cinic10_files()
        files[name] = files[name][: len(files[name]) // 2]
        self.fails(tmp_path, files, name)

    def test_an_image_of_another_size(self, tmp_path):
        name = "test/ship/cifar10-3.png"
        files = {**cinic10_files(), name: tf.io.encode_png(noise(0, (32, 31, 3))).numpy()}
        self.fails(tmp_path, files, "(32, 31, 3)")

    def test_an_archive_cut_in_the_middle(self, tmp_path):
        content = pack("tar.gz", tmp_path / "packed", cinic10_files()).read_bytes()
        self.fails(tmp_path, {"CINIC-10.tar.gz": content[: len(content) // 2]}, "CINIC-10.tar.gz")

    def test_a_broken_file_in_a_zip(self, tmp_path):
        manual_dir = tmp_path / "manual"
        manual_dir.mkdir()
        path = pack("zip", manual_dir / "tiny-imagenet-200.zip", tiny_imagenet_files())
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"\.JPEG: can't be read from .*CRC") as error:
            load("tiny_imagenet", tmp_path, manual_dir)
        one_line(error)
        assert_nothing_is_prepared("tiny_imagenet", tmp_path)

    def test_a_full_disk(self, tmp_path):
        pack("folder", tmp_path / "CINIC-10", cinic10_files())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        try:
            with pytest.raises(RuntimeError, match="File too large"):
                load("cinic10", tmp_path / "tfds", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert_nothing_is_prepared("cinic10", tmp_path / "tfds")
        load("cinic10", tmp_path / "tfds", tmp_path)
        assert_cinic10_is_complete(tmp_path / "tfds")

    def test_a_killed_process(self, tmp_path, repository):
        pack("folder", tmp_path / "CINIC-10", cinic10_files())
        program = (
            "import time, sys, tensorflow_datasets as tfds\n"
            "from stkd_keras.data.cinic10 import Cinic10\n"
            "examples = Cinic10._generate_examples\n"
            "def stop_midway(*arguments):\n"
            "    yield next(examples(*arguments))\n"
            "    print('midway', flush=True)\n"
            "    time.sleep(600)\n"
            "Cinic10._generate_examples = stop_midway\n"
            "config = tfds.download.DownloadConfig(manual_dir=sys.argv[1])\n"
            "builder = tfds.builder('cinic10', data_dir=sys.argv[1] + '/tfds')\n"
            "builder.download_and_prepare(download_config=config)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert any(line == "midway\n" for line in process.stdout)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left = os.listdir(tmp_path / "tfds" / "cinic10")
        assert [name.startswith("incomplete.") for name in left] == [True]

        load("cinic10", tmp_path / "tfds", tmp_path)
        assert_cinic10_is_complete(tmp_path / "tfds")


def test_tfds_knows_them_by_name(tmp_path):
    for name, size in (("tiny_imagenet", "64x64"), ("cinic10", "32x32")):
        builder = tfds.builder(name, data_dir=tmp_path)
        assert builder.info.full_name == f"{name}/1.0.0"
        assert builder.info.supervised_keys == ("image", "label")
        assert builder.info.homepage.startswith("http")
        assert "@article{" in builder.info.citation
        assert size in builder.info.description
