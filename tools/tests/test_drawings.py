"""Drawings can be read: no text on another, arrows that arrive, positions that are computed."""

import itertools
from types import SimpleNamespace

import contrast
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Circle, Polygon
from matplotlib.text import Text

from llama_int8.course import drawings, plots
from llama_int8.lessons.n02 import figures as lesson_02
from llama_int8.lessons.n03 import figures as lesson_03
from llama_int8.lessons.n04 import figures as lesson_04
from llama_int8.lessons.n05 import figures as lesson_05
from llama_int8.lessons.n06 import figures as lesson_06
from llama_int8.lessons.n07 import figures as lesson_07
from llama_int8.lessons.n08 import figures as lesson_08
from llama_int8.lessons.n09 import figures as lesson_09
from llama_int8.lessons.n10 import figures as lesson_10

WEIGHTS = torch.tensor([0.02, -0.50, 1.30, -6.00])  # of notebook 06
SEVEN_WORDS = ["The", "capital", "of", "France", "is", "Paris", "."]
DRAWINGS = {
    "02_drawing_block": lesson_02.drawing_block,
    "02_drawing_transformer": lesson_02.drawing_transformer,
    "02_drawing_kinds": lesson_02.drawing_kinds,
    "03_drawing_teacher_forcing": lambda: lesson_03.drawing_teacher_forcing(SEVEN_WORDS),
    "03_drawing_stages": lesson_03.drawing_stages,
    "03_drawing_cache": lesson_03.drawing_cache,
    "03_drawing_padding": lesson_03.drawing_padding,
    "04_drawing_blocks": lesson_04.blocks,
    "04_drawing_heads": lesson_04.drawing_heads,
    "04_drawing_rotary": lambda: lesson_04.drawing_rotary("the cat saw the dog".split()),
    "04_drawing_swiglu": lesson_04.drawing_swiglu,
    "05_drawing_six": lesson_05.drawing_six,
    "05_drawing_data": lesson_05.drawing_data,
    "05_drawing_bytes": lesson_05.drawing_bytes,
    "05_drawing_parallel": lesson_05.drawing_parallel,
    "05_drawing_after": lesson_05.drawing_after,
    "06_drawing_number_line": lambda: lesson_06.values_to_codes(WEIGHTS),
    "06_drawing_outlier": lesson_06.drawing_outlier,
    "06_drawing_scales": lesson_06.drawing_scales,
    "06_drawing_zero_point": lesson_06.drawing_zero_point,
    "06_drawing_clipping": lesson_06.drawing_clipping,
    "06_drawing_product": lesson_06.drawing_product,
    "07_drawing_paths": lesson_07.drawing_paths,
    "07_drawing_kept": lesson_07.drawing_kept,
    "08_drawing_paired": lesson_08.drawing_paired,
    "08_drawing_scoring": lesson_08.drawing_scoring,
    "08_drawing_published": lesson_08.drawing_published,
    "09_drawing_memory": lesson_09.drawing_memory,
    "09_drawing_tiles": lesson_09.drawing_tiles,
    "09_drawing_split": lesson_09.drawing_split,
    "10_drawing_ways": lesson_10.drawing_ways,
    "10_drawing_dot": lesson_10.drawing_dot,
    "10_drawing_packed": lesson_10.drawing_packed,
}
TOUCHES = 0.01  # inches: about a pixel


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def texts(drawn):
    """Each text that is seen, with its rectangle in inches."""
    seen = [t for t in drawn.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [(t, np.array(t.get_window_extent().extents) / drawn.dpi) for t in seen]


def overlaps(drawn):
    """Pairs of texts that cover one another."""
    found = []
    for (first, a), (second, b) in itertools.combinations(texts(drawn), 2):
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
            found.append((first.get_text(), second.get_text()))
    return found


def cut_off(drawn):
    """Texts that leave the canvas."""
    width, height = drawn.get_size_inches()
    places = [(t.get_text(), box) for t, box in texts(drawn)]
    return [t for t, b in places if min(b[0], b[1], width - b[2], height - b[3]) < 0]


def crossed(drawn):
    """Texts with an arrow through them."""
    found, places = [], texts(drawn)
    for line in (line for line in drawn.axes[0].lines if line.get_gid() == "arrow"):
        corners = np.column_stack(line.get_data())
        shares = np.linspace(0, 1, 200)[:, None]
        for start, end in itertools.pairwise(corners):
            x, y = (start + shares * (end - start)).T
            for text, (x0, y0, x1, y1) in places:
                if ((x0 < x) & (x < x1) & (y0 < y) & (y < y1)).any():
                    found.append(text.get_text())
    return found


def distance_to_edge(patch, point):
    """From a point to the outline of a box or a circle."""
    if isinstance(patch, Circle):
        return abs(np.hypot(*(np.array(patch.center) - point)) - patch.radius)
    low = np.array([patch.get_x(), patch.get_y()])
    high = low + np.array([patch.get_width(), patch.get_height()])
    outside = np.maximum(np.maximum(low - point, point - high), 0)
    if outside.any():
        return np.hypot(*outside)
    return min((point - low).min(), (high - point).min())


def dots(axes):
    """Middles of the dots of each row on a number line, by its name."""
    rows = [found for found in axes.collections if found.get_gid()]
    return {row.get_gid(): np.asarray(row.get_offsets()) for row in rows}


def free_ends(drawn):
    """Heads of arrows that arrive at no box, circle or dot."""
    axes = drawn.axes[0]
    heads = [p.get_xy()[0] for p in axes.patches if isinstance(p, Polygon)]
    areas = [p for p in axes.patches if p.get_gid() == "area"]
    places = [place for row in dots(axes).values() for place in row]
    near = 0.07  # from the middle of a dot
    return [
        head
        for head in heads
        if all(distance_to_edge(area, head) > TOUCHES for area in areas)
        and all(np.hypot(*(place - head)) > near for place in places)
    ]


# --- every drawing ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_text_can_be_read(name):
    drawn = DRAWINGS[name]()
    assert overlaps(drawn) == []
    assert cut_off(drawn) == []
    assert crossed(drawn) == []
    assert contrast.unreadable_texts(drawn) == []
    assert min(t.get_fontsize() for t, _ in texts(drawn)) >= drawings.SMALL == 8
    assert drawn.get_size_inches()[0] == drawings.WIDTH


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.filterwarnings("error")
def test_two_calls_give_the_same_pixels_and_so_does_saving_twice(name):
    drawn = DRAWINGS[name]()
    first = plots.png(drawn)
    assert first == plots.png(drawn) == plots.png(DRAWINGS[name]())


def test_what_cannot_be_read_would_be_found():
    drawn, axes = drawings.canvas(3, 1)
    drawings.write(axes, (1.0, 0.5), "under")
    drawings.write(axes, (1.2, 0.5), "over")
    drawings.write(axes, (2.95, 0.2), "outside")
    drawings.arrow(axes, (0.1, 0.1), (2.0, 0.9))
    assert overlaps(drawn) == [("under", "over")]
    assert cut_off(drawn) == ["outside"]
    assert set(crossed(drawn)) == {"under", "over"}
    assert np.allclose(free_ends(drawn), [(2.0, 0.9)])


# --- roles --------------------------------------------------------------------------------------


def test_each_role_has_a_colour_of_its_own_the_one_of_the_figures():
    assert len(set(drawings.ROLES.values())) == len(drawings.ROLES)
    assert drawings.ROLES["int8"] == plots.COLOURS["int8"] == "#D55E00"
    assert drawings.ROLES["16 bit"] == plots.COLOURS["bf16"] == "#0072B2"


@pytest.mark.parametrize("role", drawings.ROLES)
def test_text_and_outline_of_each_role_stand_out(role):
    assert contrast.contrast(drawings.INK, drawings.fill(role)) >= contrast.TEXT
    assert contrast.contrast(drawings.edge(role), "white") >= contrast.GRAPHICS


@pytest.mark.parametrize("eyes", contrast.COLOUR_BLIND)
def test_roles_are_told_apart(eyes):
    for first, second in itertools.combinations(drawings.ROLES.values(), 2):
        assert contrast.distance(first, second, eyes) > 10, (first, second)


# --- parts --------------------------------------------------------------------------------------


def test_an_arrow_between_boxes_ends_at_both_and_is_level_or_upright_where_it_can_be():
    drawn, axes = drawings.canvas(6, 4)
    low = drawings.box(axes, "low", (1, 1), (1.5, 0.4))
    high = drawings.box(axes, "high", (1.4, 3), (0.8, 0.4))
    right = drawings.box(axes, "right", (5, 1.1))
    drawings.arrow(axes, low, high)
    drawings.arrow(axes, low, right, "beside", beside="above")
    drawings.arrow(axes, high, right, corners=[(5, 3)])
    upright, level, bent = (np.column_stack(line.get_data()) for line in axes.lines)
    assert np.ptp(upright[:, 0]) == 0 and np.ptp(level[:, 1]) == 0
    assert len(bent) == 3 and (bent[0, 1], bent[2, 0]) == (3, 5)
    boxes = [p for p in axes.patches if p.get_gid() == "area"]
    for start in (upright[0], level[0], bent[0]):
        assert min(distance_to_edge(box, start) for box in boxes) < TOUCHES
    assert free_ends(drawn) == []


def test_a_text_too_long_for_its_frame_is_refused_and_a_box_without_size_fits_its_text():
    drawn, axes = drawings.canvas(6, 2)
    area = drawings.box(axes, "as large as its text\nin two lines", (2, 1))
    (_, (x0, y0, x1, y1)) = texts(drawn)[0]
    assert area.x0 < x0 and x1 < area.x1 and area.y0 < y0 and y1 < area.y1
    with pytest.raises(ValueError, match="make its frame larger or the text shorter"):
        drawings.box(axes, "much too long for this", (2, 1), (0.5, 0.3))
    with pytest.raises(ValueError, match="'much too long for this' needs"):
        drawings.group(axes, drawings.Area(0, 0, 1, 1), "much too long for this")


def test_a_matrix_shows_its_numbers_its_shape_and_nothing_where_there_is_nothing():
    drawn, axes = drawings.canvas(4, 3)
    scores = np.array([[1.0, np.nan], [-0.25, 0.0]])
    area = drawings.matrix(axes, (1, 2), scores, "scores (T, T)", rows=["a", "b"], size=(0.5, 0.4))
    assert (area.x1 - area.x0, area.y1 - area.y0) == pytest.approx((1.0, 0.8))
    assert [t.get_text() for t, _ in texts(drawn)] == ["1", "−0.25", "0", "a", "b", "scores (T, T)"]
    assert [p.get_hatch() for p in axes.patches] == [None, "////", None, None, None]
    assert overlaps(drawn) == []
    pale = drawings.matrix(axes, (3, 2), (1, 2), cells={"int8": [(0, 1)]})
    faces = [contrast.matplotlib.colors.to_hex(p.get_facecolor()) for p in axes.patches[5:7]]
    assert faces == [drawings.fill("neutral"), drawings.fill("int8")]
    assert pale.x1 == pytest.approx(3.6)


def test_labels_move_apart_no_further_than_they_must():
    assert drawings.apart([0, 1, 2], 0.5) == [0, 1, 2]
    assert drawings.apart([1.1, 1.0], 0.5) == pytest.approx([1.3, 0.8])
    moved = drawings.apart([0.0, 0.1, 0.2, 3.0], 0.5)
    assert np.diff(moved).min() > 0.499 and moved[3] == 3


def test_a_minus_sign_is_as_long_as_a_plus_sign_and_zero_has_none():
    shown = [drawings.signed(value, "+.2f") for value in (-1.5, 1.5, -0.001)]
    assert shown == ["−1.50", "+1.50", "0.00"]


# --- what the two drawings say ------------------------------------------------------------------


def test_arrows_of_the_blocks_end_at_their_boxes_but_for_the_two_outputs():
    drawn = lesson_04.blocks()
    outputs = [box for t, box in texts(drawn) if t.get_text() == "(B, T, C)"]
    ends = free_ends(drawn)
    assert len(ends) == len(outputs) == 2
    for (x, y), (x0, _, _, y1) in zip(ends, outputs, strict=True):
        assert x < x0 and y > y1 - 0.05


def test_norms_stand_on_the_stream_of_2017_and_beside_llamas():
    drawn = lesson_04.blocks()
    streams = [line for line in drawn.axes[0].lines if line.get_linewidth() == 3]
    places = [(t.get_text(), box) for t, box in texts(drawn)]
    on = set()
    for x, low, high in ((s.get_xdata()[0], *s.get_ydata()) for s in streams):
        on |= {t for t, b in places if b[0] < x < b[2] and low < b[1] and b[3] < high}
    assert len(streams) == 2
    assert on == {"Layer\nNorm", "+"}
    assert sum(t == "RMSNorm" for t, _ in places) == sum(t == "Layer\nNorm" for t, _ in places) == 2


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_number_line_stands_where_numpy_says(seed):
    rng = np.random.default_rng(seed)
    values = WEIGHTS.numpy() if seed is None else rng.normal(size=6).astype(np.float32)
    axes = lesson_06.values_to_codes(torch.from_numpy(values), followed=2).axes[0]
    scale = np.abs(values).max() / np.float32(127)
    codes = np.rint(values / scale)
    x = {name: row[:, 0] for name, row in dots(axes).items()}
    # Two weights say how inches become values; everything else must follow.
    inches = (x["weights"][3] - x["weights"][2]) / (values[3] - values[2])

    def value_at(place):
        return values[2] + (place - x["weights"][2]) / inches

    near = {"atol": 1e-5 * np.abs(values).max()}
    assert np.allclose(value_at(x["weights"]), values, **near)
    assert np.allclose(value_at(x["int8 codes"]), codes * scale, **near)
    assert np.allclose(value_at(x["restored"]), codes * scale, **near)
    written = {t.get_text().replace("−", "-") for t in axes.texts}
    assert {f"{code:.0f}" for code in codes + 0.0} <= written
    errors = codes * scale - values
    assert {f"{e:+.3f}" for e in errors if abs(e) >= 0.0005} <= written
    assert f"÷ scale, then round\nscale = absmax / 127 = {scale:.4f}" in written


def test_every_arrow_of_the_number_line_ends_at_a_dot():
    assert free_ends(lesson_06.values_to_codes(WEIGHTS)) == []


def test_no_number_of_bits_hides_a_mark_another_number_or_the_line_at_zero():
    crowded = [
        (31.6, 0.011),
        (31.8, 0.011),
        (29.1, 0.061),
        (29.8, 0.056),
        (17.6, 0.46),
        (44.0, 0.0),
    ]
    costs = {
        (f"scheme {i % 5}", f"{8 - i % 3} bits, {i}"): SimpleNamespace(
            decibels=x, loss=SimpleNamespace(mean=y, low=y - 0.004, high=y + 0.004)
        )
        for i, (x, y) in enumerate(crowded)
    }
    (axes,) = lesson_06.loss_against_noise(costs).axes
    labels = [text.get_window_extent() for text in axes.texts if text.get_gid() == "bits"]
    assert len(labels) == len(costs)
    for i, label in enumerate(labels):
        assert not any(label.overlaps(other) for other in labels[:i])
        assert not label.y0 < axes.transData.transform((0, 0))[1] < label.y1
        for place in crowded:
            assert not label.contains(*axes.transData.transform(place))


@pytest.mark.parametrize(
    ("grids", "title"), [([0.5, 1.6], "costs more than 4 times"), ([0.5, 9.0], "against the noise")]
)
def test_a_clip_is_set_beside_every_grid_of_the_same_noise(grids, title):
    def cost(decibels, mean):
        loss = SimpleNamespace(mean=mean, low=mean - 0.1, high=mean + 0.1)
        return SimpleNamespace(decibels=decibels, loss=loss)

    rows, clip = ("per-channel", "4 bits"), ("per-tensor, clipped", "4 bits")
    costs = {rows: cost(16.2, 0.5), clip: cost(16.5, 8.0)}
    (axes,) = lesson_06.loss_against_noise(costs, {rows: grids}).axes
    assert title in axes.get_title(loc="left") + axes.get_title()


def test_the_lopsided_values_meet_a_zero_point_that_is_computed_and_not_zero():
    drawn = lesson_06.drawing_zero_point()
    texts = [text.get_text() for axes in drawn.axes for text in axes.texts]
    assert any(text.endswith("the value 0 has the code z = 2") for text in texts)


def test_the_clip_drawn_makes_the_mean_error_smaller():
    drawn = lesson_06.drawing_clipping()
    texts = [text.get_text() for axes in drawn.axes for text in axes.texts]
    errors = [float(text.split()[-1]) for text in texts if "mean squared error" in text]
    assert len(errors) == 2 and errors[1] < errors[0]
