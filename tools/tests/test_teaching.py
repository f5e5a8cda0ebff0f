"""The pages for teachers speak of the course as it is, and their minutes add up."""

import json
import re

import pytest
from conftest import ROOT

import course
import sync_notebooks
from llama_int8.lessons import exercises

EXERCISES = exercises()

NOTEBOOKS = sync_notebooks.NOTEBOOKS
PAGES = {
    name: (NOTEBOOKS / name).read_text(encoding="utf-8")
    for name in ("TEACHING.md", "PLANS.md", "PROJECT.md", "HANDOUTS.md")
}
GUIDE, PLANS = PAGES["TEACHING.md"], PAGES["PLANS.md"]
LESSONS = [path.stem[:2] for path in sync_notebooks.notebook_paths()]
# Minutes of the notebooks' tops where all exercises take longer than reading and predicting.
ALL_EXERCISES = {"nearly two hours": 115, "two hours": 120}
ITALICS = re.compile(r"(?<!\*)\*([^*\n]+)\*(?!\*)")


def texts(number: str) -> list[str]:
    """The Markdown cells of a notebook."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = sync_notebooks.read(path)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def main_line(number: str) -> tuple[list[str], list[str]]:
    """The headings of a notebook before "Going deeper", and from there on, as they stand."""
    lines = [line for text in texts(number) for line in text.splitlines()]
    found = [line.lstrip("# ") for line in lines if re.match(r"#{1,3} ", line)]
    (end,) = (k for k, name in enumerate(found) if name.startswith("Going deeper"))
    return found[1:end], found[end:]


def called(name: str, heading: str) -> bool:
    """Whether a plan's name of a section or exercise is that heading, or how it begins."""
    plain = re.sub(r"^(Exercise|Challenge): ", "", heading)
    names = {heading, plain, heading.partition(":")[0]}
    return name.rstrip("?") in {one.rstrip("?") for one in names}


def minutes_of(number: str) -> int:
    """A lesson's study time with the exercises of its main line, as the notebook's top states it."""
    sentence = re.search(r"\*\*Study time:\*\* ([^.;]+)", texts(number)[0])[1]
    for words, minutes in ALL_EXERCISES.items():
        if words in sentence:
            return minutes
    return int(re.search(r"(\d+) minutes", sentence)[1])


def plan(number: str) -> tuple[list[list[str]], int, str]:
    """A lesson's rows (minutes, sections, how), and the minutes and text of the work at home."""
    section = PLANS.split(f"\n### {number} ")[1].split("\n## ")[0].split("\n### ")[0]
    rows = re.findall(r"(?m)^\| (\d+) \| (.+?) \| (.+?) \|$", section)
    home = re.search(r"\*\*At home\*\*, (\d+) minutes: (.+)", section)
    return [list(row) for row in rows], int(home[1]), home[2]


