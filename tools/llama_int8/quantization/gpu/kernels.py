"""Weight-only int8 for one to eight tokens, in Triton. As a script, `check` or `compile` it.

Triton reads TRITON_INTERPRET when a kernel is decorated, so the two belong in separate processes.
Shapes: N tokens, M outputs, K inputs, G groups of inputs.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import triton
import triton.language as tl

from llama_int8.quantization.gpu.interpreter import let_numpy_arrays_count

MOST = 8  # tokens of one launch
CHUNK = 16  # codes that a thread loads at once: 128 bits


# --- the kernel: lesson 10 shows it ---
@triton.jit
def int8_rows(
    x, codes, scale, bias, out, M, K, G,
    N: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # one program: ROWS whole rows of weights
    chunk = tl.arange(0, CHUNKS)
    k = chunk[:, None] * 16 + tl.arange(0, 16)[None, :]  # (CHUNKS, 16): 16 codes in one load
    there, inside = row < M, k < K
    w = tl.load(
        codes + row.to(tl.int64)[:, None, None] * K + k[None],
        mask=there[:, None, None] & inside[None], other=0, eviction_policy="evict_first",
    )  # fmt: skip
    # The codes stay in registers, int8, while the tokens pass by: each is read once from memory.
    if GROUP:
        of_chunk = scale + row[:, None] * G + (chunk * 16 // GROUP)[None, :]
        s = tl.load(of_chunk, mask=there[:, None] & (chunk * 16 < K)[None, :], other=0.0)
    else:
        s = tl.load(scale + row, mask=there, other=0.0)
    s = s.to(tl.float32)
    for n in tl.static_range(N):
        x_n = tl.load(x + n * K + k, mask=inside, other=0.0).to(tl.float32)
        sums = tl.sum(w.to(tl.float32) * x_n[None], 2)  # (ROWS, CHUNKS): within a thread
        y = tl.sum(sums * s, 1) if GROUP else tl.sum(sums, 1) * s
        if BIAS:
            y += tl.load(bias + row, mask=there, other=0.0)
        tl.store(out + n * M + row, y.to(out.dtype.element_ty), mask=there)


# --- end ---


def launch_sizes(inputs: int, tokens: int) -> dict[str, int]:
    """Rows of weights and warps of one program: so few codes for a thread that none spills.

    Two rows share what is read of the activations. One token: two chunks of each row for a thread;
    several: one, because their codes are kept in FP32 from token to token. Where even 16 warps are too
    few for that, a program takes one row.
    """
    chunks = triton.next_power_of_2(triton.cdiv(inputs, CHUNK))
    warps = min(max(chunks // (64 if tokens == 1 else 32), 1), 16)
    rows = 1 if tokens > 1 and chunks > 1024 else 2
    return {"ROWS": rows, "CHUNKS": chunks, "num_warps": warps}


def int8_product(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    group: int | None,
) -> torch.Tensor:
    """x (N, K), N at most 8, times int8 codes (M, K) -> (N, M) in x's dtype; sums in FP32.

    `scale`: (M, G), one for every `group` inputs, or (M,) where `group` is None. On a GPU, or
    interpreted on a CPU. Raises ValueError for more tokens and for groups of no whole chunks.
    """
    (tokens, inputs), outputs = x.shape, len(codes)
    if not 1 <= tokens <= MOST:
        raise ValueError(f"{tokens} tokens were given; the kernel takes 1 to {MOST}")
    if group is not None and group % CHUNK:
        raise ValueError(f"group is {group}; the kernel takes multiples of {CHUNK} inputs")
    x = x.contiguous()
    out = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    sizes = launch_sizes(inputs, tokens)
    grid = (triton.cdiv(outputs, sizes["ROWS"]),)
    groups = scale.shape[1] if group else 1
    with torch.cuda.device_of(x):  # of several cards, the one that holds the layer
        int8_rows[grid](
            x, codes, scale, bias, out, outputs, inputs, groups,
            N=tokens, GROUP=group or 0, BIAS=bias is not None, **sizes,
        )  # fmt: skip
    return out


def cases():
    """Shapes (N, M, K), groups and dtypes: odd ones, one token and eight, small layers and large."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for group in (32, 64, None):
            for shape in ((1, 5, 576), (8, 3, 100), (3, 7, 31), (1, 1, 16), (2, 4, 2048)):
                yield shape, group, dtype
    yield (2, 3, 16400), 32, torch.float16  # so long that a program takes one row


