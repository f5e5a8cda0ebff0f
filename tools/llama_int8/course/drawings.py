"""Drawings: boxes and arrows, matrices with shapes, number lines; all lessons draw with these.

A canvas is measured in inches from its lower left corner, so text has the size that it says. Every
part returns where it lies, and the next part starts there:

    drawn, axes = canvas(7.5, 3)
    q = box(axes, "q_proj", (1, 1), role="queries")
    scores = matrix(axes, (3, 2), (4, 4), label="scores (T, T)")
    arrow(axes, q, scores, "times keys")
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.text import Text

from llama_int8.course.plots import COLOURS, CURVES, GREY

Point = tuple[float, float]
WIDTH = 7.5  # inches: a notebook's column
TITLE, NORMAL, SMALL = 11, 9, 8  # points; nothing is smaller
INK = "#222222"
PADDING = 0.09  # inches between a text and its box
# One colour each, from the first lesson to the last (Okabe and Ito's, as in every figure). The role's
# name or a label stands beside the colour: colour is never the only cue.
ROLES = {
    "queries": CURVES[5],
    "keys": CURVES[4],
    "values": CURVES[2],
    "weights": "#F0E442",  # the palette's yellow: too pale for a curve, good for an area
    "activations": "#444444",
    "int8": COLOURS["int8"],
    "16 bit": COLOURS["bf16"],
    "neutral": GREY,
    "highlight": COLOURS["highlight"],
}


@dataclass(frozen=True)
class Area:
    """A rectangle on the canvas: where a part lies, and where arrows meet it."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def centre(self) -> Point:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


@dataclass(frozen=True)
class NumberLine:
    """Values from `low` to `high` on a horizontal line from `x0` to `x1` at height `y`."""

    y: float
    x0: float
    x1: float
    low: float
    high: float

    def at(self, value: float) -> Point:
        """Where a value lies."""
        share = (float(value) - self.low) / (self.high - self.low)
        return self.x0 + share * (self.x1 - self.x0), self.y


def fill(role: str) -> str:
    """A role's colour, pale enough for dark text on it."""
    share = {"neutral": 0.12, "activations": 0.18}.get(role, 0.42)
    return to_hex(1 - share * (1 - np.array(to_rgb(ROLES[role]))))


def edge(role: str) -> str:
    """A role's colour, dark enough for a line on white."""
    share = {"queries": 0.8, "keys": 0.8, "weights": 0.62}.get(role, 1)
    return to_hex(share * np.array(to_rgb(ROLES[role])))


def canvas(width: float, height: float, title: str = "") -> tuple[Figure, Axes]:
    """A figure without axes, in inches; the title stands at its upper left."""
    drawn = plt.figure(figsize=(width, height))
    drawn.set_layout_engine("none")  # given to plt.figure, the style's would come back after a save
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    if title:
        write(axes, (0.12, height - 0.2), title, TITLE, ha="left", weight="bold")
    return drawn, axes


def write(axes: Axes, place: Point, text: str, size: float = NORMAL, **options: Any) -> Text:
    """A text, centred at a place unless `ha` and `va` say otherwise."""
    options = {"ha": "center", "va": "center", "color": INK, "linespacing": 1.25, **options}
    return axes.text(*place, text, fontsize=size, zorder=5, **options)


def box(
    axes: Axes,
    text: str,
    centre: Point,
    size: tuple[float | None, float | None] = (None, None),
    role: str = "neutral",
    font: float = NORMAL,
    copies: int = 1,
) -> Area:
    """A rounded box with its text, as large as the text where `size` (width, height) is None.

    `copies`: so many of a kind, such as heads, as a pile of cards; the area is that of the first.
    Raises ValueError where the text does not fit into the size.
    """
    needed = _extent(write(axes, centre, text, font))
    width, height = (n + 2 * PADDING if s is None else s for s, n in zip(size, needed, strict=True))
    _check_fit(text, needed, (width, height))
    area = _around(centre, width, height)
    rounded = f"round,pad=0,rounding_size={min(0.09, height / 2)}"
    style = {"facecolor": fill(role), "edgecolor": edge(role), "linewidth": 1.5, "zorder": 3}
    for behind in reversed(range(copies)):
        corner = (area.x0 + 0.03 * behind, area.y0 + 0.03 * behind)
        axes.add_patch(FancyBboxPatch(corner, width, height, rounded, gid="area", **style))
    return area


def sign(axes: Axes, text: str, centre: Point, role: str = "neutral", radius: float = 0.12) -> Area:
    """A small circle with one character: where two paths are added, or a number to refer to."""
    style = {"facecolor": fill(role), "edgecolor": edge(role), "linewidth": 1.2, "zorder": 4}
    axes.add_patch(Circle(centre, radius, gid="area", **style))
    write(axes, centre, text, SMALL, va="center")
    return _around(centre, 2 * radius, 2 * radius)


