"""One model in several precisions, on the same tokens: memory, quality, text and speed."""

from typing import TYPE_CHECKING, Any

from llama_int8 import models
from llama_int8.measurement import answers, latency, memory, quality
from llama_int8.measurement.cost import weight_bytes

if TYPE_CHECKING:
    import torch


def memory_quality_and_text(
    name: str,
    precision: str,
    device: str,
    windows: "torch.Tensor",
    prompt: "torch.Tensor",
    text_tokens: int,
) -> dict[str, Any]:
    """Load once; return weight bytes, NLL of each token in each window, and the answer's tokens.

    `windows`: (N, T) token ids; `prompt`: (1, T). The result is plain JSON data.
    """
    model = models.load_model(name, precision, device)
    result = {
        "weight bytes": memory.weight_memory(model),
        "nll": quality.token_nll(model, windows).tolist(),
        "answer": answers.greedy_answer(model, prompt, text_tokens),
    }
    del model
    memory.release()
    return result


def speed(
    name: str,
    precisions: list[str],
    device: str,
    prompt: "torch.Tensor",
    decode_tokens: int,
    rounds: int,
) -> dict[str, Any]:
    """Seconds of prefill and decode, {"seconds": {precision: {phase: [..]}}, "interleaved": bool}.

    All precisions are held at once and take turns where they fit together; else one follows the
    other, which a drifting clock can favour, and "interleaved" says so.
    """
    needed = sum(weight_bytes(models.config_of(name), p).total for p in precisions)
    together = needed * models.HEADROOM <= models.free_memory(device)
    groups = [precisions] if together else [[p] for p in precisions]
    seconds: dict[str, Any] = {}
    for group in groups:
        held = {p: models.load_model(name, p, device) for p in group}
        runs = {
            p: lambda model=model: latency.prefill_and_decode(
                model, prompt.to(model.device), decode_tokens
            )
            for p, model in held.items()
        }
        times = latency.interleaved(runs, rounds)
        seconds |= {
            p: {phase: all_.tolist() for phase, all_ in phases.items()}
            for p, phases in times.items()
        }
        del runs, held
        memory.release()
    return {"seconds": seconds, "interleaved": together}
