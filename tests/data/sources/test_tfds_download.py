import http.server
import io
import resource
import signal
import socket
import threading
import time
import zipfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from prepared_data import pictures, store

from stkd_keras import data
from stkd_keras.data.sources import tfds_download
from stkd_keras.errors import InputError


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def tiny(tmp_path):
    """The folder of a prepared cifar10 of 20 training and 10 test images."""
    splits = {split: pictures(count, [(32, 32)]) for split, count in (("train", 20), ("test", 10))}
    label = tfds.features.ClassLabel(num_classes=10)
    store(tmp_path / "tfds", "cifar10", splits, (32, 32, 3), label, "3.0.2")
    return tmp_path / "tfds"


class TestDataDir:
    def test_data_dir(self, tiny):
        # TFDS stores PNGs, which are exact.
        dataset = data.load("cifar10", tiny)
        for split, count in ((dataset.train, 20), (dataset.test, 10)):
            images, labels = zip(*pictures(count, [(32, 32)]), strict=True)
            np.testing.assert_array_equal(split.images, images)
            np.testing.assert_array_equal(split.labels, labels)

    def test_environment(self, tiny, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
        assert len(data.load("cifar10").train.labels) == 20

    def test_home(self, tiny, monkeypatch):
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
        monkeypatch.setenv("HOME", str(tiny.parent))
        tiny.rename(tiny.parent / "tensorflow_datasets")
        assert len(data.load("cifar10").test.labels) == 10

    def test_an_incomplete_version_is_ignored(self, tiny, monkeypatch):
        monkeypatch.setattr(tfds_download, "_is_reachable", lambda address: False)
        version = tiny / "cifar10" / "3.0.2"
        version.rename(f"{version}.incompleteABC")
        with pytest.raises(InputError, match="no cifar10 found"):
            data.load("cifar10", tiny)

    def test_data_dir_that_doesnt_exist(self, tmp_path):
        with pytest.raises(InputError, match="doesn't exist") as error:
            data.load("cifar10", tmp_path / "nowhere")
        one_line(error)

    def test_data_dir_that_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="isn't a folder"):
            data.load("cifar10", tmp_path / "file")


class LocalPictures(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set whose archive is on this machine."""

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
        """Serves a zip of 40 images; the first `broken` responses stop halfway."""
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

    def test_a_missing_data_set_is_downloaded(self, server, tmp_path):
        dataset = data.load("tfds:local_pictures", tmp_path)
        expected = {image.tobytes() for image, _ in pictures(40, sizes=[(12, 12)])}
        assert {image.tobytes() for image in dataset.train.images} == expected

    def test_a_download_that_breaks_is_repeated(self, server, tmp_path):
        server.broken = 1
        with pytest.raises(InputError, match="couldn't be downloaded") as error:
            data.load("tfds:local_pictures", tmp_path)
        one_line(error)
        assert len(data.load("tfds:local_pictures", tmp_path).train) == 40

    def test_a_full_disk_leaves_nothing_that_counts_as_complete(self, server, tmp_path):
        # A limit on the size of files acts like a full disk.
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


@pytest.mark.alone
@pytest.mark.parametrize("name", ["cifar10", "cinic10"])
def test_a_host_that_cannot_be_reached_is_named_within_ten_seconds(tmp_path, monkeypatch, name):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match="can't be reached") as error:
        data.load(name, tmp_path)
    assert time.monotonic() - start < 10
    assert "data_dir" in one_line(error)
    assert str(tmp_path / name) in one_line(error)
    assert not any(tmp_path.iterdir())


class TestIsReachable:
    @pytest.fixture(autouse=True)
    def without_proxy(self, monkeypatch):
        monkeypatch.setenv("no_proxy", "*")

    def test_a_host_that_responds(self):
        # This server responds to HEAD with an error.
        server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert tfds_download._is_reachable(f"http://127.0.0.1:{server.server_port}/file")
        server.server_close()

    def test_a_host_that_refuses(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert not tfds_download._is_reachable(f"http://127.0.0.1:{port}/")

    def test_a_host_that_stays_silent(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            assert not tfds_download._is_reachable(address, 0.5)

    def test_a_name_server_that_stays_silent(self, monkeypatch):
        ended = threading.Event()

        def look_up(*_, **__):
            ended.wait()
            raise socket.gaierror

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        assert not tfds_download._is_reachable("http://example.com/", 0.5)
        ended.set()