def exercise_places(number: str) -> dict[str, tuple[str, bool]]:
    """A notebook's exercises by name: the heading that each stands below, and if "deeper"."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    heading, deeper, found = "", False, {}
    for cell in sync_notebooks.read(path)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for line in text.splitlines():
                if re.match(r"#{1,3} ", line):
                    heading = line.lstrip("# ")
                    deeper |= heading.startswith("Going deeper")
        else:
            for name in re.findall(r'check\(\s*"(\d\d\.\w+)"', text):
                found.setdefault(name, (heading, deeper))
    return found


def named(text: str) -> list[str]:
    """The exercises that a text names, such as `01.attention`."""
    return re.findall(r"`(\d\d\.\w+)`", text)


def at_home(number: str) -> list[str]:
    """The exercises of the main line that a lesson's plan leaves to the learners' own time."""
    return named(plan(number)[2])


def section_of(number: str) -> str:
    """What the guide says of a lesson."""
    return GUIDE.split(f"\n### {number} ")[1].split("\n## ")[0].split("\n### ")[0]


def points(names) -> int:
    return sum(EXERCISES[name].points for name in names)


def headings(number: str) -> set[str]:
    """The headings of a notebook, without their marks and the word "Exercise"."""
    (path,) = sync_notebooks.NOTEBOOKS.glob(f"{number}_*.ipynb")
    lines = [
        line
        for cell in sync_notebooks.read(path)["cells"]
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
        if line.startswith("#")
    ]
    whole = {re.sub(r"^#+ (Exercise: )?", "", line).rstrip("?") for line in lines}
    return whole | {name.partition(":")[0] for name in whole}  # "Absmax: the grid from ..."


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page])
    assert targets or page == "HANDOUTS.md"
    for target in targets:
        if not target.startswith("https://"):
            assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("path", sync_notebooks.notebook_paths(), ids=lambda path: path.stem)
def test_a_notebook_has_goals_questions_and_its_exercises_with_points(path):
    number = path.stem[:2]
    section = GUIDE.split(f"\n### {number} ")[1].split("\n## ")[0].split("\n### ")[0]
    for part in ("Goal", "Teaching time:", "**Discuss**", "**Misunderstandings.**"):
        assert part in section, part
    assert len(re.findall(r"(?m)^- \*.+\?\* ", section)) >= 3
    places = exercise_places(number)
    assert places.keys() == {name for name in EXERCISES if name.startswith(number)}
    main = [name for name, (_, deeper) in places.items() if not deeper]
    assert (
        f"**Exercises:** main line {len(main)} with {points(main)} points; "
        f"all {len(places)}, {points(places)} points." in section
    )


def listed(names) -> str:
    """Exercises with their points, as the guide's table lists them."""
    return ", ".join(f"`{name}` {EXERCISES[name].points}" for name in names) or "-"


def test_the_table_of_exercises_is_that_of_the_plans_and_the_notebooks():
    """The expected rows stand in the message of a failure: copy them."""
    rows = []
    for number in LESSONS:
        places, home = exercise_places(number), at_home(number)
        main = [name for name, (_, deeper) in places.items() if not deeper]
        groups = [
            [name for name in main if name not in home],
            [name for name in main if name in home],
            [name for name in places if name not in main],
        ]
        rows.append(f"| {' | '.join(map(listed, groups))} | {points(main)} / {points(places)} |")
    expected = "\n".join(rows)
    assert expected in GUIDE, expected


def test_the_grades_add_up():
    parts = re.findall(r"(?m)^\| (\d+) % \| .+ \|$", GUIDE)
    assert len(parts) == 4 and sum(map(int, parts)) == 100


@pytest.mark.parametrize("number", LESSONS)
def test_what_to_cut_is_done_in_class_and_takes_the_minutes_of_the_plan(number):
    text = re.search(r"\*\*To cut\.\*\* (.+)", section_of(number))[1]
    cut, minutes = re.match(r"(.+?): (\d+) minutes\.", text).groups()
    names = ITALICS.findall(cut)
    whole = [row for row in plan(number)[0] if row[1] != "-"]
    whole = [row for row in whole if set(ITALICS.findall(row[1])) <= set(names)]
    assert sorted(names) == sorted(name for row in whole for name in ITALICS.findall(row[1]))
    assert sum(int(row[0]) for row in whole) == int(minutes) > 0


def test_the_plans_of_a_day_name_sections_and_exercises_that_exist():
    day = PLANS.split("\n## One day\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| *\d+ \|.*$", day)
    assert sum(int(re.match(r"\| *(\d+)", row)[1]) for row in rows) == 6 * 60
    lecture = PLANS.split("\n## A lecture with demonstrations\n")[1]
    shown = re.findall(r"(?m)^\| *\d+ \|.*$", lecture)
    assert sum(int(re.match(r"\| *(\d+)", row)[1]) for row in shown) == 90
    for row in rows + [row for row in shown if "| - |" not in row]:
        number = re.search(r"^\| *\d+ \| \[?(\d\d)\b", row)[1]
        there = headings(number)
        for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", row):
            assert name.rstrip("?") in there, f"{number} has no section {name!r}"
        assert set(named(row)) <= exercise_places(number).keys(), row