def operands(shape, group, dtype, device, seed=0):
    """Activations, codes over the whole range, bf16 scales and a bias for one case."""
    (tokens, outputs, inputs), generator = shape, torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator).to(dtype)
    codes = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    groups = 1 if group is None else -(-inputs // group)
    scale = (torch.rand(outputs, groups, generator=generator) / 1000).bfloat16()
    bias = torch.randn(outputs, generator=generator)
    return tuple(part.to(device) for part in (x, codes, scale, bias))


def exact_product(x, codes, scale, bias, group):
    """The product in float64."""
    spread = scale.double().repeat_interleave(group or codes.shape[1], 1)[:, : codes.shape[1]]
    return x.double() @ (codes.double() * spread).T + (0 if bias is None else bias.double())


def tolerance(x, codes, scale, bias, group):
    """What FP32 sums and one rounding to x's dtype may cost, for each output."""
    spread = scale.double().repeat_interleave(group or codes.shape[1], 1)[:, : codes.shape[1]]
    size = x.double().abs() @ (codes.double() * spread).abs().T + 1
    exact = exact_product(x, codes, scale, bias, group).abs()
    return 1e-6 * size + torch.finfo(x.dtype).eps * exact + torch.finfo(x.dtype).smallest_normal


def check(device=None):
    """Print how far the kernel is from float64, over odd shapes, zeros, huge values and NaN."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        let_numpy_arrays_count()
        np.seterr(all="ignore")  # the interpreter computes in NumPy, which warns where FP16 ends
    compared, worst = 0, 0.0
    for number, (shape, group, dtype) in enumerate(cases()):
        x, codes, scale, bias = operands(shape, group, dtype, device, seed=number)
        bias = bias if number % 2 else None  # every other: each makes a kernel of its own
        found = int8_product(x, codes, scale, bias, group).double()
        off = (found - exact_product(x, codes, scale, bias, group)).abs()
        allowed = tolerance(x, codes, scale, bias, group)
        worst = max(worst, float((off / allowed).max()))
        assert (off <= allowed).all(), f"{shape}, {group}, {dtype}: off by {off.max():.1e}"
        compared += found.numel()
    x, codes, scale, bias = operands((8, 9, 96), 32, torch.float16, device)
    x[1], x[2], x[3, 0], x[4, 95], x[5] = 0, 6e4, torch.nan, torch.inf, -6e4
    codes[2], scale[3] = 0, 0  # a row of codes, and one of scales, that are zero
    y = int8_product(x, codes, scale, None, 32).float()
    exact = exact_product(x, codes, scale, None, 32)
    assert (y[1] == 0).all() and (y[[0, 1, 2, 5, 6, 7]][:, 2:4] == 0).all(), "zeros are not zero"
    assert y[3].isnan().all() and not y[4].isfinite().any(), "NaN or infinity got lost"
    for n in (2, 5):  # as in FP16: right where FP16 ends beyond it, infinite where it does not
        ends = exact[n].abs() > 65519
        assert torch.equal(y[n].isinf(), ends), "huge values overflow elsewhere than FP16 does"
        assert torch.allclose(y[n][~ends].double(), exact[n][~ends], rtol=1e-3)
    assert y[[0, 6, 7]].isfinite().all(), "one token's NaN reached another"
    print(f"{compared:,} outputs within the rounding of FP32 sums, worst {worst:.2f} of it")


def compile_for(capabilities=(75, 80, 90)):
    """Print registers, spills, shared memory and the width of the loads on cards that are not here."""
    for inputs, tokens, group in (
        (4096, 1, 32),
        (4096, 1, None),
        (11008, 1, 32),
        (11008, MOST, 32),
        (28672, 1, 32),
        (28672, MOST, 32),
    ):
        for capability in capabilities:
            made = compiled(capability, inputs, tokens, group)
            print(description(made, capability, inputs, tokens, group))
    made = compiled(75, 4096, 1, 32, "bf16")  # a T4 has no bf16 units, and converts
    print(description(made, 75, 4096, 1, 32))


def compiled(capability, inputs, tokens, group, dtype="fp16"):
    """The kernel for one card and shape, as a call of `int8_product` would compile it there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sizes = launch_sizes(inputs, tokens)
    warps = sizes.pop("num_warps")
    fixed = {"N": tokens, "GROUP": group or 0, "BIAS": False, **sizes}
    signature = {"x": f"*{dtype}", "codes": "*i8", "scale": "*bf16", "bias": "*fp32"}
    signature |= {"out": f"*{dtype}", "M": "i32", "K": "i32", "G": "i32"}
    signature |= dict.fromkeys(fixed, "constexpr")
    known = {(place,): [["tt.divisibility", 16]] for place in range(7)}  # what a launch finds out
    source = ASTSource(fn=int8_rows, signature=signature, constexprs=fixed, attrs=known)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps})


def description(made, capability, inputs, tokens, group):
    """One line on a compiled kernel, from its PTX and from what CUDA's tool says of its cubin."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        command = [tools / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (
        int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")
    )
    loads = re.findall(r"ld\.global\.L1::evict_first\S*\.v(\d)\.b(\d+)", made.asm["ptx"])
    widths = {int(count) * int(bits) for count, bits in loads} or {0}
    rows, warps = launch_sizes(inputs, tokens)["ROWS"], made.metadata.num_warps
    needed = rows * launch_sizes(inputs, tokens)["CHUNKS"] // (32 * warps)
    return (
        f"compute capability {capability / 10}, {inputs} inputs, {tokens} token(s), "
        f"{'a scale per row' if group is None else f'groups of {group}'}: {warps} warps, {registers} "
        f"registers, {stack + local} bytes spilled, {made.metadata.shared} bytes of shared memory, "
        f"weights in {len(loads)} load(s) of {min(widths)} bits where {needed} would do"
    )


if __name__ == "__main__":
    {"check": check, "compile": compile_for}[sys.argv[1]]()
