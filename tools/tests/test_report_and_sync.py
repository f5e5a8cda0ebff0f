"""The report holds measured numbers or says that there is none; sync changes nothing twice."""

import ast
import json
import os
import re
import shutil

import pytest
from conftest import ROOT, TEMPLATE, Course

import make_report
import sync_notebooks
from common import CourseError
from llama_int8.course.claims import VERDICTS, claims, often_heard
from llama_int8.measure.reference import machine_of, read_reference, set_machine
from llama_int8.profiles import profile_names, read_profile, resolve


def results_file(course, name):
    (path,) = course.root.glob(f"results/*/{name}.json")
    return path


def test_the_report_shows_the_recorded_number(course):
    path = results_file(course, "00_first")
    content = json.loads(path.read_text())
    content["measurements"]["count"]["value"] = 4711
    path.write_text(json.dumps(content))
    assert course("report", "--check").returncode == 1
    assert course("report").returncode == 0
    assert "count 4711" in (course.root / "REPORT.md").read_text()
    assert course("report", "--check").returncode == 0


def test_check_changes_nothing(course):
    (course.root / "REPORT.md").write_text("stale")
    before = course.state()
    done = course("report", "--check")
    assert done.returncode == 1 and "stale: REPORT.md" in done.stdout
    assert course.state() == before


def test_a_stale_readme_block_is_found(course):
    readme = course.root / "README.md"
    readme.write_text(readme.read_text().replace("A tiny notebook", "A huge notebook"))
    assert "stale: README.md" in course("report", "--check").stdout


def test_what_nobody_measured_reads_so_and_is_told_by_name(course):
    template = course.root / "tools" / "report_template.md"
    template.write_text(
        'one {{ value("00", "colour") }}, half {{ "%.1f" | format(value("00", "colour") / 2) }}\n'
        '{{ by_machine("06", {"shade": "colour"}) }}\n{{ numbered_figure("06_third") }}'
        '{{ ref("06_third") }} {{ value("piqa", "acc") }} {{ setting("piqa", "items")[0] }}'
    )
    done = course("report")
    assert done.returncode == 0, done.stderr
    text = (course.root / "REPORT.md").read_text()
    assert "one not measured, half not measured" in text and text.count("not measured") >= 5
    for name in ("00: colour", "06: colour", "piqa: acc", "figure 06_third"):
        assert name in done.stdout


def as_machine(course, name):
    """Let the course's copy believe that it runs on another machine."""
    path = course.root / "tools/llama_int8/processor.py"
    with path.open("a") as file:
        file.write(
            f"\n\ndef processor():\n    return Processor({name!r}, None, None, {{}}, {{}})\n"
        )


def test_run_works_on_a_machine_that_is_not_the_reference(course):
    """Its notebook is shown from it from then on, by name, and every other one as before."""
    (old,) = (path.name for path in (course.root / "results").iterdir() if path.is_dir())
    template = course.root / "tools" / "report_template.md"
    template.write_text(TEMPLATE + "\nMeasured {{ measured_by() }}.\n")
    as_machine(course, "Strange 9000")
    done = course("run", "--only", "00")
    assert done.returncode == 0, done.stdout + done.stderr
    new = f"strange-9000-{os.cpu_count()}-cores"
    lines = (course.root / "results/reference.txt").read_text().splitlines()
    assert lines == [f"00_first {new}", f"06_second {old}"]
    text = (course.root / "REPORT.md").read_text()
    assert f"Measured lesson 00 by `{new}`; lesson 06 by `{old}`." in text
    assert course("report", "--check").returncode == 0
    assert course("run").returncode == 0
    assert f"Measured by `{new}`." in (course.root / "REPORT.md").read_text()