@pytest.mark.parametrize("number", LESSONS)
def test_a_lessons_plan_takes_ninety_minutes_and_its_study_time(number):
    rows, home, _ = plan(number)
    assert sum(int(minutes) for minutes, *_ in rows) == 90
    studied = sum(int(minutes) for minutes, sections, _ in rows if sections != "-")
    assert studied + home == minutes_of(number)
    assert max(int(minutes) for minutes, *_ in rows) <= 20
    section = GUIDE.split(f"\n### {number} ")[1].split("\n## ")[0].split("\n### ")[0]
    assert f"**Teaching time:** [90 minutes in class](PLANS.md), {home} at home" in section


@pytest.mark.parametrize("number", LESSONS)
def test_a_lessons_plan_holds_the_whole_main_line_and_nothing_that_is_not_there(number):
    before, _ = main_line(number)
    rows, _, home = plan(number)
    names = [name for _, sections, _ in rows for name in ITALICS.findall(sections)]
    names += ITALICS.findall(home)
    given = [name for _, _, how in rows for name in named(how)] + named(home)
    places = exercise_places(number)
    assert sorted(given) == sorted(name for name, (_, deeper) in places.items() if not deeper)
    names += [places[name][0] for name in given]
    for name in names:
        assert any(called(name, heading) for heading in before), f"{number} has no {name!r}"
    unnamed = ("Summary", "The map of the course")
    for heading in before:
        if heading not in unnamed:
            assert any(called(name, heading) for name in names), f"{heading!r} is in no row"


def test_three_days_take_every_lessons_study_time_and_six_hours_each():
    days = PLANS.split("\n## Three days\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| (\d) \| (\d+) \| (.+?) \|$", days)
    for day in "123":
        assert sum(int(minutes) for number, minutes, _ in rows if number == day) == 6 * 60
    lessons = {what[1:3]: int(minutes) for _, minutes, what in rows if what.startswith("[")}
    assert lessons == {number: minutes_of(number) for number in LESSONS}


def test_the_work_at_home_takes_nearly_three_hours_in_all():
    assert 2.5 * 60 < sum(plan(number)[1] for number in LESSONS) < 3 * 60
    assert "nearly three hours at home in all" in GUIDE


def test_four_lessons_take_ninety_minutes_each():
    four = PLANS.split("\n## Four lessons of ninety minutes\n")[1].split("\n## ")[0]
    lessons = re.findall(r"(?m)^\d\. .+$", four)
    assert len(lessons) == 4
    for lesson in lessons:
        parts = re.findall(
            r"(\d+) minutes of|, (\d+) of|(?:then|and) (\d+) of|(\d+) minutes of", lesson
        )
        assert sum(int(next(filter(None, part))) for part in parts) == 90, parts


@pytest.mark.parametrize("number", LESSONS)
def test_what_to_cut_is_of_the_main_line_and_what_the_fast_do_goes_deeper(number):
    before, after = main_line(number)
    section = GUIDE.split(f"\n### {number} ")[1].split("\n## ")[0].split("\n### ")[0]
    for title, there in (("To cut", before), ("For the fast", after)):
        text = re.search(rf"\*\*{title}\.\*\* (.+)", section)[1]
        names = ITALICS.findall(text)
        assert names, f"{number}: {title}"
        for name in names:
            assert any(called(name, heading) for heading in there), f"{number} has no {name!r}"


# --- the handouts


FIELD = """autoregressive, teacher forcing, exposure bias, quadratic cost, permutation equivariance,
prefix LM, pre-norm, post-norm, weight tying, MHA, MQA, GQA, KV cache, prefill, decode,
arithmetic intensity, roofline, surprisal, distinct-n, per-tensor, per-channel, per-token, per-group,
symmetric, asymmetric, affine, static, dynamic, calibration, weight-only, W8A16, W8A8,
post-training quantization, quantization-aware training, outlier feature,
mixed-precision decomposition, SmoothQuant, GPTQ, AWQ, NF4, QLoRA, FP8, requantization,
online softmax, tiling, flash-decoding, split-KV, Chinchilla-optimal, MFU, ZeRO, FSDP, SFT, RLHF, DPO"""
GLOSSARY = re.findall(
    r"(?m)^\| ([^|]+) \| ([^|]+) \| (\d\d) \|$", PAGES["HANDOUTS.md"].split("## Glossary")[1]
)


