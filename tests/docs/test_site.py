"""The website of the documentation builds without warnings and loads nothing external."""

import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
import threading

import pytest
from browser import DESK, PHONE, open_browser, requested, show, width_of_page

FOREIGN = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?(?:src|href)=\"?(?:https?:)?//")
PAGES = ("", "train", "method", "reference/stkd_keras", "notebooks/virtual_samples")


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    completed = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=repository,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return folder


def test_no_page_loads_anything_external(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not FOREIGN.search(page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text()), sheet


def test_links_to_files_of_the_repository_become_links_to_pages(site):
    security = (site / "security" / "index.html").read_text()
    assert 'href="../reporting-a-vulnerability/"' in security
    home = (site / "index.html").read_text()
    assert 'href="choosing-a-method/"' in home
    assert "docs/" not in re.findall(r'href="([^"]*)"', home)


def test_the_reference_has_every_public_name_with_types(site, repository):
    names = re.findall(r'^    "(\w+)",$', (repository / "stkd_keras/__init__.py").read_text(), re.M)
    assert "FrozenTeacher" in names
    page = (site / "reference" / "stkd_keras" / "index.html").read_text()
    for name in names:
        assert name == "__version__" or f'id="stkd_keras.{name}"' in page, name
    assert re.search(r">float<.{,20},\s*default:\s*<code>4.0</code>", page)


def test_pages_of_notebooks_have_their_pictures(site):
    page = (site / "notebooks" / "virtual_samples" / "index.html").read_text()
    pictures = re.findall(r'<img alt="How virtual samples work, picture \d+" src="([^"]+)"', page)
    assert len(pictures) >= 5
    for picture in pictures:
        assert (site / "notebooks" / "virtual_samples" / picture).is_file()


def test_pages_fit_desktop_and_phone_without_browser_errors(site):
    browser = open_browser()
    with contextlib.ExitStack() as stack:
        stack.callback(browser.quit)
        address = stack.enter_context(served(site))
        for width in (DESK, PHONE):
            for page in PAGES:
                show(browser, f"{address}/{page}", width)
                assert width_of_page(browser) <= width, page
                sent = requested(browser)
                assert len(sent) > 3
                assert [url for url in sent if not url.startswith(("data:", address))] == [], page
                assert browser.get_log("browser") == [], page


@contextlib.contextmanager
def served(folder):
    """Serves a folder on this machine, and yields its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass
