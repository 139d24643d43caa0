import hashlib
import http.server
import io
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from stkd_keras.data.cinic10 import Cinic10
from stkd_keras.data.cinic10 import layout as cinic10_layout
from stkd_keras.data.sources import archives
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.data.tiny_imagenet import TinyImagenet
from stkd_keras.data.tiny_imagenet import layout as tiny_imagenet_layout
from stkd_keras.errors import InputError

CIFAR10_CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
RAW = {"image": tfds.decode.SkipDecoding()}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def noise(seed, shape) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def cinic10_files() -> dict[str, bytes]:
    """A CINIC-10 of two images a class in train, one in valid and one, grey, in test."""
    files = {"README.md": b"", "train/cat/Thumbs.db": b"no image"}
    for label, name in enumerate(CIFAR10_CLASSES):
        for place, (folder, channels) in enumerate(
            [("train", 3), ("train", 3), ("valid", 3), ("test", 1)]
        ):
            pixels = noise(10 * label + place, (32, 32, channels))
            files[f"{folder}/{name}/cifar10-{place}.png"] = tf.io.encode_png(pixels).numpy()
    return files


def tiny_imagenet_files() -> dict[str, bytes]:
    """A Tiny-ImageNet-200 of one image a class in train and one in val."""
    wnids = [f"n{7 * number:08}" for number in range(200)]
    image = tf.io.encode_jpeg(noise(0, (64, 64, 3))).numpy()
    files = {f"train/{wnid}/images/{wnid}_0.JPEG": image for wnid in wnids}
    files |= {f"val/images/val_{number}.JPEG": image for number in range(200)}
    files["wnids.txt"] = "\n".join(reversed(wnids)).encode()
    files["words.txt"] = "".join(f"{wnid}\tname of {wnid}, other\n" for wnid in wnids).encode()
    lines = (f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9\n" for number, wnid in enumerate(wnids))
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files


def write(folder, files) -> pathlib.Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def packed_tar(files, start="./") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(start + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def packed_zip(files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return buffer.getvalue()


def load(name, data_dir, manual_dir=None, **arguments):
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    return tfds.load(
        name,
        data_dir=data_dir,
        download_and_prepare_kwargs={"download_config": config},
        **arguments,
    )


def examples(name, data_dir, split) -> list[tuple[bytes, int]]:
    """What is prepared, as sorted (bytes of the image file, label)."""
    stored = tfds.load(name, data_dir=data_dir, split=split, decoders=RAW, download=False)
    return sorted((each["image"], each["label"]) for each in tfds.as_numpy(stored))


def assert_nothing_is_prepared(name, data_dir):
    assert not tfds.builder(name, data_dir=data_dir).data_path.exists()
    assert list((data_dir / name).glob("*")) == []


def assert_cinic10_is_complete(data_dir):
    files = cinic10_files()
    for split, folder in (("train", "train"), ("validation", "valid"), ("test", "test")):
        expected = [
            (content, CIFAR10_CLASSES.index(name.split("/")[1]))
            for name, content in files.items()
            if name.startswith(folder) and name.endswith(".png")
        ]
        assert examples("cinic10", data_dir, split) == sorted(expected)


@pytest.fixture(scope="module")
def subset(shared) -> pathlib.Path:
    """The zip file of a part of Tiny-ImageNet."""
    return shared / "data" / "tiny-imagenet-200-subset.zip"


@pytest.fixture(scope="module")
def annotations(subset) -> dict[str, int]:
    """Labels of the images of val, by the name of the file."""
    with zipfile.ZipFile(subset) as archive:
        wnids = archive.read("tiny-imagenet-200/wnids.txt").decode().split()
        lines = archive.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()
    rows = [line.split("\t") for line in lines]
    assert len(rows) == 4000
    return {row[0]: sorted(wnids).index(row[1]) for row in rows}


@pytest.fixture(scope="module")
def prepared(subset, tmp_path_factory) -> pathlib.Path:
    """A data_dir with the subset, which manual_dir held the zip file of."""
    data_dir = tmp_path_factory.mktemp("prepared")
    load("tiny_imagenet", data_dir, subset.parent)
    return data_dir


class TestTheSubsetOfTinyImagenet:
    @pytest.mark.parametrize("kind", ["zip", "folder"])
    def test_layout(self, subset, annotations, tmp_path, kind):
        source = subset
        if kind == "folder":
            source = tmp_path
            with zipfile.ZipFile(subset) as archive:
                archive.extractall(tmp_path)
        tree = open_tree(source)
        class_names, splits = tiny_imagenet_layout(tree)
        assert len(set(class_names)) == 200
        assert not any(name.startswith("n0") for name in class_names)
        assert class_names[:2] == ("goldfish", "European fire salamander")

        train = dict(splits["train"])
        assert len(train) == 12_000
        assert np.bincount(list(train.values())).tolist() == [60] * 200
        wnids = sorted({name.split("/")[1] for name in train})
        assert all(name.split("/")[1] == wnids[label] for name, label in train.items())
        assert {pathlib.PurePath(name).name: label for name, label in splits["test"]} == annotations
        assert set(splits) == {"train", "test"}
        for images in splits.values():
            assert {name for name, _ in images} <= set(tree.names())

    def test_prepared_it_has_the_files_bytes_and_labels(self, subset, annotations, prepared):
        with zipfile.ZipFile(subset) as archive:
            wnids = sorted(archive.read("tiny-imagenet-200/wnids.txt").decode().split())
            names = [name for name in archive.namelist() if name.endswith(".JPEG")]
            train = [
                (archive.read(name), wnids.index(name.split("/")[2]))
                for name in names
                if "/train/" in name
            ]
            test = [
                (archive.read(name), annotations[name.split("/")[-1]])
                for name in names
                if "/val/" in name
            ]
        assert examples("tiny_imagenet", prepared, "train") == sorted(train)
        assert examples("tiny_imagenet", prepared, "test") == sorted(test)

    def test_tfds_loads_it(self, prepared):
        dataset, info = tfds.load(
            "tiny_imagenet", data_dir=prepared, split="test", as_supervised=True, with_info=True
        )
        assert info.splits["train"].num_examples == 12_000
        assert info.features["label"].names[:2] == ["goldfish", "European fire salamander"]
        assert str(info.version) == "1.0.0"
        count = 0
        for image, label in dataset:
            assert image.shape == (64, 64, 3)
            assert 0 <= label < 200
            count += 1
        assert count == 4000

    def test_grey_images_become_rgb(self, prepared):
        split = "test[:500]"
        stored = tfds.load("tiny_imagenet", data_dir=prepared, split=split, decoders=RAW)
        decoded = tfds.load("tiny_imagenet", data_dir=prepared, split=split)
        found = 0
        for content, image in tfds.as_numpy(tf.data.Dataset.zip(stored, decoded)):
            pixels = tf.io.decode_jpeg(content["image"]).numpy()
            if pixels.shape[-1] == 1:
                np.testing.assert_array_equal(image["image"], np.repeat(pixels, 3, axis=-1))
                found += 1
        assert found


class TestTinyImagenet:
    def layout_of(self, folder, changes):
        files = tiny_imagenet_files()
        for name, change in changes.items():
            files[name] = change(files.get(name))
        write(folder, {name: content for name, content in files.items() if content is not None})
        return tiny_imagenet_layout(open_tree(folder))

    def test_labels_are_the_places_of_the_sorted_wnids(self, tmp_path):
        class_names, splits = self.layout_of(tmp_path, {})
        assert class_names[1] == "name of n00000007"
        assert dict(splits["train"])["train/n00000014/images/n00000014_0.JPEG"] == 2
        assert splits["test"] == [(f"val/images/val_{n}.JPEG", n) for n in range(200)]

    def test_names_that_coincide(self, tmp_path):
        words = ["crane", "crane, derrick", "crane, derrick, hoist", "crane, derrick"]
        lines = [f"n{7 * number:08}\t{names}\n" for number, names in enumerate(words)]

        def prepend(content):
            return b"\n".join(content.splitlines()[4:]) + b"\n" + "".join(lines).encode()

        class_names, _ = self.layout_of(tmp_path, {"words.txt": prepend})
        assert class_names[:4] == ("crane", "derrick", "hoist", "crane (n00000021)")

    def test_what_else_lies_about(self, tmp_path):
        clutter = (
            "train/n00000000/images/._n00000000_0.JPEG",
            "train/n00000000/n00000000_boxes.txt",
            "val/images/.DS_Store",
            "test/images/test_0.JPEG",
        )
        _, splits = self.layout_of(tmp_path, {name: lambda _: b"-" for name in clutter})
        assert not set(clutter) & {name for images in splits.values() for name, _ in images}

    @pytest.mark.parametrize("ending", [b"\r\n", b"\n\n"])
    def test_line_endings(self, tmp_path, ending):
        names = ("wnids.txt", "words.txt", "val/val_annotations.txt")
        changes = {name: lambda content: content.replace(b"\n", ending) for name in names}
        assert self.layout_of(tmp_path / "a", changes) == self.layout_of(tmp_path / "b", {})

    @pytest.mark.parametrize(
        ("name", "change", "said"),
        [
            ("words.txt", lambda _: None, "no words.txt"),
            ("wnids.txt", lambda _: None, "no wnids.txt"),
            ("val/val_annotations.txt", lambda _: None, "no val/val_annotations.txt"),
            ("words.txt", lambda _: b"\xff\xfe\0", "name of n00000000 in words.txt"),
            ("words.txt", lambda text: text.replace(b"n00000014", b"n1"), "n00000014 in words.txt"),
            ("wnids.txt", lambda text: text + b"\nn9", "201 classes in wnids.txt"),
            (
                "wnids.txt",
                lambda text: text.replace(b"n00000014", b"n9"),
                "name of n9 in words.txt",
            ),
            ("train/n9/images/n9_0.JPEG", lambda _: b"", "train/n9, but no n9 in wnids.txt"),
            ("train/n00000014/images/n00000014_0.JPEG", lambda _: None, "train/n00000014/images"),
            ("val/images/val_7.JPEG", lambda _: None, "'val_7.JPEG' in line 8"),
            ("val/images/val_x.JPEG", lambda _: b"", "val/images/val_x.JPEG"),
            (
                "val/val_annotations.txt",
                lambda text: text * 2,
                "'val_0.JPEG' once more in line 201",
            ),
            ("val/val_annotations.txt", lambda text: text + b"x\tn9\t0\n", "'n9' in line 201"),
            ("val/val_annotations.txt", lambda text: text + b"x\n", "'' in line 201"),
        ],
    )
    def test_not_official(self, tmp_path, name, change, said):
        with pytest.raises(InputError) as error:
            self.layout_of(tmp_path, {name: change})
        message = one_line(error)
        assert said in message
        assert str(tmp_path) in message
        assert "expected Tiny-ImageNet" in message

    def test_val_sorted_into_classes(self, tmp_path):
        files = tiny_imagenet_files()
        files = {name: content for name, content in files.items() if "val/images" not in name}
        with pytest.raises(InputError, match="not in val/images"):
            tiny_imagenet_layout(open_tree(write(tmp_path, files)))


class TestCinic10:
    @pytest.mark.parametrize("kind", ["folder", "archive", "archive with a top folder"])
    def test_layout(self, tmp_path, kind):
        source = tmp_path / "CINIC-10"
        if kind == "folder":
            write(source, cinic10_files())
        else:
            start = "./" if kind == "archive" else "CINIC-10/"
            source.write_bytes(packed_tar(cinic10_files(), start))
        class_names, splits = cinic10_layout(open_tree(source))
        assert class_names == tuple(CIFAR10_CLASSES)
        assert {split: len(images) for split, images in splits.items()} == {
            "train": 20,
            "validation": 10,
            "test": 10,
        }
        assert splits["test"][3] == ("test/cat/cifar10-3.png", 3)
        for images in splits.values():
            assert all(class_names[label] == name.split("/")[1] for name, label in images)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"valid": None}, "valid/airplane"),
            ({"train/cat": None}, "train/cat"),
            ({"test/truck/cifar10-3.png": None}, "test/truck"),
            ({"test/lorry/1.png": b""}, "test/lorry"),
        ],
    )
    def test_not_official(self, tmp_path, changes, said):
        files = cinic10_files()
        for path, content in changes.items():
            if content is None:
                files = {name: files[name] for name in files if not name.startswith(path)}
            else:
                files[path] = content
        with pytest.raises(InputError, match="expected CINIC-10") as error:
            cinic10_layout(open_tree(write(tmp_path, files)))
        assert said in one_line(error)
        assert str(tmp_path) in one_line(error)

    @pytest.mark.parametrize("where", ["itself", "contained", "archive", "archive in its folder"])
    def test_manual_dir(self, tmp_path, where):
        manual_dir = tmp_path / "manual"
        manual_dir.mkdir()
        if where == "itself":
            write(manual_dir, cinic10_files())
        elif where == "contained":
            write(manual_dir / "CINIC-10", cinic10_files())
        else:
            folder = manual_dir / "cinic-10" if where == "archive in its folder" else manual_dir
            write(folder, {"CINIC-10.tar.gz": packed_tar(cinic10_files())})
        before = sorted(manual_dir.rglob("*"))
        splits = load("cinic10", tmp_path / "tfds", manual_dir, as_supervised=True)
        assert list(splits) == ["train", "validation", "test"]
        assert_cinic10_is_complete(tmp_path / "tfds")
        for image, label in splits["test"]:
            assert image.shape == (32, 32, 3)
            expected = noise(10 * int(label) + 3, (32, 32, 1))
            np.testing.assert_array_equal(image, np.broadcast_to(expected, (32, 32, 3)))
        assert sorted(manual_dir.rglob("*")) == before

    def test_the_default_manual_dir(self, tmp_path):
        write(tmp_path / "downloads" / "manual" / "CINIC-10", cinic10_files())
        tfds.load("cinic10", data_dir=tmp_path)
        assert_cinic10_is_complete(tmp_path)


