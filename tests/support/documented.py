"""Code blocks and commands in README, CONTRIBUTING and docs."""

import pathlib
import re
import shlex
from typing import NamedTuple

LANGUAGES = ("bash", "python", "text", "yaml")
MARKS = ("continues", "needs", "not run", "slow")
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"(?<!`)`((?:python|make|tensorboard)\s[^`]+)`")


class Block(NamedTuple):
    """A fenced code block.

    Attributes:
        page: path of its page in the repository.
        line: its first line.
        language: the language after the fence.
        code: its content.
        mark: the comment above it: "not run: REASON", "slow: REASON", "needs MODULE", "continues"
            (runs after the page's previous block, with its names), or "".
    """

    page: str
    line: int
    language: str
    code: str
    mark: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def pages(repository: pathlib.Path) -> list[pathlib.Path]:
    """Returns the pages of the documentation."""
    roots = (repository / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))
    return [*roots, *sorted((repository / "docs").rglob("*.md"))]


def blocks(repository: pathlib.Path) -> list[Block]:
    """Returns all code blocks."""
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
    """Returns (page, words) of each command within a sentence."""
    found = []
    for page in pages(repository):
        text = _BLOCK.sub("", page.read_text())
        name = page.relative_to(repository).as_posix()
        found += [(name, shlex.split(match[1])) for match in _INLINE.finditer(text)]
    return found


def shell_commands(code: str) -> list[list[str]]:
    """Returns the words of each command of a bash block, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command for command in commands if command]
