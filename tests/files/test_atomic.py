"""Files and folders are written completely or not at all."""

import subprocess
import sys

import pytest

from stkd_keras import InputError
from stkd_keras.files.atomic import atomic_folder


@pytest.mark.parametrize("files", [{}, {"a": "1"}])
def test_a_folder_stays_as_it_was_if_filling_it_fails(files, tmp_path):
    target = tmp_path / "new" / "folder"
    if files:
        target.mkdir(parents=True)
        (target / "a").write_text("1")

    def fail_halfway():
        with atomic_folder(target) as new:
            (new / "a").write_text("2")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert {path.name: path.read_text() for path in target.glob("**/*")} == files
    assert (tmp_path / "new").exists() == bool(files)


def test_only_one_process_at_a_time_fills_a_folder(tmp_path):
    temporary = tmp_path / ".unfinished-folder"
    (temporary / "new").mkdir(parents=True)
    (temporary / "new" / "file").write_text("of the first")
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, temporary / "lock"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as first:  # fmt: skip
        first.stdout.readline()
        with pytest.raises(InputError, match="is being written by another process"):
            atomic_folder(tmp_path).__enter__()
        assert (temporary / "new" / "file").read_text() == "of the first"
        first.stdin.close()
    # The remains of a killed process don't matter.
    with atomic_folder(tmp_path) as new:
        (new / "file").write_text("of the second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "of the second"}