class TestFindSource:
    def test_an_archive_or_the_unpacked_folder_itself(self, tmp_path):
        write(tmp_path, {"mine.zip": b"", "unpacked/train/n0/images/n0_0.JPEG": b""})
        for path in (tmp_path / "mine.zip", tmp_path / "unpacked"):
            assert archives.find_source(path, "tiny_imagenet") == path

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            (["tiny-imagenet-200/train/1"], "tiny-imagenet-200"),
            (
                ["tiny-imagenet-200/tiny-imagenet-200/train/1"],
                "tiny-imagenet-200/tiny-imagenet-200",
            ),
            (["Tiny-ImageNet-200.ZIP"], "Tiny-ImageNet-200.ZIP"),
            (["tiny-imagenet-200.zip", "tiny-imagenet-200 (1).zip"], "tiny-imagenet-200.zip"),
            (["tiny-imagenet-200.tgz", "tiny-imagenet-200/train/1"], "tiny-imagenet-200"),
            (["tiny-imagenet-200.tar", "tiny-imagenet-200/README"], "tiny-imagenet-200.tar"),
            # Neither what TFDS has prepared, nor downloads in progress, nor another data set.
            (["tiny_imagenet/1.0.0/dataset_info.json"], None),
            (["tiny-imagenet-200.zip.part", "CINIC-10.tar.gz", "cifar10/train/1"], None),
            (["notes.txt"], None),
        ],
    )
    def test_in_a_folder(self, tmp_path, files, found):
        write(tmp_path, dict.fromkeys(files, b""))
        expected = None if found is None else tmp_path / found
        assert archives.find_source(tmp_path, "tiny_imagenet") == expected

    def test_nowhere(self, tmp_path):
        assert archives.find_source(tmp_path / "nowhere", "cinic10") is None


