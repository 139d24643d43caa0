"""The figures of a report, each with what it says in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stkd_keras.report.numbers import largest_entries, off_diagonal
from stkd_keras.report.svg import (
    CELL_INK,
    FAINT,
    FONT_SIZE,
    INK,
    SERIES,
    WIDTH,
    new_figure,
    style,
    to_svg,
)

# What still fits beside a matrix's rows, and in its cells.
MOST_NAMED_CLASSES = 20
MOST_WRITTEN_CLASSES = 12
NAME_LENGTH = 11
POINTS_AS_VECTORS = 1_000
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = "osD^vP"
# A blue that is drawn over the page, so that it suits a light and a dark one. Letters of the page
# have a contrast of 4.5 on weaker cells, and white ones on those that are stronger, on both.
CELL_COLOUR = "#1f6fb2"
WHITE_INK_FROM = 0.93


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of the page: its SVG, and the caption under it, plain text."""

    svg: str
    caption: str


def draw_accuracies(names: Sequence[str], models: Sequence[Mapping]) -> Drawing:
    """Draws the accuracy of each model with its interval."""
    with style():
        figure = new_figure(46 + 26 * len(names))
        axes = figure.subplots()
        for row, model in enumerate(models):
            low, high = (100 * end for end in model["accuracy_interval"])
            value = 100 * model["accuracy"]
            colour = SERIES[row % len(SERIES)]
            axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(value, row, MARKERS[row % len(MARKERS)], color=colour)
        axes.set_yticks(range(len(names)), [shorten(name, 18) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("accuracy, %")
        said = "; ".join(
            f"{name} {_percent(model['accuracy'])} %, 95 % interval "
            f"{_percent(model['accuracy_interval'][0])} to "
            f"{_percent(model['accuracy_interval'][1])} %"
            for name, model in zip(names, models, strict=True)
        )
        svg = to_svg(figure, "accuracies", f"Accuracy on the test images: {said}.")
    return Drawing(svg, "Accuracy on the test images, with its 95 % interval")


def draw_reliability(name: str, number: int, model: Mapping) -> Drawing:
    """Draws accuracy by confidence, and how many images have which confidence."""
    bins = [each for each in model["reliability"] if each["images"]]
    total = sum(each["images"] for each in bins)
    with style():
        figure = new_figure(300)
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        colour = SERIES[number % len(SERIES)]
        left = [100 * each["lower"] for each in bins]
        width = 100 / len(model["reliability"])
        heights = [100 * each["accuracy"] for each in bins]
        axes.bar(left, heights, width, align="edge", color=colour, alpha=0.45)
        axes.plot(
            [100 * each["confidence"] for each in bins], heights,
            MARKERS[number % len(MARKERS)], color=colour, markersize=4,
        )  # fmt: skip
        axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--")
        axes.set(ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 100))
        shares = [100 * each["images"] / total for each in bins]
        counts.bar(left, shares, width, align="edge", color=colour, alpha=0.45)
        counts.set(xlabel="confidence, %", ylabel="images, %")
        counts.yaxis.set_major_locator(MaxNLocator(2))
        sure = bins[-1]
        text = (
            f"Reliability diagram of {name}: expected calibration error "
            f"{_percent(model['ece'], 2)} %. Of the {total:,} images {sure['images']:,} are "
            f"answered with a confidence of more than {100 * sure['lower']:.0f} %, on average "
            f"{_percent(sure['confidence'])} %, and {_percent(sure['accuracy'])} % of those are "
            "right."
        )
        svg = to_svg(figure, f"reliability-{number}", text)
    caption = f"{name}: ECE {_percent(model['ece'], 2)} %. Dots on the dashed line would be perfect"
    return Drawing(svg, caption)


def draw_confusion(name: str, number: int, model: Mapping, class_names: Sequence[str]) -> Drawing:
    """Draws, of the images of each class, the shares that are given each class."""
    counts = model["confusion"]
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.where(totals > 0, totals, math.nan)
    confused = [
        f"{counts[true, given]:,} of {int(totals[true, 0]):,} {class_names[true]} are called "
        f"{class_names[given]}"
        for true, given in largest_entries(counts, 3)
    ]
    with style():
        figure = draw_matrix(shares, 100.0, class_names, "named class", "true class")
        text = (
            f"Confusion matrix of {name}, {len(counts)} classes: {_percent(model['accuracy'])} % "
            f"of the images are on the diagonal. {'; '.join(confused) or 'None are confused'}."
        )
        svg = to_svg(figure, f"confusion-{number}", text)
    return Drawing(svg, f"{name}: % of the images of a class (rows) that are named as each")


def draw_similarity(
    name: str, number: int, matrix: np.ndarray, highest: float, class_names: Sequence[str]
) -> Drawing:
    """Draws how much of every other class a model sees in each.

    Args:
        name: of the model.
        number: of the model.
        matrix: of `class_similarity`.
        highest: the entry that has the strongest colour, the same for all models.
        class_names: names of the classes.
    """
    alike = [
        f"{_percent(matrix[true, other])} % {class_names[other]} in {class_names[true]}"
        for true, other in largest_entries(matrix, 3)
    ]
    others = 100 * np.where(np.eye(len(matrix), dtype=bool), math.nan, matrix)
    with style():
        figure = draw_matrix(others, 100 * highest, class_names, "class seen", "true class")
        text = (
            f"How alike the classes look to {name}, mean soft outputs off the diagonal: most "
            f"{'; '.join(alike) or 'nothing'}."
        )
        svg = to_svg(figure, f"similarity-{number}", text)
    return Drawing(svg, f"{name}: mean soft output in %, the diagonal left out")


def draw_similarity_scatter(
    name: str, teacher_name: str, student: np.ndarray, teacher: np.ndarray, r: float | None
) -> Drawing:
    """Draws the student's similarities against the teacher's."""
    x, y = 100 * off_diagonal(teacher), 100 * off_diagonal(student)
    with style():
        figure = new_figure(WIDTH * 0.9)
        axes = figure.subplots()
        highest = 1.05 * max(np.nanmax(x, initial=0), np.nanmax(y, initial=0), 1e-6)
        many = len(x) > POINTS_AS_VECTORS
        # What is rasterised can't follow the page's colours.
        axes.scatter(
            x, y, s=6 if many else 16, linewidths=0, alpha=0.35 if many else 0.75,
            color="#8c6bb1" if many else SERIES[0], rasterized=many,
        )  # fmt: skip
        axes.plot([0, highest], [0, highest], color=INK, linewidth=1, linestyle="--")
        axes.set(xlabel=f"{shorten(teacher_name, 24)}, %", ylabel=f"{shorten(name, 24)}, %")
        axes.set(xlim=(0, highest), ylim=(0, highest))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        found = "no correlation is defined" if r is None else f"correlation {r:.3f}"
        count = int((np.isfinite(x) & np.isfinite(y)).sum())
        text = f"{count:,} pairs of classes, {name} against {teacher_name}: {found}."
        svg = to_svg(figure, "similarity-scatter", text)
    return Drawing(svg, f"Each dot a pair of classes: {found}. On the dashed line both agree")


def draw_curves(
    figure_name: str,
    curves: Mapping[str, Sequence[float]],
    label: str,
    caption: str,
    in_percent: bool = False,
    series: Sequence[int] | None = None,
) -> Drawing | None:
    """Draws values by epoch; None where there are none.

    Args:
        figure_name: of this figure.
        curves: by name the values of the epochs, NaN for none.
        label: of the vertical axis.
        caption: what stands below.
        in_percent: whether fractions are shown in percent.
        series: which colour, dash and marker each curve has; None for the first ones.
    """
    scale = 100 if in_percent else 1
    looks = dict(zip(curves, series or range(len(curves)), strict=True))
    kept = {
        name: scale * np.asarray(values, float)
        for name, values in curves.items()
        if np.isfinite(values).any()
    }
    if not kept:
        return None
    with style():
        figure = new_figure(240 + 16 * len(kept))
        axes = figure.subplots()
        for name, values in kept.items():
            number, there = looks[name], np.isfinite(values)
            epochs = np.flatnonzero(there) + 1
            axes.plot(
                epochs, values[there], color=SERIES[number % len(SERIES)], linewidth=1.8,
                linestyle=DASHES[number % len(DASHES)], marker=MARKERS[number % len(MARKERS)],
                markersize=4, markevery=max(1, len(epochs) // 6), label=shorten(name, 34),
            )  # fmt: skip
        axes.grid(axis="y")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.legend(loc="outside lower left", ncols=1, handlelength=3.2)
        said = "; ".join(_course(name, values, in_percent) for name, values in kept.items())
        svg = to_svg(figure, f"curves-{figure_name}", f"{caption}. {said}.")
    return Drawing(svg, caption)


def draw_matrix(
    values: np.ndarray, highest: float, class_names: Sequence[str], across: str, down: str
) -> Figure:
    """Draws a matrix of percentages; a class by its name, as long as there is room.

    Args:
        values: float array (C, C), NaN for what is left empty.
        highest: what has the strongest colour.
        class_names: names of the classes.
        across: what the columns are.
        down: what the rows are.
    """
    count = len(values)
    named = count <= MOST_NAMED_CLASSES
    written = count <= MOST_WRITTEN_CLASSES
    figure = new_figure(WIDTH + (0 if written else 50))
    axes = figure.subplots()
    strength = np.arange(256)[:, None] / 255
    cells = ListedColormap(np.hstack([np.tile(to_rgb(CELL_COLOUR), (256, 1)), strength]))
    colours = cells.with_extremes(bad=(0, 0, 0, 0))
    highest = highest if highest > 0 else 1.0
    image = axes.imshow(values, colours, interpolation="none", vmin=0, vmax=highest, aspect="equal")
    axes.spines[:].set_visible(True)
    if named:
        names = [shorten(name, NAME_LENGTH) for name in class_names]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        axes.tick_params(length=0)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        across, down = f"{across} (number)", f"{down} (number)"
    axes.set(xlabel=across, ylabel=down)
    if written:
        _write_cells(axes, values, highest)
    else:
        scale = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=30)
        if scale.solids is not None:
            scale.solids.set_rasterized(True)  # Else its steps show through each other.
        scale.set_ticks([0, highest], labels=["0 %", f"{highest:.3g} %"])
        scale.outline.set_edgecolor(FAINT)
    return figure


def shorten(name: str, length: int) -> str:
    """Returns a name of at most so many characters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _write_cells(axes: Axes, values: np.ndarray, highest: float) -> None:
    """Writes the numbers into the cells of a matrix."""
    digits = 1 if highest < 10 and len(values) <= 8 else 0
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        if round(value, digits) > 0:
            is_strong = value / highest > WHITE_INK_FROM
            axes.text(
                column, row, f"{value:.{digits}f}", ha="center", va="center",
                color="#ffffff" if is_strong else CELL_INK, fontsize=FONT_SIZE,
            )  # fmt: skip


def _course(name: str, values: np.ndarray, in_percent: bool) -> str:
    there = values[np.isfinite(values)]
    unit = " %" if in_percent else ""
    return f"{name} from {there[0]:.4g}{unit} to {there[-1]:.4g}{unit} in {len(there)} epochs"


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f}"