def arrow(
    axes: Axes,
    start: Area | Point,
    end: Area | Point,
    text: str = "",
    corners: Sequence[Point] = (),
    role: str = "activations",
    beside: str = "right",
) -> None:
    """An arrow from an area's nearest side (or a point) to another's, through right-angled corners.

    The text stands beside the longest part of the arrow, on the side that `beside` says: "left" or
    "right" of an upright part, "above" or "below" a level one.
    """
    first = _edge(start, corners[0] if corners else _centre(end))
    points = np.array([first, *corners, _edge(end, corners[-1] if corners else first)])
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    step = (points[-1] - points[-2]) / lengths[-1]
    across = np.array([-step[1], step[0]])
    base = points[-1] - 0.09 * step
    stroke(axes, [*points[:-1], base], role=role, gid="arrow")
    head = [points[-1], base + 0.045 * across, base - 0.045 * across]
    axes.add_patch(Polygon(head, color=edge(role), linewidth=0, zorder=3, gid="arrow"))
    if text:
        longest = int(lengths.argmax())
        x, y = points[longest : longest + 2].mean(0)
        shift, align = {
            "right": ((0.07, 0), {"ha": "left"}),
            "left": ((-0.07, 0), {"ha": "right"}),
            "above": ((0, 0.05), {"va": "bottom"}),
            "below": ((0, -0.05), {"va": "top"}),
        }[beside]
        write(axes, (x + shift[0], y + shift[1]), text, SMALL, **align)


def stroke(
    axes: Axes,
    points: Sequence[Point],
    width: float = 1.3,
    role: str = "activations",
    **options: Any,
) -> None:
    """A line without a head: the residual stream, say."""
    x, y = zip(*points, strict=True)
    style = {"color": edge(role), "solid_capstyle": "butt", "zorder": 2, **options}
    axes.plot(x, y, linewidth=width, **style)


def matrix(
    axes: Axes,
    corner: Point,
    values: np.ndarray | tuple[int, int],
    label: str = "",
    role: str = "neutral",
    cells: Mapping[str, Collection[tuple[int, int]]] | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    size: float | tuple[float, float] = 0.3,
    number: str = "g",
    above: bool = False,
) -> Area:
    """A grid of cells below and right of its upper left `corner`, its label under (or above) it.

    `values`: numbers to write into the cells, or only the shape (rows, columns). A cell of NaN is
    hatched: nothing is there. `cells`: cells with a role of their own, {"highlight": [(0, 1)]}.
    """
    shape = values if isinstance(values, tuple) else values.shape
    wide, high = size if isinstance(size, tuple) else (size, size)
    roles = {cell: own for own, members in (cells or {}).items() for cell in members}
    for row, column in np.ndindex(*shape):
        x, y = corner[0] + column * wide, corner[1] - (row + 1) * high
        value = None if isinstance(values, tuple) else values[row, column]
        empty = value is not None and np.isnan(value)
        face = "white" if empty else fill(roles.get((row, column), role))
        style = {"facecolor": face, "edgecolor": "#BBBBBB" if empty else "white", "zorder": 3}
        axes.add_patch(Rectangle((x, y), wide, high, hatch="////" if empty else None, **style))
        if value is not None and not empty:
            write(axes, (x + wide / 2, y + high / 2), signed(value, number), SMALL)
    area = Area(corner[0], corner[1] - shape[0] * high, corner[0] + shape[1] * wide, corner[1])
    frame = {"fill": False, "edgecolor": edge(role), "linewidth": 1.5, "zorder": 4, "gid": "area"}
    axes.add_patch(Rectangle((area.x0, area.y0), area.x1 - area.x0, area.y1 - area.y0, **frame))
    for row, name in enumerate(rows):
        write(axes, (area.x0 - 0.06, area.y1 - (row + 0.5) * high), name, SMALL, ha="right")
    for column, name in enumerate(columns):
        write(axes, (area.x0 + (column + 0.5) * wide, area.y1 + 0.05), name, SMALL, va="bottom")
    if label:
        y = area.y1 + (0.24 if columns else 0.06) if above else area.y0 - 0.06
        write(axes, (area.centre[0], y), label, va="bottom" if above else "top")
    return area


