"""Render REPORT.md and the generated blocks of README.md from results/.

`report_template.md` asks for numbers by name. Each notebook is shown from the machine that last ran
it in place, and what `run` does not make (PIQA, WikiText-2, the benchmarks) from a machine that made
it. A number that nobody measured reads "not measured": it is never an error, and never typed by hand.
A sentence that a new run could turn false takes its wording from `told` or `side`.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import jinja2

import sync_notebooks
from common import ROOT, TOOLS, CourseError
from llama_int8 import __version__
from llama_int8.course.claims import VERDICTS, claims, often_heard
from llama_int8.course.tables import markdown_table
from llama_int8.data import load
from llama_int8.files import write_all
from llama_int8.lessons import LESSONS
from llama_int8.measure.reference import machine_of, read_reference
from llama_int8.models import DEFAULT_MODEL, MODELS, cost
from llama_int8.models.registry import ModelSpec
from llama_int8.quantization.precisions import LLM_INT8

NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"  # by a run of an earlier version
RUN_KEYS = set("notebook model profile environment settings measurements claims figures".split())
BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
FIGURE = re.compile(r"!\[(.*?)\]\((figures/.*?)\)")
GPU_ROWS = (
    ("weights, GiB", "weights", cost.GIB, ".2f"),
    ("taken of the card, GiB", "memory.card", cost.GIB, ".2f"),
    ("decode after 128 tokens, tokens/s", "decode.1x128", 1, ".2f"),
    ("decode after 128 tokens, over FP16", "ratio.decode.1x128", 1, ".2f"),
    ("kernels per token", "launches per token", 1, ",.0f"),
    ("time between kernels, %", "share.between operations", 1, ".0f"),
)
CELL = (
    "https://colab.research.google.com/github/{address}/blob/main/notebooks/{notebook}.ipynb"
    "#scrollTo={cell}"
)


class NotMeasured:
    """Stands for a number that nobody has measured, and for all that is computed from it."""

    def __str__(self) -> str:
        return NOT_MEASURED

    def __format__(self, _spec: str) -> str:
        return NOT_MEASURED

    def _itself(self, *_others: Any) -> "NotMeasured":
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _itself
    __truediv__ = __rtruediv__ = __neg__ = __pow__ = __getitem__ = _itself


def main(check: bool = False) -> int:
    """Write REPORT.md and README.md, or with `check` say which of them is stale."""
    report = Report(ROOT)
    try:
        wanted = {ROOT / "REPORT.md": report.render(), ROOT / "README.md": report.readme()}
    except jinja2.TemplateError as error:
        raise CourseError(f"a template of the report cannot be rendered: {error}") from None
    except ZeroDivisionError:
        raise CourseError(
            "the report divides by a measured 0, which no run of the course writes; find it in "
            'results/ ("value": 0) and run its notebook again'
        ) from None
    report.check_figures(wanted)
    if report.missing:
        print("not measured by any machine in results/: " + "; ".join(sorted(report.missing)))
    stale = [p for p, text in wanted.items() if not p.exists() or _read(p) != text]
    if not check:
        write_all({path: wanted[path] for path in stale})
    for path in stale:
        print(f"{'stale' if check else 'updated'}: {path.name}")
    if check and stale:
        print("run `python3 tools/course.py report`", file=sys.stderr)
    return int(check and bool(stale))


class Report:
    """All results files under a root, and the functions that the templates call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = sorted((root / "results").glob("*/*.json"))
        files = [path for path in files if path.is_file() and not path.name.startswith(".")]
        self.runs = [_read_run(path) for path in files]
        self.reference = read_reference(root / "results")
        self.missing: set[str] = set()  # what the templates name and nobody has measured
        template = _read(TOOLS / "report_template.md")
        self.numbered = re.findall(r'numbered_figure\("(\w+)"', template)
        self.mentioned: set[str] = set()
        self.published = load("published")

    def render(self) -> str:
        """REPORT.md's text. Raises CourseError for a figure that is shown but never spoken of."""
        text = self._environment().get_template("report_template.md").render()
        silent = [name for name in self.numbered if name not in self.mentioned]
        if silent:
            raise CourseError(
                f"the report shows {', '.join(silent)} and never mentions it: write {{{{ ref(...) }}}}"
            )
        return text

    def readme(self) -> str:
        """README.md's text with every block between `begin` and `end` comments rendered again."""
        template = self._environment().get_template("readme_blocks.md")

        def block(match: re.Match[str]) -> str:
            name = match[2]
            if name not in template.blocks:
                raise CourseError(f"README.md has a block {name!r} that readme_blocks.md lacks")
            text = "".join(template.blocks[name](template.new_context())).strip()
            return f"{match[1]}{text}\n{match[3]}"

        return BLOCK.sub(block, _read(self.root / "README.md"))

    def fill_in(self, text: str) -> str:
        """Another text with names in place of numbers, such as a deck of slides, rendered."""
        return self._environment().from_string(text).render()

    def check_figures(self, texts: dict[Path, str]) -> None:
        """Raise CourseError for a figure that is missing, has no alt text, or belongs to nothing."""
        for path, text in texts.items():
            for alt, target in FIGURE.findall(text):
                if not (self.root / target).exists():
                    raise CourseError(f"{path.name} shows {target}, which does not exist")
                if len(alt) < 20:
                    raise CourseError(f"{path.name}: the alt text of {target} is {alt!r}")
        runs = [self._run(path.stem) for path in sync_notebooks.notebook_paths()]
        runs = [run for run in runs if run is not None]
        made = {name: entry for run in runs for name, entry in run["figures"].items()}
        # A notebook that nobody has run in place answers for none of its figures.
        numbers = {run["notebook"][:2] for run in runs}
        there = {path.stem for path in (self.root / "figures").glob("*.png")}
        there = {name for name in there if name[:2] in numbers}
        if there - made.keys():
            raise CourseError(
                f"figures/ holds {', '.join(sorted(there - made.keys()))}, which no notebook of the "
                "reference run made; delete it, or run the notebook that makes it"
            )
        for name, entry in made.items():
            if name not in there:
                raise CourseError(f"figures/{name}.png does not exist; run its notebook again")
            if len(entry["alt"]) < 20:
                raise CourseError(f"{name}: the alt text is {entry['alt']!r}")

    def _environment(self) -> jinja2.Environment:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TOOLS),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.globals |= {
            "address": sync_notebooks.repository_address(),
            "value": self.value,
            "setting": self.setting,
            "shown": self.shown,
            "interval": self.interval,
            "told": self.told,
            "side": side,
            "percent": self.percent,
            "environment": self.environment,
            "total_minutes": self.total_minutes,
            "measured_by": self.measured_by,
            "dates": self.dates,
            "gpus": self.gpus,
            "version": __version__,
            "lesson": lesson,
            "one_line": lambda text: " ".join(str(text).split()),
            "figure": self.figure,
            "badge": _badge,
            "numbered_figure": self.numbered_figure,
            "ref": self.ref,
            "by_machine": self.by_machine,
            "by_path": self.by_path,
            "machines": self.machines,
            "claims_table": self.claims_table,
            "verdicts": self.verdicts,
            "claims_count": lambda: len(claims()),
            "cited_claims": lambda: sum(not often_heard(entry) for entry in claims().values()),
            "student_claims": student_claims,
            "published": self.published_table,
            "study_hours": study_hours,
            "gpu_beside_published": self.gpu_beside_published,
            "notebooks": self.notebooks,
            "models_table": models_table,
            "cache_mb": cache_mb,
            "llama_sizes": llama_sizes,
            "papers": load("llama_papers"),
            "published_values": self.published,
            "t4_bound": t4_bound,
            "read_ratio": read_ratio,
        }
        environment.filters["format"] = _filled_in
        return environment

    # --- what the templates call

    def value(
        self, notebook: str, name: str, field: str = "value", model: str = DEFAULT_MODEL
    ) -> Any:
        """A number of the reference run, or NotMeasured."""
        run = self._run(notebook, model)
        found = {} if run is None else run["measurements"].get(name, {})
        return found[field] if field in found else self._not_measured(f"{notebook}: {name}")

    def shown(self, notebook: str, name: str, digits: str = ",.1f", scale: float = 1.0) -> str:
        """The same number as text, scaled and formatted."""
        return format(self.value(notebook, name) / scale, digits)

    def percent(self, notebook: str, name: str) -> str:
        """A change of NLL in nats, with its interval, as the change of perplexity in %."""
        ends = [self.value(notebook, name, field) for field in ("value", "low", "high")]
        if any(isinstance(nats, NotMeasured) for nats in ends):
            return NOT_MEASURED
        change, low, high = (f"{100 * math.expm1(nats):+.2f}" for nats in ends)
        return f"{change} % [{low}, {high}]"

    def interval(self, notebook: str, name: str, digits: str = ",.1f", scale: float = 1.0) -> str:
        """The ends of the same number's interval, as "[low, high]"."""
        ends = [self.value(notebook, name, end) / scale for end in ("low", "high")]
        if any(isinstance(end, NotMeasured) for end in ends):
            return f"[{NOT_MEASURED}]"
        return "[" + ", ".join(format(end, digits) for end in ends) + "]"

    def told(
        self,
        notebook: str,
        name: str,
        below: str,
        inside: str,
        above: str,
        than: float = 0.0,
        model: str = DEFAULT_MODEL,
    ) -> str:
        """The wording for where a number's interval lies: below `than`, around it, or above it."""
        low, high = (self.value(notebook, name, end, model) for end in ("low", "high"))
        if any(isinstance(number, NotMeasured) for number in (low, high, than)):
            return NOT_MEASURED
        return below if high < than else above if low > than else inside

    def setting(self, notebook: str, name: str) -> Any:
        """A parameter of the reference run, or NotMeasured."""
        return self._property(notebook, "settings", name)

    def environment(self, name: str, notebook: str = "00") -> Any:
        """A property of the machine that ran `notebook`, or NotMeasured."""
        return self._property(notebook, "environment", name)

    def _property(self, notebook: str, section: str, name: str) -> Any:
        run = self._run(notebook)
        if run is None or name not in run[section]:
            return self._not_measured(f"{notebook}: {name}")
        return run[section][name]

    def total_minutes(self) -> str:
        """Minutes that the notebooks of the reference runs took together."""
        runs = [self._run(path.stem) for path in sync_notebooks.notebook_paths()]
        seconds = [run["run_seconds"] for run in runs if run and "run_seconds" in run]
        return f"{sum(seconds) / 60:.0f}" if seconds else NOT_MEASURED

    def dates(self) -> str:
        """The first and the last day of all measurements."""
        if not self.runs:
            return NOT_MEASURED
        silent = any("date" not in run for run in self.runs)
        return _about(self.runs)["measured"] + (" and on days not recorded" if silent else "")

    def gpus(self) -> str:
        """Which GPUs have measured something, as a sentence."""
        names = {r["environment"]["GPU"] for r in self.runs if "GPU" in r["environment"]}
        if not names:
            return "No GPU has been measured."
        return f"GPUs that have measured something: {', '.join(sorted(names))}."

    def measured_by(self, *notebooks: str) -> str:
        """Which machine made what, in words; without arguments for everything that is shown."""
        if not notebooks:
            others = [run["notebook"] for run in self.runs if not run["notebook"][:2].isdigit()]
            names = [path.stem for path in sync_notebooks.notebook_paths()]
            notebooks = tuple(dict.fromkeys([*names, *sorted(others)]))
        made: dict[str, list[str]] = {}
        for name in notebooks:
            run = self._run(name)
            where = f"by `{run['environment']['machine']}`" if run else "by nobody yet"
            made.setdefault(where, []).append(name[:2] if name[:2].isdigit() else f"`{name}`")
        if len(made) == 1:
            return next(iter(made))
        return "; ".join(f"{_listed(names)} {where}" for where, names in made.items())

    def figure(self, name: str, caption: str | None = None) -> str:
        """A figure of the reference run as Markdown, with alt text and caption (its own if None)."""
        run = self._run(name)
        entry = run["figures"].get(name) if run else None
        if entry is None:
            return f"\n\n*{name}: {self._not_measured(f'figure {name}')}*"
        return f"![{entry['alt']}](figures/{name}.png)\n\n*{caption or entry['caption']}*"

    def numbered_figure(self, name: str, caption: str | None = None) -> str:
        """The same with its number, counted in the order of the template."""
        alt, caption = self.figure(name, caption).split("\n\n*", 1)
        return f"{alt}\n\n*Figure {self._number(name)}. {caption}"

    def ref(self, name: str) -> str:
        """A mention of a figure of the report: "figure 3"."""
        self.mentioned.add(name)
        return f"figure {self._number(name)}"

    def by_machine(
        self, notebook: str, columns: dict[str, str], digits: str = ",.1f", scale: float = 1.0
    ) -> str:
        """A table: a row for each machine and model, a column for each label and measurement.

        `{half}` in a name stands for the machine's 16-bit baseline, bf16 or fp16.
        """

        def find(run: dict[str, Any], name: str) -> dict[str, Any] | None:
            return run["measurements"].get(name.format(half=_half(run)))

        # A model without a tokenizer has no quality: no row of its own in such a table.
        runs = [
            run
            for run in self.runs
            if _is_run_of(run, notebook) and any(find(run, name) for name in columns.values())
        ]
        for name in columns.values():
            if not any(find(run, name) for run in runs):
                self._not_measured(f"{notebook}: {name}")
        if not runs:
            return f"*{NOT_MEASURED}*"

        def cell(run: dict[str, Any], name: str) -> str:
            return _cell(run, name.format(half=_half(run)), digits, scale)

        rows = [[_who(run), *(cell(run, name) for name in columns.values())] for run in runs]
        return markdown_table(["", *columns], rows)

    def by_path(
        self, notebook: str, cases: dict[str, str], paths: list[str], digits: str = ",.1f"
    ) -> str:
        """A table for each machine and model: a row for each path, a column for each case.

        `cases`: {label: measurement}, to which "." and the path's name are added. A case that no
        path of a machine has measured is left out of its table.
        """
        tables = []
        for run in (run for run in self.runs if _is_run_of(run, notebook)):
            found = run["measurements"]
            columns = {
                label: key
                for label, key in cases.items()
                if any(f"{key}.{path}" in found for path in paths)
            }
            rows = []
            for path in paths:
                keys = [f"{key}.{path}" for key in columns.values()]
                shown = [
                    format(found[k]["value"], digits) if k in found else NOT_MEASURED for k in keys
                ]
                if any(k in found for k in keys):
                    rows.append([path, *shown])
            if rows:
                title = f"*{run['environment']['machine']}, {run['model']}:*"
                tables.append(f"{title}\n\n{markdown_table(['', *columns], rows)}")
        if not tables:
            return f"*{self._not_measured(notebook)}*"
        return "\n\n".join(tables)

    def machines(self) -> str:
        """A table of the machines: when and at which commit they measured, hardware, versions."""
        by_machine: dict[str, list[dict[str, Any]]] = {}
        for run in self.runs:
            by_machine.setdefault(run["environment"]["machine"], []).append(run)
        if not by_machine:
            return f"*{NOT_MEASURED}*"
        columns = {name: _about(runs) for name, runs in by_machine.items()}
        keys = dict.fromkeys(key for about in columns.values() for key in about)
        on_a_gpu = {key for key in keys if "GPU" in key} | {"compute capability", "CUDA"}
        rows = [
            [
                k,
                *(
                    about.get(k, "none" if k in on_a_gpu else NOT_RECORDED)
                    for about in columns.values()
                ),
            ]
            for k in keys
        ]
        return markdown_table(["", *columns], rows)

    def claims_table(self) -> str:
        """Every claim with source, verdict, measurement and deciding cell of the reference runs.

        Two tables, each sorted by verdict: claims whose source can be cited, and those that are
        only often heard. A machine that ends otherwise is named.
        """
        heard = {name for name, entry in claims().items() if often_heard(entry)}
        cited = [name for name in claims() if name not in heard]
        parts = [self._tried(cited)]
        if heard:
            parts.append("Often heard, without a source that one could cite:")
            parts.append(self._tried([name for name in claims() if name in heard]))
        return "\n\n".join(parts)

    def _tried(self, names: Sequence[str]) -> str:
        """One table of claims."""
        rows = []
        for name in names:
            entry = claims()[name]
            notebook, where = entry["notebook"], "its notebook is not in this copy"
            if (sync_notebooks.NOTEBOOKS / f"{notebook}.ipynb").exists():
                cell = deciding_cell(name, notebook)
                where = CELL.format(
                    address=sync_notebooks.repository_address(), notebook=notebook, cell=cell
                )
                where = f"[{notebook[:2]}, `{cell}`]({where})"
            said = f"{entry['claim']} ({entry['source']})"
            tried = [run for run in self.runs if name in run["claims"]]
            shown = self._run(notebook)
            run = shown if shown in tried else next(iter(tried), None)
            if run is None:
                rows.append((len(VERDICTS), [said, "", NOT_MEASURED, where]))
                continue
            found = run["claims"][name]
            others = [
                f"; {other['claims'][name]['verdict']} by `{other['environment']['machine']}`"
                for other in tried
                if other["claims"][name]["verdict"] != found["verdict"]
            ]
            verdict = f"**{found['verdict']}**"
            if found["verdict"].endswith("if"):  # the condition is a part of the verdict
                verdict += f": {_first_sentence(found['because'])}"
            place = VERDICTS.index(found["verdict"])
            rows.append((place, [said, verdict + "".join(others), found["measured"], where]))
        rows.sort(key=lambda row: row[0])
        header = ["claim", "verdict", "measured", "decided in"]
        return markdown_table(header, [row for _, row in rows], right=False)

    def verdicts(self, heard: bool | None = None) -> str:
        """How the claims ended in the reference runs, in words: all, or those (not) only heard."""
        names = [n for n, entry in claims().items() if heard in (None, often_heard(entry))]
        runs = {name: self._run(claims()[name]["notebook"]) for name in names}
        tried = [run["claims"][name] for name, run in runs.items() if run and name in run["claims"]]
        found = Counter(verdict["verdict"] for verdict in tried)
        words = (
            ("holds", "hold"),
            ("is consistent with what was measured", "are consistent with what was measured"),
            ("holds under a condition only", "hold under a condition only"),
            ("fails here", "fail here"),
            ("stays undecided here", "stay undecided here"),
            ("cannot be tested here", "cannot be tested here"),
        )
        ends = dict(zip(VERDICTS, words, strict=True))
        counts = [(found[verdict], end) for verdict, end in ends.items() if found[verdict]]
        parts = [f"{count} {one if count == 1 else more}" for count, (one, more) in counts]
        if len(tried) < len(runs):
            parts.append(f"{len(runs) - len(tried)} have not been tried")
        return f"of {len(runs)} claims {', '.join(parts)}"

    def published_table(self, name: str) -> str:
        """One published table with its source and what to know about it."""
        entry = self.published[name]
        header = [entry.get("corner", ""), *entry["columns"]]
        table = markdown_table(header, [[k, *v] for k, v in entry["rows"].items()])
        return f"{table}\n\nSource: {entry['source']}. {entry['note']}"

    def gpu_beside_published(self) -> str:
        """LLaMA-2-7B on one card: what was published, and what each GPU has measured at its shapes."""
        rows = self.published["t4-llama-2-7b-chat"]["rows"]
        memory, speed = rows["memory (GiB)"], rows["speed (tokens/s)"]
        table = [["published, T4: weights, GiB", *memory], ["published, T4: tokens/s", *speed]]
        paths = ("fp16", LLM_INT8)
        for run in self.runs:
            if run["notebook"] == "gpu" and run["model"] == "synthetic:llama-2-7b-chat":
                machine = run["environment"]["machine"]
                for label, key, scale, digits in GPU_ROWS:
                    cells = [_cell(run, f"{key}.{path}", digits, scale) for path in paths]
                    table.append([f"{machine}: {label}", *cells])
        if len(table) == 2:
            table.append(["measured with `tools/benchmark_gpu.py`", *2 * [NOT_MEASURED]])
        return markdown_table(["", "FP16", LLM_INT8], table)

    def notebooks(self) -> str:
        """The table of lessons: title, question, minutes of study and of a run, Colab badge.

        A column for a T4 is there once a T4 has run a lesson.
        """
        rows = []
        on_t4 = {path.stem: self._on_t4(path.stem) for path in sync_notebooks.notebook_paths()}
        t4 = ["run on a T4"] if any(on_t4.values()) else []
        for path in sync_notebooks.notebook_paths():
            link = f"[{sync_notebooks.title(path.stem)}](notebooks/{path.name})"
            times = [_study_minutes(path), _minutes(self._run(path.stem))]
            times += [_minutes(on_t4[path.stem])] if t4 else []
            rows.append([link, question(path.stem), *times, _badge(path.stem)])
        header = ["lesson", "its question", "study, minutes", "run, minutes", *t4, "Colab"]
        return markdown_table(header, rows).replace("---:", "---", 1)  # a question is no number

    # --- helpers

    def _on_t4(self, notebook: str) -> dict[str, Any] | None:
        """The run of a notebook on a T4, if there is one."""
        return next(
            (
                run
                for run in self.runs
                if run["notebook"] == notebook
                and re.search(r"\bt4\b", run["environment"]["machine"])
            ),
            None,
        )

    def _number(self, name: str) -> int:
        if name not in self.numbered:
            raise CourseError(f"the report mentions figure {name} and does not show it")
        return self.numbered.index(name) + 1

    def _not_measured(self, what: str) -> NotMeasured:
        self.missing.add(what)
        return NotMeasured()

    def _run(self, notebook: str, model: str = DEFAULT_MODEL) -> dict[str, Any] | None:
        """The run that the report shows: a notebook's number or name, or a task's name.

        The machine that last ran it in place comes first; where it has none for this model, or
        none is named, the machine that stands for most notebooks, then any other.
        """
        most = Counter(self.reference.values()).most_common()
        order = {machine: place for place, (machine, _) in enumerate(most)}

        def place(run: dict[str, Any]) -> tuple[bool, int, str]:
            machine = run["environment"]["machine"]
            named = machine_of(self.reference, run["notebook"])
            return machine != named, order.get(machine, len(order)), machine

        there = [
            run
            for run in self.runs
            if _is_run_of(run, notebook)
            and run["profile"] in ("cpu", "evaluate", "benchmark")
            and run["model"] == model
        ]
        return min(there, key=place, default=None)