def test_a_reference_that_names_only_a_machine_stands_for_every_notebook(tmp_path):
    assert read_reference(tmp_path) == {}
    (tmp_path / "reference.txt").write_text("\ufeffold-machine\r\n\n")
    reference = read_reference(tmp_path)
    assert machine_of(reference, "00_first") == machine_of(reference, "piqa") == "old-machine"
    set_machine(tmp_path, "00_first", "new-machine")
    reference = read_reference(tmp_path)
    assert machine_of(reference, "00_first") == "new-machine"
    assert machine_of(reference, "06_second") == "old-machine"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_a_reference_is_read_in_any_encoding(tmp_path, encoding):
    (tmp_path / "reference.txt").write_text("00_first jürgen\n06_second other\n", encoding=encoding)
    assert read_reference(tmp_path)["06_second"] == "other"
    (tmp_path / "reference.txt").unlink()
    (tmp_path / "reference.txt").mkdir()
    assert read_reference(tmp_path) == {}


def rename(results, machine, new, keep="*"):
    """Results of `machine` as those of `new`, only the files that match `keep`."""
    for path in (results / machine).glob("*.json"):
        if path.match(keep):
            content = json.loads(path.read_text())
            content["environment"]["machine"] = new
            (results / new).mkdir(exist_ok=True)
            (results / new / path.name).write_text(json.dumps(content))


