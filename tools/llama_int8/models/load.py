"""`load_model`: check first, load, then check every layer of the result."""

import contextlib
import importlib.util
import io
import logging
import os
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from llama_int8.dtypes import torch_dtype
from llama_int8.errors import (
    HubError,
    ModelFilesError,
    NotEnoughMemoryError,
    PrecisionError,
    first_line,
)
from llama_int8.files import check_weights
from llama_int8.models.check import check_layers
from llama_int8.models.cost import BYTES_PER_VALUE, GIB, QUANTIZED, weight_bytes
from llama_int8.models.embedded import embedded_folder
from llama_int8.models.grouped_heads import expand_grouped_heads
from llama_int8.models.hub import hub_folder
from llama_int8.models.hugging_face import (
    empty_model,
    hugging_face_config,
    plain_generation,
    token_ids,
)
from llama_int8.models.int8_fast import (
    is_int8_fast,
    load_int8_fast,
    on_gpu,
    quantize_on_gpu,
)
from llama_int8.models.registry import (
    DEFAULT_MODEL,
    MODELS,
    as_name,
    config_of,
    existing_folder,
    is_synthetic,
)
from llama_int8.models.synthetic import bitsandbytes_linear, build_synthetic
from llama_int8.quantization.precisions import THRESHOLD
from llama_int8.transformer.config import LlamaConfig, read_config
from llama_int8.transformer.stored import OUTPUT, check_floating, stored_tensors, without_computed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PRECISIONS = tuple(BYTES_PER_VALUE)
CACHES = ("bf16", "int8")  # formats of keys and values in int8-fast
# Beyond the weights: activations, a short KV cache, the libraries' own buffers.
HEADROOM = 1.1


def load_model(
    name_or_folder: str | Path,
    precision: str,
    device: str | None = None,
    threshold: float = THRESHOLD,
    cache: str = "bf16",
) -> "PreTrainedModel":
    """Load a model in evaluation mode on one device ("auto": over all GPUs, through accelerate).

    `name_or_folder`: a registered name, `synthetic:<registered name>`, or a folder in Hugging
    Face's format. `precision`: "fp32", "bf16", "fp16", "int8" (bitsandbytes' LLM.int8() with
    outlier `threshold`, the rest of the model in the device's 16-bit format) or "int8-fast" (the
    course's own; what `save_int8_fast` wrote loads only in this precision; its `generate` reads
    each new token in one call of the compiled kernel, or by one CUDA graph).
    `cache`: int8-fast on a CPU can keep keys and values in "int8", too.
    `device`: None takes the GPU if there is one; for int8-fast it takes the CPU. Raises a ModelError
    that says what to do instead.

    A model is its shapes, its weights and its start and end tokens. What else a folder's configs
    switch on (dropout, sampling, penalties, another attention) is left out, so that
    `model.generate` is greedy.
    """
    name_or_folder = as_name(name_or_folder)
    device = device or ("cpu" if precision == "int8-fast" else default_device())
    check_precision(precision, device)
    check_cache(cache, [precision], device)
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; it must be 0 (no decomposition) or more")
    config = config_of(name_or_folder)
    check_memory(str(name_or_folder), config, precision, device)
    quiet_libraries()
    expand_grouped_heads(device)
    int8_threshold = threshold if precision == "int8" else None
    dtype = torch_dtype(baseline_precision(device) if precision in QUANTIZED else precision)
    with explained_memory(str(name_or_folder), precision, device):
        if is_synthetic(name_or_folder):
            model = _synthetic(config, precision, dtype, _first_device(device), threshold)
        else:
            folder = model_folder(name_or_folder)
            model = _from_folder(folder, precision, dtype, device, int8_threshold)
    check_layers(model, precision, dtype, threshold, device)
    model.generation_config = plain_generation(model)
    if precision == "int8-fast":
        from llama_int8.models.one_call import generating_in_one_call

        generating_in_one_call(model, cache)
    return model


def model_folder(name_or_folder: str | Path) -> Path:
    """The local folder with the model's files, fetched first where that is needed."""
    name = as_name(name_or_folder)
    if name == DEFAULT_MODEL:
        return embedded_folder()
    return hub_folder(MODELS[name]) if name in MODELS else existing_folder(name_or_folder)


def available_model(
    name_or_folder: str, precision: str, device: str, fallback: str = DEFAULT_MODEL
) -> str:
    """`name_or_folder` once its files are here; else `fallback`, with a printed line.

    For a profile's own choice: an unreachable hub, or a card that is too small, should not end a
    lesson. A model that somebody asked for by name is not replaced; `load_model` raises.
    """
    try:
        check_memory(name_or_folder, config_of(name_or_folder), precision, device)
        if not is_synthetic(name_or_folder):
            model_folder(name_or_folder)
    except (HubError, NotEnoughMemoryError) as error:
        print(f"{error}.\nThis run goes on with {fallback}; its results carry that name.")
        return fallback
    return name_or_folder


