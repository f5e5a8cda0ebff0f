#!/usr/bin/env python3
"""Profile t4's measurements of lesson 08, held to the memory of a T4 and of Colab, on any card.

  python3 tools/rehearse_t4.py                      LLaMA-2-7B's shape; some minutes, 14 GB of disk
  python3 tools/rehearse_t4.py --quick              fewer windows, points and rounds
  python3 tools/rehearse_t4.py --device cpu --quick --shape smollm2-135m --ram-gb 4

A checkpoint with random weights is written as sharded safetensors, then this process is held to
14.4 GiB of the card and 12.7 GB of RAM: 12.55 GiB of FP16 weights must go to the card shard by shard,
and be gone before int8 comes. (A T4 shows 14.75 GiB; CUDA's context, its libraries and the kernels
take some of it, which a limit on PyTorch's tensors does not count.) The weights are random, so texts
and scores mean nothing here; bytes, peaks and times do. It needs what benchmark_gpu.py needs, and
stops at the first thing that would stop a T4.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import TOOLS, let_freed_memory_join

LESSON = "08_fp16_vs_int8"


def main(argv: list[str] | None = None) -> int:
    let_freed_memory_join()
    options = parse(argv)
    sys.path.insert(0, str(TOOLS))
    from llama_int8 import models

    try:
        device = options.device or models.default_device()
        if not options.device and device == "cpu":
            return _fail(f"{models.no_gpu()}; --device cpu --quick tries the same on the CPU")
        models.check_precision("int8", device)
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.folder or Path(scratch) / "model"
            if not (folder / "config.json").exists():
                write(options.shape, folder, device)
            hold(device, options.gpu_gib, options.ram_gb, folder)
            for line in rehearse(folder, device, options.quick):
                print(line, flush=True)
    except ImportError as error:
        return _fail(f"{error}; benchmark_gpu.py --help names the packages that this needs")
    # PyTorch's errors of memory, of the card and of mapped files, are RuntimeErrors.
    except (models.ModelError, ValueError, OSError, MemoryError, RuntimeError) as error:
        return _fail(str(error).partition("\n")[0] or "out of memory")
    return 0


def write(shape: str, folder: Path, device: str) -> None:
    """The checkpoint in this device's 16-bit format, in shards of 2 GB."""
    from llama_int8 import models
    from llama_int8.dtypes import torch_dtype
    from llama_int8.models.synthetic import save_synthetic

    print(f"writing random weights in the shape of {shape} ...", flush=True)
    dtype = torch_dtype(models.baseline_precision(device))
    save_synthetic(models.config_of(shape), folder, dtype, device=device)


def hold(device: str, gpu_gib: float, ram_gb: float, folder: Path) -> None:
    """Let this process have no more than a T4's memory, and Colab's, where the system can say no."""
    import torch

    if device != "cpu":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_gib * 2**30 / total))
    try:
        import resource
    except ImportError:  # Windows
        print("this system cannot limit a process's RAM: only the card's limit is set")
        return
    # Data, not addresses: CUDA reserves far more of those than it uses. The checkpoint's files count
    # as data while they are mapped, all at once, though the system can drop and read them again.
    limit = int(ram_gb * 1e9) + sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def rehearse(folder: Path, device: str, quick: bool):
    """Measure as lesson 08 does, one precision after the other; a line for each thing that worked."""
    import torch

    from llama_int8 import models
    from llama_int8.evaluation import experiment
    from llama_int8.evaluation.compare import Point
    from llama_int8.measure import memory
    from llama_int8.models.cost import GIB, weight_bytes
    from llama_int8.profiles import read_profile
    from llama_int8.quantization.gpu.llama import GraphLlama

    name, config = str(folder), models.config_of(str(folder))
    settings = read_profile("t4").notebooks[LESSON]
    points = [Point(*point) for point in settings["points"]]
    rounds = settings["rounds"]
    if quick:
        points, rounds = [Point(1, 16), Point(2, 16)], 1
    work = experiment.Workload(
        text=windows(config.vocab_size, settings, quick),
        compared_windows=1 if quick else settings["compared_windows"],
        points=points,
    )
    half, found = models.baseline_precision(device), {}
    for precision in (half, "int8"):
        start = time.monotonic()
        reference = found[half]["windows"] if found else ()
        found[precision] = experiment.memory_quality_and_text(
            name, precision, device, work, reference
        )
        taken, predicted = found[precision]["weight bytes"], weight_bytes(config, precision).total
        if taken != predicted:
            raise ValueError(f"{precision}: {taken:,} bytes of weights, {predicted:,} predicted")
        peak = max(one["peak"] for one in found[precision]["peaks"])
        yield (
            f"{precision}: {taken / GIB:.2f} GiB of weights as predicted, at most {peak / GIB:.2f} "
            f"GiB beside them, {len(found[precision]['windows'])} windows scored, "
            f"{time.monotonic() - start:.0f} s"
        )
    steps = 2 if quick else settings["decode_tokens"]
    timed = experiment.speed(
        name, [half, "int8"], device, points=points, decode_tokens=steps, rounds=rounds
    )
    yield f"both precisions at once: {'yes' if timed['interleaved'] else 'no, one after the other'}"
    for record in timed["seconds"]:
        speeds = [
            f"{p} {record['batch'] * steps / min(phases['decode']):.1f}"
            for p, phases in record["precisions"].items()
        ]
        case = f"decode {record['batch']} x {record['tokens']}, tokens/s"
        yield f"{case}: {', '.join(speeds) or 'no room'}"
    memory.release()
    if device != "cpu":
        models.check_precision("int8-fast", device)
        model = models.load_model(name, "int8-fast", device)
        prompt = torch.zeros(1, 8, dtype=torch.long, device=device)
        GraphLlama(model, 64).generate(prompt, 16)
        yield f"int8-fast: {memory.weight_memory(model) / GIB:.2f} GiB of weights, 16 tokens generated"


def windows(vocab_size: int, settings: dict, quick: bool):
    """As many random windows as the profile scores of a text."""
    import numpy as np
    import torch

    from llama_int8.evaluation.perplexity import StridedText

    count, length, stride = (2, 32, 16) if quick else (
        settings["windows"], settings["window"], settings["stride"]
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (count, length), generator=generator)
    return StridedText(tokens, stride, np.full(count, 4 * stride))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", default="llama-2-7b-chat", metavar="NAME", help="a registered model's shapes")
    add("--folder", type=Path, help="keep the checkpoint here, or take the one that is here")
    add("--device", help="default: the GPU; cpu runs the same code without one")
    add("--gpu-gib", type=float, default=14.4, metavar="N", help="for tensors (14.4, a T4's)")
    add("--ram-gb", type=float, default=12.7, metavar="N", help="of RAM (12.7, Colab's)")
    add("--quick", action="store_true", help="short prompts, few windows: to try it")
    return parser.parse_args(argv)


def _fail(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