def _is_run_of(run: dict[str, Any], notebook: str) -> bool:
    """Whether `run` is of a notebook, by number, name or name of a figure, or of a task, by name."""
    numbered = notebook[:2].isdigit()
    return run["notebook"][:2] == notebook[:2] if numbered else run["notebook"] == notebook


def _who(run: dict[str, Any]) -> str:
    """A row's head: machine, model, and the first digits of the hash of its data, if it has any.

    Two rows are comparable only where these digits are equal.
    """
    parts = [run["environment"]["machine"], run["model"]]
    if "sha256" in run["settings"]:
        parts.append(f"data {run['settings']['sha256'][:8]}")
    return ", ".join(parts)


def _half(run: dict[str, Any]) -> str:
    return "fp16" if "GPU" in run["environment"] else "bf16"


def _cell(run: dict[str, Any], name: str, digits: str, scale: float = 1.0) -> str:
    """A measurement of `run` as text, with its interval."""
    entry = run["measurements"].get(name)
    if entry is None:
        return NOT_MEASURED
    whole = entry["unit"] == "count" and float(entry["value"]).is_integer()
    text = format(entry["value"] / scale, ",.0f" if whole else digits)
    if "low" in entry:
        ends = (format(entry[end] / scale, digits) for end in ("low", "high"))
        text += " [" + " to ".join(ends) + "]"
    return text