def default_device() -> str:
    """ "cuda" where PyTorch sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def no_gpu() -> str:
    """The message where PyTorch sees no GPU, with the usual reason where there may be one."""
    import torch

    if shutil.which("nvidia-smi") is None:
        return "PyTorch sees no GPU"
    if torch.version.cuda is None:
        return (
            "PyTorch sees no GPU (nvidia-smi is here, so there may be one: this PyTorch is a build "
            "without CUDA, install one with CUDA)"
        )
    return (
        "PyTorch sees no GPU (nvidia-smi is here, so there may be one whose driver is too old for "
        f"CUDA {torch.version.cuda}: update the driver, or install a PyTorch for an older CUDA)"
    )


def baseline_precision(device: str | None = None) -> str:
    """The course's 16-bit format: FP16 on CUDA, bf16 on a CPU (where FP16 prefill is far slower)."""
    return "bf16" if (device or default_device()) == "cpu" else "fp16"


def check_precision(precision: str, device: str) -> None:
    """Raise PrecisionError where `device` lacks the hardware, ValueError for an unknown name."""
    import torch

    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; known are {', '.join(PRECISIONS)}")
    if device == "cpu":
        return
    if precision == "int8-fast" and device == "auto":
        raise PrecisionError(
            "int8-fast computes on a single device, and device is 'auto'; use 'cuda', or "
            "precision='int8'"
        )
    if not torch.cuda.is_available():
        raise PrecisionError(f"device is {device!r}, but {no_gpu()}; use device='cpu'")
    _check_build()
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise PrecisionError(
            f"{torch.cuda.get_device_name()} computes bf16 only by emulation; use precision='fp16'"
        )
    capability = torch.cuda.get_device_capability()
    if precision == "int8-fast":
        _check_triton(capability)
    if precision == "int8" and capability < (7, 5):
        raise PrecisionError(
            f"LLM.int8() needs compute capability 7.5; {torch.cuda.get_device_name()} has "
            f"{capability[0]}.{capability[1]}. Use precision='fp16', or device='cpu'"
        )


def _check_build() -> None:
    """Raise PrecisionError where this PyTorch has no kernels for the card: CUDA 13 left Volta out."""
    import torch

    names = " ".join(torch.cuda.get_arch_list())  # "sm_75 sm_80 compute_120"
    built = re.findall(r"\b(sm|compute)_(\d+)(\d)[af]?\b", names)
    if not built:
        return
    card = torch.cuda.get_device_capability()
    for kind, major, minor in built:
        made_for = (int(major), int(minor))
        # PTX is compiled for any later card; machine code runs within its own major version.
        if made_for <= card and (kind == "compute" or made_for[0] == card[0]):
            return
    raise PrecisionError(
        f"{torch.cuda.get_device_name()} has compute capability {card[0]}.{card[1]}, for which this "
        f"PyTorch (CUDA {torch.version.cuda}) was not built; install one for another CUDA, or use "
        "device='cpu'"
    )


def _check_triton(capability: tuple[int, int]) -> None:
    """Raise PrecisionError where int8-fast's kernel for a GPU cannot be compiled."""
    import torch

    if capability < (7, 0):
        raise PrecisionError(
            f"int8-fast needs compute capability 7.0, Triton's least; {torch.cuda.get_device_name()} "
            f"has {capability[0]}.{capability[1]}. Use precision='fp16', or device='cpu'"
        )
    if importlib.util.find_spec("triton") is None:
        raise PrecisionError(
            "int8-fast on a GPU needs Triton, which is not installed: CUDA builds of PyTorch for "
            "Linux bring it (pip install triton). Or use precision='int8', or device='cpu'"
        )
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise PrecisionError(
            "int8-fast on a GPU needs a C compiler, with which Triton builds its launcher, and there "
            "is neither gcc nor clang; install gcc. Or use precision='int8', or device='cpu'"
        )
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    if os.name == "posix" and not header.exists():
        raise PrecisionError(
            "int8-fast on a GPU needs Python's headers, with which Triton builds its launcher, and "
            f"there is no {header}; install python3-dev (python3-devel on Fedora). Or use "
            "precision='int8', or device='cpu'"
        )
    if missing := _missing_driver_library():
        raise PrecisionError(
            f"int8-fast on a GPU needs the driver's libcuda.so.1 where Triton looks ({missing}); run "
            "ldconfig as root, or name its folder in TRITON_LIBCUDA_PATH. Or use precision='int8', "
            "or device='cpu'"
        )


