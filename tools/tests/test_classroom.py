"""Figures, interactive figures, exercises and claims, as a learner and a later reader meet them."""

import base64
import copy
import inspect
import itertools
import json
import math
import re
import struct
import sys
from fractions import Fraction
from functools import partial

import IPython.display
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ipywidgets.widgets.widget import _instances as widgets_by_id

from llama_int8.course import claims as claims_module
from llama_int8.course import exercises as exercises_module
from llama_int8.course.exercises import check, confirms, find, hint, judge, shown, solution
from llama_int8.course.explore import WIDGET_VIEW, explore
from llama_int8.course.plots import COLOURS, HATCHES, bars, figure, png, save_figure
from llama_int8.lessons import exercises
from llama_int8.lessons.n08.exercises import mean_difference_interval
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import mean_interval
from llama_int8.models import config_of
from llama_int8.models.cost import weight_bytes
from llama_int8.profiles import profile_names, read_profile, resolve

EXERCISES = exercises()

NOTEBOOK = "00_start_here"
ALT = "A line that rises from left to right"
EACH = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


@pytest.fixture
def results(tmp_path):
    return Results(NOTEBOOK, resolve(NOTEBOOK, "cpu"), str(tmp_path))


@pytest.fixture
def displayed(monkeypatch):
    """All that a cell displays: (object or bundle, metadata)."""
    shown = []
    monkeypatch.setattr(
        IPython.display,
        "display",
        lambda content, metadata=None, **_options: shown.append((content, metadata)),
    )
    return shown


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    plt.close("all")
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == []


def line(slope=1.0):
    drawn, axes = figure()
    axes.plot([0, 1], [0, slope])
    axes.set_ylim(0, 10)
    return drawn


def closing(drawn):
    picture = png(drawn)
    plt.close(drawn)
    return picture


