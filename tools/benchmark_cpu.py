#!/usr/bin/env python3
"""Every path to int8 on this machine's CPU, raced on one model; beside llama.cpp, where installed.

  python3 tools/benchmark_cpu.py                                  the default model, batch 1
  python3 tools/benchmark_cpu.py --batch 1,4,16 --rounds 7
  python3 tools/benchmark_cpu.py --model synthetic:llama-3.2-1b --patience 20
  python3 tools/benchmark_cpu.py --gguf llama.cpp-Q8_0=model-q8.gguf --model ~/models/mine

Writes results/<machine>/int8_cpu@<model>.json. Needs the course's environment (`python3
tools/course.py run` makes it); `llama-cpp-python` and `torchao` take part if they can be imported.
Leave the machine alone meanwhile: on few cores a second program spoils every number.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
VENV_PYTHON = TOOLS.parent / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
PEER = "llama.cpp"
CONTEXTS = (32, 512, 2048)  # those of them that the model takes


def main() -> int:
    """Measure, and end with one line and status 1 where the user can put something right."""
    options = parse()
    from llama_int8.models import ModelError

    try:
        return measure(options)
    except (ModelError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def measure(options: argparse.Namespace) -> int:
    """Race every path and write the results file."""
    from llama_int8 import models
    from llama_int8.files import file_hash
    from llama_int8.lessons.n10 import backends
    from llama_int8.measure.results import Results
    from llama_int8.profiles import Settings

    config = models.config_of(options.model)
    most = config.max_position_embeddings
    options.context = options.context or [c for c in CONTEXTS if c + options.steps <= most]
    check_lengths(options, most)
    gguf = gguf_files(options.gguf)
    points = {"contexts": options.context, "batches": options.batch, "prompt": options.prompt}
    settings = Settings(
        {**points, "steps": options.steps, "rounds": options.rounds, "patience": options.patience},
        **({"gguf": {name: file_hash(file) for name, file in gguf.items()}} if gguf else {}),
        **({"llama_cpp": build_of_llama_cpp()} if has_llama_cpp() else {}),
        model=options.model,
        profile="benchmark",
        device="cpu",
    )
    results = Results("int8_cpu", settings, str(options.out))
    synthetic = options.model.startswith(models.SYNTHETIC)
    revision = None if synthetic else models.revision_of(models.model_folder(options.model))
    results.use_model(options.model, revision)
    print(f"{results.model} on {results.environment['machine']}: loading every path", flush=True)
    runners: dict[str, Any] = dict(backends.load_paths(options.model, options.path))
    if backends.ONE_CALL in runners:
        runners[backends.INT8_CACHE] = backends.with_int8_cache(runners[backends.ONE_CALL])
    runners |= backends.readers(config, options.path)
    with tempfile.TemporaryDirectory() as scratch:
        runners |= peers(options.model, gguf, max_length(options), Path(scratch))
        results.check_model()
        roof = backends.measured_roof(results)
        cases = list(make_cases(options))
        for number, case in enumerate(cases, 1):
            print(f"{case.key} ({number} of {len(cases)})", flush=True)
            able = {p: r for p, r in runners.items() if case.batch == 1 or not p.startswith(PEER)}
            seconds = backends.race(
                able,
                [case],
                steps=options.steps,
                rounds=options.rounds,
                vocabulary=config.vocab_size,
                patience=options.patience,
            )
            race = backends.record_race(results, seconds, [case], config, roof)
            show(race, case)
    print(f"results: {results.path}")
    return 0


def make_cases(options: argparse.Namespace):
    """Prefill of one prompt, then decode over contexts and batches, by threads."""
    from llama_int8.lessons.n10 import backends

    counts = backends.thread_counts()
    for count in counts:
        yield backends.Case("prefill", 1, options.prompt, count)
    for context in options.context:
        for count in counts:
            yield backends.Case("decode", 1, context, count)
    for batch in options.batch:
        if batch > 1:
            yield backends.Case("prefill", batch, 128, counts[-1])
            for count in counts:
                yield backends.Case("decode", batch, options.context[0], count)


def max_length(options: argparse.Namespace) -> int:
    """The longest text of all measurements, in tokens."""
    return max(options.prompt, max(options.context) + options.steps)


def check_lengths(options: argparse.Namespace, most: int) -> None:
    """Raise ValueError where a measurement is longer than the model's context of `most` tokens."""
    longest = max_length(options)
    if longest > most:
        raise ValueError(
            f"the longest prompt or context and --steps make {longest:,} tokens, and the model takes "
            f"{most:,}; take less by --prompt, --context and --steps"
        )