def _missing_driver_library() -> str:
    """Why Triton does not find CUDA's driver library; empty where it does, or cannot be asked."""
    try:
        from triton.backends.nvidia.driver import libcuda_dirs

        libcuda_dirs()
    except ImportError:  # another Triton
        return ""
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        return first_line(error)
    return ""


def check_cache(cache: str, precisions: Sequence[str], device: str = "cpu") -> None:
    """Raise ValueError for an unknown format of keys and values, or one that no precision has."""
    if cache == "int8" and device != "cpu":
        raise ValueError(
            f"cache is 'int8', which int8-fast has only on a CPU, and device is {device!r}; leave "
            "the cache as it is, or use device='cpu'"
        )
    if cache not in CACHES:
        raise ValueError(f"cache is {cache!r}; known are {', '.join(CACHES)}")
    if cache == "int8" and "int8-fast" not in precisions:
        raise ValueError(
            f"cache is 'int8', which only the precision int8-fast has, not {', '.join(precisions)}; "
            "ask for int8-fast, or leave the cache in bf16"
        )


def free_memory(device: str) -> int:
    """Bytes that are free now on `device`; over all GPUs for "auto"."""
    if device == "cpu":
        return min([psutil.virtual_memory().available, *_allowances()])
    import torch

    every = range(torch.cuda.device_count())
    numbers = list(every) if device == "auto" else [torch.device(device).index]
    return sum(_left_on_card(number) + _kept(number) for number in numbers)


def _kept(number: int | None) -> int:
    """Bytes that PyTorch's allocator keeps of a card for the next tensor.

    What lies free in the pool of a captured graph is kept for that graph only.
    """
    import torch

    kept = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
    if kept == 0:
        return 0
    card = torch.cuda.current_device() if number is None else number
    for_graphs = sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == card and any(segment.get("segment_pool_id", ()))
    )
    return max(0, kept - for_graphs)


def _left_on_card(number: int | None) -> int:
    """Bytes that the allocator can still take of a card, or of this process's share of it."""
    import torch

    free, total = torch.cuda.mem_get_info(number)
    share = torch.cuda.get_per_process_memory_fraction(number)
    if share >= 1:
        return free
    return max(0, min(free, int(share * total) - torch.cuda.memory_reserved(number)))


def _allowances() -> list[int]:
    """Bytes that limits on this process, or on its container, leave: the machine may have more."""
    left = []
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" is none
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{n}").read_text()) for n in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.M)
        left.append(limit - used + int(cached[1] if cached else 0))
    with contextlib.suppress(ImportError, AttributeError):  # `ulimit -d`, on Linux
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(limit - psutil.Process().memory_info().data)
    return [max(0, bytes_) for bytes_ in left]


def placement(name_or_folder: str | Path, precision: str, device: str) -> str:
    """ "auto", over all GPUs, where a model is too large for the one that `device` names."""
    import torch

    if device == "cpu" or torch.cuda.device_count() < 2:
        return device
    needed = needed_memory(config_of(name_or_folder), precision)
    return "auto" if needed > free_memory(device) else device


def needed_memory(config: LlamaConfig, precision: str) -> int:
    """Bytes that loading and a short use take: the weights and a tenth more."""
    return int(weight_bytes(config, precision).total * HEADROOM)


def check_memory(name: str, config: LlamaConfig, precision: str, device: str) -> None:
    """Raise NotEnoughMemoryError, with the numbers and what would fit, before anything is loaded."""
    free, needed = free_memory(device), needed_memory(config, precision)
    if needed <= free:
        return
    weights = weight_bytes(config, precision).total
    raise NotEnoughMemoryError(
        f"{name} in {precision} needs {needed / GIB:.1f} GiB ({weights / GIB:.2f} GiB of weights and "
        f"a tenth more); {free / GIB:.1f} GiB are free on {device}. "
        f"{_what_fits(name, config, precision, device, free)}"
    )


def _what_fits(name: str, config: LlamaConfig, precision: str, device: str, free: int) -> str:
    """The same model in int8 comes first, then the largest model that fits."""
    baseline = baseline_precision(device)
    options = [(name, config, "int8")] if precision != "int8" else []
    options += [
        (other.name, other.config, p) for other in MODELS.values() for p in (baseline, "int8")
    ]
    fitting = [
        (needed_memory(c, p), f"{n} in {p}") for n, c, p in options if needed_memory(c, p) <= free
    ]
    same = [text for _, text in fitting if text == f"{name} in int8" and precision != "int8"]
    advice = same or [text for _, text in sorted(fitting, reverse=True)]
    return f"It would fit: {advice[0]}" if advice else "No registered model fits: free some memory"


