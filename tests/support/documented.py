"""The code blocks and the commands of README and docs/, as they stand there."""

import pathlib
import re
import shlex
from typing import NamedTuple

LANGUAGES = ("bash", "python", "text", "yaml")
MARKS = ("goes on", "needs", "not run", "slow")
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"(?<!`)`((?:python|make|tensorboard)\s[^`]+)`")


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        page: the page's path in the repository.
        line: where its first line is.
        language: what stands behind the fence.
        code: what is in it.
        mark: what a comment on the line above says of it: "not run: REASON", "slow: REASON",
            "needs MODULE", "goes on" (after the page's block before it, with its names and files),
            or nothing.
    """

    page: str
    line: int
    language: str
    code: str
    mark: str

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether it is run as it stands there."""
        return not self.mark.startswith("not run")


def pages(repository: pathlib.Path) -> list[pathlib.Path]:
    """Returns README and all the pages under docs/."""
    return [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]


def blocks(repository: pathlib.Path) -> list[Block]:
    """Returns all the fenced blocks."""
    found = []
    for page in pages(repository):
        text = page.read_text()
        name = page.relative_to(repository).as_posix()
        for match in _BLOCK.finditer(text):
            line = text[: match.start("code")].count("\n") + 1
            mark = match["mark"] or ""
            found.append(Block(name, line, match["language"], match["code"], mark))
    return found


def inline_commands(repository: pathlib.Path) -> list[tuple[str, list[str]]]:
    """Returns the commands that stand within sentences, with where they stand."""
    found = []
    for page in pages(repository):
        text = _BLOCK.sub("", page.read_text())
        name = page.relative_to(repository).as_posix()
        found += [(name, shlex.split(match[1])) for match in _INLINE.finditer(text)]
    return found


def shell_commands(code: str) -> list[list[str]]:
    """Returns the commands of a block of bash as lists of words, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command for command in commands if command]