@pytest.mark.parametrize(("term", "lesson"), [(term, lesson) for term, _, lesson in GLOSSARY])
def test_a_term_of_the_glossary_stands_in_bold_in_its_lesson(term, lesson):
    bold = re.findall(r"\*\*([^*\n]+)\*\*", "\n".join(texts(lesson)))
    assert any(re.search(rf"(?<!\w){re.escape(term)}", one, re.IGNORECASE) for one in bold)


def test_the_glossary_has_the_fields_words_in_order():
    everything = "\n".join(f"{term}: {what}" for term, what, _ in GLOSSARY)
    for word in re.split(r",\s+", FIELD):
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", everything), word
    terms = [term.lower() for term, *_ in GLOSSARY]
    assert terms == sorted(set(terms))


def test_the_formulas_are_written_so_that_github_shows_them():
    page = PAGES["HANDOUTS.md"]
    outside = re.sub(r"```math\n.*?\n```", "", page, flags=re.DOTALL)
    formulas = re.findall(r"\$`([^`]+)`\$", outside)
    assert len(formulas) > 25
    for formula in formulas:
        assert "|" not in formula  # would end the cell of its table
        assert formula.count("{") == formula.count("}")
        assert formula.count(r"\big(") + formula.count(r"\left(") <= formula.count(")")
    assert "$" not in re.sub(r"\$`[^`]+`\$", "", outside)


# --- the project


PROJECT = PAGES["PROJECT.md"]


def measured(page_part: str) -> dict:
    """The results file that an example names."""
    return json.loads((ROOT / re.search(r"`(results/[^`]+)`", page_part)[1]).read_text())


def test_the_project_takes_its_hours_and_has_ten_claims_that_begin_somewhere():
    hours = re.findall(r"(?m)^\| ([\d.]+) \| .+ \| (?:home|class|class and home) \|$", PROJECT)
    assert len(hours) == 6 and sum(map(float, hours)) == 8 and "Eight hours" in PROJECT
    meeting = PLANS.split("\n### The twelfth meeting")[1].split("\n## ")[0]
    assert sum(map(int, re.findall(r"(?m)^\| (\d+) \| ", meeting))) == 90
    claims = re.findall(r'(?m)^\| \d+ \| "([^"]+)" \| lesson (\d\d), \*(.+?)\* \| .+ \|$', PROJECT)
    assert len(claims) == 10 and len({claim for claim, *_ in claims}) == 10
    for _, number, section in claims:
        before, after = main_line(number)
        assert any(called(section, heading) for heading in before + after), section


def test_the_rubrics_rows_add_up_and_so_do_the_marks_of_the_examples():
    rows = re.findall(r"(?m)^\| \*\*(\w+)\*\* \| (.+) \|$", PROJECT)
    assert [name for name, _ in rows] == ["Evidence", "Control", "Interval", "Limits", "Honesty"]
    assert all(len(levels.split(" | ")) == 4 for _, levels in rows) and "Twenty points" in PROJECT
    marks = re.findall(r"\*\*Marks\.\*\* (.+?): (\d+)\.", PROJECT)
    assert len(marks) == 2
    for each, total in marks:
        assert sum(map(int, re.findall(r"\d", each))) == int(total)


