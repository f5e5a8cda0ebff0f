"""Can a figure be read? Contrast by WCAG 2, and colours as colour-blind readers see them."""

import matplotlib.colors
import numpy as np

TEXT, LARGE_TEXT, GRAPHICS = 4.5, 3.0, 3.0  # WCAG 2.2, success criteria 1.4.3 and 1.4.11
# Linear RGB as seen without one kind of cone (Machado, Oliveira and Fernandes, 2009, severity 1).
COLOUR_BLIND = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "none": np.eye(3),
}
# Before the first figure: every figure that leaves the notebook is looked at.
FIRST_CELL = """\
import contrast as _contrast
from llama_int8.course import explore as _explore
from llama_int8.course import plots as _plots

_unreadable, _png = {}, _plots.png


def _looked_at(drawn, *more):
    for text, ratio in _contrast.unreadable_texts(drawn):
        _unreadable[text] = round(ratio, 2)
    return _png(drawn, *more)


_plots.png = _explore.png = _looked_at
"""
LAST_CELL = "assert not _unreadable, _unreadable"


def linear(colour) -> np.ndarray:
    """Linear RGB of any Matplotlib colour, or of rows of sRGB values from 0 to 1."""
    srgb = np.asarray(colour if not isinstance(colour, str) else matplotlib.colors.to_rgb(colour))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(first, second) -> float:
    """Ratio of relative luminances, 1 to 21."""
    a, b = (linear(c) @ [0.2126, 0.7152, 0.0722] for c in (first, second))
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def distance(first, second, eyes: str) -> float:
    """Difference of two colours in CIELAB (CIE 1976) for eyes of this kind; 2.3 is just seen."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    lab = []
    for colour in (first, second):
        seen = np.clip(np.array(COLOUR_BLIND[eyes]) @ linear(colour), 0, 1)
        t = np.array(to_xyz) @ seen / [0.9505, 1.0, 1.089]
        f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
        lab.append(np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]))
    return float(np.linalg.norm(lab[0] - lab[1]))


def unreadable_texts(figure) -> list[tuple[str, float]]:
    """(text, contrast) of each text that stands out too little from what is behind it."""
    from matplotlib.text import Text

    figure.canvas.draw()
    layout = figure.get_layout_engine()
    figure.set_layout_engine("none")  # nothing may move while the texts are away
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts]
    for text in texts:
        text.set_visible(False)
    figure.canvas.draw()
    behind = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3] / 255  # rows from the bottom
    for text in texts:
        text.set_visible(True)
    figure.set_layout_engine(layout)
    found = []
    for text, box in zip(texts, boxes, strict=True):
        x0, y0, x1, y1 = (max(0, int(v)) for v in box.extents)
        pixels = behind[y0 : y1 + 1, x0 : x1 + 1].reshape(-1, 3)
        if not len(pixels) or text.get_bbox_patch() is not None:
            continue  # outside the picture, or on a patch of its own
        background = np.median(pixels, 0)
        alpha = 1.0 if text.get_alpha() is None else text.get_alpha()
        colour = alpha * np.array(matplotlib.colors.to_rgb(text.get_color()))
        bold = text.get_fontweight() in ("bold", "heavy") or text.get_fontweight() == 700
        large = text.get_fontsize() >= (14 if bold else 18)
        ratio = contrast(colour + (1 - alpha) * background, background)
        if ratio < (LARGE_TEXT if large else TEXT):
            found.append((text.get_text(), float(ratio)))
    return found