def gguf_files(entries: list[str]) -> dict[str, Path]:
    """Files by name from NAME=FILE. Raises ValueError for another form, name, or no such file."""
    files: dict[str, Path] = {}
    for entry in entries:
        name, _, file = entry.partition("=")
        path = Path(file).expanduser()
        if not name.startswith(PEER) or not path.is_file() or name in files:
            raise ValueError(
                f"--gguf is {entry!r}; it must be {PEER}-NAME=FILE, with a file that is there and "
                "each name once"
            )
        files[name] = path
    return files


def peers(model: str, files: dict[str, Path], length: int, scratch: Path) -> dict[str, Any]:
    """Other people's programs for the same model, as far as they are installed."""
    found: dict[str, Any] = {}
    if importlib.util.find_spec("torchao"):
        found["torchao, eager"] = torchao_runner(model)
    if not has_llama_cpp():
        print("no llama.cpp in this run: llama-cpp-python is not installed, or cannot be imported")
        return found
    for file_name, file in (files or default_gguf(model, scratch)).items():
        for flash, name in ((False, file_name), (True, f"{file_name}, flash")):
            if survives(name, file, flash):
                found[name] = LlamaCppRunner(file, length, flash=flash)
    return found


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed and can be imported."""
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


# A build for instructions that this machine lacks ends the process, so a separate process tries.
TRIAL = """
import sys, llama_cpp
llama_cpp.Llama(sys.argv[1], n_ctx=64, flash_attn=sys.argv[2] == "1", verbose=False).eval([1] * 32)
"""


def survives(name: str, file: Path, flash: bool) -> bool:
    """Whether llama.cpp reads a prompt with this file without ending its process; prints if not."""
    tried = [sys.executable, "-c", TRIAL, str(file), str(int(flash))]
    code = subprocess.run(tried, capture_output=True, check=False).returncode
    if code:
        what = f"signal {-code}" if code < 0 else f"status {code}"
        print(
            f"{name} is left out: reading a prompt ended its process with {what}. Build "
            "llama-cpp-python for this machine, or without the instructions that fail (AMX, say)"
        )
    return code == 0


def build_of_llama_cpp() -> dict[str, str]:
    """What llama-cpp-python tells of the llama.cpp in it: versions, commit, what it was built for."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    found = {"llama-cpp-python": llama_cpp.__version__}
    for name in ("ggml_version", "ggml_commit"):
        with contextlib.suppress(ImportError, AttributeError):  # older ones have no such function
            tell = getattr(importlib.import_module("llama_cpp._ggml").libggml, name)
            tell.restype = ctypes.c_char_p
            found[name] = tell().decode()
    features = llama_cpp.llama_print_system_info().decode()
    return {**found, "built for": " ".join(features.replace("|", " ").split())}


def default_gguf(model: str, scratch: Path) -> dict[str, Path]:
    """The embedded model as F16 and Q8_0: of the same values that all other paths start from."""
    from llama_int8 import models
    from llama_int8.models.embedded import embedded_gguf

    if model != models.DEFAULT_MODEL:
        print(f"for llama.cpp, name files of {model}: --gguf llama.cpp-Q8_0=FILE")
        return {}
    source = embedded_gguf(scratch)
    return {
        f"{PEER}-{kind}": recode(source, scratch / f"{kind}.gguf", kind) for kind in ("F16", "Q8_0")
    }


