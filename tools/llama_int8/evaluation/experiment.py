"""One model in several precisions, on the same tokens: memory, perplexity, text and speed.

Each function here is a stage: it loads what it needs, frees it again, and returns plain JSON data,
so that a run that breaks off loses one stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

import llama_int8.models as models
from llama_int8.evaluation import answers, compare, loglikelihood, perplexity
from llama_int8.evaluation.compare import Point
from llama_int8.measure import latency, memory, profiler
from llama_int8.measure.results import Results
from llama_int8.models import cost
from llama_int8.quantization.precisions import INT8, NO_DECOMPOSITION, THRESHOLD


@dataclass(frozen=True)
class Workload:
    """The inputs that every precision of a model gets: tokenized, so the same to the last token."""

    text: perplexity.StridedText | None = None  # None: a model without a tokenizer
    compared_windows: int = 0
    items: Sequence[loglikelihood.Packed] = ()
    alone: int = 0  # so many items are scored once more, each in a pass of its own
    slips: dict[str, Sequence[loglikelihood.Packed]] = field(
        default_factory=dict
    )  # wrong rules' items
    prompts: dict[str, torch.Tensor] = field(default_factory=dict)  # each (1, T)
    text_tokens: int = 0
    seed: int = 0
    temperature: float = 1.0  # of the sampled answers
    sampled: bool = True  # prompts are answered greedily, and by drawing tokens as well
    points: Sequence[Point] = ()
    ids: Sequence[int] = ()  # a text's token ids, for memory and speed; none: seeded random ones


def memory_quality_and_text(
    name: str,
    precision: str,
    device: str,
    work: Workload,
    reference: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Load once; return bytes, window scores, choice scores and answers.

    `reference`: the windows of the precision that this one is compared with.
    """
    memory.release()
    before = memory.snapshot(device)
    model = models.load_model(name, precision, device)
    with models.explained_memory(name, precision, device):
        result = {
            "weight bytes": memory.weight_memory(model),
            "before": before,
            "loaded": memory.snapshot(device),
            "peaks": _peaks(model, precision, device, work),
            **_scores_and_answers(model, precision, work, reference),
        }
    del model
    memory.release()
    return result