@pytest.fixture
def server(monkeypatch):
    """Serves what is put into its `content`, all of it or, if given, the first `sent` bytes."""

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


def serve_cinic10(server, monkeypatch):
    server.content = packed_tar(cinic10_files())
    address = f"http://127.0.0.1:{server.server_port}/bitstreams/0/content"
    monkeypatch.setattr(Cinic10, "ADDRESS", address)
    checksum = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(Cinic10, "MD5", checksum)


def serve_tiny_imagenet(server, monkeypatch):
    server.content = packed_zip(tiny_imagenet_files())
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

    def test_complete(self, server, monkeypatch, tmp_path, name, serve, sizes):
        serve(server, monkeypatch)
        load(name, tmp_path)
        assert self.sizes(name, tmp_path) == sizes
        assert list((tmp_path / "downloads" / "extracted").iterdir()) == []

        # Nor is it fetched again for another folder of prepared data.
        server.status = 404
        builder = tfds.builder(name, data_dir=tmp_path / "again")
        builder.download_and_prepare(download_dir=tmp_path / "downloads")
        assert self.sizes(name, tmp_path / "again") == sizes

    @pytest.mark.parametrize("damage", ["break off", "end early", "other content", "404"])
    def test_what_fails_is_no_part_of_the_next_run(
        self, server, monkeypatch, tmp_path, name, serve, sizes, damage
    ):
        serve(server, monkeypatch)
        good = server.content
        if damage == "other content":
            server.content = b"<html>moved</html>"
        elif damage == "404":
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
        """Prepares what can't be, and then, with the right files, everything."""
        with pytest.raises(InputError) as error:
            load("cinic10", tmp_path / "tfds", write(tmp_path / "bad", files))
        assert said in one_line(error)
        assert_nothing_is_prepared("cinic10", tmp_path / "tfds")
        load("cinic10", tmp_path / "tfds", write(tmp_path / "good", cinic10_files()))
        assert_cinic10_is_complete(tmp_path / "tfds")

    @pytest.mark.parametrize("share", [0, 0.5, 0.95])
    def test_a_truncated_image(self, tmp_path, share):
        name = "test/ship/cifar10-3.png"
        files = cinic10_files()
        files[name] = files[name][: int(share * len(files[name]))]
        self.fails(tmp_path, files, name)

    def test_an_image_of_another_size(self, tmp_path):
        name = "test/ship/cifar10-3.png"
        files = {**cinic10_files(), name: tf.io.encode_png(noise(0, (32, 31, 3))).numpy()}
        self.fails(tmp_path, files, "(32, 31, 3)")

    def test_an_archive_cut_in_the_middle(self, tmp_path):
        content = packed_tar(cinic10_files())
        self.fails(tmp_path, {"CINIC-10.tar.gz": content[: len(content) // 2]}, "CINIC-10.tar.gz")

    def test_a_broken_file_in_a_zip(self, tmp_path):
        content = bytearray(packed_zip(tiny_imagenet_files()))
        content[len(content) // 2] ^= 1
        manual_dir = write(tmp_path / "manual", {"tiny-imagenet-200.zip": content})
        with pytest.raises(InputError, match=r"\.JPEG: can't be read from .*CRC") as error:
            load("tiny_imagenet", tmp_path, manual_dir)
        one_line(error)
        assert_nothing_is_prepared("tiny_imagenet", tmp_path)

    def test_a_truncated_jpeg(self, tmp_path):
        files = tiny_imagenet_files()
        name = "val/images/val_9.JPEG"
        files[name] = files[name][:-200]
        manual_dir = write(tmp_path / "manual", files)
        with pytest.raises(InputError, match=name):
            load("tiny_imagenet", tmp_path, manual_dir)
        assert_nothing_is_prepared("tiny_imagenet", tmp_path)

    # The larger one is only reached as the first split's file is closed.
    @pytest.mark.parametrize("limit", [30_000, 64_000])
    def test_a_full_disk(self, tmp_path, limit):
        write(tmp_path / "CINIC-10", cinic10_files())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(RuntimeError, match="File too large"):
                load("cinic10", tmp_path / "tfds", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert_nothing_is_prepared("cinic10", tmp_path / "tfds")
        load("cinic10", tmp_path / "tfds", tmp_path)
        assert_cinic10_is_complete(tmp_path / "tfds")
        print(
            [
                (f.name, f.stat().st_size)
                for f in (tmp_path / "tfds" / "cinic10" / "1.0.0").iterdir()
            ]
        )

    def test_a_killed_process(self, tmp_path, repository):
        write(tmp_path / "CINIC-10", cinic10_files())
        program = (
            "import time, sys, tensorflow_datasets as tfds\n"
            "from stkd_keras.data import archives, cinic10\n"
            "examples = archives.examples\n"
            "def stop_midway(*arguments):\n"
            "    yield next(examples(*arguments))\n"
            "    print('midway', flush=True)\n"
            "    time.sleep(600)\n"
            "archives.examples = stop_midway\n"
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


class TestChecksums:
    def test_tiny_imagenets_is_found(self):
        address = TinyImagenet.ADDRESS
        assert TinyImagenet.url_infos[address].size == 248_100_043
        assert TinyImagenet.url_infos[address].filename == "tiny-imagenet-200.zip"

    def test_cinic10_has_none_of_tfds(self):
        assert Cinic10.url_infos == {}


def test_tfds_knows_them_by_name(tmp_path):
    for name in ("tiny_imagenet", "cinic10"):
        builder = tfds.builder(name, data_dir=tmp_path)
        assert builder.info.full_name == f"{name}/1.0.0"
        assert builder.info.supervised_keys == ("image", "label")
        assert builder.info.homepage.startswith("http")
        assert "@article{" in builder.info.citation
