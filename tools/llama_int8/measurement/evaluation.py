"""`course.py evaluate`: a model's quality in several precisions, headless, into results files."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_int8 import models
from llama_int8.measurement import choices, comparison, memory, quality
from llama_int8.measurement.batches import Journal, Processes
from llama_int8.measurement.results import Results
from llama_int8.measurement.statistics import proportion_interval
from llama_int8.measurement.tasks import Task, load_task
from llama_int8.measurement.wrong_rules import WRONG_RULES
from llama_int8.profiles import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The strided windows of Hugging Face's page on perplexity; models of this course take both.
WINDOW, STRIDE = 1024, 512
COMPARED_WINDOWS = 16


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
    ) -> None:
        """`precisions`: None is the device's 16-bit format and int8. `out`: results go below it.

        `kept`: where finished batches are kept, to go on after an interruption; None is `out`.
        """
        device = device or models.default_device()
        self.processes = Processes(device)
        self.device = self.processes.own_device(device)
        self.half = models.baseline_precision(self.device)
        self.model, self.precisions = model, list(precisions or [self.half, "int8"])
        for precision in self.precisions:
            models.check_precision(precision, self.device)
        # Differences are against 16 bit where it was asked for, else against the first.
        self.baseline = self.half if self.half in self.precisions else self.precisions[0]
        self.precisions.sort(key=lambda p: p != self.baseline)
        self.out, self.limit, self.wrong_rules = Path(out), limit, wrong_rules
        self.kept = Path(kept or out)
        self.vocab_size = models.config_of(model).vocab_size
        self.tokenizer = models.load_tokenizer(model)

    def run(self, name: str, data: str | Path | None = None) -> Results | None:
        """Score one task in every precision; the results file, in the first process alone."""
        task = load_task(name, data, self.limit)
        settings: dict[str, Any] = {"data": task.source, "sha256": task.sha256}
        if task.text is not None:
            settings |= {"window": WINDOW, "stride": STRIDE}
            text = quality.strided(self.tokenizer, task.text, WINDOW, STRIDE, self.limit)
            models.check_ids(self.tokenizer, text.windows.flatten().tolist(), self.vocab_size)
            settings |= {"windows": len(text.windows)}
        else:
            settings |= {"items": len(task.items), "batch_tokens": choices.BATCH_TOKENS}
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
        if text is not None:
            self._score_text(results, task, text)
        else:
            self._score_choices(results, task)
        return results if self.processes.first else None

    def _score_text(self, results: Results, task: Task, text: quality.StridedText) -> None:
        scores: dict[str, Any] = {}
        for precision in self.precisions:
            score = partial(
                quality.window_scores,
                text=text,
                keep=COMPARED_WINDOWS if precision == self.baseline else 0,
                reference=scores.get(self.baseline, ()),
                **self._options(results, task, precision, "windows"),
            )
            scores[precision] = self._timed(results, precision, score)
        if self.processes.first:
            comparison.record_text(results, scores, text, self.baseline)

    def _score_choices(self, results: Results, task: Task) -> None:
        rows = choices.pack_all(self.tokenizer, task.items)
        ids = (token for row in rows for part in (row.shared, *row.tails) for token in part)
        models.check_ids(self.tokenizer, ids, self.vocab_size)
        scores = {}
        for precision in self.precisions:
            options = self._options(results, task, precision, "right rule")
            score = partial(choices.choice_scores, rows=rows, **options)
            scores[precision] = self._timed(results, precision, score)
        if self.processes.first:
            comparison.record_choices(results, scores, task.items, self.baseline)
        if self.wrong_rules:
            self._score_by_wrong_rules(results, task)

    def _score_by_wrong_rules(self, results: Results, task: Task) -> None:
        """A lesson about scoring, so the baseline alone shows it."""
        model = models.load_model(self.model, self.baseline, self.device)
        for rule, pack in WRONG_RULES.items():
            rows = pack(self.tokenizer, task.items)
            options = self._options(results, task, self.baseline, rule)
            scores = choices.choice_scores(model, rows, **options)
            if self.processes.first:
                right = choices.correct(scores, task.items, normalized=False)
                low, high = proportion_interval(int(right.sum()), right.size)
                ends = {"low": 100 * low, "high": 100 * high, "n": right.size}
                results.record(f"wrong_rule.{rule}", 100 * right.mean(), "%", **ends)

    def _timed(
        self, results: Results, precision: str, score: Callable[["PreTrainedModel"], Any]
    ) -> Any:
        """Load the model, score with it, free it before anything else is loaded."""
        start = time.monotonic()
        found = score(models.load_model(self.model, precision, self.device))
        memory.release()
        if self.processes.first:
            note = "of this call, loading included; what an earlier one had kept is not in it"
            results.record(f"seconds.{precision}", time.monotonic() - start, "s", note=note)
        return found

    def _options(self, results: Results, task: Task, precision: str, what: str) -> dict[str, Any]:
        about = [results.identity, precision, what]
        return {
            "label": f"{task.name}, {precision}",
            "journal": Journal(self.kept / "stages" / task.name, precision, about),
            "processes": self.processes,
        }
