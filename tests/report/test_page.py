"""The report as a browser shows it: readable on a phone, light and dark, with nothing fetched."""

import json
import re

import networks
import numpy as np
import pytest
from browser import DESK, PHONE, open_browser, requested, show, width_of_page

import stkd_keras.data
from stkd_keras import FrozenTeacher, experiment
from stkd_keras.experiment import Student

# Every element with words of its own, as it is shown: their letters' size, and their colours.
TEXTS = """
const shown = [];
for (const details of document.querySelectorAll("details")) details.open = true;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const words = walker.currentNode.textContent.trim();
  if (!words || element.closest("script, style") || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  let size = parseFloat(style.fontSize), colour = style.color;
  const svg = element.closest("svg");
  if (svg) {
    const matrix = element.getScreenCTM();
    size *= Math.hypot(matrix.a, matrix.b);
    colour = style.fill;
  }
  let behind = element, background = "rgba(0, 0, 0, 0)";
  while (behind && background == "rgba(0, 0, 0, 0)") {
    background = getComputedStyle(behind).backgroundColor;
    behind = behind.parentElement;
  }
  shown.push({words, size, colour, background, inFigure: Boolean(svg)});
}
return shown;
"""


@pytest.fixture(scope="module")
def browser():
    browser = open_browser()
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A report with long, strange and many names, at the address of its file."""
    random = np.random.default_rng(0)
    names = ["x" * 200, "<img src=http://127.0.0.1:1/a.png>", "words " * 40]
    names += [f"class {n}" for n in range(9)]
    images = random.integers(0, 256, (72, 8, 8, 3), np.uint8)
    labels = np.arange(72) % 12
    dataset = stkd_keras.data.from_arrays(images[:24], labels[:24], images[24:], labels[24:], names)
    small = [networks.small_convolutional_classifier(12, (8, 8, 3)) for _ in range(3)]
    folder = tmp_path_factory.mktemp("page")
    (folder / "run").mkdir()
    config = {"settings": {"student": "y" * 300}, "command": ["train.py", "z" * 300]}
    (folder / "run" / "config.json").write_text(json.dumps(config))
    (folder / "run" / "history.csv").write_text("epoch,loss,val_accuracy\n0,2,0.5\n1,1,0.6\n")
    students = [Student("s" * 90, small[0], folder / "run"), Student("other", small[1])]
    experiment.report(folder / "report.html", students, FrozenTeacher(small[2]), dataset)
    return (folder / "report.html").as_uri()


def luminance(colour):
    channels = np.array([float(c) for c in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    """As WCAG 2.2 defines it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_console_is_silent_and_nothing_is_requested(browser, address, scheme):
    show(browser, address, DESK, scheme)
    assert browser.get_log("browser") == []
    sent = requested(browser)
    assert sent, "the log doesn't even have the page itself"
    assert [url for url in sent if not url.startswith(("data:", address))] == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_only_boxes_scroll_sideways_and_never_the_page(browser, address, width):
    show(browser, address, width, "light")
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert width_of_page(browser) <= width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 99))"
    )
    assert outside == []


def test_all_text_on_a_phone_has_at_least_11_pixels_in_figures_too(browser, address):
    show(browser, address, PHONE, "light")
    texts = browser.execute_script(TEXTS)
    assert sum(text["inFigure"] for text in texts) > 100
    assert len(texts) > 400
    assert [text for text in texts if text["size"] < 11] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, address, scheme):
    show(browser, address, DESK, scheme)
    texts = browser.execute_script(TEXTS)
    page = luminance(
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    )
    assert (page > 0.9) if scheme == "light" else (page < 0.05)
    # White letters are those on the strongest cells, which have a colour of their own.
    weak = [
        text
        for text in texts
        if contrast(text["colour"], text["background"]) < 4.5
        and not (text["inFigure"] and contrast(text["colour"], "rgb(31, 111, 178)") >= 4.5)
    ]
    assert weak == []


def test_every_picture_has_an_alternative(browser, address):
    show(browser, address, DESK, "light")
    without = browser.execute_script(
        "return [...document.querySelectorAll('img, svg')].filter(e =>"
        " !(e.getAttribute('alt') || e.getAttribute('aria-label'))).length"
    )
    assert without == 0
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0


def test_the_first_numbers_are_on_a_phones_first_screen(browser, address):
    show(browser, address, PHONE, "light")
    bottom = browser.execute_script(
        "return document.querySelector('.summary').getBoundingClientRect().bottom"
    )
    assert bottom < 844
