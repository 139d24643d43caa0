"""What train.py and evaluate.py share: flags, help, and errors in one line."""

import contextlib
import functools
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence

import keras
from absl import app, flags, logging

from stkd_keras.errors import InputError, WorkerLostError, is_text
from stkd_keras.training.signals import Interrupted, ignore_signals, leave, raise_on_signals

# Kubernetes' training operator restarts what ends with this status, which is the user's to give.
WORKER_LOST = 138


def run(main: Callable[[], None], description: str) -> None:
    """Parses the flags and runs a command, then ends the process.

    A wrong flag, an InputError and an error of the operating system end with one line and exit
    status 2, the loss of another worker with one line and status 138, SIGTERM and SIGINT with one
    line and 128 plus their number. `--help` shows the command's
    own flags and nothing of absl's.

    Args:
        main: the command.
        description: what `--help` says before the flags.
    """
    logging.set_verbosity(logging.WARNING)
    # A user's keras.json may say otherwise, for what isn't ours.
    keras.config.set_image_data_format("channels_last")
    if not sys.warnoptions:
        # They are for who writes code, and would stand around the one line.
        warnings.simplefilter("ignore")
    # File names and classes may have characters that a terminal hasn't.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app.run(
        lambda _: _guarded(main),
        flags_parser=functools.partial(_parse, description=description),
    )


def bytes_of(gigabytes: float) -> int:
    """Returns the value of --memory_limit in bytes; infinity is the largest there is.

    Raises:
        InputError: if it is negative or not a number.
    """
    if not gigabytes >= 0:
        raise InputError(f"--memory_limit={gigabytes} given, expected GB, 0 or more")
    return round(min(gigabytes * 1e9, sys.maxsize / 2))


def list_skipped(skipped: Sequence[str]) -> None:
    """Says what was left out of a data set."""
    if skipped:
        lines = "\n  ".join([f"left out {len(skipped)} images that can't be read:", *skipped])
        print(lines)


def _parse(argv: list[str], description: str) -> list[str]:
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(argv[1:]):
        print(_help(description))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise InputError(f"unexpected argument {rest[1]!r}; flags are --name=value")
        _check_texts(flags.FLAGS.flags_by_module_dict()[argv[0]])
    except UnicodeDecodeError as error:
        _fail(InputError(f"--flagfile names a file that isn't UTF-8 text ({error})"))
    except (flags.Error, InputError, OSError) as error:
        _fail(error)
    return rest


def _check_texts(own_flags: Sequence[flags.Flag]) -> None:
    """Refuses what a shell makes of a variable that isn't set, and what TensorFlow can't take."""
    for flag in own_flags:
        if isinstance(flag.value, str) and not flag.value.strip():
            raise InputError(f"--{flag.name} is given, but empty; give it a value, or leave it out")
        if isinstance(flag.value, str) and not is_text(flag.value):
            raise InputError(f"--{flag.name}={flag.value!r} isn't UTF-8; rename what it names")


def _guarded(main: Callable[[], None]) -> None:
    raise_on_signals()
    try:
        main()
    except (InputError, OSError) as error:
        _fail(error)
    except WorkerLostError as error:
        _print_error(error)
        leave(WORKER_LOST)
    except Interrupted as error:
        ignore_signals()
        overwrites = flags.FLAGS.get_flag_value("overwrite", False)
        command = f"the same command{' without --overwrite' if overwrites else ''}"
        where = f"after {error}; {command} resumes there"
        with contextlib.suppress(OSError):
            print(flush=True)
        with contextlib.suppress(OSError):
            _print(
                f"ended by {error.name} "
                + (where if str(error) else "before it was done; give the same command again")
            )
        leave(128 + error.number)


def _fail(error: Exception) -> None:
    _print_error(error)
    sys.exit(2)


def _print_error(error: Exception) -> None:
    # A name from a file could command the terminal.
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    _print(f"error: {line}")


def _print(line: str) -> None:
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr, flush=True)


def _help(description: str) -> str:
    parts = [textwrap.dedent(description).strip(), "\nFlags:"]
    for flag in flags.FLAGS.flags_by_module_dict()[sys.argv[0]]:
        shown = "" if flag.default is None else f" (default: {flag.default_as_str})"
        text = textwrap.fill(
            f"{flag.help}{shown}", 96, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
        parts.append(f"  --{flag.name}\n{text}")
    return "\n".join(parts)
