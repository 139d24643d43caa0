"""Hostile data sets: each is refused in one line, and does no harm."""

import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import PIL.Image
import pytest
import tensorflow_datasets as tfds
from hostile_files import HUGE, link, refusal, zip_of_zeros

from stkd_keras import data
from stkd_keras.data.sources.file_tree import open_tree
from stkd_keras.files import untrusted


def tar_entry(name="train/a.png", size=0, kind=tarfile.REGTYPE):
    """A tar entry of zeros, which may state a larger size."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT) + bytes(-(-min(size, 10**7) // 512) * 512)


@pytest.mark.parametrize("name", ["../marker", "train/../../marker", "/tmp/marker", link("link")])
def test_a_zip_entry_that_leads_out_of_the_archive_is_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"/etc/passwd")
    assert repr(getattr(name, "filename", name)) in refusal(open_tree, tmp_path / "a.zip")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_zip_bomb_is_refused(tmp_path):
    zip_of_zeros(tmp_path / "a.zip", "train/0.png", 10**7, stated=HUGE)
    assert "100,000 MB" in refusal(open_tree, tmp_path / "a.zip")
    # Entries that share one content.
    block = bytes(untrusted.LARGEST_MEMBER)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/0", block)
        for n in range(1, 1 + untrusted.LARGEST_ARCHIVE // len(block)):
            entry = zipfile.ZipInfo(f"train/{n}")
            for field in ("header_offset", "file_size", "compress_size", "compress_type", "CRC"):
                setattr(entry, field, getattr(archive.filelist[0], field))
            archive.filelist.append(entry)
    assert "unpacks to 10.1 GB" in refusal(open_tree, tmp_path / "b.zip")
    # An understated size bounds what is read.
    zip_of_zeros(tmp_path / "c.zip", "a", 10**8, stated=1000)
    tracemalloc.start()
    assert open_tree(tmp_path / "c.zip").read("a") == bytes(1000)
    assert tracemalloc.get_traced_memory()[1] < 50 * 10**6
    tracemalloc.stop()


def sparse_map():
    """A tar entry with a map of holes that never ends."""
    marks = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
    entry = tarfile.TarInfo("a")
    entry.pax_headers = {**marks, "GNU.sparse.realsize": "1"}
    return entry.tobuf(tarfile.PAX_FORMAT) + b"99999999999\n" + b"0\n" * 6 * 10**5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: tar_entry(size=HUGE), "100,000 MB"),
        (lambda: tar_entry(size=10**7, kind=tarfile.XHDTYPE), "implausibly long"),
        (lambda: tar_entry(size=10**7, kind=tarfile.GNUTYPE_LONGNAME), "implausibly long"),
        (sparse_map, "implausibly long"),
        (lambda: tar_entry() + bytes(2 * untrusted.LARGEST_MEMBER), "zeros after its last"),
        (lambda: tar_entry(kind=tarfile.CHRTYPE) + bytes(1024), "is a link or a device"),
        (lambda: tar_entry(kind=tarfile.LNKTYPE) + bytes(1024), "is a link or a device"),
    ],
    ids=["huge", "header", "name", "sparse", "zeros", "device", "link"],
)
def test_a_tar_that_would_fill_memory_or_disk_is_refused(content, reason, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.fileobj.write(content())
    assert reason in refusal(open_tree, tmp_path / "a.tar.gz", megabytes=100)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


def png(width=32, height=32):
    """A black PNG, written line by line."""
    line = bytes(1 + width // 8)
    compressor = zlib.compressobj(9)
    pixels = b"".join(compressor.compress(line) for _ in range(height)) + compressor.flush()

    def chunk(kind, content):
        checksum = struct.pack(">L", zlib.crc32(kind + content))
        return struct.pack(">L", len(content)) + kind + content + checksum

    header = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
    beginning = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return beginning + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_an_image_of_gigapixels_is_refused(tmp_path):
    with PIL.Image.open(io.BytesIO(png(8_000, 8_000))) as image:
        assert image.size == (8_000, 8_000)
    content = png(40_000, 40_000)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "a.png").write_bytes(content)
    message = refusal(data.load, "folder", tmp_path, image_size=8)
    assert "implausibly large" in message


def prepared(root, features):
    """A prepared data set with these features."""
    folder = root / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(features))
    about = {"name": "cifar10", "version": "3.0.2", "fileFormat": "tfrecord", "splits": []}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_prepared_data_set_that_names_a_module_to_import_is_refused(key, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    for number in (1, 2):
        code = f"open({str(marker)!r}, 'w').close()"
        (tmp_path / f"hostile_{key}_{number}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    dictionary = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    first, inner = ({key: f"hostile_{key}_{number}.Image"} for number in (1, 2))
    if key == "type":  # TFDS's format until 2022.
        first, inner = ({**each, "content": {}} for each in (first, inner))
        features = {key: dictionary, "content": {"image": inner}}
    else:
        features = {key: dictionary, "featuresDict": {"features": {"image": inner}}}
    with pytest.raises(ValueError, match="Unrecognized"):
        tfds.builder_from_directory(prepared(tmp_path / "1", first))
    assert marker.exists()
    marker.unlink()
    prepared(tmp_path / "2", features)
    message = refusal(data.load, "cifar10", tmp_path / "2")
    assert f"hostile_{key}_2.Image" in message
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "cifar10").symlink_to(tmp_path / "2" / "cifar10")
    assert "features.json" in refusal(data.load, "cifar10", tmp_path / "3")
    assert not marker.exists()
