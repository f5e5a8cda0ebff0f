"""Render REPORT.md and the generated blocks of README.md from results/.

`report_template.md` asks for numbers by name. A name that no machine has measured is an error; one
that a machine has not measured reads so. Nothing is typed into the report by hand.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import yaml

import sync_notebooks
from course import ROOT, TOOLS, CourseError
from llama_int8.classroom.claims import claims
from llama_int8.classroom.tables import markdown_table
from llama_int8.measurement import cost
from llama_int8.models import DEFAULT_MODEL, MODELS

NOT_MEASURED = "not measured on this machine"
BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def main(check: bool = False) -> int:
    """Write REPORT.md and README.md, or with `check` say which of them is stale."""
    report = Report(ROOT)
    try:
        wanted = {ROOT / "REPORT.md": report.render(), ROOT / "README.md": report.readme()}
    except jinja2.TemplateError as error:
        raise CourseError(f"a template of the report cannot be rendered: {error}") from None
    report.check_figures(wanted)
    stale = [p for p, text in wanted.items() if not p.exists() or _read(p) != text]
    for path in stale:
        if not check:
            sync_notebooks.write(path, wanted[path])
        print(f"{'stale' if check else 'updated'}: {path.name}")
    if check and stale:
        print("run `python3 tools/course.py report`", file=sys.stderr)
    return int(check and bool(stale))


class Report:
    """All results files under a root, and the functions that the templates call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = [_read_run(path) for path in sorted((root / "results").glob("*/*.json"))]
        if not self.runs:
            raise CourseError("results/ holds no results; `python3 tools/course.py run` makes them")
        self.reference = self._reference_machine()
        self.published = yaml.safe_load(_read(TOOLS / "llama_int8/data/published.yaml"))

    def render(self) -> str:
        """REPORT.md's text."""
        return self._environment().get_template("report_template.md").render()

    def readme(self) -> str:
        """README.md's text with every block between `begin` and `end` comments rendered anew."""
        template = self._environment().get_template("readme_blocks.md")

        def block(match: re.Match[str]) -> str:
            name = match[2]
            if name not in template.blocks:
                raise CourseError(f"README.md has a block {name!r} that readme_blocks.md lacks")
            text = "".join(template.blocks[name](template.new_context())).strip()
            return f"{match[1]}{text}\n{match[3]}"

        return BLOCK.sub(block, _read(self.root / "README.md"))

    def check_figures(self, texts: dict[Path, str]) -> None:
        """Raise CourseError for a figure that is missing or has no alt text to speak of."""
        for path, text in texts.items():
            for alt, target in re.findall(r"!\[(.*?)\]\((figures/.*?)\)", text):
                if not (self.root / target).exists():
                    raise CourseError(f"{path.name} shows {target}, which does not exist")
                if len(alt) < 20:
                    raise CourseError(f"{path.name}: the alt text of {target} is {alt!r}")

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
            "figure": self.figure,
            "by_machine": self.by_machine,
            "by_path": self.by_path,
            "machines": self.machines,
            "claims_table": self.claims_table,
            "published": self.published_table,
            "notebooks": self.notebooks,
            "models_table": models_table,
            "published_values": self.published,
            "t4_bound": t4_bound,
        }
        return environment

    # --- what the templates call

    def value(self, notebook: str, name: str, field: str = "value") -> Any:
        """A number of the reference run. Raises CourseError if it is missing."""
        run = self._run(self.reference, notebook)
        if name not in run["measurements"]:
            raise CourseError(f"the report needs {notebook}: {name}, and {run['path']} lacks it")
        return run["measurements"][name][field]

    def shown(self, notebook: str, name: str, digits: str = ",.1f", scale: float = 1.0) -> str:
        """The same number as text, scaled and formatted."""
        return format(self.value(notebook, name) / scale, digits)

    def setting(self, notebook: str, name: str) -> Any:
        """A parameter of the reference run."""
        return self._run(self.reference, notebook)["settings"][name]

    def figure(self, name: str) -> str:
        """A figure of the reference run as Markdown, with alt text and caption."""
        entry = self._run(self.reference, name)["figures"].get(name)
        if entry is None:
            raise CourseError(f"the report needs figure {name}, and no reference run made it")
        return f"![{entry['alt']}](figures/{name}.png)\n\n*{entry['caption']}*"

    def by_machine(
        self, notebook: str, rows: dict[str, str], digits: str = ",.1f", scale: float = 1.0
    ) -> str:
        """A table: a row for each label (and the measurement's name), a column for each machine.

        `{half}` in a name stands for the machine's 16-bit baseline, bf16 or fp16.
        """

        def find(run: dict[str, Any], name: str) -> dict[str, Any] | None:
            half = "fp16" if "GPU" in run["environment"] else "bf16"
            return run["measurements"].get(name.format(half=half))

        # A model without a tokenizer has no quality: no column of its own in such a table.
        runs = [
            run
            for run in self.runs
            if run["notebook"].startswith(notebook)
            and any(find(run, name) for name in rows.values())
        ]
        for name in rows.values():
            if not any(find(run, name) for run in runs):
                raise CourseError(f"the report needs {notebook}: {name}, and no machine has it")

        def cell(run: dict[str, Any], name: str) -> str:
            entry = find(run, name)
            if entry is None:
                return NOT_MEASURED
            text = format(entry["value"] / scale, digits)
            if "low" in entry:
                ends = (format(entry[end] / scale, digits) for end in ("low", "high"))
                text += " [" + " to ".join(ends) + "]"
            return text

        header = ["", *(f"{run['environment']['machine']}, {run['model']}" for run in runs)]
        return markdown_table(
            header, [[label, *(cell(r, name) for r in runs)] for label, name in rows.items()]
        )

    def by_path(
        self, notebook: str, cases: dict[str, str], paths: list[str], digits: str = ",.1f"
    ) -> str:
        """A table for each machine and model: a row for each path, a column for each case.

        `cases`: {label: measurement}, to which "." and the path's name are added.
        """
        tables = []
        for run in (run for run in self.runs if run["notebook"].startswith(notebook)):
            found = run["measurements"]
            rows = []
            for path in paths:
                keys = [f"{key}.{path}" for key in cases.values()]
                shown = [
                    format(found[k]["value"], digits) if k in found else "not measured"
                    for k in keys
                ]
                if any(k in found for k in keys):
                    rows.append([path, *shown])
            if rows:
                title = f"*{run['environment']['machine']}, {run['model']}:*"
                tables.append(f"{title}\n\n{markdown_table(['', *cases], rows)}")
        if not tables:
            raise CourseError(f"the report needs {notebook}, and no machine has measured it")
        return "\n\n".join(tables)

    def machines(self) -> str:
        """A table of the machines: hardware and versions."""
        environments = {r["environment"]["machine"]: r["environment"] for r in self.runs}
        keys = list(dict.fromkeys(key for e in environments.values() for key in e))
        return markdown_table(
            ["", *environments],
            [
                [k, *(e.get(k, "none") for e in environments.values())]
                for k in keys
                if k != "machine"
            ],
        )

    def claims_table(self) -> str:
        """Every claim with its source, and measurement and verdict of each machine that tried it."""
        rows = []
        for name, entry in claims().items():
            tried = [run for run in self.runs if name in run["claims"]]
            for run in tried:
                v = run["claims"][name]
                rows.append(
                    [
                        f"{entry['claim']} ({entry['source']})",
                        f"{v['measured']} ({run['environment']['machine']})",
                        f"**{v['verdict']}**: {v['because']}",
                        f"[{run['notebook'][:2]}](notebooks/{run['notebook']}.ipynb)",
                    ]
                )
            if not tried:
                rows.append([f"{entry['claim']} ({entry['source']})", NOT_MEASURED, "", ""])
        table = markdown_table(["claim", "measured", "verdict", "notebook"], rows)
        return table.replace("---:", "---")

    def published_table(self, name: str) -> str:
        """One published table with its source and what to know about it."""
        entry = self.published[name]
        table = markdown_table(["", *entry["columns"]], [[k, *v] for k, v in entry["rows"].items()])
        return f"{table}\n\nSource: {entry['source']}. {entry['note']}"

    def notebooks(self) -> str:
        """The table of notebooks: title, minutes by kind of machine, Colab badge."""
        rows = []
        for path in sync_notebooks.notebook_paths():
            badge = sync_notebooks.BADGE.format(
                address=sync_notebooks.repository_address(), name=path.stem
            )
            laptop = self._minutes(path.stem, lambda run: run["profile"] == "cpu")
            t4 = self._minutes(path.stem, lambda run: "t4" in run["environment"]["machine"])
            link = f"[{sync_notebooks.title(path.stem)}](notebooks/{path.name})"
            rows.append([link, laptop, t4, badge])
        return markdown_table(
            ["notebook", "minutes on 2 CPU cores", "minutes on a T4", "Colab"], rows
        )

    # --- helpers

    def _minutes(self, notebook: str, wanted: Callable[[dict[str, Any]], bool]) -> str:
        runs = [run for run in self.runs if run["notebook"] == notebook and wanted(run)]
        return f"{runs[0]['run_seconds'] / 60:.1f}" if runs else "not measured"

    def _reference_machine(self) -> str:
        path = self.root / "results" / "reference.txt"
        if not path.exists():
            raise CourseError("results/reference.txt is missing; `course.py run` writes it")
        return path.read_text(encoding="utf-8").strip()

    def _run(self, machine: str, notebook: str) -> dict[str, Any]:
        for run in self.runs:
            same = run["notebook"].startswith(notebook[:2] if notebook[:2].isdigit() else notebook)
            same = same and run["profile"] in ("cpu", "evaluate")
            if same and run["environment"]["machine"] == machine and run["model"] == DEFAULT_MODEL:
                return run
        raise CourseError(f"the report needs notebook {notebook} of {machine}, which has not run")


def t4_bound(model: str, precision: str) -> float:
    """Highest tokens/s of decoding on a T4 (320 GB/s) that the bytes of the weights allow."""
    weights = cost.weight_bytes(MODELS[model].config, precision)
    return cost.decode_bound(weights.read_per_token, 320e9)


def models_table() -> str:
    """The registry: parameters, GiB in 16 bit and int8, licence."""
    rows = []
    for spec in MODELS.values():
        half, int8 = (cost.weight_bytes(spec.config, p).total / cost.GIB for p in ("fp16", "int8"))
        parameters = f"{cost.count_parameters(spec.config):,}"
        rows.append([f"`{spec.name}`", parameters, f"{half:.2f}", f"{int8:.2f}", spec.licence])
    return markdown_table(["model", "parameters", "GiB, 16 bit", "GiB, int8", "licence"], rows)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(_read(path))
        missing = {"notebook", "model", "profile", "environment", "measurements"} - run.keys()
    except ValueError:
        raise CourseError(f"{path} is no JSON; delete it or run its notebook again") from None
    if missing:
        raise CourseError(f"{path} lacks {', '.join(sorted(missing))}; it is no results file")
    return {**run, "path": path.name}
