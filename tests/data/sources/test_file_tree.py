import concurrent.futures
import io
import os
import pathlib
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.errors import InputError

KINDS = ["folder", "zip", "tar", "tar.gz", "tar.xz"]
FILES = {
    "train/cat/1.png": b"one" * 300,
    "train/cat/2.png": b"",
    "train/dog/1.png": bytes(range(256)) * 9,
    "words.txt": "Käse\n".encode(),
}

NOISE = {f"train/{seed}.png": np.random.default_rng(seed).bytes(5000) for seed in range(10)}


def pack(kind, path, files) -> pathlib.Path:
    """Writes files, a dict of contents by name, as a folder or as an archive."""
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:" + kind.removeprefix("tar").removeprefix(".")) as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


def add_link(kind, path) -> pathlib.Path:
    if kind == "zip":
        entry = zipfile.ZipInfo("train/link.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(entry, "/etc/hostname")
    else:
        pack(kind, path, FILES)
        with tarfile.open(path, "w") as archive:
            entry = tarfile.TarInfo("train/link.png")
            entry.type = tarfile.SYMTYPE
            entry.linkname = "/etc/hostname"
            archive.addfile(entry)
    return path


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        open_tree(path)
    return one_line(error)


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    return message


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_the_files_are_those_packed(self, tmp_path, kind):
        # Without a suffix: it is the content that tells.
        tree = open_tree(pack(kind, tmp_path / "data", FILES))
        assert tree.names() == sorted(FILES)
        assert {name: tree.read(name) for name in FILES} == FILES
        assert tree.path == str(tmp_path / "data")
        assert tree.is_random_access == (kind in ("folder", "zip"))

    def test_read_all_reads_each_once(self, tmp_path, kind):
        tree = open_tree(pack(kind, tmp_path / "data", FILES))
        names = ["words.txt", "train/cat/2.png", "words.txt"]
        read = list(tree.read_all(iter(names)))
        assert sorted(read) == sorted((name, FILES[name]) for name in set(names))
        assert list(tree.read_all([])) == []

    def test_a_file_that_isnt_there(self, tmp_path, kind):
        tree = open_tree(pack(kind, tmp_path / "data", FILES))
        with pytest.raises(InputError, match=r"has no file 'wnids.txt'"):
            tree.read("wnids.txt")

    @pytest.mark.parametrize(
        ("files", "names"),
        [
            (["a/b/1", "a/c/2"], ["b/1", "c/2"]),
            (["a/b/train/1", "a/b/test/1"], ["test/1", "train/1"]),
            (["a/b/1", "a/b/2", "__MACOSX/a/._1", "._a", ".DS_Store"], ["1", "2"]),
            # Whatever is beside the folder of a user may be needed.
            (["a/b/1", "labels.csv"], ["a/b/1", "labels.csv"]),
            (["train/a/1", "train/b/1", ".DS_Store"], [".DS_Store", "train/a/1", "train/b/1"]),
            (["1"], ["1"]),
        ],
    )
    def test_top_folder(self, tmp_path, kind, files, names):
        contents = {name: name.encode() for name in files}
        tree = open_tree(pack(kind, tmp_path / "data", contents))
        assert tree.names() == names
        for name in names:
            assert tree.read(name).endswith(name.encode())

    def test_several_threads(self, tmp_path, kind):
        pixels = np.random.default_rng(0).integers(0, 9, (40, 5000), np.uint8)
        files = {str(number): row.tobytes() for number, row in enumerate(pixels)}
        tree = open_tree(pack(kind, tmp_path / "data", files))
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            names = list(files) * (10 if tree.is_random_access else 1)
            for name, content in zip(names, threads.map(tree.read, names), strict=True):
                assert content == files[name]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
class TestArchives:
    @pytest.mark.parametrize("start", ["./", "././", ".//"])
    def test_dot_slash(self, tmp_path, kind, start):
        files = {start + name: content for name, content in FILES.items()}
        tree = open_tree(pack(kind, tmp_path / "data", files))
        assert tree.names() == sorted(FILES)
        assert dict(tree.read_all(FILES)) == FILES

    @pytest.mark.parametrize("name", ["../evil", "/abs/evil", "train/../../evil", "./../evil"])
    def test_entries_that_point_outside(self, tmp_path, monkeypatch, kind, name):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        path = pack(kind, tmp_path / "here" / "data", {**FILES, name: b"evil"})
        assert repr(name) in refusal(path)
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "here", path]
        assert not os.path.exists("/abs")

    def test_links(self, tmp_path, kind):
        assert "'train/link.png'" in refusal(add_link(kind, tmp_path / "data"))

    def test_the_same_file_twice(self, tmp_path, kind):
        path = pack(kind, tmp_path / "data", {"a": b"1", "./a": b"2"})
        assert "'a', which is there twice" in refusal(path)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
    def test_cut_short(self, tmp_path, kind, share):
        path = pack(kind, tmp_path / "data", NOISE)
        os.truncate(path, int(share * path.stat().st_size))
        assert str(path) in refusal(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_without_its_last_byte(tmp_path, kind):
    path = pack(kind, tmp_path / "data", NOISE)
    os.truncate(path, path.stat().st_size - 1)
    assert str(path) in refusal(path)


def test_a_tar_cut_between_files(tmp_path):
    path = tmp_path / "data"
    # A header and a block of content each.
    for blocks in range(1, 5):
        os.truncate(pack("tar", path, {"a": b"1", "b": b"2"}), blocks * 512)
        assert str(path) in refusal(path)


def test_a_tar_with_a_broken_header(tmp_path):
    path = pack("tar", tmp_path / "data", {"a": b"1", "b": b"2", "c": b"3"})
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    assert "header" in refusal(path)


def test_a_flipped_bit_in_a_compressed_tar(tmp_path):
    path = pack("tar.gz", tmp_path / "data", {"a": np.random.default_rng(0).bytes(5000)})
    content = bytearray(path.read_bytes())
    content[2500] ^= 1
    path.write_bytes(content)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_broken_file_in_a_zip(tmp_path, method):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("good", b"good")
        archive.writestr("bad", np.random.default_rng(0).bytes(5000))
    content = bytearray(path.read_bytes())
    content[2500] ^= 1
    path.write_bytes(content)
    tree = open_tree(path)
    assert tree.read("good") == b"good"
    for read in (tree.read, lambda name: list(tree.read_all([name]))):
        with pytest.raises(InputError, match=r"^bad: ") as error:
            read("bad")
        assert str(path) in one_line(error)


def test_a_tar_that_changes_while_it_is_read(tmp_path):
    tree = open_tree(pack("tar.gz", tmp_path / "data", FILES))
    pack("tar.gz", tmp_path / "data", {"other": b""})
    with pytest.raises(InputError, match=r"^words.txt: .*no longer"):
        tree.read("words.txt")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, b"\x1f\x8b\x08no"])
