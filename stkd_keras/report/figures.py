"""Draws a report's figures as SVG in the page's colors, with text alternatives."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stkd_keras.report.measurements import off_diagonal

WIDTH = 340
"""CSS pixels: the width of a 390-pixel phone without margins. One pixel is one matplotlib point."""
FONT_SIZE = 11.5
# The largest class counts for which a matrix has names on its axes, and numbers in its cells.
MOST_NAMED_CLASSES = 20
MOST_WRITTEN_CLASSES = 12
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = "osD^vP"
# Values are drawn as opacity, so that one blue works on light and dark pages. Text has a contrast
# of at least 4.5: in the page's color up to the limit, in white above it.
CELL_COLOR = "#1f6fb2"
WHITE_TEXT_FROM = 0.93

# Placeholders for the colors of the light or dark page.
INK, FAINT, CELL_INK = "#010203", "#040506", "#070809"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
"""The first color is the student's, the second one the teacher's."""
_VARIABLES = {
    INK: "currentColor",
    FAINT: "var(--line)",
    CELL_INK: "var(--cell-ink)",
    **{color: f"var(--series-{n})" for n, color in enumerate(SERIES, start=1)},
}
_STYLE: Any = {
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), FAINT),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "svg.fonttype"), "none"),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    "font.size": FONT_SIZE,
    "text.parse_math": False,  # A class name may contain "$".
}


def draw_figures(
    models: Sequence[dict], histories: Sequence[Mapping], class_names: Sequence[str]
) -> dict[str, list[dict]]:
    """Draws the figures of each section; `histories` are those of the students' runs."""
    with matplotlib.rc_context(_STYLE):
        each = list(enumerate(models))
        highest = max(np.nanmax(off_diagonal(m["similarity"]), initial=0) for m in models)
        drawn = {
            "accuracy": [_draw_accuracies(models)] if len(models) > 1 else [],
            "reliability": [_draw_reliability(n, model) for n, model in each],
            "confusion": [_draw_confusion(n, model, class_names) for n, model in each],
            "similarity": [_draw_similarity(n, model, highest, class_names) for n, model in each],
            "curves": _draw_all_curves(models, histories),
        }
        if len(models) > 1 and models[1]["role"] == "teacher":
            drawn["similarity"].append(_draw_similarity_scatter(*models[:2]))
    return drawn


