import os
import pathlib
import resource
import signal
import tarfile

import numpy as np
import pytest
from archive_files import pack

from stkd_keras.data.sources import archives, threads
from stkd_keras.data.sources.archives import find_source, unpack_tar
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.errors import InputError

FILES = {"train/cat/1.png": b"one" * 300, "train/cat/2.png": b"", "words.txt": "Käse\n".encode()}
NOISE = {f"train/{seed}.png": np.random.default_rng(seed).bytes(5000) for seed in range(10)}


def contents(folder) -> dict[str, bytes]:
    files = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refusal(path) -> str:
    """The error of opening an archive, which leaves nothing next to it."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError, match="expected") as error:
        open_tree(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert sorted(path.parent.iterdir()) == before
    return message


class TestUnpackTar:
    @pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
    def test_unpacks_next_to_the_archive(self, tmp_path, kind):
        folder = pathlib.Path(unpack_tar(str(pack(kind, tmp_path / "data", FILES))))
        assert folder.parent == tmp_path
        assert contents(folder) == FILES
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_relative_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        pack("tar", tmp_path / "data", FILES)
        assert contents(unpack_tar("data")) == FILES

    def test_names_that_start_with_a_dot_and_a_slash(self, tmp_path):
        files = {f".//{name}": content for name, content in FILES.items()}
        assert contents(unpack_tar(str(pack("tar", tmp_path / "data", files)))) == FILES

    def test_unpacks_again_only_if_the_archive_has_changed(self, tmp_path):
        path = pack("tar", tmp_path / "data", FILES)
        first = pathlib.Path(unpack_tar(str(path)))
        (first / "words.txt").write_bytes(b"reused")
        assert unpack_tar(str(path)) == str(first)
        assert (first / "words.txt").read_bytes() == b"reused"
        pack("tar", path, NOISE)
        assert contents(unpack_tar(str(path))) == NOISE

    def test_progress_is_shown_after_a_while(self, tmp_path, monkeypatch, capsys):
        path = pack("tar", tmp_path / "data", FILES)
        monkeypatch.setattr(threads, "PROGRESS_AFTER", 0.0)
        folder = unpack_tar(str(path))
        assert f"unpacking {path} to {folder}" in capsys.readouterr().out

    def test_a_killed_process_leaves_nothing_that_counts_as_complete(self, tmp_path, monkeypatch):
        path = pack("tar.gz", tmp_path / "CINIC-10.tar.gz", FILES)
        process = os.fork()
        if process == 0:
            # At the end of the archive, with all files written.
            monkeypatch.setattr(
                archives, "_check_end", lambda file: os.kill(os.getpid(), signal.SIGKILL)
            )
            unpack_tar(str(path))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 2
        assert find_source(tmp_path, "cinic10") == path
        assert contents(unpack_tar(str(path))) == FILES

    def test_a_full_disk_leaves_nothing(self, tmp_path):
        path = pack("tar.gz", tmp_path / "data", {"a": b"", "large": bytes(10**6)})
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            assert "File too large" in refusal(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert open_tree(path).names() == ["a", "large"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_without_permission_to_write(self, tmp_path):
        path = pack("tar", tmp_path / "data", FILES)
        tmp_path.chmod(0o500)
        try:
            assert "unpack it yourself" in refusal(path)
        finally:
            tmp_path.chmod(0o700)

    @pytest.mark.parametrize("name", ["../evil", "/abs/evil", "train/../../evil", "./../evil"])
    def test_an_entry_outside_of_the_archive(self, tmp_path, name):
        (tmp_path / "here").mkdir()
        path = pack("tar", tmp_path / "here" / "data", {**FILES, name: b"evil"})
        assert repr(name) in refusal(path)
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "here", path]
        assert not os.path.exists("/abs")

    def test_a_link(self, tmp_path):
        entry = tarfile.TarInfo("train/link.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        with tarfile.open(tmp_path / "data", "w") as archive:
            archive.addfile(entry)
        assert "'train/link.png'" in refusal(tmp_path / "data")

    def test_the_same_name_twice(self, tmp_path):
        path = pack("tar", tmp_path / "data", {"a": b"1", "./a": b"2"})
        assert "'a', which appears twice" in refusal(path)

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.9999])
    @pytest.mark.parametrize("kind", ["tar.gz", "tar.xz"])
    def test_a_truncated_archive(self, tmp_path, kind, share):
        path = pack(kind, tmp_path / "data", NOISE)
        os.truncate(path, int(share * path.stat().st_size))
        refusal(path)

    def test_a_tar_cut_between_files(self, tmp_path):
        # A header and a block of content each.
        for blocks in range(1, 5):
            path = pack("tar", tmp_path / "data", {"a": b"1", "b": b"2"})
            os.truncate(path, blocks * 512)
            refusal(path)

    @pytest.mark.parametrize(("kind", "position"), [("tar", 1024), ("tar.gz", 2500)])
    def test_a_flipped_bit(self, tmp_path, kind, position):
        noise = np.random.default_rng(0).bytes(5000)
        path = pack(kind, tmp_path / "data", {"a": b"1", "b": b"2", "c": noise})
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        refusal(path)


class TestFindSource:
    def test_an_archive_or_the_unpacked_folder_itself(self, tmp_path):
        pack("folder", tmp_path, {"mine.zip": b"", "unpacked/train/n0/images/n0_0.JPEG": b""})
        for path in (tmp_path / "mine.zip", tmp_path / "unpacked"):
            assert find_source(path, "tiny_imagenet") == path

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
            # The archive may have changed since.
            (["tiny-imagenet.tar", "tiny-imagenet.tar.unpacked-0/train/1"], "tiny-imagenet.tar"),
            # A prepared TFDS data set, downloads in progress, and another data set.
            (["tiny_imagenet/1.0.0/dataset_info.json"], None),
            (["tiny-imagenet-200.zip.part", "CINIC-10.tar.gz", "cifar10/train/1"], None),
        ],
    )
    def test_in_a_folder(self, tmp_path, files, found):
        pack("folder", tmp_path, dict.fromkeys(files, b""))
        expected = None if found is None else tmp_path / found
        assert find_source(tmp_path, "tiny_imagenet") == expected

    def test_nowhere(self, tmp_path):
        assert find_source(tmp_path / "nowhere", "cinic10") is None