@contextlib.contextmanager
def explained_memory(name: str, precision: str, device: str) -> Iterator[None]:
    """Turn an allocation that fails in the block into NotEnoughMemoryError, with the numbers."""
    import torch

    free, config = free_memory(device), config_of(name)
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        weights = weight_bytes(config, precision).total
        raise NotEnoughMemoryError(
            f"{name} in {precision} ran out of memory on {device} ({first_line(error)}): its weights "
            f"take {weights / GIB:.2f} GiB, {free / GIB:.1f} GiB were free before. Take a shorter "
            "context or a smaller batch. "
            f"{_what_fits(name, config, precision, device, free)}"
        ) from error


def quiet_libraries() -> None:
    """Keep bitsandbytes' line for every matrix product, and import noise, out of the notebooks."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _synthetic(
    config: LlamaConfig, precision: str, dtype: "torch.dtype", device: str, threshold: float
) -> "torch.nn.Module":
    if precision == "int8":
        layer = partial(bitsandbytes_linear, threshold=threshold)
        return build_synthetic(config, dtype, device, layer)
    if precision == "int8-fast" and device != "cpu":
        from llama_int8.quantization.gpu.linear import gpu_linear

        return build_synthetic(config, dtype, device, gpu_linear, skip=(), through_cpu=False)
    if precision == "int8-fast":
        from llama_int8.quantization.cpu.linear import fast_linear

        return build_synthetic(config, dtype, device, fast_linear, skip=())
    return build_synthetic(config, dtype, device)


def _check_format(folder: Path, precision: str) -> None:
    if precision != "int8-fast":
        raise PrecisionError(
            f"{folder} holds int8-fast weights, and {precision} cannot be made of them; load it with "
            "precision='int8-fast', or the original model"
        )


def _from_folder(
    folder: Path, precision: str, dtype: "torch.dtype", device: str, int8_threshold: float | None
) -> "torch.nn.Module":
    if is_int8_fast(folder):
        _check_format(folder, precision)
        model = load_int8_fast(folder, read_config(folder))
        return model if device == "cpu" else on_gpu(model, dtype, device)
    if precision == "int8-fast" and device != "cpu":
        config = read_config(folder)
        _check_tensors(folder, config, token_ids(folder, config.vocab_size))
        return quantize_on_gpu(folder, config, dtype, device)
    model = _load_folder(folder, dtype, device, int8_threshold)
    if precision == "int8-fast":
        from llama_int8.quantization.cpu.linear import replace_layers

        replace_layers(model)
    return model


def _load_folder(
    folder: Path, dtype: "torch.dtype", device: str, int8_threshold: float | None
) -> "torch.nn.Module":
    from transformers import BitsAndBytesConfig, GenerationConfig, LlamaForCausalLM

    config = read_config(folder)
    tokens = token_ids(folder, config.vocab_size)
    _check_tensors(folder, config, tokens)
    options: dict[str, Any] = {}
    if int8_threshold is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=int8_threshold
        )
    # The first import of the quantization backends prints; only what is raised concerns a reader.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LlamaForCausalLM.from_pretrained(
            folder,
            config=hugging_face_config(config, tokens),
            generation_config=GenerationConfig(**tokens),
            dtype=dtype,
            device_map="auto" if device == "auto" else {"": device},
            local_files_only=True,
            use_safetensors=True,
            **options,
        ).eval()


def _check_tensors(folder: Path, config: LlamaConfig, tokens: dict[str, Any]) -> None:
    """Raise ModelFilesError unless the folder's tensors are those of the model, by their headers.

    Transformers would fill what is missing with random numbers, and leave out what it does not know.
    """
    from llama_int8.transformer.checkpoints import check_tensors

    check_weights(folder)
    found = stored_tensors(folder)
    check_floating(folder, {name: tensor.dtype for name, tensor in found.items()})
    try:
        wanted = dict(empty_model(config, tokens).named_parameters())  # a shared table once
    except ValueError as error:
        raise ModelFilesError(
            f"{folder / 'config.json'} cannot be used: {error}{_other_way(config)}"
        ) from None
    if config.tie_word_embeddings:
        found.pop(OUTPUT, None)  # the same numbers as the embedding's, else they were not tied
    check_tensors(folder, wanted, without_computed(found))


def _other_way(config: LlamaConfig) -> str:
    """What to do where only transformers refuses a config, and the course's own model does not."""
    try:
        config.check()
    except ValueError:
        return ""
    return " The course's own model has no such limit: Llama.from_pretrained reads the folder"


def _first_device(device: str) -> str:
    return "cuda" if device == "auto" else device