def _filled_in(text: Any, *values: Any) -> str:
    """Jinja's `format` filter, where a number that nobody measured has no digits."""
    return NOT_MEASURED if any(isinstance(v, NotMeasured) for v in values) else text % values


def _minutes(run: dict[str, Any] | None) -> str:
    return f"{run['run_seconds'] / 60:.1f}" if run and "run_seconds" in run else NOT_MEASURED


def _listed(names: list[str]) -> str:
    """Numbers of lessons in a row as a range: "lessons 00 to 03, `piqa`"."""
    shown: list[str] = []
    for name in names:
        first, _, last = (shown[-1] if shown else "").partition(" to ")
        if name.isdigit() and (last or first).isdigit() and int(name) == int(last or first) + 1:
            shown[-1] = f"{first} to {name}"
        else:
            shown.append(name)
    lessons = sum(name.isdigit() for name in names)
    word = {0: "", 1: "lesson "}.get(lessons, "lessons ")
    return word + ", ".join(shown)  # lessons come before other measurements


def question(notebook: str) -> str:
    """The question that a notebook's lesson answers, as its folder in `lessons/` says."""
    lesson = f"n{notebook.partition('_')[0]}"
    return import_module(f"llama_int8.lessons.{lesson}").QUESTION if lesson in LESSONS else ""


