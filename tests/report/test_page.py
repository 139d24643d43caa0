"""The page is safe and complete, and readable in a browser: on a phone, light and dark."""

import itertools
import json
import re

import numpy as np
import pytest
from browser import DESK, PHONE, open_browser, requested, show, width_of_page
from reports import Page, dataset_of, models_of, write_run

from stkd_keras import FrozenTeacher, InputError, experiment
from stkd_keras.experiment import Student

CLASSES = (
    "<script>alert(1)</script>", "$\\frac{x}$", "猫 & 犬", "x" * 300, "a\u202eb", '"quoted\'',
    "<img src=http://127.0.0.1:1/a.png>", "words " * 40, "frog", "horse", "ship", "truck",
)  # fmt: skip
EXPORT = {
    "student": {"accuracy": 0.5, "bytes": 1_000_000, "latency_ms": 1.0, "images_per_second": 1e3},
    "machine": "<b>a machine</b>",
    "images": 9,
    "formats": {
        "litert": {
            "file": "student.tflite", "bytes": 250_000, "accuracy": 0.5, "agreement": 0.998,
            "largest_difference": 1e-3, "latency_ms": 0.5, "images_per_second": 2e3,
            "runtime": "LiteRT 2.3",
        }
    },
}  # fmt: skip
TEACHER = {
    "flags": {"teacher": "resnet20"},
    "teachers": [{"source": "teachers/digits-1.0.0-resnet20-791e8f5c/teacher.keras"}],
}
# Every visible text on the page, with the size and the colors it is shown in.
TEXTS = """
const shown = [];
for (const details of document.querySelectorAll("details")) details.open = true;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const words = walker.currentNode.textContent.trim();
  if (!words || element.closest("script, style") || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  let size = parseFloat(style.fontSize), color = style.color;
  const svg = element.closest("svg");
  if (svg) {
    const matrix = element.getScreenCTM();
    size *= Math.hypot(matrix.a, matrix.b);
    color = style.fill;
  }
  let parent = element, background = "rgba(0, 0, 0, 0)";
  while (parent && background == "rgba(0, 0, 0, 0)") {
    background = getComputedStyle(parent).backgroundColor;
    parent = parent.parentElement;
  }
  shown.push({words, size, color, background, inFigure: Boolean(svg)});
}
return shown;
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The file of a report on two students and their teacher, with hostile and long names.

    Also returns the models, the data set, and the scores.
    """
    folder = tmp_path_factory.mktemp("report")
    dataset = dataset_of(CLASSES)
    student, other, teacher = models_of(dataset, 3)
    run = write_run(folder / "run", TEACHER, teacher_weights="9d" * 32, student="y" * 300)
    (run / "metrics.json").write_text(json.dumps({"calibration": {"temperature": 2.5}}))
    (run / "export").mkdir()
    (run / "export" / "export.json").write_text(json.dumps(EXPORT))
    students = [Student("<i>small</i>", student, run), Student("s" * 90, other)]
    file, teacher = folder / "report.html", FrozenTeacher(teacher)
    metrics = experiment.report(file, students, teacher, dataset)
    return file, student, teacher, dataset, metrics


@pytest.fixture(scope="module")
def page(report):
    return Page(report[0].read_text())


@pytest.fixture(scope="module")
def browser():
    browser = open_browser()
    yield browser
    browser.quit()


def test_the_teacher_is_named_as_in_the_runs_config(page):
    assert [model["name"] for model in page.numbers["models"]] == [
        "<i>small</i>", "resnet20", "s" * 90
    ]  # fmt: skip
    assert "<i>small</i>, distilled from resnet20" in page.text


def test_the_scores_are_those_of_evaluate(report, page):
    _, student, teacher, dataset, metrics = report
    expected = experiment.evaluate(student, teacher, dataset, {}, temperature=2.5)
    assert set(metrics) == set(expected)
    for name, values in expected.items():
        assert metrics[name] == pytest.approx(values, abs=1e-6)
    assert page.numbers["models"][0]["accuracy"] == pytest.approx(expected["test"]["accuracy"])
    assert page.numbers["models"][1]["nll"] == pytest.approx(expected["teacher"]["nll"])
    error = f"{100 * expected['test']['calibrated_ece']:.2f} % with the calibration temperature 2.5"
    assert error in page.text


