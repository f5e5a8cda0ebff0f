"""One style for every figure, and `save_figure`, the one way a figure leaves a notebook."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from llama_int8.files import write_atomic
from llama_int8.measure.results import Results

# Okabe and Ito's palette: told apart by colour-blind readers; a hatch or marker goes with each.
COLOURS = {
    "fp32": "#000000",
    "bf16": "#0072B2",
    "fp16": "#0072B2",
    "int8": "#D55E00",
    "predicted": "#767676",
    "good": "#009E73",
    "highlight": "#CC79A7",
}
# The same hues, dark enough for text (WCAG: 4.5 to 1 on white) and for white text on them.
INKS = {"bf16": "#0072B2", "int8": "#9A4300", "good": "#00704F", "highlight": "#8A3F68"}
HATCHES = {"int8": "///", "predicted": "..."}
MARKERS = {"fp32": "D", "bf16": "o", "fp16": "o", "int8": "s", "predicted": "_"}
# For curves without a meaning of their own, in this order, with a marker for each.
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
WEIGHTS = "Blues"  # white is 0: one hue, darker is more, safe for colour-blind readers
# What a lesson compares with the original Transformer, from the first block to the last loss.
BEFORE = {"color": COLOURS["int8"], "marker": "s"}  # the original Transformer's way
AFTER = {"color": COLOURS["bf16"], "marker": "o"}  # LLaMA's
GREY = COLOURS["predicted"]
INLINE_DPI, FILE_DPI = 110, 150
STYLE = {
    "figure.figsize": (7.5, 3.6),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "font.size": 10,
    "hatch.linewidth": 0.6,
}


# For every figure of the session, a learner's own included: Matplotlib looks many settings up late,
# so a style that held for only one block would lose titles and legends.
plt.rcParams.update(STYLE)


def figure(columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure with `columns` axes beside each other."""
    return plt.subplots(1, columns, **options)


def heat_map(
    axes: Axes,
    values: Tensor,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    **options: object,
) -> object:
    """`values` (rows, columns) as squares, the first row on top; returns the image."""
    image = axes.imshow(values.detach().numpy(), **{"cmap": WEIGHTS, "aspect": "auto", **options})
    axes.grid(visible=False)
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
    if columns is not None:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    return image


def bars(
    axes: Axes,
    names: list[str],
    values: list[float],
    colours: list[str],
    label: str,
    spreads: list[tuple[float, float]] | None = None,
    decimals: int = 0,
) -> None:
    """Horizontal bars with their value written beside them; `spreads` are (low, high) a bar."""
    centre = np.asarray(values)
    errors = None
    if spreads is not None:
        low, high = np.array(spreads).T
        errors = np.clip(np.stack([centre - low, high - centre]), 0, None)
    drawn = axes.barh(
        names,
        centre,
        xerr=errors,
        color=[COLOURS[c] for c in colours],
        hatch=[HATCHES.get(c, "") for c in colours],
        edgecolor="white",
        error_kw={"capsize": 3, "ecolor": "#333333"},
    )
    left = min(0.0, float((centre if errors is None else centre - errors[0]).min()))
    top = np.maximum(0.0, centre if errors is None else centre + errors[1])
    for bar, end, value in zip(drawn, top, values, strict=True):
        axes.annotate(
            f"{value:,.{decimals}f}",
            (end, bar.get_y() + bar.get_height() / 2),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    width = float(top.max()) - left
    axes.set_xlim(left - (0.06 * width if left < 0 else 0), float(top.max()) + 0.22 * width)
    axes.set_xlabel(label)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def png(drawn: Figure, dpi: int = INLINE_DPI) -> bytes:
    """The figure as PNG of 256 colours: a third of the bytes, and no stamp of Matplotlib's version."""
    full, small = io.BytesIO(), io.BytesIO()
    drawn.savefig(full, format="png", dpi=dpi)
    Image.open(full).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


def save_figure(results: Results, drawn: Figure, name: str, alt: str, caption: str) -> None:
    """Show a figure with its caption, and write it to `figures/<name>.png`.

    `alt` says what is seen, `caption` what to notice. Raises ValueError for an alt text that is
    too short to describe a picture.
    """
    if len(alt) < 20:
        raise ValueError(f"figure {name}: alt text {alt!r} does not describe a picture")
    path = results.add_figure(name, alt, caption)
    write_atomic(path, png(drawn, FILE_DPI))
    show_png(png(drawn), alt)
    plt.close(drawn)

    from IPython.display import Markdown, display

    display(Markdown(f"*{caption}*"))


def show_png(picture: bytes, alt: str, **more_mimes: Any) -> None:
    """Display a PNG with its alt text, and other forms of the same output beside it."""
    from IPython.display import display

    encoded = base64.b64encode(picture).decode()
    bundle = {**more_mimes, "image/png": encoded, "text/plain": alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})
