"""Makes files that lie about their size, and checks how they are refused."""

import struct
import tracemalloc
import zipfile
import zlib

import pytest

from stkd_keras.errors import InputError

HUGE = 100 * 10**9


def refusal(function, *arguments, megabytes=250, **settings):
    """The error of a call: one line, raised without using much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            function(*arguments, **settings)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 10**6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def link(name):
    """A symbolic link in a zip archive."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry


def zip_of_zeros(path, name, size, stated):
    """A zip archive with one compressed file of zeros, which states another size."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = compressor.compress(bytes(size)) + compressor.flush()
    # The zip64 fields hold the sizes.
    common = struct.pack("<HHHHHLLL", 45, 0, 8, 0, 33, zlib.crc32(bytes(min(stated, size))),
                         2**32 - 1, 2**32 - 1)  # fmt: skip
    sizes = struct.pack("<HHQQ", 1, 16, stated, len(packed))
    names = struct.pack("<HH", len(name), len(sizes))
    with path.open("wb") as file:
        file.write(b"PK\3\4" + common + names + name.encode() + sizes + packed)
        start = file.tell()
        directory = struct.pack("<HHHLL", 0, 0, 0, 0, 0)
        file.write(b"PK\1\2\x2d\0" + common + names + directory + name.encode() + sizes)
        end = file.tell()
        file.write(b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, end - start, start, 0))