def chunks(picture):
    """The chunks of a PNG file: [(type, data)]."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(picture):
        (length,) = struct.unpack(">I", picture[place : place + 4])
        found.append((picture[place + 4 : place + 8], picture[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


# --- plots ------------------------------------------------------------------------------------


def test_a_saved_figure_is_the_same_bytes_in_every_run(results, displayed):
    files = []
    for _ in range(2):
        save_figure(results, line(), "00_line", ALT, "It rises.")
        files.append((results.root / "figures" / "00_line.png").read_bytes())
    assert files[0] == files[1]
    assert displayed[0] == displayed[2]
    assert [file.name for file in (results.root / "figures").iterdir()] == ["00_line.png"]


def test_a_saved_figure_has_no_text_stamp_and_150_dots_an_inch(results, displayed):
    save_figure(results, line(), "00_line", ALT, "It rises.")
    for picture, dpi in [
        ((results.root / "figures" / "00_line.png").read_bytes(), 150),
        (base64.b64decode(displayed[0][0]["image/png"]), 110),
    ]:
        found = dict(chunks(picture))
        assert not {b"tEXt", b"iTXt", b"zTXt", b"tIME"} & set(found)
        assert b"Software" not in picture and b"Matplotlib" not in picture
        width, height = struct.unpack(">II", found[b"IHDR"][:8])
        assert (width, height) == pytest.approx((7.5 * dpi, 3.6 * dpi), abs=1)


def test_a_shown_figure_carries_its_alt_text_and_caption(results, displayed):
    save_figure(results, line(), "00_line", ALT, "It rises.")
    (bundle, metadata), (caption, _) = displayed
    assert set(bundle) == {"image/png", "text/plain"} and bundle["text/plain"] == ALT
    assert metadata == {"image/png": {"alt": ALT}}
    assert caption.data == "*It rises.*"


@pytest.mark.parametrize("alt", ["", "a figure", "nineteen characters"])
def test_an_alt_text_that_is_too_short_is_refused_and_nothing_written(results, displayed, alt):
    drawn = line()
    with pytest.raises(ValueError, match=f"figure 00_line: alt text '{alt}'"):
        save_figure(results, drawn, "00_line", alt, "It rises.")
    plt.close(drawn)
    assert not (results.root / "figures").exists() and not displayed


def test_a_figure_has_the_style_of_the_course():
    drawn, axes = figure()
    axes.plot([0, 1], label="rising")
    title = axes.set_title("it rises")
    assert axes.get_title(loc="left") == "it rises"
    assert (title.get_fontweight(), title.get_fontsize()) == ("bold", 11)
    assert not axes.legend().get_frame_on()
    plt.close(drawn)


def test_a_figure_has_as_many_axes_as_it_is_asked_for():
    one, single = figure()
    three, several = figure(3, figsize=(9, 2))
    assert single.figure is one and several.shape == (3,)
    assert tuple(three.get_size_inches()) == (9, 2)
    plt.close(one)
    plt.close(three)


def drawn_bars(values, spreads=None, decimals=0):
    drawn, axes = figure()
    names = [f"bar {n}" for n in range(len(values))]
    bars(axes, names, values, ["bf16", "int8", "predicted"][: len(values)], "MB", spreads, decimals)
    plt.close(drawn)
    return axes


def test_bars_write_their_values_and_differ_by_more_than_colour():
    axes = drawn_bars([13476.8, 6738.4, 7000.0])
    assert [bar.get_width() for bar in axes.patches] == [13476.8, 6738.4, 7000.0]
    assert [text.get_text() for text in axes.texts] == ["13,477", "6,738", "7,000"]
    assert [bar.get_hatch() or "" for bar in axes.patches] == ["", "///", "..."]
    assert set(HATCHES) < set(COLOURS)


@pytest.mark.parametrize(
    "values", [[3.0], [1.0, 1e9], [-0.02, 0.03], [-2.0, -1.0], [0.0, 5.0], [1e-12, 2e-12]]
)
def test_every_bar_and_its_whole_spread_lie_inside_the_axes(values):
    spreads = [(value - abs(value) / 2, value + abs(value) / 2) for value in values]
    left, right = drawn_bars(values, spreads).get_xlim()
    assert left <= min(0, *(low for low, _ in spreads))
    assert right > max(0, *(high for _, high in spreads))


def test_a_spread_that_leaves_out_its_value_draws_no_negative_error():
    drawn_bars([2.0], [(2.5, 3.0)])


def test_a_bar_of_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        drawn_bars([1.0, float("nan")])
    plt.close("all")


# --- explore ----------------------------------------------------------------------------------


@pytest.fixture
def slider():
    return ipywidgets.FloatSlider(value=1.0, min=0.0, max=10.0, step=0.5)


def explored(displayed):
    """What `explore` showed: (picture in the page, live image, message)."""
    ((bundle, metadata),) = displayed
    assert set(bundle) == {WIDGET_VIEW, "image/png", "text/plain"}
    assert bundle["text/plain"] == metadata["image/png"]["alt"] == ALT
    *_controls, message, image = widgets_by_id[bundle[WIDGET_VIEW]["model_id"]].children
    return base64.b64decode(bundle["image/png"]), image, message


def test_one_output_carries_the_widget_and_a_picture_of_its_first_state(displayed, slider):
    explore(line, ALT, slope=slider)
    picture, image, message = explored(displayed)
    assert picture == image.value == closing(line(1.0))
    assert message.value == "" and image.layout.max_width == "100%"


def test_moving_a_control_draws_again_and_moving_back_gives_the_first_picture(displayed, slider):
    explore(line, ALT, slope=slider)
    picture, image, _ = explored(displayed)
    slider.value = 4.0
    assert image.value == closing(line(4.0)) != picture
    slider.value = 1.0
    assert image.value == picture
    assert len(displayed) == 1  # the saved page keeps its first state


def test_every_control_sets_its_own_argument(displayed, slider):
    seen = []
    words = ipywidgets.Dropdown(options=["one", "two"])
    explore(lambda **values: seen.append(values) or line(), ALT, slope=slider, word=words)
    slider.value, words.value = 2.0, "two"
    assert seen == [
        {"slope": 1.0, "word": "one"},
        {"slope": 2.0, "word": "one"},
        {"slope": 2.0, "word": "two"},
    ]


def test_an_error_stands_under_the_controls_until_the_next_good_move(displayed, slider):
    def fails_above_five(slope):
        drawn = line(slope)
        if slope > 5:
            raise ArithmeticError("too steep")  # with the figure half drawn
        return drawn

    explore(fails_above_five, ALT, slope=slider)
    picture, image, message = explored(displayed)
    slider.value = 7.0
    assert message.value == "ArithmeticError: too steep" and image.value == picture
    assert plt.get_fignums() == []  # else the next cell would show the half-drawn one
    slider.value = 2.0
    assert message.value == "" and image.value == closing(line(2.0))


def test_an_error_in_the_first_state_is_the_cells_error(displayed, slider):
    with pytest.raises(TypeError):
        explore(line, ALT, wrong_name=slider)
    assert not displayed


def test_a_figure_of_the_reader_stays_open(displayed, slider):
    own = line(3.0)
    explore(line, ALT, slope=slider)
    slider.value = 2.0
    assert plt.get_fignums() == [own.number]
    plt.close(own)


# --- exercises: every one of the book -----------------------------------------------------------


def passes(*_arguments):
    pass


def returns_ellipsis(*_arguments):
    return ...


def raises_not_implemented(*_arguments):
    raise NotImplementedError


@EACH
@pytest.mark.parametrize("blank", [passes, returns_ellipsis, raises_not_implemented])
def test_a_blank_is_told_and_the_reference_goes_on(exercise, blank, capsys):
    assert (judge(exercise.name, blank).status, judge(exercise.name, blank).points) == ("blank", 0)
    assert check(exercise.name, blank) is exercise.reference
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"… {exercise.name}: not filled in yet; exercises.hint('{exercise.name}')"
    )
    assert "goes on with the reference" in printed


@EACH
def test_the_reference_earns_all_points_and_is_returned(exercise, capsys):
    def answer(*arguments):
        return exercise.reference(*arguments)

    verdict = judge(exercise.name, answer)
    assert (verdict.status, verdict.points) == ("correct", exercise.points)
    assert exercise.points > 0
    assert check(exercise.name, answer) is answer
    assert capsys.readouterr().out.startswith(
        f"✓ {exercise.name}: correct, {exercise.points} point"
    )


@EACH
def test_what_a_right_answer_gave_confirms_it_elsewhere(exercise):
    outcomes = json.loads(json.dumps(judge(exercise.name, exercise.reference).outcomes))
    assert confirms(exercise.name, outcomes)
    assert not confirms(exercise.name, outcomes[:-1])
    assert not confirms(exercise.name, [*outcomes[:-1], -12345.678])
    assert not confirms(exercise.name, None)


@EACH
def test_every_known_mistake_gets_its_own_message(exercise, capsys):
    assert exercise.mistakes
    for mistaken, message in exercise.mistakes:
        verdict = judge(exercise.name, mistaken)
        assert (verdict.status, verdict.message, verdict.points) == ("wrong", message, 0)
        assert check(exercise.name, mistaken) is exercise.reference
        assert capsys.readouterr().out.startswith(f"✗ {exercise.name}: {message}")


@EACH
def test_an_unknown_mistake_is_told_where_it_differs(exercise):
    verdict = judge(exercise.name, lambda *_arguments: -12345.678)
    assert verdict.status == "wrong"
    assert "gives -12345.678, expected " in verdict.message
    assert shown(exercise.reference(*copy.deepcopy(exercise.cases[0]))) in verdict.message


@EACH
def test_an_answer_right_in_all_cases_but_one_is_wrong(exercise):
    cases = list(exercise.cases)
    last = ", ".join(map(shown, cases[-1]))

    def nearly(*arguments):
        right = exercise.reference(*arguments)
        cases.pop()
        return right if cases else np.asarray(right, float) * 1.001 + 0.001

    verdict = judge(exercise.name, nearly)
    assert verdict.status == "wrong" and f"nearly({last})" in verdict.message


@EACH
@pytest.mark.parametrize("error", [ValueError, RecursionError, SystemExit, AssertionError])
def test_an_answer_that_raises_is_told_its_own_error(exercise, error):
    def answer(*_arguments):
        raise error("it broke here")

    verdict = judge(exercise.name, answer)
    assert verdict.status == "error" and verdict.points == 0
    assert f"raised {error.__name__}: it broke here" in verdict.message
    assert "answer(" in verdict.message


@EACH
def test_an_answer_with_other_arguments_is_an_error_not_a_crash(exercise):
    verdict = judge(exercise.name, lambda: 3)
    assert verdict.status == "error" and "TypeError" in verdict.message


@EACH
def test_an_answer_with_another_signature_is_told_how_many_arguments_it_gets(exercise):
    given = list(inspect.signature(exercise.reference).parameters)[: len(exercise.cases[0])]
    names = ", ".join(given)
    shape = eval(f"lambda {', '.join(given[1:])}: 1")  # one argument less
    more = eval(f"lambda {names}, axis: 1")
    assert f"but {len(given)} " in judge(exercise.name, shape).message
    assert "missing 1 required positional argument: 'axis'" in judge(exercise.name, more).message


@EACH
def test_an_answer_that_prints_its_result_is_told_to_return_it(exercise, capsys):
    verdict = judge(exercise.name, lambda *arguments: print(exercise.reference(*arguments)))
    assert verdict.status == "wrong" and "`return` the result; print() only" in verdict.message


@EACH
def test_a_mistake_is_known_in_numpy_and_in_single_precision(exercise):
    for mistaken, message in exercise.mistakes:

        def in_numpy(*arguments, mistaken=mistaken):
            return np.asarray(mistaken(*arguments))

        def in_single_precision(*arguments, mistaken=mistaken):
            result = np.asarray(mistaken(*arguments))
            return torch.tensor(result, dtype=torch.float32 if result.dtype.kind == "f" else None)

        assert judge(exercise.name, in_numpy).message == message
        if exercise.rtol >= 1e-6:
            assert judge(exercise.name, in_single_precision).message == message


@EACH
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("rounded", [np.float16, np.round], ids=["half precision", "integers"])
def test_a_result_that_has_lost_digits_is_wrong(exercise, rounded):
    rights = [
        np.asarray(exercise.reference(*copy.deepcopy(case)), float) for case in exercise.cases
    ]
    found = [np.asarray(rounded(right), float) for right in rights]
    same = all(map(partial(np.allclose, rtol=1e-4, equal_nan=True), found, rights))
    verdict = judge(exercise.name, lambda *a: rounded(np.asarray(exercise.reference(*a), float)))
    assert same or verdict.status == "wrong"


@EACH
@pytest.mark.parametrize("answer", [None, 42, "def f(): ...", ..., [1], torch.ones(3)])
def test_what_is_no_function_is_told_so(exercise, answer):
    verdict = judge(exercise.name, answer)
    assert (verdict.status, verdict.points) == ("wrong", 0)
    assert verdict.message.startswith("expected a function")


@EACH
@pytest.mark.parametrize(
    "wrap",
    [
        lambda right: repr(right),
        lambda right: [repr(x) for x in right] if isinstance(right, tuple) else str(right),
        lambda right: [right],
        lambda right: {"answer": right},
        lambda right: np.asarray(right) + 1e-3j,
    ],
)
def test_the_right_number_of_the_wrong_type_is_wrong(exercise, wrap):
    assert judge(exercise.name, lambda *a: wrap(exercise.reference(*a))).status == "wrong"


def as_python(right):
    """A tensor as nested lists, a number as a fraction."""
    if isinstance(right, torch.Tensor):
        return right.tolist()
    return [as_python(r) for r in right] if isinstance(right, tuple | list) else Fraction(right)


@EACH
@pytest.mark.parametrize(
    "wrap",
    [
        as_python,
        np.asarray,
        lambda right: torch.as_tensor(np.asarray(right), dtype=torch.float64),
    ],
)
def test_the_right_number_may_come_as_another_kind_of_number(exercise, wrap):
    assert judge(exercise.name, lambda *a: wrap(exercise.reference(*a))).status == "correct"


@EACH
def test_a_tensor_in_single_precision_is_right_where_a_fraction_is_wanted(exercise):
    def answer(*arguments):
        right = torch.as_tensor(exercise.reference(*arguments), dtype=torch.float32)
        return right.clone().requires_grad_()

    outcomes = [exercise.reference(*copy.deepcopy(case)) for case in exercise.cases]
    one = not any(isinstance(outcome, tuple) for outcome in outcomes)  # and not several tensors
    if one and all(np.asarray(outcome).dtype.kind == "f" for outcome in outcomes):
        assert judge(exercise.name, answer).status == "correct"


@EACH
def test_a_whole_number_is_compared_exactly(exercise):
    rights = [np.asarray(exercise.reference(*copy.deepcopy(case))) for case in exercise.cases]
    if all(right.dtype.kind in "iu" for right in rights):
        nearly = judge(exercise.name, lambda *a: np.asarray(exercise.reference(*a)) + 1)
        assert nearly.status == "wrong"


def forgets_return(rows, columns):
    print(rows * columns + 4 * rows)


def computes_and_forgets_return(rows, columns):
    rows * columns + 4 * rows


@pytest.mark.parametrize("answer", [forgets_return, computes_and_forgets_return])
def test_a_function_without_return_is_no_blank(answer):
    verdict = judge("00.int8_bytes", answer)
    assert verdict.status == "wrong"
    assert verdict.message.startswith(f"{answer.__name__} gives None in every case: `return`")


def documented(rows, columns):
    """Number of bytes, to be filled in."""


def test_a_docstring_alone_is_a_blank():
    assert judge("00.int8_bytes", documented).status == "blank"


def test_a_check_hands_its_verdict_in_where_it_is_asked_to(tmp_path, monkeypatch):
    file = tmp_path / "verdicts.jsonl"
    monkeypatch.setattr(exercises_module, "VERDICTS", str(file))
    check("00.int8_bytes", lambda rows, columns: rows * columns)
    check("00.int8_bytes", EXERCISES["00.int8_bytes"].reference)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(line["status"], line.get("points")) for line in lines] == [
        ("begun", None),
        ("wrong", 0),
        ("begun", None),
        ("correct", 2),
    ]
    # The reference is nobody's.
    assert [line.get("own") for line in lines] == [None, True, None, False]
    assert {line["name"] for line in lines} == {"00.int8_bytes"}
    assert "the scales of the rows are missing" in lines[1]["message"]


@EACH
def test_an_answer_that_changes_its_arguments_harms_no_later_check(exercise):
    before = repr(exercise.cases)

    def destroys(*arguments):
        for argument in arguments:
            if isinstance(argument, list):
                argument.clear()
        return 0.0

    assert judge(exercise.name, destroys).status == "wrong"
    assert repr(exercise.cases) == before
    assert judge(exercise.name, exercise.reference).status == "correct"


@EACH
def test_hints_are_numbered_from_one_and_name_the_next(exercise, capsys):
    assert exercise.hints
    for number, text in enumerate(exercise.hints, 1):
        hint(exercise.name, number)
        printed = capsys.readouterr().out
        assert printed.startswith(text)
        assert (f"{number + 1}) says more" in printed) == (number < len(exercise.hints))
    for number in (0, -1, len(exercise.hints) + 1):
        with pytest.raises(ValueError, match=rf"hints 1 to {len(exercise.hints)}, not {number}"):
            hint(exercise.name, number)


@EACH
def test_the_solution_is_shown_as_source_that_is_correct(exercise, capsys):
    solution(exercise.name)
    lesson = vars(sys.modules[exercise.reference.__module__])  # with what the notebook gives
    parts = {name: getattr(part, "reference", part) for name, part in lesson.items()}
    helpers = {
        name: part
        for name, part in parts.items()
        if inspect.isfunction(part) or inspect.ismodule(part)
    }
    scope = helpers | {"torch": torch, "nn": torch.nn, "math": math}  # a notebook has imported them
    scope.pop(exercise.reference.__name__, None)
    exec(capsys.readouterr().out, scope)
    assert judge(exercise.name, scope[exercise.reference.__name__]).status == "correct"


@EACH
def test_an_exercise_belongs_to_a_notebook_of_the_course(exercise):
    assert EXERCISES[exercise.name] is exercise
    numbers = {notebook[:2] for notebook in read_profile("cpu").notebooks}
    assert exercise.name.partition(".")[0] in numbers


@pytest.mark.parametrize("use", [find, hint, solution, lambda name: check(name, passes)])
def test_an_unknown_exercise_lists_the_known_ones(use):
    with pytest.raises(KeyError) as refused:
        use("00.none")
    assert all(name in str(refused.value) for name in EXERCISES)


# --- exercises: silly answers -------------------------------------------------------------------


class Unprintable:
    def __repr__(self):
        raise RuntimeError("not even that")


class Hostile:
    def __array__(self, *_arguments, **_options):
        raise RuntimeError("no array of me")


SILLY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.floats() | st.text(max_size=2) | st.lists(st.integers()), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from(
        [
            10**400,
            10**5000,
            np.zeros((0, 3)),
            np.zeros(10_000),
            np.array(["a"]),
            np.datetime64("2024-01-01"),
            torch.ones(2, requires_grad=True),
            torch.ones(2, dtype=torch.bfloat16),
            print,
            int,
            float("nan"),
            Unprintable(),
            Hostile(),
        ]
    ),
)


@EACH
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=SILLY, as_function=st.booleans())
def test_check_never_raises_and_always_returns_a_function_that_is_right(
    exercise, value, as_function
):
    kept = check(exercise.name, (lambda *_arguments: value) if as_function else value)
    assert judge(exercise.name, kept).status == "correct"


@pytest.mark.parametrize("value", [Unprintable(), 10**5000, list(range(10_000))], ids=type)
def test_a_message_stays_short_and_readable_whatever_the_answer(value):
    verdict = judge("08.fastest_decode", lambda *_arguments: value)
    assert verdict.status == "wrong" and len(verdict.message) < 500


def test_a_callable_object_without_a_name_is_judged_like_a_function():
    class Answer:
        def __call__(self, bytes_read, bandwidth):
            return bytes_read

    verdict = judge("08.fastest_decode", Answer())
    assert verdict.message.startswith("the function(13200000000.0, 320000000000.0) gives")


def test_ctrl_c_still_stops_a_check():
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge("08.fastest_decode", interrupted)


# --- exercises: the references themselves -------------------------------------------------------


def test_int8_bytes_add_up_to_the_cost_of_the_models_linear_layers():
    config = config_of("llama-3.1-8b")
    cost = weight_bytes(config, "int8")
    int8_bytes = EXERCISES["00.int8_bytes"].reference
    layers = sum(int8_bytes(*shape) for shape in config.linear_shapes().values())
    assert layers * config.num_hidden_layers == cost.linear + cost.scales


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_the_interval_is_numpys_mean_and_standard_error(differences):
    np.testing.assert_allclose(
        mean_difference_interval(differences), mean_interval(differences)[1:], rtol=1e-9, atol=1e-9
    )


# --- claims -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", claims_module.claims())
def test_every_claim_has_its_words_its_source_and_a_notebook_that_tests_it(name):
    entry = claims_module.claims()[name]
    assert set(entry) - {"cell"} == {"claim", "source", "notebook"}
    assert len(entry["claim"]) > 20 and len(entry["source"]) > 10
    for profile in profile_names():
        assert entry["notebook"] in read_profile(profile).notebooks


def test_no_claim_is_on_trial_twice():
    entries = claims_module.claims().values()
    assert all(a["claim"] != b["claim"] for a, b in itertools.combinations(entries, 2))


@pytest.mark.parametrize("verdict", claims_module.VERDICTS)
def test_a_verdict_is_shown_and_recorded(results, displayed, verdict):
    name = "int8-halves-memory"
    claims_module.put_on_trial(results, name, "0.52 of FP16", verdict, "scales and embedding")
    written = results.path.read_text(encoding="utf-8")
    assert all(part in written for part in (name, "0.52 of FP16", verdict, "scales and embedding"))
    ((shown, _),) = displayed
    entry = claims_module.claims()[name]
    for part in (entry["claim"], entry["source"], "0.52 of FP16", verdict, "scales and embedding"):
        assert part in shown.data


def test_a_verdict_on_what_was_counted_says_so(results, displayed):
    claims_module.put_on_trial(
        results, "int8-halves-memory", "0.52 of FP16", "holds", "scales", word="Counted"
    )
    assert "**Counted.** 0.52 of FP16" in displayed[0][0].data


def test_an_unknown_claim_or_verdict_is_refused_and_nothing_recorded(results, displayed):
    with pytest.raises(ValueError, match="no claim 'int8-is-magic'; there are int8-halves-memory"):
        claims_module.put_on_trial(results, "int8-is-magic", "1", "holds", "because")
    with pytest.raises(
        ValueError, match="verdict is 'true'; known are holds, consistent with it here"
    ):
        claims_module.put_on_trial(results, "int8-halves-memory", "1", "true", "because")
    assert not results.path.exists() and not displayed


def test_the_readmes_exercise_gets_the_verdict_that_stands_below_it(capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    answer, said = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL).groups()
    place = {}
    exec(answer, place)
    check("06.absmax", place["absmax"])
    assert capsys.readouterr().out == said
