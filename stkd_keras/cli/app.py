"""Runs a command: flags, help and one-line errors."""

import contextlib
import functools
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from absl import app, flags, logging

from stkd_keras.data.sources.image_files import name_broken_files
from stkd_keras.errors import InputError, WorkerLostError, is_text
from stkd_keras.training.signals import Interrupted, ignore_signals, leave, raise_on_signals

# Kubeflow's training operator restarts processes that exit with this status.
WORKER_LOST = 138
_HELP = ("-h", "-help", "--help", "--helpshort", "-helpfull", "--helpfull")


def run(
    main: Callable[[], None],
    description: str,
    groups: Sequence[str] = (),
    common: Sequence[str] = (),
) -> None:
    """Parses the flags, runs a command, and ends the process.

    Bad flags and input end with one line and status 2, a lost worker with one line and status 138,
    SIGTERM and SIGINT with one line and 128 plus the signal's number.
    """
    logging.set_verbosity(logging.WARNING)
    # The models don't support channels_first, which a user's keras.json may set.
    keras.config.set_image_data_format("channels_last")
    if not sys.warnoptions:
        # Python's warnings are for developers and would hide the one-line error.
        warnings.simplefilter("ignore")
    # File and class names may contain characters that the terminal can't encode.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def parse(argv: list[str]) -> list[str]:
        if asked := set(_HELP) & set(argv[1:]):
            shown = () if any("full" in flag for flag in asked) else common
            print(_help(description, groups, shown))
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise InputError(f"unexpected argument {rest[1]!r}; flags are --name=value")
            for group in command_flags(groups).values():
                _check_texts(group)
        except UnicodeDecodeError as error:
            _fail(InputError(f"--flagfile names a file that isn't UTF-8 text ({error})"))
        except (flags.Error, InputError, OSError) as error:
            _fail(error)
        return rest

    app.run(lambda _: _guarded(main), flags_parser=parse)


class FlagGroup:
    """Defines flags, which `--helpfull` lists under the group's name."""

    def __init__(self, name: str):
        self.string, self.integer, self.float, self.bool, self.enum, self.list = (
            functools.partial(_define, define, name)
            for define in (
                flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_bool,
                flags.DEFINE_enum, flags.DEFINE_list,
            )
        )  # fmt: skip


def command_flags(groups: Sequence[str] = ()) -> dict[str, list[flags.Flag]]:
    """Returns the command's own flags by group."""
    by_module = flags.FLAGS.flags_by_module_dict()
    return {group: by_module[group] for group in groups or (sys.argv[0],)}


def _define(
    define: Callable, group: str, name: str, description: str, *, default: Any = None, **options
) -> None:
    define(name, default, help=description, module_name=group, **options)


def _check_texts(own_flags: Sequence[flags.Flag]) -> None:
    """Rejects empty values (of unset shell variables), the next flag, and invalid UTF-8."""
    for flag in own_flags:
        if not isinstance(flag.value, str):
            continue
        if not flag.value.strip():
            raise InputError(f"--{flag.name} is empty; give it a value, or leave it out")
        if flag.value.startswith("--"):
            raise InputError(f"--{flag.name} takes a value, but is followed by {flag.value!r}")
        if not is_text(flag.value):
            raise InputError(f"--{flag.name}={flag.value!r} isn't UTF-8; rename the file")


def _guarded(main: Callable[[], None]) -> None:
    raise_on_signals()
    try:
        with name_broken_files():
            main()
    except (InputError, OSError) as error:
        _fail(error)
    except WorkerLostError as error:
        _print_error(error)
        leave(WORKER_LOST)
    except Interrupted as error:
        ignore_signals()
        overwrites = "overwrite" in flags.FLAGS and flags.FLAGS.overwrite
        command = f"the same command{' without --overwrite' if overwrites else ''}"
        done = f"after {error}; rerun {command} to resume"
        with contextlib.suppress(OSError):
            print(flush=True)
        with contextlib.suppress(OSError):
            _print(
                f"stopped by {error.number.name} "
                + (done if str(error) else "before it finished; rerun the same command")
            )
        leave(128 + error.number)


def _fail(error: Exception) -> None:
    _print_error(error)
    sys.exit(2)


def _print_error(error: Exception) -> None:
    # A file name may contain control sequences for the terminal.
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    _print(f"error: {line}")


def _print(line: str) -> None:
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr, flush=True)


def _help(description: str, groups: Sequence[str], common: Sequence[str]) -> str:
    """Describes the common flags or, if none are given, those of all groups."""
    if common:
        groups = ["common flags (--helpfull shows all)"]
        for name in common:
            flags.FLAGS.register_key_flag_for_module(groups[0], flags.FLAGS[name])
    sections = map(flags.FLAGS.module_help, groups or [sys.argv[0]])
    return "\n".join([textwrap.dedent(description).strip(), *sections])
