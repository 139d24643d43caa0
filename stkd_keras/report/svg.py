"""matplotlib's figures as SVG within a page: its colours, its letters, no identifiers twice."""

import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

WIDTH = 340
"""Pixels of CSS; with margins a phone of 390 has no more. A point of matplotlib is one of them."""
FONT_SIZE = 11.5

# Colours that stand for those of the page, light or dark.
INK, FAINT, CELL_INK = "#010203", "#040506", "#070809"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
"""The first is the student's, the second the teacher's."""
_VARIABLES = {
    INK: "currentColor",
    FAINT: "var(--line)",
    CELL_INK: "var(--cell-ink)",
    **{colour: f"var(--series-{n})" for n, colour in enumerate(SERIES, start=1)},
}
_STYLE = {
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    # A class may be called $x$.
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def style():
    """Returns the context that figures are made, and saved, in."""
    return matplotlib.rc_context(_STYLE)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Returns an empty figure of so many pixels of CSS."""
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def to_svg(figure: Figure, name: str, text: str) -> str:
    """Returns a figure as an `<svg>` element for a page.

    Args:
        figure: made within `style()`, in which this has to be called, too.
        name: of this figure only: what is in it is identified by it.
        text: what the figure says, for those who don't see it.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": name}):
        # The page's letters are the reader's own, whatever matplotlib's has.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=none)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root)
    width, height = (root.get(key, "").removesuffix("pt") for key in ("width", "height"))
    root.attrib |= {"width": width, "height": height, "role": "img", "aria-label": text}
    return ElementTree.tostring(root, encoding="unicode")


def _clean(root: ElementTree.Element) -> None:
    """Gives colours the page's names, and removes styles for the page and unused identifiers."""
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == f"{{{_XLINK}}}href" and value.startswith("#"):
                used.add(value[1:])
            used.update(re.findall(r"url\(#([^)]*)\)", value))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}style":
                parent.remove(child)
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if (declared := element.get("style")) is not None:
            element.set("style", re.sub(r"#[0-9a-f]{6}", _variable, declared))


def _variable(colour: re.Match) -> str:
    return _VARIABLES.get(colour[0], colour[0])