def test_no_archive(tmp_path, content):
    path = tmp_path / "data.zip"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_nothing(tmp_path):
    assert "doesn't exist" in refusal(tmp_path / "nowhere")


class TestFolders:
    def test_links_to_files_and_folders(self, tmp_path):
        pack("folder", tmp_path / "real", FILES)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "train").symlink_to(tmp_path / "real" / "train")
        (tmp_path / "data" / "words.txt").symlink_to(tmp_path / "real" / "words.txt")
        tree = open_tree(tmp_path / "data")
        assert dict(tree.read_all(tree.names())) == FILES

    def test_broken_links(self, tmp_path):
        (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
        assert "lost.png" in refusal(tmp_path)

    def test_links_that_go_round(self, tmp_path):
        pack("folder", tmp_path, FILES)
        (tmp_path / "train" / "again").symlink_to(tmp_path)
        assert "again" in refusal(tmp_path)

    def test_the_path_is_that_of_the_names(self, tmp_path):
        tree = open_tree(pack("folder", tmp_path, {"a/b/1": b"1", "a/b/2": b"2"}))
        assert tree.path == str(tmp_path / "a" / "b")

    def test_a_file_that_is_gone(self, tmp_path):
        tree = open_tree(pack("folder", tmp_path, FILES))
        (tmp_path / "words.txt").unlink()
        with pytest.raises(InputError, match=r"^words.txt: ") as error:
            tree.read("words.txt")
        one_line(error)