def recode(source: Path, target: Path, kind: str) -> Path:
    """A GGUF file with the same contents and its matrices in another type."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kinds = field.types
        sub = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kinds[0], sub_type=sub)
    wanted = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values.astype("float32"))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


class LlamaCppRunner:
    """llama.cpp through llama-cpp-python, one sequence, with PyTorch's number of threads."""

    def __init__(self, file: Path, length: int, flash: bool) -> None:
        """`flash`: with llama.cpp's own FlashAttention, or without; either can be the faster one."""
        import llama_cpp

        self.library = llama_cpp
        self.model = llama_cpp.Llama(
            str(file), n_ctx=length, n_batch=512, flash_attn=flash, verbose=False
        )

    def prefill(self, tokens: Any) -> None:
        """Read (1, T) tokens into an empty cache."""
        self._begin()
        self.model.eval(tokens[0].tolist())

    def stepper(self, batch: int, context: int, steps: int) -> Callable[[], None]:
        """A greedy step after `context` tokens."""
        import numpy as np

        assert batch == 1, "one sequence only"
        self._begin()
        self.model.eval([1] * context)
        token, vocabulary = 1, self.model.n_vocab()

        def step() -> None:
            nonlocal token
            self.model.eval([token])
            logits = self.library.llama_get_logits_ith(self.model.ctx, -1)
            token = int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())

        return step

    def _begin(self) -> None:
        import torch

        count = torch.get_num_threads()
        self.library.llama_set_n_threads(self.model.ctx, count, count)
        self.model.reset()


def torchao_runner(name: str) -> Any:
    """bf16 with torchao's int8 dynamic activations and int8 weights, not compiled."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    from llama_int8 import models
    from llama_int8.lessons.n10 import backends

    model = models.load_model(name, "bf16", "cpu")
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return backends.HuggingFaceRunner(model)


def show(race: Any, case: Any) -> None:
    """The case as lines of text."""
    for path, speed in race.speeds[case].items():
        ratio, share = race.over_bf16[case][path], race.shares[case].get(path)
        reached = "" if share is None else f"{share:6.0%} of its ceiling"
        print(
            f"  {path:26} {speed.median:9.1f} tokens/s [{speed.low:.1f} to {speed.high:.1f}]"
            f" {ratio.median:6.2f}x {reached}"
        )


def parse() -> argparse.Namespace:
    numbers: Callable[[str], list[int]] = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = partial(parser.add_argument)
    add("--model", default="smollm2-135m", help="a registered name, synthetic:NAME, or a folder")
    add("--batch", type=numbers, default=[1], metavar="1,4,16", help="sequences in decode")
    add("--context", type=numbers, metavar="32,512", help="tokens in the cache (32,512,2048)")
    add("--prompt", type=int, default=512, help="tokens of the prompt in prefill (512)")
    add("--steps", type=int, default=16, help="decode steps in one timing (16)")
    add("--rounds", type=int, default=5, help="repeats, in turns (5)")
    add("--patience", type=float, default=60, help="leave out a path that takes longer, s (60)")
    add("--path", action="append", help="one of the paths; may be repeated (all; needs bf16)")
    add(
        "--gguf",
        action="append",
        default=[],
        metavar="llama.cpp-NAME=FILE",
        help="llama.cpp's files",
    )
    add("--out", type=Path, default=TOOLS.parent, help="holds results/ (the repository)")
    options = parser.parse_args()
    from llama_int8.lessons.n10.backends import BASELINE, PATHS

    options.path = options.path or list(PATHS)
    if BASELINE not in options.path:
        options.path.insert(0, BASELINE)
    return options


if __name__ == "__main__":
    if VENV_PYTHON.exists() and Path(sys.prefix) != VENV_PYTHON.parents[1]:
        os.execv(VENV_PYTHON, [str(VENV_PYTHON), __file__, *sys.argv[1:]])
    sys.path.insert(0, str(TOOLS))
    raise SystemExit(main())