def _badge(notebook: str) -> str:
    """A button that opens the notebook in Colab."""
    return sync_notebooks.BADGE.format(address=sync_notebooks.repository_address(), name=notebook)


def study_hours() -> str:
    """Hours of study of all lessons together, as their first cells state them."""
    minutes = [int(_study_minutes(path) or 0) for path in sync_notebooks.notebook_paths()]
    return f"{sum(minutes) / 60:.0f}"


def _study_minutes(path: Path) -> str:
    """Minutes of study, as the notebook's first cell states them."""
    stated = re.search(r"\*\*Study time:\*\* (?:about )?(\d+) minutes", _read(path))
    return stated[1] if stated else ""


def deciding_cell(claim: str, notebook: str) -> str:
    """The id of the cell that puts `claim` on trial. Raises CourseError unless there is one.

    Where the lesson's own module does that for a cell, claims.yaml names the cell.
    """
    path = sync_notebooks.NOTEBOOKS / f"{notebook}.ipynb"
    if not path.exists():
        raise CourseError(f"claims.yaml: {claim} is decided in {notebook}, which does not exist")
    cells = [
        cell["id"]
        for cell in sync_notebooks.read(path)["cells"]
        if cell["cell_type"] == "code"
        and (
            cell["id"] == claims().get(claim, {}).get("cell")
            or ("put_on_trial(" in (code := "".join(cell["source"])) and f'"{claim}"' in code)
        )
    ]
    if len(cells) != 1:
        raise CourseError(f"{notebook} has {len(cells)} cells that try {claim}; it must be one")
    return cells[0]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.)]) (?=[A-Z(])", text, maxsplit=1)[0]


def side(number: Any, limit: float, below: str, above: str) -> str:
    """One of two wordings, by the side of `limit` on which a computed number lies."""
    if isinstance(number, NotMeasured):
        return NOT_MEASURED
    return below if number < limit else above


def lesson(number: str) -> str:
    """A link to a lesson's notebook, or its bare name where this copy lacks the notebook."""
    there = [p for p in sync_notebooks.notebook_paths() if p.stem.startswith(f"{number}_")]
    return f"[lesson {number}](notebooks/{there[0].name})" if there else f"lesson {number}"


def read_ratio(model: str, slow: str, fast: str) -> float:
    """How many times as many bytes of weights one token reads in precision `slow` as in `fast`."""
    config = MODELS[model].config
    read = [cost.weight_bytes(config, precision).read_per_token for precision in (slow, fast)]
    return read[0] / read[1]


def t4_bound(model: str, precision: str) -> float:
    """Highest tokens/s of decoding on a T4 (320 GB/s) that the bytes of the weights allow."""
    weights = cost.weight_bytes(MODELS[model].config, precision)
    return cost.decode_bound(weights.read_per_token, 320e9)


def llama_sizes() -> str:
    """The sizes of the first LLaMA with width, depth and training, as the paper has them."""
    rows = [
        [
            name,
            f"{size['width']:,}",
            size["layers"],
            size["heads"],
            f"{size['parameters']} B",
            f"{size['tokens']} T",
            f"{size['rate']:.1e}",
            f"{size['gpu_hours']:,}",
        ]
        for name, size in load("llama_papers")["sizes"].items()
    ]
    header = ["", "width", "layers", "heads", "parameters", "tokens", "peak rate", "A100 hours"]
    return markdown_table(header, rows)


STUDENT_PROJECTS = ("maelysrpn/", "theodruilhe/")  # on GitHub, audited in lesson 08


def student_claims() -> int:
    """How many claims stand in the two student projects."""
    sources = [entry["source"] for entry in claims().values()]
    return sum(any(project in source for project in STUDENT_PROJECTS) for source in sources)


def cache_mb(tokens: int, model: str = DEFAULT_MODEL) -> float:
    """Megabytes of a model's KV cache in 16 bit, by shape."""
    return cost.kv_cache_bytes(MODELS[model].config, tokens) / 1e6


def models_table() -> str:
    """The registry: parameters, GiB in 16 bit and int8, licence; a row for each size."""
    by_size: dict[tuple[str, ...], list[ModelSpec]] = {}
    for spec in MODELS.values():
        half, int8 = (cost.weight_bytes(spec.config, p).total / cost.GIB for p in ("fp16", "int8"))
        parameters = f"{cost.count_parameters(spec.config):,}"
        by_size.setdefault((parameters, f"{half:.2f}", f"{int8:.2f}"), []).append(spec)
    rows = [
        [
            ", ".join(f"`{spec.name}`" for spec in specs),
            *size,
            "; ".join(dict.fromkeys(spec.licence for spec in specs)),
        ]
        for size, specs in by_size.items()
    ]
    return markdown_table(["model", "parameters", "GiB, 16 bit", "GiB, int8", "licence"], rows)


def _wrong_entries(run: dict[str, Any]) -> Iterator[str]:
    """Everything that is not of the kind that `Results` writes."""
    for section in ("environment", "settings", "measurements", "claims", "figures"):
        if not isinstance(run[section], dict):
            yield f"{section} is {run[section]!r}"
            return
    if not isinstance(run["environment"].get("machine"), str):
        yield "its environment names no machine"
    if not isinstance(run.get("run_seconds", 0.0), int | float):
        yield f"run_seconds is {run['run_seconds']!r}"
    for name, entry in run["measurements"].items():
        if not isinstance(entry, dict) or {"value", "unit"} - entry.keys():
            yield f"{name} has no value with a unit"
        elif entry["unit"] != "text":
            ends = [entry[key] for key in ("value", "low", "high", "n") if key in entry]
            if not all(isinstance(end, int | float) for end in ends) or ("low" in entry) != (
                "high" in entry
            ):
                yield f"{name} is {entry}"


def _about(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The environment of one machine's runs, with the dates and commits of all of them."""
    dates = sorted({run["date"] for run in runs if "date" in run})
    commits = dict.fromkeys(run["commit"][:10] for run in runs if "commit" in run)
    about = {
        "measured": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else NOT_RECORDED,
        "commits": ", ".join(commits) or NOT_RECORDED,
    }
    return about | {k: v for k, v in runs[-1]["environment"].items() if k != "machine"}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(_read(path))
        missing = RUN_KEYS - run.keys()
    except (ValueError, AttributeError):
        raise CourseError(
            f"{path} is not a results file; delete it or run its notebook again"
        ) from None
    if missing:
        raise CourseError(f"{path} lacks {', '.join(sorted(missing))}; it is not a results file")
    wrong = next(_wrong_entries(run), None)
    if wrong:
        raise CourseError(f"{path}: {wrong}; delete it or run its notebook again")
    return {**run, "path": path.name}