def signed(value: float, number: str) -> str:
    """A number with a minus sign as long as a plus sign, and none before a zero."""
    text = format(value, number)
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def number_line(
    axes: Axes,
    y: float,
    ends: tuple[float, float],
    limits: tuple[float, float],
    ticks: Mapping[float, str] | None = None,
    grid: Sequence[float] = (),
    role: str = "neutral",
) -> NumberLine:
    """A horizontal line from ends[0] to ends[1] for values from limits[0] to limits[1].

    `ticks`: values with their labels, below the line. `grid`: values with a short mark each.
    """
    scale = NumberLine(y, *ends, *limits)
    stroke(axes, [(ends[0] - 0.1, y), (ends[1] + 0.1, y)], role=role)
    for values, reach, width in ((grid, 0.05, 0.6), (ticks or {}, 0.08, 1.3)):
        x = [scale.at(value)[0] for value in values]
        axes.vlines(x, y - reach, y + reach, edge(role), linewidth=width, zorder=2)
    for value, text in (ticks or {}).items():
        write(axes, (scale.at(value)[0], y - 0.11), text, SMALL, va="top")
    return scale


def points(
    axes: Axes, on: NumberLine, values: Sequence[float], roles: Sequence[str], gid: str
) -> None:
    """A dot for each value on a number line; `gid` names them for whoever reads the figure."""
    places = [on.at(value) for value in values]
    colours = [ROLES[role] for role in roles]
    axes.scatter(*zip(*places, strict=True), s=34, c=colours, edgecolors=INK, zorder=4, gid=gid)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places for labels, each as near to its own as a distance of `gap` between them allows."""
    order = np.argsort(places, kind="stable")
    moved = np.array(places, dtype=float)
    for _ in range(100):
        for left, right in pairwise(order):
            overlap = gap - (moved[right] - moved[left])
            if overlap > 1e-6:
                moved[left] -= overlap / 2
                moved[right] += overlap / 2
    return moved.tolist()


def group(axes: Axes, area: Area, title: str, role: str = "neutral") -> Area:
    """A dashed frame around what belongs together, its title inside at the upper left.

    Raises ValueError where the title is wider than the area.
    """
    style = {"fill": False, "edgecolor": edge(role), "linestyle": (0, (4, 3)), "zorder": 1}
    size = area.x1 - area.x0, area.y1 - area.y0
    rounded = "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch((area.x0, area.y0), *size, rounded, gid="area", **style))
    place, align = (area.x0 + 0.1, area.y1 - 0.06), {"ha": "left", "va": "top"}
    written = write(axes, place, title, SMALL, style="italic", **align)
    _check_fit(title, _extent(written), (size[0] - 0.2, size[1]))
    return area


def brace(axes: Axes, start: Point, end: Point, text: str, above: bool = False) -> None:
    """A brace under (or above) what lies from `start` to `end`, left to right; its text at the tip."""
    (x0, y), (x1, _) = start, end
    bend, middle, out = min(0.08, (x1 - x0) / 4), (x0 + x1) / 2, 1 if above else -1
    x = [x0, x0, x0 + bend, middle - bend, middle, middle]
    x += [x0 + x1 - left for left in x[-2::-1]]
    heights = y + out * bend * np.array([0, 1, 1, 1, 1, 2, 1, 1, 1, 1, 0])
    codes = [Path.MOVETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3]
    codes += [Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3]
    style = {"fill": False, "edgecolor": INK, "linewidth": 1.2, "zorder": 2}
    axes.add_patch(PathPatch(Path(np.stack([x, heights], 1), codes), **style))
    write(axes, (middle, heights[5] + 0.04 * out), text, SMALL, va="bottom" if above else "top")


def _around(centre: Point, width: float, height: float) -> Area:
    x, y = centre
    return Area(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _extent(text: Text) -> tuple[float, float]:
    """Width and height in inches."""
    extent = text.get_window_extent()
    return extent.width / text.figure.dpi, extent.height / text.figure.dpi


def _check_fit(text: str, needed: tuple[float, float], size: tuple[float, float]) -> None:
    if needed[0] > size[0] or needed[1] > size[1]:
        raise ValueError(
            f"the text {text!r} needs {needed[0]:.2f} x {needed[1]:.2f} inches and has "
            f"{size[0]:.2f} x {size[1]:.2f}; make its frame larger or the text shorter"
        )


def _centre(place: Area | Point) -> Point:
    return place.centre if isinstance(place, Area) else place


def _edge(place: Area | Point, towards: Point) -> Point:
    """A point itself, or where an area is left towards a point: upright or level if that can be."""
    if not isinstance(place, Area):
        return place
    x, y = towards
    if not (place.x0 <= x <= place.x1 or place.y0 <= y <= place.y1):  # slanting, from a middle
        level = max(x - place.x1, place.x0 - x) > max(y - place.y1, place.y0 - y)
        x, y = (x, place.centre[1]) if level else (place.centre[0], y)
    if place.x0 <= x <= place.x1:
        return x, place.y1 if y > place.y1 else place.y0
    return place.x1 if x > place.x1 else place.x0, y
