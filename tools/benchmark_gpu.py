#!/usr/bin/env python3
"""FP16 against int8-fast and LLM.int8() on this machine's GPU, in six minutes, without a model hub.

  python3 tools/benchmark_gpu.py                             LLaMA-2-7B's and Llama-3.2-1B's shapes
  python3 tools/benchmark_gpu.py --budget-minutes 3 --models 1b
  python3 tools/benchmark_gpu.py --models embedded --gguf first.part second.part
  python3 tools/benchmark_gpu.py --device cpu --models embedded --rounds 2

The weights are random at the exact shapes (memory and speed need no others); "embedded" is the
course's own small model, where it is on this machine or its GGUF file is named. Prefill of 512
tokens, decode at batch 1 and 8 after 128 and 1,024 tokens, memory, kernels per token and the time
between them, and bitsandbytes' codes against our own, each for FP16, FP16 by one CUDA graph for each
step (the control), int8-fast by such a graph, and LLM.int8() at outlier thresholds 6 and 0. The most
valuable number comes first, and each is written as it comes, into results/<machine>/gpu@<model>.json.
Run it again to go on where the time, or the memory, ended.

It needs Python 3.11 or newer, a CUDA build of torch 2.11 or newer, and these packages, but no
installation of the course itself: transformers>=5.15, accelerate, bitsandbytes>=0.50, safetensors,
numpy, psutil, PyYAML, tqdm; for --gguf also gguf. On a machine without network, bring them as wheels
(`pip download --no-deps`); bitsandbytes works with one of its CUDA libraries, the one that
`python3 -m bitsandbytes` names. Leave the card alone meanwhile.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import TOOLS, let_freed_memory_join

ALIASES = {
    "7b": "synthetic:llama-2-7b-chat",
    "1b": "synthetic:llama-3.2-1b",
    "embedded": "smollm2-135m",
}


def main(argv: list[str] | None = None) -> int:
    let_freed_memory_join()
    options = parse(argv)
    sys.path.insert(0, str(TOOLS))
    start = time.monotonic()
    try:
        return race(options, start + 60 * options.budget_minutes)
    except ImportError as error:
        return _fail(f"{error}; see --help for the packages that this needs")
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is kept, run it again to go on", file=sys.stderr)
        return 130


def race(options: argparse.Namespace, deadline: float) -> int:
    """Every model in turn, as far as the time goes."""
    from llama_int8 import models
    from llama_int8.lessons.n10 import gpu
    from llama_int8.measure.results import Results
    from llama_int8.profiles import Settings

    try:
        device = options.device or models.default_device()
        if not options.device and device == "cpu":
            return _fail(f"{models.no_gpu()}; --device cpu measures this machine's processor")
        models.check_precision("int8", device)
        names = [ALIASES.get(name, name) for name in options.models.split(",")]
        if options.gguf:
            unpack(options.gguf)
        sizes = gpu.Sizes(rounds=options.rounds, steps=options.steps)
        if options.quick:
            points = (gpu.Point(1, 8), gpu.Point(2, 8))
            few = {"steps": 2, "rounds": options.rounds, "megabytes": 16}
            sizes = gpu.Sizes(prompt=32, points=points, **few)
        for name in names:
            if time.monotonic() > deadline:
                print(f"{name}: the time is used up; run it again, or with --models {name}")
                continue
            settings = Settings(vars(sizes), model=name, profile="benchmark", device=device)
            results = Results("gpu", settings, str(options.out))
            synthetic = name.startswith(models.SYNTHETIC)
            revision = None if synthetic else models.revision_of(models.model_folder(name))
            results.use_model(name, revision)
            kept = results.resume()
            print(f"{results.model} on {results.environment['machine']}", flush=True)
            if kept:
                print(f"{kept} numbers are kept from an earlier run", flush=True)
            work = gpu.Race(name, device, sizes, results)
            work.run(deadline, say=lambda text: print(text, flush=True))
            print("\n".join(gpu.lines(results, work.half)), f"\nresults: {results.path}")
    except (models.ModelError, ValueError, OSError) as error:
        return _fail(str(error))
    return 0


def unpack(parts: list[Path]) -> None:
    """Convert the embedded model from its GGUF file, perhaps in parts; it is kept in the cache."""
    from llama_int8.files import build_once
    from llama_int8.models import embedded

    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(f"--gguf names {part}, and there is no such file")

    def convert(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            gguf = Path(scratch) / "model.gguf"
            with gguf.open("wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
            embedded.verify_sha256(gguf, embedded.GGUF_SHA256)
            embedded.gguf_to_safetensors(gguf, folder)

    build_once(embedded.embedded_place(), convert)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--budget-minutes", type=float, default=6, metavar="N", help="stop after so long (6)")
    add("--models", default="7b,1b", metavar="7b,1b", help="these, embedded, or any model's name")
    add("--device", help="default: the GPU; cpu runs the same code without one")
    add("--rounds", type=int, default=5, help="interleaved repeats (5)")
    add("--steps", type=int, default=16, help="decode steps in one timing (16)")
    add("--quick", action="store_true", help="short prompts: to try it, not to measure")
    add("--gguf", type=Path, nargs="+", metavar="FILE", help="the embedded model's file, in order")
    add("--out", type=Path, default=TOOLS.parent, help="holds results/ (the repository)")
    return parser.parse_args(argv)


def _fail(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
