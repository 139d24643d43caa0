import concurrent.futures
import os
import stat
import zipfile

import numpy as np
import pytest
from archive_files import pack

from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.errors import InputError

FILES = {
    "train/cat/1.png": b"one" * 300,
    "train/cat/2.png": b"",
    "train/dog/1.png": bytes(range(256)) * 9,
    "words.txt": "Käse\n".encode(),
}
NOISE = {f"train/{seed}.png": np.random.default_rng(seed).bytes(5000) for seed in range(10)}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        open_tree(path)
    return one_line(error)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
class TestOpenTree:
    def test_reads_all_files(self, tmp_path, kind):
        # Archives are recognized without a suffix.
        tree = open_tree(pack(kind, tmp_path / "data", FILES))
        assert tree.names() == sorted(FILES)
        assert {name: tree.read(name) for name in FILES} == FILES
        assert [tree.size(name) for name in FILES] == list(map(len, FILES.values()))
        assert tree.path.startswith(str(tmp_path / "data"))

    @pytest.mark.parametrize(
        ("files", "names"),
        [
            (["a/b/1", "a/c/2"], ["b/1", "c/2"]),
            (["a/b/train/1", "a/b/test/1"], ["test/1", "train/1"]),
            (["a/b/1", "a/b/2", "__MACOSX/a/._1", "._a", ".DS_Store"], ["1", "2"]),
            # A file next to the user's folder may be needed.
            (["a/b/1", "labels.csv"], ["a/b/1", "labels.csv"]),
            (["train/a/1", "train/b/1", ".DS_Store"], [".DS_Store", "train/a/1", "train/b/1"]),
            (["1"], ["1"]),
        ],
    )
    def test_names_are_relative_to_a_top_folder(self, tmp_path, kind, files, names):
        contents = {name: name.encode() for name in files}
        tree = open_tree(pack(kind, tmp_path / "data", contents))
        assert tree.names() == names
        assert all(tree.read(name).endswith(name.encode()) for name in names)

    def test_several_threads(self, tmp_path, kind):
        tree = open_tree(pack(kind, tmp_path / "data", NOISE))
        names = list(NOISE) * 10
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            contents = list(threads.map(tree.read, names))
        assert contents == [NOISE[name] for name in names]


class TestZip:
    def test_names_that_start_with_a_dot_and_a_slash(self, tmp_path):
        files = {f"./{name}": content for name, content in FILES.items()}
        tree = open_tree(pack("zip", tmp_path / "data", files))
        assert {name: tree.read(name) for name in tree.names()} == FILES

    def test_an_entry_outside_of_the_archive(self, tmp_path):
        path = pack("zip", tmp_path / "data", {**FILES, "train/../../evil": b"evil"})
        assert "'train/../../evil'" in refusal(path)
        assert list(tmp_path.rglob("*")) == [path]

    def test_a_link(self, tmp_path):
        entry = zipfile.ZipInfo("train/link.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "data", "w") as archive:
            archive.writestr(entry, "/etc/hostname")
        assert "'train/link.png'" in refusal(tmp_path / "data")

    def test_the_same_name_twice(self, tmp_path):
        path = pack("zip", tmp_path / "data", {"a": b"1", "./a": b"2"})
        assert "'a', which appears twice" in refusal(path)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.9999])
    def test_a_truncated_zip(self, tmp_path, share):
        path = pack("zip", tmp_path / "data", NOISE)
        os.truncate(path, int(share * path.stat().st_size))
        assert str(path) in refusal(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_a_broken_file(self, tmp_path, method):
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("good", b"good")
            archive.writestr("bad", np.random.default_rng(0).bytes(5000))
        content = bytearray(path.read_bytes())
        content[2500] ^= 1
        path.write_bytes(content)
        tree = open_tree(path)
        assert tree.read("good") == b"good"
        with pytest.raises(InputError, match=r"^bad: ") as error:
            tree.read("bad")
        assert str(path) in one_line(error)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, b"\x1f\x8b\x08no"])
def test_a_file_that_is_no_archive(tmp_path, content):
    path = tmp_path / "data.zip"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_a_path_that_does_not_exist(tmp_path):
    assert "doesn't exist" in refusal(tmp_path / "nowhere")


def test_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a device or a pipe" in refusal(tmp_path / "pipe")


class TestFolder:
    def test_links_to_files_and_folders_are_followed(self, tmp_path):
        pack("folder", tmp_path / "real", FILES)
        (tmp_path / "data").mkdir()
        for name in ("train", "words.txt"):
            (tmp_path / "data" / name).symlink_to(tmp_path / "real" / name)
        tree = open_tree(tmp_path / "data")
        assert {name: tree.read(name) for name in tree.names()} == FILES

    def test_a_broken_link(self, tmp_path):
        (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
        assert "lost.png" in refusal(tmp_path)

    def test_a_link_to_its_own_parent(self, tmp_path):
        pack("folder", tmp_path, FILES)
        (tmp_path / "train" / "again").symlink_to(tmp_path)
        assert "again" in refusal(tmp_path)

    def test_the_path_is_the_folder_that_names_are_relative_to(self, tmp_path):
        tree = open_tree(pack("folder", tmp_path, {"a/b/1": b"1", "a/b/2": b"2"}))
        assert tree.path == str(tmp_path / "a" / "b")

    def test_a_file_that_was_removed(self, tmp_path):
        tree = open_tree(pack("folder", tmp_path, FILES))
        (tmp_path / "words.txt").unlink()
        with pytest.raises(InputError, match=r"^words.txt: ") as error:
            tree.read("words.txt")
        one_line(error)
