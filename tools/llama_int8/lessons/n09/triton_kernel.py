"""FlashAttention's forward pass as a Triton kernel. As a script, `check` or `compile` it.

Triton reads TRITON_INTERPRET when a kernel is decorated, so the two belong in separate processes.
"""

import math
import sys

import torch
import triton
import triton.language as tl

from llama_int8.quantization.gpu.interpreter import let_numpy_arrays_count


# --- the kernel: lesson 09 shows it ---
@triton.jit
def flash_forward(
    q, k, v, out, T, S, scale,
    D: tl.constexpr, GROUP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)  # one program: a block of queries of one head
    rows, d = block * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.arange(0, D)
    places = (head * T + rows[:, None]) * D + d[None, :]
    q_i = tl.load(q + places, mask=rows[:, None] < T, other=0.0)  # (BLOCK_Q, D)
    shared = head // GROUP * S * D  # the query heads of a group read the same keys and values
    m = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    o = tl.zeros([BLOCK_Q, D], tl.float32)
    last = S
    if CAUSAL:  # the mask ends at the last key; tiles beyond it are never loaded
        last = tl.minimum(S, (block + 1) * BLOCK_Q + S - T)
    for start in range(0, last, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        there = keys < S
        k_j = tl.load(k + shared + keys[None, :] * D + d[:, None], mask=there[None, :], other=0.0)
        scores = tl.dot(q_i, k_j) * scale  # (BLOCK_Q, D) @ (D, BLOCK_K)
        seen = there[None, :] & (rows[:, None] >= 0)
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None] + S - T)
        scores = tl.where(seen, scores, -1e30)
        new = tl.maximum(m, tl.max(scores, 1))
        factor, weights = tl.exp(m - new), tl.exp(scores - new[:, None])
        total = factor * total + tl.sum(weights, 1)
        v_j = tl.load(v + shared + keys[:, None] * D + d[None, :], mask=there[:, None], other=0.0)
        o = factor[:, None] * o + tl.dot(weights.to(v_j.dtype), v_j)
        m = new
    tl.store(out + places, (o / total[:, None]).to(q_i.dtype), mask=rows[:, None] < T)


# --- end ---


def attention(q, k, v, causal=False, block_q=64, block_k=64):
    """The kernel on q (B, H, T, D), k and v (B, H_kv, S, D): on a GPU, or interpreted on a CPU.

    D is a power of 2, 16 or more.
    """
    q, k, v = (x.contiguous() for x in (q, k, v))
    B, H, T, D = q.shape
    out = torch.empty_like(q)
    grid = (triton.cdiv(T, block_q), B * H)
    sizes = {"D": D, "GROUP": H // k.shape[1], "BLOCK_Q": block_q, "BLOCK_K": block_k}
    flash_forward[grid](q, k, v, out, T, k.shape[2], 1 / math.sqrt(D), **sizes, CAUSAL=causal)
    return out


def check():
    """Print the largest difference from PyTorch, over grouped heads, ragged blocks and a cache."""
    let_numpy_arrays_count()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    generator, worst = torch.Generator().manual_seed(0), 0.0
    cases = [(1, 4, 2, 50, 50, 32), (2, 3, 1, 7, 40, 16), (1, 2, 2, 1, 33, 64)]
    for B, H, shared, T, S, D in cases:
        q = torch.randn(B, H, T, D, generator=generator)
        k, v = torch.randn(2, B, shared, S, D, generator=generator).unbind(0)
        for causal in (False, True):
            mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if causal else None
            wanted = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, mask, enable_gqa=True
            )
            own = attention(*(x.to(device, dtype) for x in (q, k, v)), causal, 16, 16)
            worst = max(worst, (own.cpu().float() - wanted).abs().max().item())
    assert worst < (1e-5 if dtype == torch.float32 else 5e-3), f"off by {worst:.0e}"
    print(
        f"equal to PyTorch, largest difference {'below 1e-5' if worst < 1e-5 else f'{worst:.0e}'}"
    )


def compile_for(capabilities=(75, 80, 90)):
    """Print, for each compute capability, the tensor-core instructions and the shared memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = dict.fromkeys(("q", "k", "v", "out"), "*fp16")
    signature |= {"T": "i32", "S": "i32", "scale": "fp32"}
    sizes = {"D": 64, "GROUP": 3, "BLOCK_Q": 64, "BLOCK_K": 64, "CAUSAL": True}
    signature |= dict.fromkeys(sizes, "constexpr")
    source = ASTSource(fn=flash_forward, signature=signature, constexprs=sizes)
    for capability in capabilities:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        ptx = made.asm["ptx"]
        products = ptx.count("mma.sync") + ptx.count("wgmma.mma_async")
        code = "made" if made.asm["cubin"] else "not made"
        print(
            f"compute capability {capability / 10}: {products} tensor-core instructions, "
            f"{made.metadata.shared:,} bytes of shared memory, machine code {code}"
        )


if __name__ == "__main__":
    {"check": check, "compile": compile_for}[sys.argv[1]]()