def test_the_largest_differences_are_those_with_the_largest_kl(page):
    shown = [each["kl"] for each in page.numbers["most_different"]]
    assert len(shown) == 12
    assert shown == sorted(shown, reverse=True)


def test_an_export_has_a_table(page):
    for shown in ("student.tflite", "99.80 %", "LiteRT 2.3", "0.25", "<b>a machine</b>"):
        assert shown in page.text


def test_text_from_files_is_escaped_and_nothing_is_fetched(report, page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1  # The numbers.
    assert "b" not in tags
    assert "i" not in tags
    assert "<script>alert(1)</script>" in page.text
    assert "--student=</code><b>bold" in page.text
    assert "$\\frac{x}$" in page.text
    assert "\u202e" not in report[0].read_text()
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#")), value


def test_figures_have_alternatives_and_captions_and_headings_are_in_order(page):
    figures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(figures) >= 12
    assert all(len(each["aria-label"]) > 30 and each["role"] == "img" for each in figures)
    assert sum(tag == "figcaption" for tag, _ in page.elements) == len(figures)
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_two_hundred_classes_fit_on_the_page(tmp_path):
    dataset = dataset_of([f"class {n}" for n in range(200)], (9, 7, 1), 90)
    student, teacher = models_of(dataset, 2)
    file = tmp_path / "report.html"
    experiment.report(file, [Student("s", student)], FrozenTeacher([teacher, student]), dataset)
    assert file.stat().st_size < 5e6
    assert "All 200 classes" in Page(file.read_text()).text


def test_one_test_image_and_no_teacher_are_enough(tmp_path):
    dataset = dataset_of(("a", "b"), tests=1)
    file = tmp_path / "report.html"
    metrics = experiment.report(file, [Student("s", *models_of(dataset, 1))], None, dataset)
    assert set(metrics) == {"test"}
    page = Page(file.read_text())
    assert page.text.count("There is no teacher to compare with") == 4
    assert "fidelity" not in page.numbers["models"][0]


def test_a_file_in_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(InputError, match="choose a file"):
        experiment.report(tmp_path / "no" / "report.html", [], None, dataset_of(("a", "b")))


def luminance(color):
    channels = np.array([float(c) for c in re.findall(r"[\d.]+", color)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    """The contrast ratio of WCAG 2.2."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_reports_no_errors_and_all_text_has_contrast(browser, report, scheme):
    address = report[0].as_uri()
    show(browser, address, DESK, scheme)
    assert browser.get_log("browser") == []
    sent = requested(browser)
    assert sent, "the log lacks the page itself"
    assert [url for url in sent if not url.startswith(("data:", address))] == []
    body = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(body) > 0.9) if scheme == "light" else (luminance(body) < 0.05)
    # White text is on the strongest cells, which have their own color.
    weak = [
        text
        for text in browser.execute_script(TEXTS)
        if contrast(text["color"], text["background"]) < 4.5
        and not (text["inFigure"] and contrast(text["color"], "rgb(31, 111, 178)") >= 4.5)
    ]
    assert weak == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_only_tables_scroll_sideways(browser, report, width):
    show(browser, report[0].as_uri(), width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert width_of_page(browser) <= width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 99))"
    )
    assert outside == []


def test_a_phone_shows_readable_text_all_images_and_the_summary_first(browser, report):
    show(browser, report[0].as_uri(), PHONE)
    texts = browser.execute_script(TEXTS)
    assert sum(text["inFigure"] for text in texts) > 100
    assert len(texts) > 400
    assert [text for text in texts if text["size"] < 11] == []
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    bottom = "return document.querySelector('.summary').getBoundingClientRect().bottom"
    assert browser.execute_script(bottom) < 844