class TestTheCommittedReport:
    """The real templates over results as other people's machines leave them."""

    @pytest.fixture
    def root(self, tmp_path):
        shutil.copytree(ROOT / "results", tmp_path / "results")
        shutil.copytree(ROOT / "figures", tmp_path / "figures")
        shutil.copy(ROOT / "README.md", tmp_path)
        return tmp_path

    def rendered(self, root):
        report = make_report.Report(root)
        texts = {root / "REPORT.md": report.render(), root / "README.md": report.readme()}
        report.check_figures(texts)
        return "\n".join(texts.values()), report.missing

    def machine(self, root, keep):
        """The machine of the committed results whose files match `keep`; of several, the last."""
        return max(path.parent.name for path in (root / "results").glob(f"*/{keep}"))

    def test_asks_for_nothing_that_was_not_measured(self, root):
        if len(list((root / "results").glob("*/[0-9]*.json"))) >= 11:
            assert not self.rendered(root)[1]

    @pytest.mark.parametrize("reference", ["elsewhere\n", None])
    def test_after_all_notebooks_on_another_machine(self, root, reference):
        names = [path.stem for path in sync_notebooks.notebook_paths()]
        for name in names:  # one machine or several
            machine = self.machine(root, f"{name}.json")
            rename(root / "results", machine, "elsewhere", keep=f"{name}*.json")
        lines = "".join(f"{name} elsewhere\n" for name in names)
        (root / "results/reference.txt").write_text(reference or lines)
        text, missing = self.rendered(root)
        assert not missing
        assert f"Measured lessons 00 to {names[-1][:2]} by `elsewhere`; " in text
        assert re.search(rf"`piqa`[^;]* by `{self.machine(root, 'piqa*')}`", text)

    def test_after_one_notebook_on_another_machine(self, root):
        rename(root / "results", self.machine(root, "00*"), "elsewhere", keep="00*.json")
        set_machine(root / "results", "00_start_here", "elsewhere")
        text, missing = self.rendered(root)
        assert not missing and "Measured lesson 00 by `elsewhere`; lessons 01 to " in text

    def test_with_only_one_notebook_measured(self, root):
        for path in (root / "results").iterdir():
            if path.is_dir():
                rename(root / "results", path.name, "elsewhere", keep="00*.json")
                shutil.rmtree(path)
        text, missing = self.rendered(root)
        assert "00 by `elsewhere`" in text and "by nobody yet" in text and missing

    def test_with_no_results_and_no_figures(self, root):
        shutil.rmtree(root / "results")
        shutil.rmtree(root / "figures")
        text, missing = self.rendered(root)
        assert "not measured" in text and "08: decode.int8.ratio" in missing

    def test_after_an_evaluation_of_fewer_precisions(self, root):
        (path,) = (root / "results").glob("*/piqa@smollm2-135m.json")
        content = json.loads(path.read_text())
        kept = {k: v for k, v in content["measurements"].items() if "fp32" not in k}
        kept = {k: v for k, v in kept.items() if not k.startswith("wrong_rule")}
        path.write_text(json.dumps({**content, "measurements": kept}))
        assert "piqa: wrong_rule.first token alone" in self.rendered(root)[1]

    def test_each_data_set_is_named_by_the_first_digits_of_its_hash(self, root):
        rename(root / "results", self.machine(root, "piqa*"), "elsewhere", keep="piqa*")
        (path,) = (root / "results/elsewhere").glob("piqa*.json")
        content = json.loads(path.read_text())
        here = content["settings"]["sha256"][:8]
        content["settings"]["sha256"] = "0123456789abcdef"
        path.write_text(json.dumps(content))
        text = self.rendered(root)[0]
        assert f"smollm2-135m, data {here} |" in text
        assert "elsewhere, smollm2-135m, data 01234567 |" in text

    @pytest.mark.parametrize(
        "low, high, wording",
        [
            (-0.02, -0.01, "lowers the perplexity"),
            (-0.01, 0.01, "by no amount that we could tell"),
            (0.01, 0.02, "costs some quality"),
        ],
    )
    def test_a_finding_says_what_its_interval_says(self, root, low, high, wording):
        (path,) = (root / "results").glob("*/wikitext2-words@smollm2-135m.json")
        content = json.loads(path.read_text())
        content["measurements"]["nll_difference.int8"] |= {"low": low, "high": high}
        path.write_text(json.dumps(content))
        assert wording in self.rendered(root)[0]

    def test_a_machine_that_ends_otherwise_is_named_beside_the_verdict(self, root):
        here = self.machine(root, "01*")
        rename(root / "results", here, "elsewhere", keep="01*")
        path = root / "results/elsewhere/01_attention_and_causal_masking.json"
        content = json.loads(path.read_text())
        assert "by `elsewhere`" not in make_report.Report(root).claims_table()
        content["claims"]["sink-whatever-the-token"]["verdict"] = "fails here"
        path.write_text(json.dumps(content))
        assert "; fails here by `elsewhere` |" in make_report.Report(root).claims_table()

    def test_what_a_gpu_has_measured_is_said(self, root):
        assert "No GPU has been measured." in self.rendered(root)[0]
        path = next((root / "results").glob("*/00*.json"))
        content = json.loads(path.read_text())
        content["environment"]["GPU"] = "Tesla T4"
        path.write_text(json.dumps(content))
        text = self.rendered(root)[0]
        assert "No GPU has been measured." not in text and "measured something: Tesla T4." in text

    @pytest.mark.parametrize(
        "change",
        [
            {"environment": None},
            {"environment": {}},
            {"run_seconds": None},
            {"measurements": {"a": {"value": None, "unit": "s"}}},
            {"measurements": {"a": {"value": 1}}},
            {"measurements": {"a": {"value": 1, "unit": "s", "low": 1}}},
            {"measurements": {"a": 1}},
            {"figures": []},
        ],
    )
    def test_an_odd_results_file_is_named(self, root, change):
        path = next((root / "results").glob("*/00*.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(CourseError, match=path.name):
            make_report.Report(root)

    def test_what_is_no_results_file_by_its_name_is_passed_over(self, root):
        folder = root / "results" / self.machine(root, "00*")
        (folder / "._00_start_here.json").write_bytes(b"\0\5\x16\7")  # a Mac's
        (folder / "old.json").mkdir()
        assert not self.rendered(root)[1]

    def test_a_notebook_that_was_deleted_takes_its_links_along(self, root, monkeypatch, tmp_path):
        notebooks = tmp_path / "notebooks"
        shutil.copytree(ROOT / "notebooks", notebooks)
        (notebooks / "09_flash_attention.ipynb").unlink()
        monkeypatch.setattr(sync_notebooks, "NOTEBOOKS", notebooks)
        assert "its notebook is not in this copy" in self.rendered(root)[0]

    def test_with_results_of_a_gpu(self, root):
        here = self.machine(root, "00*")
        rename(root / "results", here, "tesla-t4")
        for path in (root / "results/tesla-t4").glob("*.json"):
            content = json.loads(path.read_text())
            content["environment"]["GPU"], content["profile"] = "Tesla T4", "t4"
            path.write_text(json.dumps(content))
        text, missing = self.rendered(root)
        assert not missing and "tesla-t4, smollm2-135m" in text
        shown = re.search(r"Measured (?:by|lesson) *[^.]*", text)[0]
        assert f"`{here}`" in shown and "tesla-t4" not in shown


def test_another_machine_has_a_column_and_says_what_it_did_not_measure(course):
    path = results_file(course, "06_second")
    content = json.loads(path.read_text())
    content["environment"]["machine"] = "tesla-t4"
    del content["measurements"]["last"]
    other = course.root / "results" / "tesla-t4" / "06_second.json"
    other.parent.mkdir()
    other.write_text(json.dumps(content))
    assert course("report").returncode == 0
    report = (course.root / "REPORT.md").read_text()
    assert "tesla-t4" in report and "| not measured |" in report


@pytest.mark.parametrize("content", ["{", '{"measurements": {}}'])
def test_a_damaged_results_file_is_named(course, content):
    results_file(course, "06_second").write_text(content)
    done = course("report")
    assert done.returncode == 1 and "06_second.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_figure_that_is_missing_is_an_error(course):
    (course.root / "figures" / "00_first.png").unlink()
    done = course("report")
    assert done.returncode == 1 and "figures/00_first.png" in done.stderr


def test_a_figure_that_no_notebook_made_is_an_error(course):
    (course.root / "figures" / "00_left_over.png").write_bytes(b"")
    done = course("report", "--check")
    assert done.returncode == 1 and "00_left_over" in done.stderr


def test_a_figure_without_alt_text_is_an_error_though_the_report_does_not_show_it(course):
    path = results_file(course, "06_second")
    content = json.loads(path.read_text())
    content["figures"]["06_second"]["alt"] = "A line."
    path.write_text(json.dumps(content))
    done = course("report")
    assert done.returncode == 1 and "06_second" in done.stderr and "A line." in done.stderr


def test_figures_are_numbered_in_their_order_and_mentioned(course):
    template = course.root / "tools" / "report_template.md"
    shown = '{{ numbered_figure("06_second") }} {{ numbered_figure("00_first") }}'
    template.write_text(f'see {{{{ ref("00_first") }}}}, {{{{ ref("06_second") }}}} {shown}')
    assert course("report").returncode == 0
    text = (course.root / "REPORT.md").read_text()
    assert text.startswith("see figure 2, figure 1") and "*Figure 2. It rises.*" in text
    template.write_text('{{ ref("06_second") }} ' + shown)
    done = course("report")
    assert done.returncode == 1 and "00_first and never mentions it" in done.stderr
    template.write_text('{{ ref("00_first") }}')
    done = course("report")
    assert done.returncode == 1 and "mentions figure 00_first and does not show" in done.stderr


def test_every_claim_has_one_cell_that_decides_it():
    for name, entry in claims().items():
        cell = make_report.deciding_cell(name, entry["notebook"])
        assert f"{entry['notebook']}.ipynb#scrollTo={cell})" in (ROOT / "REPORT.md").read_text()
        cells = sync_notebooks.read(ROOT / f"notebooks/{entry['notebook']}.ipynb")["cells"]
        # Colab finds a cell by the id in its metadata.
        assert cell in [found["metadata"]["id"] for found in cells]
    with pytest.raises(CourseError, match="0 cells"):
        make_report.deciding_cell("no-such-claim", "00_start_here")


def test_claims_with_a_source_come_first_and_what_is_often_heard_stands_apart():
    table = make_report.Report(ROOT).claims_table()
    cited, _, heard = table.partition("Often heard, without a source")
    assert cited and heard
    for entry in claims().values():
        assert entry["claim"] in (heard if often_heard(entry) else cited)
        assert entry["claim"] not in (cited if often_heard(entry) else heard)


def test_claims_are_sorted_by_their_verdict():
    for part in make_report.Report(ROOT).claims_table().split("Often heard, without a source"):
        found = re.findall(r"\| \*\*(.*?)\*\*", part)
        assert len(found) > 5 and found == sorted(found, key=VERDICTS.index)


def test_a_wording_by_the_side_of_a_number_that_nobody_measured_reads_so():
    nobody = make_report.NotMeasured()
    assert make_report.side(1, 2, "less", "more") == "less"
    assert make_report.side(2, 2, "less", "more") == "more"
    assert make_report.side(nobody / 2, 2, "less", "more") == "not measured"
    report = make_report.Report(ROOT)
    assert report.told("08", "no such number", "-", "0", "+") == "not measured"
    assert report.told("08", "decode.int8.ratio", "-", "0", "+", than=nobody) == "not measured"


def test_every_link_of_the_report_leads_somewhere():
    text = make_report.Report(ROOT).render()
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {link[1:] for link in links if link.startswith("#")} <= slugs
    for link in links:
        assert link.startswith(("#", "https://")) or (ROOT / link).is_file(), link
    # The README sends its readers here.
    assert "claims-on-trial" in slugs


def test_findings_come_first_and_each_leads_to_its_section_and_lesson():
    text = make_report.Report(ROOT).render()
    findings = text.partition("## Findings")[2].partition("\n## ")[0]
    findings = [line for line in findings.splitlines() if re.match(r"\d+\. ", line)]
    assert len(findings) == 6
    for finding in findings:
        leads = r"\((Figure \d; )?\[[^]]+\]\(#[\w-]+\); \[lesson \d\d\]\(notebooks/"
        assert re.search(leads, finding), finding
        assert re.search(r"\d", re.split(leads, finding)[0])


def test_every_claim_has_a_verdict_once_its_notebook_has_run():
    report = make_report.Report(ROOT)
    for name, entry in claims().items():
        run = report._run(entry["notebook"])
        assert run is None or run["claims"][name]["verdict"] in VERDICTS


def test_sync_is_idempotent(course):
    assert course("sync", "--check").returncode == 0
    before = course.state()
    assert course("sync").stdout == ""
    assert course.state() == before


def test_sync_check_finds_a_stale_badge_and_sync_mends_it(course):
    good = course.notebook("00_first").read_bytes()
    course.change_notebook("00_first", "badge", "an old badge")
    assert course("sync", "--check").returncode == 1
    assert course("sync").returncode == 0
    assert course.notebook("00_first").read_bytes() == good


def test_a_fork_needs_one_command(course):
    assert course("sync", "--repository", "jane/my-course").returncode == 0
    for path in course.root.glob("notebooks/*.ipynb"):
        text = path.read_text()
        assert "git+https://github.com/jane/my-course" in text
        assert "colab.research.google.com/github/jane/my-course/blob/main/notebooks/" in text
        assert "OWNER" not in text
    for name in ("README.md", "CITATION.cff"):
        text = (course.root / name).read_text()
        assert "https://github.com/jane/my-course" in text and "OWNER" not in text
    assert "cd my-course" in (course.root / "README.md").read_text()
    assert course("sync", "--check").returncode == 0


def test_a_new_address_does_not_make_notebooks_stale(course):
    course("run")
    course("sync", "--repository", "jane/my-course")
    assert course("run").stdout.count("up to date") == 2


@pytest.mark.parametrize("address", ["jane", "https://gitlab.com/jane/x", "a/b/c", ""])
def test_an_address_that_is_none_is_refused(course, address):
    before = everything(course)
    done = course("sync", "--repository", address)
    assert done.returncode == 1 and "OWNER/NAME" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(course) == before


def everything(course):
    """Every file of the checkout that git would show, by its path."""
    files = [f for f in course.root.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    return {str(f.relative_to(course.root)): f.read_bytes() for f in files}


@pytest.mark.parametrize(
    "pasted",
    [
        "https://github.com/jane/x",
        " <https://www.github.com/jane/x.git> ",
        "git@github.com:jane/x.git",
    ],
)
def test_a_pasted_address_gives_the_same_files_as_owner_and_name(course, tmp_path, pasted):
    other = Course(shutil.copytree(course.root, tmp_path / "other"))
    assert course("sync", "--repository", "jane/x").returncode == 0
    assert other("sync", "--repository", pasted).returncode == 0
    assert everything(other) == everything(course)


@pytest.mark.parametrize(
    "damage",
    [
        ("https://github.com/jane/old", "https://github.com/jane/old.git"),
        ("https://github.com/jane/old", "https://github.com/jane/old.git.git"),
        ("https://github.com/jane/old", "https://github.com/https://github.com/jane/old"),
        ("https://github.com/jane/old", "http://www.github.com/Jane/Old/"),
        ("/github/jane/old/", "/github/jane/old.git/"),
        ("/github/jane/old/", "/github/https://github.com/jane/old/"),
        ("jane/old", "OWNER/llama-in-8-bits"),
    ],
)
def test_an_address_is_mended_whatever_was_made_of_it(course, damage):
    # A README as ours has it, with a badge, beside the tiny one's line.
    readme = course.root / "README.md"
    badge = sync_notebooks.BADGE.format(address="OWNER/llama-in-8-bits", name="00_first")
    teaching = course.root / "notebooks/TEACHING.md"
    teaching.write_text("See https://github.com/OWNER/llama-in-8-bits/blob/main/REPORT.md.\n")
    readme.write_text(readme.read_text() + badge)
    assert course("sync", "--repository", "jane/new").returncode == 0
    wanted = everything(course)
    assert course("sync", "--repository", "jane/old").returncode == 0
    for name, content in everything(course).items():
        if not name.startswith(("tools/", "notebooks/")):
            (course.root / name).write_bytes(content.replace(*(t.encode() for t in damage)))
    assert course("sync", "--repository", "jane/new").returncode == 0
    assert everything(course) == wanted
    assert course("sync", "--check").returncode == 0


def test_the_address_that_an_older_version_left_half_mended_is_mended(course):
    assert course("sync", "--repository", "jane/x").returncode == 0
    wanted = everything(course)
    readme, citation = course.root / "README.md", course.root / "CITATION.cff"
    text = readme.read_text().replace("jane/x/blob", "jane/x.git/blob")
    readme.write_text(text.replace("jane/x.git\ncd x", "jane/x.git.git\ncd x.git"))
    citation.write_text(citation.read_text().replace("jane/x", "jane/x.git"))
    assert course("sync", "--check").returncode == 1
    assert course("sync").returncode == 0
    assert everything(course) == wanted


def test_links_to_other_projects_stay(course):
    others = """
https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1400
https://github.com/bitsandbytes-foundation/bitsandbytes
https://github.com/jane/llama-in-8-bits-solutions
https://github.com/OWNER-2/llama-in-8-bits
https://colab.research.google.com/github/other/course/blob/main/notebooks/01_theirs.ipynb
https://colab.research.google.com/github/hans/de/blob/main/notebooks/00_first.ipynb
https://github.com/hans/de/issues
https://gitlab.com/OWNER/llama-in-8-bits
git clone https://github.com/ggml-org/llama.cpp.git
cd llama.cpp
git clone https://github.com/hans/de.git
cd de
python3 tools/course.py run
repository-code: https://github.com/hans/de
"""
    readme = course.root / "README.md"
    readme.write_text(readme.read_text() + others)
    assert course("sync", "--repository", "jane/x").returncode == 0
    assert readme.read_text().endswith(others)
    teaching = course.root / "notebooks/TEACHING.md"
    teaching.write_text(others)
    assert course("sync", "--repository", "jane/y").returncode == 0
    assert course("sync", "--repository", "jane/x").returncode == 0
    assert teaching.read_text() == others and readme.read_text().endswith(others)
    assert "git clone https://github.com/jane/x.git\ncd x\n" in readme.read_text()


def test_an_earlier_address_that_only_the_generated_table_holds_is_known_in_the_text(course):
    readme = course.root / "README.md"
    badge = sync_notebooks.BADGE.format(address="jane/old", name="00_first")
    text = readme.read_text().replace("<!-- end notebooks", f"{badge}\n<!-- end notebooks")
    readme.write_text(text + "See https://github.com/jane/old/issues.\n")
    assert course("sync", "--repository", "jane/x").returncode == 0
    assert readme.read_text().endswith("See https://github.com/jane/x/issues.\n")
    assert "jane/old" not in readme.read_text()


def test_check_with_a_new_address_names_what_would_change_and_writes_nothing(course):
    before = everything(course)
    done = course("sync", "--check", "--repository", "jane/x")
    assert done.returncode == 1 and everything(course) == before
    named = {line.removeprefix("stale: ") for line in done.stdout.splitlines()}
    assert "run `python3 tools/course.py sync --repository jane/x`" in done.stderr
    assert course("sync", "--repository", "jane/x").returncode == 0
    after = everything(course)
    assert named == {name for name in before if before[name] != after[name]}
    assert {"pyproject.toml", "README.md", "CITATION.cff"} < named
    assert course("sync", "--check", "--repository", "https://github.com/jane/x").returncode == 0


@pytest.mark.parametrize("name", ["README.md", "notebooks/06_second.ipynb", "CITATION.cff"])
def test_what_cannot_be_written_leaves_everything_as_it_was(course, name):
    path = course.root / name
    with (course.root / "tools/llama_int8/files.py").open("a") as file:
        file.write('\n\ndef _temporary(path):\n    return path.with_name(f".{path.name}.new")\n')
    path.with_name(f".{path.name}.new").mkdir()  # in the way of the temporary file
    before = everything(course)
    done = course("sync", "--repository", "jane/x")
    assert done.returncode == 1 and path.name in done.stderr
    assert "nothing has been changed" in done.stderr and "Traceback" not in done.stderr
    assert everything(course) == before


@pytest.mark.parametrize(
    "line", ["", 'Repository = "nowhere"', "Repository = 7\n[project.urls.Repository]"]
)
def test_a_pyproject_without_an_address_says_what_writes_it(course, line):
    path = course.root / "pyproject.toml"
    path.write_text(re.sub(r"(?m)^Repository = .*$", line, path.read_text()))
    done = course("sync", "--check")
    assert done.returncode == 1 and "sync --repository OWNER/NAME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("check", [["report", "--check"], ["sync", "--check"]])
def test_commands_that_check_write_nothing(course, check):
    (course.root / "REPORT.md").write_text("stale")
    course.change_notebook("00_first", "badge", "an old badge")
    before = everything(course)
    assert course(*check).returncode == 1
    assert everything(course) == before


class TestNormalised:
    """What differs from run to run is gone, what a reader needs stays."""

    def outputs(self, *outputs):
        cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "x", "execution_count": 9}
        notebook = {"cells": [{**cell, "outputs": list(outputs)}], "metadata": {"widgets": {}}}
        clean = sync_notebooks.normalised(notebook)
        assert clean["metadata"].keys() == {"kernelspec", "language_info"}
        assert clean["cells"][0]["execution_count"] == 1
        return clean["cells"][0]["outputs"]

    def test_a_stream_that_came_in_pieces_is_one(self):
        pieces = [{"output_type": "stream", "name": "stdout", "text": t} for t in ("a\nb", "c\n")]
        (one,) = self.outputs(*pieces)
        assert one["text"] == ["a\n", "bc\n"]

    def test_progress_bars_go_and_warnings_stay(self):
        bar = {"output_type": "stream", "name": "stderr", "text": "\r 50%|##   | 1/2"}
        warning = {"output_type": "stream", "name": "stderr", "text": "careful\n"}
        assert [o["text"] for o in self.outputs(bar, warning)] == [["careful\n"]]

    def test_a_widget_leaves_its_picture(self):
        view = {sync_notebooks.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "Box()"}
        both = {
            "output_type": "display_data",
            "data": {**view, "image/png": "AA=="},
            "metadata": {},
        }
        bare = {"output_type": "display_data", "data": view, "metadata": {}}
        (kept,) = self.outputs(both, bare)
        assert kept["data"].keys() == {"image/png", "text/plain"}


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
class TestCommittedNotebooks:
    """What a reader finds on GitHub."""

    def cells(self, path):
        return json.loads(path.read_text(encoding="utf-8"))["cells"]

    def test_is_executed_in_order_without_errors_or_warnings(self, path):
        code = [cell for cell in self.cells(path) if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell["outputs"]]
        assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]

    def test_names_no_folder_of_the_machine_it_ran_on(self, path):
        text = json.dumps([c["outputs"] for c in self.cells(path) if c["cell_type"] == "code"])
        for place in (str(ROOT), "/root/", "/home/", "/tmp/", "site-packages"):
            assert place not in text

    def test_has_three_parameters_and_an_example_of_a_change_that_it_takes(self, path):
        (cell,) = [c for c in self.cells(path) if "parameters" in c["metadata"].get("tags", [])]
        names: dict = {}
        exec("".join(cell["source"]), names)
        del names["__builtins__"]
        assert names == {"PROFILE": "auto", "MODEL": None, "CHANGES": {}}
        example = ast.literal_eval("".join(cell["source"]).rpartition("such as ")[2])
        assert resolve(path.stem, "cpu", changes=example).customized == sorted(example)

    def test_starts_by_its_name_and_takes_its_parameters_from_nowhere_else(self, path):
        code = ["".join(c["source"]) for c in self.cells(path) if c["cell_type"] == "code"]
        call = f'start_lesson("{path.stem}", PROFILE, MODEL, CHANGES'
        assert sum(call in text for text in code) == 1
        assert not re.search(r"globals\(|RESULTS_DIR|profiles\.", "\n".join(code))
        for profile in profile_names():
            assert path.stem in read_profile(profile).notebooks

    def test_is_small_enough_to_open(self, path):
        assert path.stat().st_size <= 1_000_000

    def test_cells_are_short_and_explained(self, path):
        unexplained = 0
        for cell in self.cells(path):
            if cell["cell_type"] == "markdown":
                unexplained = 0
            elif "= predict(" not in "".join(cell["source"]):  # a guess is no code to be explained
                unexplained += 1
            assert unexplained <= 2 or cell["id"] in ("bootstrap", "parameters")
            lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
            limit = 50 if any(line.startswith("class ") for line in lines) else 25
            assert cell["cell_type"] == "markdown" or len(lines) <= limit


def test_a_copy_that_jupyterlab_made_is_no_notebook_of_the_course(course):
    shutil.copy(course.notebook("06_second"), course.notebook("06_second-Copy1"))
    assert course("sync", "--check").returncode == 0
    assert "Copy1" not in course("run", "--only", "06").stdout


def test_a_notebook_that_colab_saved_has_its_ids_in_the_metadata(course):
    path = course.notebook("06_second")
    content = json.loads(path.read_text())
    for cell in content["cells"]:
        cell["metadata"]["id"] = cell.pop("id")
    path.write_text(json.dumps(content | {"nbformat_minor": 0}))
    assert course("sync").returncode == 0
    assert all(cell["id"] for cell in json.loads(path.read_text())["cells"])
    content["cells"][0]["metadata"] = {}
    path.write_text(json.dumps(content))
    done = course("sync")
    assert done.returncode == 1 and "has a cell without an id" in done.stderr
