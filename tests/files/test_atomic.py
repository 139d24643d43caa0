"""Files are written completely or not at all."""

import os

import pytest

from stkd_keras.files.atomic import atomic_path


def test_a_file_stays_as_it_was_if_writing_it_fails(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail_halfway():
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
