"""Figures are told apart by colour-blind readers, and every picture has a description."""

import itertools
import json
import re

import contrast
import matplotlib.pyplot as plt
import pytest
from conftest import ROOT

import sync_notebooks
from llama_int8.course import plots


def test_the_formulas_are_those_of_their_standards():
    assert contrast.contrast("white", "black") == pytest.approx(21)
    assert contrast.contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)
    assert contrast.distance("white", "black", "none") == pytest.approx(100, abs=0.1)
    # Red and green: far apart, and near for eyes without the cones for one of them.
    apart = [contrast.distance("#a04000", "#507000", eyes) for eyes in contrast.COLOUR_BLIND]
    assert apart[0] < apart[2] / 2 and apart[1] < apart[2] / 2


def test_a_pale_text_is_found_and_a_dark_one_is_not():
    drawn, axes = plots.figure()
    axes.plot([0, 1])
    axes.axvspan(0.4, 0.6, color="black")
    axes.text(0.1, 0.5, "pale", color="#bbbbbb")
    axes.text(0.45, 0.5, "dark on dark", color="#333333")
    axes.text(0.1, 0.9, "good", color="#333333")
    found = [text for text, _ in contrast.unreadable_texts(drawn)]
    plt.close(drawn)
    assert found == ["pale", "dark on dark"]


def test_colours_stand_out_or_have_a_second_cue():
    curves = dict(zip(plots.CURVES, plots.SHAPES, strict=True))
    assert len(set(curves.values())) == len(curves)  # a marker of its own for each
    for colour in {*plots.COLOURS.values(), *plots.CURVES[:3]}:
        assert contrast.contrast(colour, "white") >= contrast.GRAPHICS, colour
    pale = [c for c in curves if contrast.contrast(c, "white") < contrast.GRAPHICS]
    assert set(pale) <= set(plots.CURVES[3:])  # taken last, and their marker is drawn with them
    assert (
        set(plots.HATCHES) == {"int8", "predicted"}
        and plots.MARKERS["bf16"] != plots.MARKERS["int8"]
    )


def test_inks_are_dark_enough_for_text():
    for colour in plots.INKS.values():
        assert contrast.contrast(colour, "white") >= contrast.TEXT, colour


@pytest.mark.parametrize("eyes", contrast.COLOUR_BLIND)
@pytest.mark.parametrize("colours", [plots.CURVES, sorted(set(plots.COLOURS.values()))])
def test_colours_are_told_apart(colours, eyes):
    for first, second in itertools.combinations(colours, 2):
        assert contrast.distance(first, second, eyes) > 10, (first, second)


@pytest.mark.parametrize("path", sync_notebooks.notebook_paths(), ids=lambda path: path.stem)
def test_every_picture_of_a_notebook_is_described(path):
    pictures = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not re.search(r"!\[\s*\]\(", "".join(cell["source"])), cell["id"]
        assert "<img" not in "".join(cell["source"]) or "alt=" in "".join(cell["source"])
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                pictures += 1
                alt = output["metadata"].get("image/png", {}).get("alt", "")
                assert len(alt) >= 20, f"{cell['id']}: {alt!r}"
    assert pictures


@pytest.mark.parametrize("name", ["README.md", "REPORT.md"])
def test_every_picture_of_a_page_is_described_and_there(name):
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert pictures
    for alt, target in pictures:
        assert len(alt) >= 20, target
        assert target.startswith("https://colab") or (ROOT / target).is_file(), target
