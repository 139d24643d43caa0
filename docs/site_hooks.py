"""Adds pages of the repository's root and the notebooks to the website.

Links in the pages work in the repository. Here they are changed to the site's pages; a link to a
file that isn't part of the site becomes plain text.
"""

import os
import pathlib
import re

import nbconvert
from mkdocs.structure.files import File

DOCS = pathlib.Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "reporting-a-vulnerability.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
_LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Adds the pages that come from other files."""
    for name, uri in ROOT_PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / name)))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            for page in _pages_of_notebook(file, config):
                files.append(page)
    return files


def on_page_markdown(markdown, page, config, files):
    """Changes links to point to pages of the site."""
    names = {uri: name for name, uri in ROOT_PAGES.items()}
    uri = page.file.src_uri
    folder = REPOSITORY if uri in names else (DOCS / uri).parent

    def in_site(match):
        path = (folder / match["target"]).resolve()
        # MkDocs checks missing files and web addresses itself.
        if ":" in match["target"] or not path.exists():
            return match[0]
        target = _uri_in_site(path)
        if target is None:
            return match["text"][1:-1]
        relative = os.path.relpath(target, os.path.dirname(uri) or ".")
        return f"{match['text']}({relative}{match['anchor'] or ''})"

    # Code stays as it is: x[0](y) isn't a link.
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(in_site, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(in_site, markdown[end:])])


def _uri_in_site(path: pathlib.Path) -> str | None:
    """Returns the path in the site of a file or folder of the repository, or None."""
    if path.is_dir():
        path /= "README.md"
    if path.parent == REPOSITORY and path.name in ROOT_PAGES:
        return ROOT_PAGES[path.name]
    if not path.is_relative_to(DOCS) or not path.exists():
        return None
    uri = path.relative_to(DOCS).as_posix()
    return uri.removesuffix(".ipynb") + ".md" if uri.endswith(".ipynb") else uri


def _pages_of_notebook(file, config):
    """Yields the page of a notebook with its stored outputs, and its pictures."""
    exporter = nbconvert.MarkdownExporter()
    markdown, resources = exporter.from_filename(file.abs_src_path)
    # Remove terminal colors.
    markdown = re.sub(r"\x1b\[[0-9;]*m", "", markdown)
    title = re.search(r"^# (.+)$", markdown, re.MULTILINE)[1]
    stem = file.src_uri.removesuffix(".ipynb")
    folder = os.path.dirname(file.src_uri)
    for number, (name, content) in enumerate(resources["outputs"].items(), start=1):
        picture = f"{os.path.basename(stem)}_{name}"
        markdown = markdown.replace(f"![png]({name})", f"![{title}, picture {number}]({picture})")
        yield File.generated(config, f"{folder}/{picture}", content=content)
    yield File.generated(config, f"{stem}.md", content=markdown)
