"""Broken files are refused in one line."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from stkd_keras import InputError, RecordedTeacher
from stkd_keras.teacher.recording_file import make_header

LOGITS = np.random.default_rng(0).normal(size=(4, 8, 10)).astype("float16")
HEADER = make_header({"data_seed": 5}, LOGITS.shape, "float16")
CONTENT = HEADER + LOGITS.tobytes()


def header_with(**changes):
    header = json.loads(HEADER[8:])
    header["logits"] |= changes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def test_a_recording_is_a_safetensors_file_with_settings(tmp_path):
    (tmp_path / "t").write_bytes(CONTENT)
    recorded = RecordedTeacher(tmp_path / "t")
    assert (recorded.steps, recorded.batch_size, recorded.num_classes) == LOGITS.shape
    assert recorded.settings == {"data_seed": 5}
    np.testing.assert_array_equal(recorded._read(2), LOGITS[2].astype("float32"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no recording",
        CONTENT[:-100],
        CONTENT + b"more",
        struct.pack("<Q", 2**62) + CONTENT[8:],
        header_with(shape=[10_000_000, 8, 10]) + LOGITS.tobytes(),
        header_with(shape=[4, 80]) + LOGITS.tobytes(),
        header_with(dtype="F64") + LOGITS.tobytes(),
    ],
    ids=range(8),
)
def test_a_broken_recording_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError, match=r"t (isn't|is broken|has)[^\n]*$"):
        RecordedTeacher(tmp_path / "t")


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"logits": LOGITS}, tmp_path / "t")
    with pytest.raises(InputError, match="isn't a recording"):
        RecordedTeacher(tmp_path / "t")