def test_the_good_examples_numbers_are_those_of_its_file():
    """To within what another run of the same lesson may move; more, and the text needs new ones."""
    example = PROJECT.split("\n## A good example\n")[1].split("\n## ")[0]
    results = measured(example)
    names = {"greedy": "greedy", "temperature 0.5": "τ = 0.5", "temperature 1": "τ = 1"}
    names |= {"4 beams": "beams", "penalty 1.3": "penalty", "original": "original"}
    rows = re.findall(r"(?m)^> \| (.+?) \| (\d+) \| (.+?) \|$", example)
    assert len(rows) == len(names)
    for label, share, likelihood in rows:
        name = next(name for end, name in names.items() if label.endswith(end))
        found = results["measurements"]
        assert float(share) == pytest.approx(found[f"new_3grams.{name}"]["value"], abs=3)
        if likelihood != "not measured":
            assert float(likelihood) == pytest.approx(
                found[f"likelihood.{name}"]["value"], abs=0.15
            )
    said = re.search(r"minus greedy: ([+\d]+) .+? interval ([+\d]+) to ([+\d]+)", example)
    claim = results["claims"]["likeliest-text-degenerates"]["measured"]
    mean, low, high = re.search(
        r"greedy: ([+\d]+) .+?interval ([+\d]+) to ([+\d]+)", claim
    ).groups()
    for ours, theirs in zip(said.groups(), (mean, low, high), strict=True):
        assert int(ours) == pytest.approx(int(theirs), abs=3)
    beams = results["measurements"]["beams.new_3grams_minus_greedy"]
    said = re.search(r"has (\d+) points \*more\*.+?from (\d+) to \+(\d+)", example).groups()
    for ours, theirs in zip(said, (beams["value"], beams["low"], beams["high"]), strict=True):
        assert int(ours) == pytest.approx(theirs, abs=3)
    # 2.8 standard errors: 1.96 for the interval, 0.84 for a chance of 80 %.
    for pattern, width in (
        (r"a true gap of (\d+) points", int(high) - int(low)),
        (r"for the beams (\d+)", beams["high"] - beams["low"]),
    ):
        assert int(re.search(pattern, example)[1]) == pytest.approx(2.8 * width / 3.92, abs=2)
    assert (
        "**Verdict: holds**" in example
        and results["claims"]["likeliest-text-degenerates"]["verdict"] == "holds"
    )  # by the rule that was written down before


def test_the_bad_examples_numbers_are_those_of_its_file():
    example = PROJECT.split("\n## A bad example\n")[1]
    found = measured(example)["measurements"]

    def near(pattern, value):
        assert float(re.search(pattern, example)[1]) == pytest.approx(value, rel=0.05), pattern

    case = "decode.1x512.all"
    slow, fast = found[f"{case}.bf16"]["value"], found[f"{case}.int8-fast: one call"]["value"]
    control = found[f"{case}.bf16: one call"]["value"]
    ratio = found[f"ratio.{case}.int8-fast: one call"]
    near(r"\| bf16 \| ([\d.]+) \|", slow)
    near(r"\| int8 \| ([\d.]+) \|", fast)
    near(r"int8 is (\d+) times as fast", fast / slow)
    near(r"makes ([\d.]+) tokens/s", control)
    near(r"int8 by itself gives ([\d.]+) times", fast / control)
    near(r"the median is ([\d.]+)", ratio["value"])
    near(r"between ([\d.]+) and", ratio["low"])
    near(r"and ([\d.]+)\. You divided", ratio["high"])
    near(r"runs at ([\d.]+) times the speed", found[f"ratio.{case}.LLM.int8()"]["value"])
    near(
        r"After 32 tokens it is ([\d.]+)",
        found["ratio.decode.1x32.all.int8-fast: one call"]["value"],
    )
    for pattern, path in (
        (r"16 sequences it is ([\d.]+),", "int8-fast: one call"),
        (r"bf16 in one call has ([\d.]+)\.", "bf16: one call"),
    ):
        near(pattern, found[f"ratio.decode.16x32.all.{path}"]["value"])


def test_its_commands_are_those_of_course_py():
    commands = re.findall(r"(?:python3 )?tools/course\.py ([^`\n]+)", GUIDE)
    assert {command.split()[0] for command in commands} >= {"grade", "fetch", "install", "sync"}
    for command in commands:
        course.parse(command.split())
