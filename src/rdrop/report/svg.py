"""A Matplotlib figure as an inline SVG that takes its colours and fonts from the page around it.

Charts are drawn in stand-in colours. `inline_svg` replaces each by a CSS variable, so that one drawing serves
light mode, dark mode and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

INK, MUTED, RULE, SURFACE = "#000001", "#000002", "#000003", "#000004"
ARM_COLOURS = 8
TEXT_SIZE = 11.5

_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", SURFACE: "--card"} | {
    f"#0001{i:02x}": f"--arm-{i}" for i in range(ARM_COLOURS)
}
# Counts without a common divisor: beyond eight arms, colour, marker and dashes do not repeat together.
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (), (1.5, 1.8), (7, 2, 1.5, 2))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class ArmStyle:
    """The look of one arm in every chart: colour, marker and dashes, so that colour never stands alone."""

    colour: str
    variable: str
    marker: str
    dashes: tuple[float, ...]

    @property
    def marker_path(self) -> str:
        """The marker as the `d` of an SVG path, about 8 units wide around the origin."""
        shape = MarkerStyle(self.marker)
        # SVG counts downwards.
        outline = shape.get_path().transformed(shape.get_transform() + Affine2D().scale(8, -8))
        rings = [np.asarray(ring, dtype=float) for ring in outline.to_polygons()]
        return "".join("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in ring) + "z" for ring in rings)


def arm_style(position: int) -> ArmStyle:
    """The style of the arm at a position in the summary.

    Args:
        position: Index into `Summary.arms`, from 0.

    Returns:
        Its colour, marker and dashes.

    >>> arm_style(2).variable, arm_style(2).marker
    ('--arm-2', 'D')
    """
    colour = position % ARM_COLOURS
    return ArmStyle(
        f"#0001{colour:02x}",
        f"--arm-{colour}",
        _MARKERS[position % len(_MARKERS)],
        _DASHES[position % len(_DASHES)],
    )


def short(name: str, limit: int = 40) -> str:
    """A name that fits into a drawing.

    >>> short("sprout"), short("seedling", limit=5)
    ('sprout', 'seed…')
    """
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Open a figure in the style of the page.

    Args:
        width: Width in units of the drawing; text is 11.5 units high.
        height: Height in the same units.

    Yields:
        An empty figure that belongs to no global state of pyplot.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the text, with fonts of its own; what Matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        yield Figure(figsize=(width / 72, height / 72))


def inline_svg(figure: Figure, key: str, title: str, description: str) -> Markup:
    """Write a figure as an SVG element to stand inside an HTML page.

    Args:
        figure: A figure from `drawing`, while that is still open.
        key: Unique in the page; prefix of every id inside the element.
        title: Accessible name of the picture.
        description: What it shows, in words.

    Returns:
        The element, without size, fonts or colours of its own; equal for equal figures. The CSS variable
        `--text-scale` scales its text.

    Raises:
        KeyError: If the figure uses a colour that is not one of the stand-ins.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith("}style") or c.tag.endswith("}metadata")]:
            parent.remove(child)
    for element in root.iter():
        _adapt(element, key)
    root.attrib = {"class": "chart", "viewBox": root.attrib["viewBox"], "role": "img"}
    for tag, text in (("desc", description), ("title", title)):
        node = ElementTree.Element(tag, {"id": f"{key}-{tag}"})
        node.text = text
        root.insert(0, node)
    root.set("aria-labelledby", f"{key}-title")
    root.set("aria-describedby", f"{key}-desc")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element, key: str) -> None:
    """Make one element fit for HTML: no namespaces, ids with a prefix, colours and fonts of the page."""
    attributes: dict[str, str] = {}
    for name, text in element.attrib.items():
        name = name.rpartition("}")[2]
        if name == "id":
            attributes[name] = f"{key}-{text}"
        elif name == "href":
            attributes[name] = text.replace("#", f"#{key}-", 1)
        elif name == "clip-path":
            attributes[name] = text.replace("url(#", f"url(#{key}-", 1)
        elif name == "d":
            attributes[name] = " ".join(text.split())
        elif name == "style":
            attributes[name] = _page_style(text)
        elif name != "transform" or not text.startswith("rotate(-0"):
            attributes[name] = text
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = attributes
    element.tail = None
    if element.text is not None and not element.text.strip():
        element.text = None


def _page_style(style: str) -> str:
    """Replace stand-in colours by CSS variables, and leave the font family to the page."""
    style = re.sub(r"#[0-9a-f]{6}", lambda found: f"var({_VARIABLES[found[0]]})", style)
    style = re.sub(r"\bfont: ([0-9.]+px) [^;]*", r"font-size: \1", style)
    style = re.sub(r"\bfont-size: ([0-9.]+px)", r"font-size: calc(\1 * var(--text-scale, 1))", style)
    return re.sub(r"\bfont-family: [^;]*;? ?", "", style)