def _draw_accuracies(models: Sequence[Mapping]) -> dict:
    figure = _new_figure(46 + 26 * len(models))
    axes = figure.subplots()
    value = 100 * np.array([model["accuracy"] for model in models])
    low, high = 100 * np.transpose([model["accuracy_interval"] for model in models])
    rows = np.arange(len(models))
    axes.hlines(rows, low, high, color=SERIES[0], linewidth=2)
    axes.plot(value, rows, "o", color=SERIES[0])
    axes.set_yticks(rows, [_shorten(model["name"], 18) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x")
    axes.set_xlabel("accuracy, %")
    caption = "Accuracy on the test images with 95 % intervals"
    return _drawn(figure, "accuracies", f"{caption}, as in the table.", caption)


def _draw_reliability(number: int, model: Mapping) -> dict:
    left, accuracy, confidence, images = _filled_bins(model["reliability"])
    figure = _new_figure(300)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
    bars = {"width": 100 / len(model["reliability"]), "align": "edge", "color": color}
    axes.bar(100 * left, 100 * accuracy, alpha=0.45, **bars)
    axes.plot(100 * confidence, 100 * accuracy, marker, color=color, markersize=4)
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--")
    axes.set(ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 104))
    axes.set_yticks(range(0, 101, 20))
    counts.bar(100 * left, 100 * images / images.sum(), alpha=0.45, **bars)
    counts.set(xlabel="confidence, %", ylabel="images, %")
    counts.yaxis.set_major_locator(MaxNLocator(2))
    error = f"ECE {100 * model['ece']:.2f} %"
    if "calibrated_reliability" in model:
        _, accuracy, confidence, _ = _filled_bins(model["calibrated_reliability"])
        axes.plot(100 * confidence, 100 * accuracy, f"{marker}-", color=INK, markerfacecolor="none")
        error += (
            f" (bars); {100 * model['calibrated_ece']:.2f} % with the calibration temperature "
            f"{model['calibration_temperature']:.4g} (line)"
        )
    caption = f"{model['name']}: {error}. On the dashed line, accuracy equals confidence"
    return _drawn(figure, f"reliability-{number}", f"Reliability diagram of {caption}.", caption)


def _filled_bins(reliability: Sequence[Mapping]) -> list[np.ndarray]:
    bins = [each for each in reliability if each["images"]]
    keys = ("lower", "accuracy", "confidence", "images")
    return [np.array([each[key] for each in bins]) for key in keys]


def _draw_confusion(number: int, model: Mapping, class_names: Sequence[str]) -> dict:
    counts = model["confusion"]
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(totals > 0, totals, math.nan)
    figure = _draw_matrix(shares, 100.0, class_names, "predicted class")
    text = (
        f"Confusion matrix of {model['name']}, {len(counts)} classes: "
        f"{100 * model['accuracy']:.1f} % of the images are on the diagonal. The table lists the "
        "largest other entries."
    )
    caption = f"{model['name']}: % of the images of each true class"
    return _drawn(figure, f"confusion-{number}", text, caption)


def _draw_similarity(
    number: int, model: Mapping, highest: float, class_names: Sequence[str]
) -> dict:
    """Draws a model's class similarity; `highest` gets the strongest color."""
    matrix = model["similarity"]
    others = 100 * np.where(np.eye(len(matrix), dtype=bool), math.nan, matrix)
    figure = _draw_matrix(others, 100 * highest, class_names, "class")
    caption = f"{model['name']}: mean soft outputs in %, without the diagonal"
    text = f"{caption}. The table lists the largest entries."
    return _drawn(figure, f"similarity-{number}", text, caption)


def _draw_similarity_scatter(student: Mapping, teacher: Mapping) -> dict:
    x, y = (100 * off_diagonal(model["similarity"]) for model in (teacher, student))
    figure = _new_figure(WIDTH * 0.9)
    axes = figure.subplots()
    highest = 1.05 * max(np.nanmax(x, initial=0), np.nanmax(y, initial=0), 1e-6)
    # Pixels, because 200 classes have 39,800 dots. Their color can't depend on the page's.
    axes.scatter(x, y, s=12, linewidths=0, alpha=0.7, color="#8c6bb1", rasterized=True)
    axes.plot([0, highest], [0, highest], color=INK, linewidth=1, linestyle="--")
    for axis, model in ((axes.xaxis, teacher), (axes.yaxis, student)):
        axis.set_label_text(f"{_shorten(model['name'], 24)}, %")
        axis.set_major_locator(MaxNLocator(5))
    axes.set(xlim=(0, highest), ylim=(0, highest))
    r = student["similarity_correlation"]
    found = "the correlation is undefined" if r is None else f"correlation {r:.3f}"
    text = f"Pairs of classes, {student['name']} against {teacher['name']}: {found}."
    caption = f"Each dot is a pair of classes: {found}. On the dashed line, both models agree"
    return _drawn(figure, "similarity-scatter", text, caption)


def _draw_all_curves(models: Sequence[dict], histories: Sequence[Mapping]) -> list[dict]:
    """Draws the first run's history and the validation accuracy of all runs."""
    history = histories[0]
    shares = {
        "validation accuracy": history.get("val_accuracy"),
        "training accuracy": history.get("accuracy"),
        "agreement with the teacher": history.get("teacher_agreement"),
    }
    losses = {name: values for name, values in history.items() if name.endswith("loss")}
    students = [model["name"] for model in models if model["role"] != "teacher"]
    accuracies = [each.get("val_accuracy") for each in histories]
    drawings = [
        _draw_curves("accuracy", shares, "%", "Accuracy and agreement by epoch"),
        _draw_curves("loss", losses, "loss", "Losses by epoch; val_loss is the cross-entropy"),
    ]
    if len(students) > 1:
        runs = dict(zip(students, accuracies, strict=True))
        caption = "Validation accuracy of the runs by epoch"
        drawings.append(_draw_curves("runs", runs, "validation accuracy, %", caption))
    return [drawing for drawing in drawings if drawing is not None]


def _draw_curves(
    name: str, curves: Mapping[str, Sequence[float] | None], label: str, caption: str
) -> dict | None:
    """Draws curves by epoch, skipping NaN; returns None if there are no values."""
    unit, factor = (" %", 100) if "%" in label else ("", 1)
    figure = _new_figure(240)
    axes = figure.subplots()
    said: list[str] = []
    for number, (curve, values) in enumerate(curves.items()):
        if not (epochs := np.flatnonzero(np.isfinite(values or ()))).size:
            continue
        shown = factor * np.asarray(values)[epochs]
        axes.plot(
            epochs + 1, shown, color=SERIES[number % len(SERIES)], linewidth=1.8,
            linestyle=DASHES[number % len(DASHES)], marker=MARKERS[number % len(MARKERS)],
            markersize=4, markevery=max(1, len(epochs) // 6), label=_shorten(curve, 34),
        )  # fmt: skip
        said.append(
            f"{curve} from {shown[0]:.4g}{unit} to {shown[-1]:.4g}{unit} in {len(shown)} epochs"
        )
    if not said:
        return None
    figure.set_figheight((240 + 16 * len(said)) / 72)
    axes.grid(axis="y")
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(loc="outside lower left", ncols=1, handlelength=3.2)
    return _drawn(figure, f"curves-{name}", f"{caption}. {'; '.join(said)}.", caption)


def _draw_matrix(
    values: np.ndarray, highest: float, class_names: Sequence[str], across: str
) -> Figure:
    """Draws a matrix of percentages (C, C) by true class; NaN cells stay empty."""
    count, down = len(values), "true class"
    figure = _new_figure(WIDTH + (0 if count <= MOST_WRITTEN_CLASSES else 50))
    axes = figure.subplots()
    opacity = np.arange(256)[:, None] / 255
    cells = ListedColormap(np.hstack([np.tile(to_rgb(CELL_COLOR), (256, 1)), opacity]))
    colors = cells.with_extremes(bad=(0, 0, 0, 0))
    highest = highest if highest > 0 else 1.0
    image = axes.imshow(values, colors, interpolation="none", vmin=0, vmax=highest, aspect="equal")
    axes.spines[:].set_visible(True)
    if count <= MOST_NAMED_CLASSES:
        names = [_shorten(name, 11) for name in class_names]
        axes.set_xticks(range(count), names, rotation=0 if max(map(len, names)) < 3 else 90)
        axes.set_yticks(range(count), names)
        axes.tick_params(length=0)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        across, down = f"{across} (number)", f"{down} (number)"
    axes.set(xlabel=across, ylabel=down)
    if count <= MOST_WRITTEN_CLASSES:
        digits = 1 if highest < 10 and count <= 8 else 0
        for (row, column), value in np.ndenumerate(values):
            if value > 0 and round(value, digits) > 0:  # False for NaN.
                color = "#ffffff" if value / highest > WHITE_TEXT_FROM else CELL_INK
                label = f"{value:.{digits}f}"
                axes.text(column, row, label, ha="center", va="center", color=color)
    else:
        scale = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=30)
        if scale.solids is not None:
            scale.solids.set_rasterized(True)  # Translucent vector steps would overlap.
        scale.set_ticks([0, highest], labels=["0 %", f"{highest:.3g} %"])
        scale.outline.set_edgecolor(FAINT)
    return figure


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _new_figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")


def _drawn(figure: Figure, name: str, text: str, caption: str) -> dict:
    """Returns a figure as an `<svg>` element with a text alternative, and its caption."""
    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": name}):
        # The browser has fonts for characters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=none, dpi=200)
    # The page has its own styles, its own colors, and several figures with the same IDs.
    svg = re.sub(r"(?s)^.*?(?=<svg )|<style.*?</style>", "", buffer.getvalue())
    svg = re.sub("|".join(_VARIABLES), lambda color: _VARIABLES[color[0]], svg)
    used = set(re.findall(r"#(\w+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda each: each[0] if each[1] in used else "", svg)
    svg = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg, count=2)
    alternative = Markup('<svg role="img" aria-label="{}" ').format(text)
    return {"svg": alternative + Markup(svg.removeprefix("<svg ")), "caption": caption}
