"""`course.py evaluate`: a model's quality in several precisions, headless, into results files."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import llama_int8.models as models
from llama_int8.errors import ModelError, ModelFilesError
from llama_int8.evaluation import compare, loglikelihood, perplexity
from llama_int8.evaluation.resume import Journal, Processes
from llama_int8.evaluation.tasks import Task, load_task, other_name
from llama_int8.evaluation.wrong_rules import WRONG_RULES
from llama_int8.files import package_hash
from llama_int8.measure import memory
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import proportion_interval
from llama_int8.profiles import Settings
from llama_int8.transformer.config import is_meta_folder

# The strided windows of Hugging Face's page on perplexity; shorter ones where a model takes less.
WINDOW, STRIDE = 1024, 512
COMPARED_WINDOWS = 16
WITH_INT8_CACHE = "int8-fast, int8 cache"  # stands for a precision in results


class Evaluation:
    """One model, on one device, by one task after another."""

    def __init__(
        self,
        model: str,
        precisions: Sequence[str] | None = None,
        device: str | None = None,
        out: Path | str = "course_output",
        limit: int | None = None,
        wrong_rules: bool = False,
        kept: Path | str | None = None,
        cache: str = "bf16",
    ) -> None:
        """`precisions`: None is the device's 16-bit format and int8. `out`: results go below it.

        `kept`: where finished batches are kept, to go on after an interruption; None is `out`.
        `cache`: "int8" scores int8-fast with keys and values in int8 as well, under a name of its own.
        """
        device = device or models.default_device()
        self.processes = Processes(device)
        self.device = self.processes.own_device(device)
        self.half = models.baseline_precision(self.device)
        self.model, self.precisions = model, list(precisions or [self.half, "int8"])
        for precision in self.precisions:
            models.check_precision(precision, self.device)
        models.check_cache(cache, self.precisions, self.device)
        if cache == "int8":
            self.precisions.append(WITH_INT8_CACHE)
        # Differences are against 16 bit where it was asked for, else against the first.
        self.baseline = self.half if self.half in self.precisions else self.precisions[0]
        self.precisions.sort(key=lambda p: p != self.baseline)
        self.out, self.limit, self.wrong_rules = Path(out), limit, wrong_rules
        self.kept = Path(kept or out)
        _check_format(model)
        config = models.config_of(model)
        self.vocab_size, self.context = config.vocab_size, config.max_position_embeddings
        self.tokenizer = models.load_tokenizer(model)

    def run(self, name: str, data: str | Path | None = None) -> Results | None:
        """Score one task in every precision; returns the results file, only in the first process."""
        task = load_task(name, data, self.limit)
        if task.name != name:
            self._say(other_name(name, task))
        settings: dict[str, Any] = {"data": task.source, "sha256": task.sha256}
        if task.text is not None:
            text = self._cut(task.text)
            models.check_ids(self.tokenizer, text.windows.flatten().tolist(), self.vocab_size)
            settings |= {"window": text.windows.shape[1], "stride": text.stride}
            settings |= {"windows": len(text.windows)}
        else:
            settings |= {"items": len(task.items), "batch_tokens": loglikelihood.BATCH_TOKENS}
            text = None
        chosen = Settings(
            settings,
            model=self.model,
            precisions=self.precisions,
            profile="evaluate",
            device=self.device,
        )
        results = Results(task.name, chosen, str(self.out))
        results.use_model(self.model, models.revision_of(models.model_folder(self.model)))
        earlier = self._earlier(results)
        with results.at_once():  # an evaluation that breaks off leaves an earlier file as it was
            if text is not None:
                self._score_text(results, task, text)
            else:
                self._score_choices(results, task)
            if self.processes.first:
                results.keep(**earlier)
        return results if self.processes.first else None

    def _cut(self, text: str) -> perplexity.StridedText:
        """In windows that the model takes: beyond its context it answers, but not at its best."""
        window = min(WINDOW, self.context)
        stride = min(STRIDE, window // 2)
        if window < WINDOW:
            self._say(
                f"the model takes {self.context} tokens: the windows have {window}, not {WINDOW:,}"
            )
        return perplexity.strided(self.tokenizer, text, window, stride, self.limit)

    def _earlier(self, results: Results) -> dict[str, Any]:
        """The entries of the file that this evaluation does not measure again and that may stay.

        They may where model, data, settings and environment are the same; else they are replaced,
        and a line says so. As keywords for `Results.keep`.
        """
        try:
            old = json.loads(results.path.read_text(encoding="utf-8"))
            precisions = old["settings"]["precisions"]
            of_data = compare.RIGHT_ANSWERS  # the same whatever the precision
            names = (name for name in old["measurements"] if not name.startswith(of_data))
            measured = {name.partition(".")[2] for name in names}
            different = self._different(results, old)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}  # none there, or no results file
        rules = set(WRONG_RULES) if self.wrong_rules else set()
        others = sorted(measured - set(self.precisions) - rules)
        if not others:
            return {}
        if different:
            self._say(
                f"earlier results of {', '.join(others)} in {results.path.name} are replaced: "
                f"{', '.join(different)} changed since then"
            )
            return {}
        self._say(f"earlier results of {', '.join(others)} stay in {results.path.name}")
        added = [p for p in self.precisions if p not in precisions]
        return {"measurements": old["measurements"], "precisions": [*precisions, *added]}

    def _different(self, results: Results, old: dict[str, Any]) -> list[str]:
        """Names of what an earlier file's numbers follow from and what is no longer the same."""
        # The default model is pinned by a checksum; files of before had no hash of the model.
        unknown = None if self.model != models.DEFAULT_MODEL else results.model_sha256
        found = ["model"] if old.get("model_sha256", unknown) != results.model_sha256 else []
        if old.get("package_sha256") != package_hash():
            found.append("the course's code")
        if len(self.precisions) > 1 and old["settings"]["precisions"][0] != self.baseline:
            found.append("the baseline")
        for section, new in (
            ("settings", results.settings),
            ("environment", results.environment),
        ):
            before, now = old[section], json.loads(json.dumps(dict(new)))
            names = before.keys() | now.keys()
            names -= {"precisions", "data", "model"} if section == "settings" else set()
            found += sorted(name for name in names if before.get(name) != now.get(name))
        return ["data" if name == "sha256" else name for name in found]

    def _say(self, text: str) -> None:
        if self.processes.first:
            print(text, flush=True)

    def _score_text(self, results: Results, task: Task, text: perplexity.StridedText) -> None:
        scores: dict[str, Any] = {}
        for precision in self.precisions:
            options = self._options(results, task, precision, "windows")
            score = partial(
                perplexity.window_scores,
                text=text,
                keep=COMPARED_WINDOWS if precision == self.baseline else 0,
                reference=scores.get(self.baseline, ()),
                **options,
            )
            scores[precision] = self._timed(results, precision, score, options["journal"])
        if self.processes.first:
            compare.record_text(results, scores, text, self.baseline)

    def _score_choices(self, results: Results, task: Task) -> None:
        rows = loglikelihood.pack_all(self.tokenizer, task.items)
        loglikelihood.check_lengths(rows, self.context, task.items)
        ids = (token for row in rows for part in (row.shared, *row.tails) for token in part)
        models.check_ids(self.tokenizer, ids, self.vocab_size)
        scores = {}
        for precision in self.precisions:
            options = self._options(results, task, precision, "right rule")
            score = partial(loglikelihood.choice_scores, rows=rows, **options)
            scores[precision] = self._timed(results, precision, score, options["journal"])
        if self.processes.first:
            compare.record_choices(results, scores, task.items, self.baseline)
            compare.record_right_answers(results, task)
        if self.wrong_rules:
            self._score_by_wrong_rules(results, task)

    def _score_by_wrong_rules(self, results: Results, task: Task) -> None:
        """A lesson about scoring: the baseline is enough to show it."""
        model = models.load_model(self.model, self.baseline, self.device)
        for rule, pack in WRONG_RULES.items():
            rows = pack(self.tokenizer, task.items)
            options = self._options(results, task, self.baseline, rule)
            score = partial(loglikelihood.choice_scores, model, rows, **options)
            scores = self._checked(results, options["journal"], score)
            if self.processes.first:
                right = loglikelihood.correct(scores, task.items, normalized=False)
                low, high = proportion_interval(int(right.sum()), right.size)
                ends = {"low": 100 * low, "high": 100 * high, "n": right.size}
                results.record(f"wrong_rule.{rule}", 100 * right.mean(), "%", **ends)

    def _timed(
        self,
        results: Results,
        precision: str,
        score: Callable[[PreTrainedModel], Any],
        journal: Journal,
    ) -> Any:
        """Load the model, score with it, free it before anything else is loaded."""
        start = time.monotonic()
        found = self._checked(
            results,
            journal,
            lambda: score(self._load(precision)),
        )
        memory.release()
        if self.processes.first:
            note = "of this call, loading included; what an earlier one had kept is not in it"
            results.record(f"seconds.{precision}", time.monotonic() - start, "s", note=note)
        return found

    def _load(self, precision: str) -> PreTrainedModel:
        if precision == WITH_INT8_CACHE:
            return models.load_model(self.model, "int8-fast", self.device, cache="int8")
        return models.load_model(self.model, precision, self.device)

    def _checked(self, results: Results, journal: Journal, score: Callable[[], Any]) -> Any:
        """`score()`, unless the model's files changed meanwhile: then nothing of it is kept."""
        found = score()
        try:
            results.check_model()
        except ModelFilesError:
            journal.forget()
            raise
        return found

    def _options(self, results: Results, task: Task, precision: str, what: str) -> dict[str, Any]:
        about = results.follows_from(timed=False)
        about["settings"].pop("precisions")  # of the others only the baseline counts
        about |= {"baseline": self.baseline, "precision": precision, "what": what}
        return {
            "label": f"{task.name}, {precision}",
            "journal": Journal(self.kept / "stages" / task.name, precision, about),
            "processes": self.processes,
        }


def _check_format(model: str) -> None:
    """Raise ModelError for what cannot be scored: no words, or files that are not read here."""
    if model.startswith(models.SYNTHETIC):
        raise ModelError(
            f"{model} has random weights and no tokenizer, so there is no quality to measure; "
            "tools/benchmark_cpu.py measures its speed"
        )
    if model not in models.MODELS and is_meta_folder(Path(model).expanduser()):
        raise ModelError(
            f"{model} is in Meta's format, and evaluate reads Hugging Face's only. Take the same "
            "model in Hugging Face's format; `generate` reads both"
        )