def _scores_and_answers(
    model: torch.nn.Module, precision: str, work: Workload, reference: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if work.text is not None:
        result["windows"] = perplexity.window_scores(
            model,
            work.text,
            0 if reference else work.compared_windows,  # one precision keeps its states
            reference,
            f"windows, {precision}",
        )
    if work.items:
        result["choices"] = loglikelihood.choice_scores(
            model, work.items, label=f"items, {precision}"
        )
    if work.alone:
        result["choices alone"] = loglikelihood.choice_scores(
            model, work.items[: work.alone], batch_tokens=1, label=f"items alone, {precision}"
        )
    for rule, rows in work.slips.items():
        scores = loglikelihood.choice_scores(model, rows, label=rule)
        result.setdefault("slips", {})[rule] = scores
    for title, prompt in work.prompts.items():
        for how, seed in (("greedy", None), ("sampled", work.seed))[: 1 + work.sampled]:
            answer = answers.answer_with_candidates(
                model, prompt, work.text_tokens, seed, work.temperature
            )
            result.setdefault("answers", {}).setdefault(title, {})[how] = answer
    return result


def _peaks(
    model: torch.nn.Module, precision: str, device: str, work: Workload
) -> list[dict[str, int]]:
    """Each point with what `memory.peak_bytes` finds there."""
    fitting = [p for p in work.points if fits(model.config, precision, device, p)]
    if device != "cpu" and fitting:  # what CUDA's libraries set up once is not this prompt's
        latency.prefill(model, tokens_of(work.ids, model, fitting[0]))
    found = []
    for point in fitting:
        run = partial(latency.prefill, model, tokens_of(work.ids, model, point))
        found.append({**point._asdict(), **memory.peak_bytes(run, device)})
    return found


def fits(config: Any, precision: str, device: str, point: Point) -> bool:
    """Whether a loaded model's cache, activations and logits for `point` fit what is free."""
    return beside_weights(config, precision, device, point) <= models.free_memory(device)


def beside_weights(config: Any, precision: str, device: str, point: Point) -> int:
    """Bytes of cache, activations and logits while a prompt of `point` is read."""
    if not isinstance(config, cost.LlamaConfig):
        config = cost.LlamaConfig.from_hugging_face(config.to_dict())
    batch, context = point
    parts = cost.peak_bytes(config, _stored(precision), context, batch, device)
    return sum(parts.values()) - parts["weights"]


def _stored(precision: str) -> str:
    return INT8 if precision == NO_DECOMPOSITION else precision


def tokens_of(ids: Sequence[int], model: torch.nn.Module, point: Point) -> torch.Tensor:
    """The first tokens of a text as rows (B, T), from its beginning again where it ends.

    LLM.int8()'s work depends on the outliers that a text brings. Without ids, as for a synthetic
    model, they are seeded random ones.
    """
    batch, length = point
    if ids:
        found = torch.tensor([ids[n % len(ids)] for n in range(batch * length)])
        return found.view(batch, length).to(model.device)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    return torch.randint(vocabulary, point, generator=generator).to(model.device)


def speed(
    name: str,
    precisions: Sequence[str],
    device: str,
    *,
    points: Sequence[Point],
    decode_tokens: int,
    rounds: int,
    items: Sequence[loglikelihood.Packed] = (),
    profiled: Sequence[Point] = (),
    ids: Sequence[int] = (),
    weighed: bool = False,
    roofs: Sequence[str] = (),
) -> dict[str, Any]:
    """Seconds of prefill and decode at every point, and of one item at batch 1.

    {"seconds": [{"batch": .., "tokens": .., "precisions": {precision: {phase: [..]}}}, ...],
    "items": {precision: [..]}, "interleaved": ..}; "profile" is like "seconds", for the `profiled`
    points, with {kind of operation: ..} by phase, each with "each", its seconds by round; where it
    is `weighed`, "memory": {precision: {"weight bytes": .., "peaks": ..}}; with precisions in `roofs`
    the best of `latency.Roofs`, timed before and after the points, and between on a CPU with
    room for all.
    All precisions are held at once and take turns where they fit together; else one follows the
    other, which a drifting clock can favour, and "interleaved" says so. A point that does not fit
    is left out. NO_DECOMPOSITION is the int8 model with another threshold, not a second one.
    """
    models_of: dict[str, list[str]] = {}  # the precisions that share a model
    for p in precisions:
        models_of.setdefault(_stored(p), []).append(p)
    needed = sum(cost.weight_bytes(models.config_of(name), p).total for p in models_of)
    together = needed * models.HEADROOM <= models.free_memory(device)
    result: dict[str, Any] = {
        "seconds": [{**point._asdict(), "precisions": {}} for point in points],
        "items": {},
        "interleaved": together,
        "profile": [{**point._asdict(), "precisions": {}} for point in profiled],
    }
    meter = latency.Roofs(device, roofs) if roofs else None
    if meter:
        meter.measure()
        memory.release()
    for group in [list(models_of)] if together else [[p] for p in models_of]:
        loaded = {p: models.load_model(name, p, device) for p in group}
        held = {p: loaded[stored] for stored in group for p in models_of[stored]}
        for point, record in zip(points, result["seconds"], strict=True):
            record["precisions"] |= _seconds(held, device, point, decode_tokens, rounds, ids)
            if meter and device == "cpu" and together:
                meter.measure()
        result["items"] |= _item_seconds(held, device, items)
        if weighed:
            result.setdefault("memory", {}).update(_memory(held, device, points, ids))
        for point, record in zip(profiled, result["profile"], strict=True):
            record["precisions"] |= _profiles(held, device, point, ids, rounds)
        del loaded, held
        memory.release()
        if meter:
            meter.measure()
            memory.release()
    return result | ({"roofs": meter.best} if meter else {})


def set_threshold(model: torch.nn.Module, precision: str) -> None:
    """Let an int8 model leave the decomposition out for NO_DECOMPOSITION, and do it otherwise."""
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.state.threshold = 0.0 if precision == NO_DECOMPOSITION else THRESHOLD


def _with_threshold(
    model: torch.nn.Module, precision: str, run: Callable[[], dict[str, float]]
) -> Callable[[], dict[str, float]]:
    def with_threshold() -> dict[str, float]:
        set_threshold(model, precision)  # beside the clock, which runs inside `run`
        return run()

    return with_threshold


# Functions of their own, so that no name of theirs keeps a model when the next one is loaded.
def _seconds(
    held: dict[str, torch.nn.Module],
    device: str,
    point: Point,
    decode_tokens: int,
    rounds: int,
    ids: Sequence[int],
) -> dict[str, dict[str, list[float]]]:
    runs = {
        p: _with_threshold(
            model,
            p,
            partial(latency.prefill_and_decode, model, tokens_of(ids, model, point), decode_tokens),
        )
        for p, model in held.items()
        if fits(model.config, p, device, point)
    }
    try:
        times = latency.interleaved(runs, rounds) if runs else {}
    except torch.OutOfMemoryError:  # the prediction was too optimistic
        print(f"batch x context {point.name}: out of memory, left out")
        return {}
    return {p: {phase: all_.tolist() for phase, all_ in one.items()} for p, one in times.items()}


def _item_seconds(
    held: dict[str, torch.nn.Module], device: str, items: Sequence[loglikelihood.Packed]
) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {}
    for item in items:
        for p, model in held.items():
            run = latency.repeated(partial(loglikelihood.score_batch, model, [item]), 1, device)
            run = _with_threshold(model, p, run)
            taken.setdefault(p, []).append(min(run()["call"] for _ in range(2)))
    return taken


def _memory(
    held: dict[str, torch.nn.Module], device: str, points: Sequence[Point], ids: Sequence[int]
) -> dict[str, dict[str, Any]]:
    work = Workload(points=points, ids=ids)
    return {
        p: {
            "weight bytes": memory.weight_memory(model),
            "peaks": _peaks(model, p, device, work),
        }
        for p, model in held.items()
    }


def _profiles(
    held: dict[str, torch.nn.Module], device: str, point: Point, ids: Sequence[int], rounds: int
) -> dict[str, dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {}
    fitting = {p: model for p, model in held.items() if fits(model.config, p, device, point)}
    for number in range(rounds):  # in turns, as the times are: one can fall into a slow moment
        calls = 2 if number else profiler.CALLS  # the first round warms up
        for p, model in fitting.items():
            set_threshold(model, p)
            phases = _phases(model, device, tokens_of(ids, model, point), calls)
            found.setdefault(p, []).append(phases)
    return {
        p: {phase: profiler.medians([one[phase] for one in each]) for phase in each[0]}
        for p, each in found.items()
    }


def _phases(
    model: torch.nn.Module, device: str, tokens: torch.Tensor, calls: int
) -> dict[str, Any]:
    profiles = {}
    cache = None

    def prefill() -> None:
        nonlocal cache
        cache = latency.prefill(model, tokens)

    def decode() -> None:
        latency.prefill(model, tokens[:, :1], cache)

    for phase, run in (("prefill", prefill), ("decode", decode)):
        profiles[phase] = profiler.profile(run, device, calls)
    return profiles


def another_model(
    name: str, settings: Any, text: str, items: Sequence[Any], folder: str | None
) -> compare.Summary:
    """The comparison for one more model, recorded in a results file of its own.

    A synthetic model has no tokenizer, so only memory and speed are measured. `settings` and `folder`
    are notebook 08's.
    """
    half = models.baseline_precision(settings.device)
    results = Results("08_fp16_vs_int8", settings, folder)
    synthetic = name.startswith(models.SYNTHETIC)
    revision = None if synthetic else models.revision_of(models.model_folder(name))
    results.use_model(name, revision)
    points = [Point(*point) for point in settings.more_points]
    device = models.placement(name, half, settings.device)
    work = Workload(points=points)
    if not synthetic:
        tokenizer = models.load_tokenizer(name)
        cut = perplexity.strided(tokenizer, text, settings.window, settings.stride)
        cut = perplexity.evenly(cut, settings.windows)
        items = items[: settings.more_items]
        packed = loglikelihood.pack_all(tokenizer, items)
        ids = tokenizer(text)["input_ids"]
        models.check_ids(tokenizer, ids, models.config_of(name).vocab_size)
        compared = settings.compared_windows
        work = replace(work, text=cut, items=packed, compared_windows=compared, ids=ids)
    runs: dict[str, Any] = {}
    for p in (half, INT8) if not synthetic else ():
        reference = runs.get(half, {}).get("windows", ())
        stage = partial(memory_quality_and_text, name, p, device, work, reference)
        runs[p] = results.stage(f"measure {p}", stage, timed=False)
    stage = partial(
        speed,
        name,
        [half, INT8],
        device,
        points=points,
        decode_tokens=settings.decode_tokens,
        rounds=settings.more_rounds,
        items=work.items[: settings.timed_items],
        ids=work.ids,
        weighed=synthetic,  # a synthetic model is built again for each stage, so one stage has to do
    )
    timed = results.stage("speed", stage)
    runs |= timed.get("memory", {})
    compare.record_memory(results, runs, models.config_of(name))
    if not synthetic:
        windows = {p: run["windows"] for p, run in runs.items()}
        compare.record_text(results, windows, cut, half)
        scores = {p: run["choices"] for p, run in runs.items()}
        compare.record_choices(results, scores, items, half)
    speeds, ratios = compare.record_speed(results, timed, settings.decode_tokens, half)
    return compare.Summary(results, speeds, ratios)
