"""FastLlama: Hugging Face's model with the same layers gives the same logits, step by step."""

import copy
import mmap

import pytest
import torch
from helpers import refused
from tiny_llama import tiny_config, tiny_llama
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from llama_int8.measure.memory import weight_memory
from llama_int8.models.synthetic import restore_rotary
from llama_int8.quantization.cpu import kernels, pages
from llama_int8.quantization.cpu.baselines import KernelBf16Linear
from llama_int8.quantization.cpu.cache import KeyValueCache
from llama_int8.quantization.cpu.linear import Int8FastLinear, fast_linear, replace_layers
from llama_int8.quantization.cpu.llama import FastLlama, causal_attention
from llama_int8.transformer.attention import causal_mask
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.llama import Llama

CONTEXT = 24
MODELS = {
    "grouped heads": {},  # 6 heads of 8 share 2 keys: 48, not the width; inner 40, not 64
    "as many keys as queries": {"num_key_value_heads": 6},
    "one key for all": {"num_key_value_heads": 1},
    "heads as wide as the width": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "head_dim": 32,
        "intermediate_size": 200,
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
    "biases of attention": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "large eps": {"rms_norm_eps": 0.5},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}
EACH_MODEL = pytest.mark.parametrize("name", MODELS)
BF16 = 0.12  # of the logits' norm; random weights make much of bf16's roundings


@pytest.fixture(params=["vnni", "avxvnni", "avx2"])
def compiled(request, monkeypatch):
    """A version of the kernel runs, if this machine can."""
    monkeypatch.setenv(kernels.CHOICE, request.param)
    try:
        return kernels.chosen().name
    except RuntimeError as error:
        pytest.skip(str(error))


def swapped(make=fast_linear, **changes):
    """Hugging Face's model in FP32 with layers of int8-fast; bf16 holds its embedding and norms.

    The weights are so large that every token attends to few others, in its own way.
    """
    model, generator = tiny_llama(**changes), torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        random = torch.randn(weight.shape, generator=generator)
        if name.endswith("norm.weight"):
            random = 1 + random / 5
        elif weight.dim() == 1:  # a bias
            random /= 2
        elif "embed_tokens" not in name:
            random *= 1.5 / weight.shape[1] ** 0.5
        weight.requires_grad_(False).copy_(random.bfloat16())
    return replace_layers(model, make=make)


def in_bf16(model):
    return restore_rotary(copy.deepcopy(model).bfloat16(), "cpu")


def some_tokens(batch=3, length=CONTEXT, seed=0):
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(seed))


class RoundedCache(DynamicCache):
    """Keeps keys and values in bf16, as FastLlama does."""

    def update(self, keys, values, *args, **options):
        rounded = (part.bfloat16().to(part.dtype) for part in (keys, values))
        return super().update(*rounded, *args, **options)


class Rounding(torch.nn.Module):
    """A linear layer that rounds its inputs to bf16, as the instruction for bf16 wants them."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.bfloat16().to(x.dtype))


@torch.no_grad()
def reference(model, tokens):
    """Logits of Hugging Face's model, token by token."""
    cache = RoundedCache()
    steps = [
        model(column[:, None], past_key_values=cache).logits[:, -1] for column in tokens.unbind(1)
    ]
    return torch.stack(steps, 1)


def by_steps(fast, tokens):
    return torch.stack([fast.step(column) for column in tokens.unbind(1)], 1)


def distance(ours, theirs):
    """Of each position's logits, relative to their norm."""
    theirs = theirs.float()
    return (ours.float() - theirs).norm(dim=-1) / theirs.norm(dim=-1)


# --- the three ways to the same logits --------------------------------------------------------


@EACH_MODEL
def test_steps_give_hugging_faces_logits_in_fp32(compiled, name):
    model, tokens = swapped(**MODELS[name]), some_tokens()
    fast = FastLlama(model, CONTEXT, 3)
    logits = by_steps(fast, tokens)
    assert logits.dtype == torch.float32 and logits.shape == (3, CONTEXT, 97)
    far = distance(logits, reference(model, tokens))
    # FP32's own roundings; now and then one of them takes an int8 code, or a bf16 number in the
    # cache, to its neighbour, and later tokens of the sequence see that.
    assert far.quantile(0.25) < 1e-6 and far.max() < 0.2
    assert fast.position == CONTEXT


@EACH_MODEL
def test_the_control_in_16_bit_gives_them_too(compiled, name):
    """Weights that bf16 holds; what rounds is the cache, and where bf16 has an instruction, inputs."""
    make = Rounding if kernels.multiplies_bf16() else lambda linear: linear
    kept, tokens = swapped(lambda _, linear: make(linear), **MODELS[name]), some_tokens()
    control = swapped(lambda _, linear: KernelBf16Linear.from_linear(linear), **MODELS[name])
    far = distance(by_steps(FastLlama(control, CONTEXT, 3), tokens), reference(kept, tokens))
    assert far.quantile(0.25) < 1e-5 and far.max() < 0.02  # bf16 in the cache: either neighbour


@pytest.mark.parametrize(
    ("part", "factor"),
    [("self_attn.q_proj", 50), ("self_attn.q_proj", -50), ("mlp.gate_proj", 200)],
)
def test_they_do_where_exponentials_leave_the_range_of_fp32(compiled, part, factor):
    model, tokens = swapped(num_hidden_layers=1), some_tokens()
    model.model.layers[0].get_submodule(part).scale *= factor  # scores and gates of hundreds
    far = distance(by_steps(FastLlama(model, CONTEXT, 3), tokens), reference(model, tokens))
    assert far.quantile(0.25) < 1e-5 and far.max() < 0.2


@EACH_MODEL
def test_a_forward_pass_gives_hugging_faces_logits_in_bf16(name):
    model, tokens = swapped(**MODELS[name]), some_tokens()
    logits = FastLlama(model, CONTEXT, 3).forward(tokens, 0)
    assert logits.dtype == torch.bfloat16 and logits.shape == (3, CONTEXT, 97)
    with torch.no_grad():
        whole = in_bf16(model)(tokens, use_cache=False).logits
    assert distance(logits, whole).max() < 2 * BF16
    assert distance(logits.flatten(), whole.flatten()) < BF16
    assert distance(logits.flatten(), reference(model, tokens).flatten()) < BF16


@EACH_MODEL
def test_steps_after_a_forward_pass_go_on_where_it_ended(compiled, name):
    model, tokens = swapped(**MODELS[name]), some_tokens()
    wanted = reference(model, tokens)[:, 16:]
    fast = FastLlama(model, CONTEXT, 3)
    fast.forward(tokens[:, :16])
    assert fast.position == 16
    assert distance(by_steps(fast, tokens[:, 16:]).flatten(), wanted.flatten()) < BF16


@EACH_MODEL
def test_reading_in_two_pieces_is_reading_in_one(name):
    model, tokens = swapped(**MODELS[name]), some_tokens()
    fast = FastLlama(model, CONTEXT, 3)
    whole = fast.forward(tokens, 0)
    for cut in (1, 9, 23):
        fast.reserve(CONTEXT, 3)
        pieces = torch.cat([fast.forward(tokens[:, :cut], 0), fast.forward(tokens[:, cut:], 0)], 1)
        assert distance(pieces.flatten(), whole.flatten()) < BF16 / 2


def test_a_forward_pass_after_steps_sees_what_they_read(compiled):
    model, tokens = swapped(), some_tokens()
    fast = FastLlama(model, CONTEXT, 3)
    by_steps(fast, tokens[:, :10])
    logits, wanted = fast.forward(tokens[:, 10:], 0), reference(model, tokens)[:, 10:]
    assert distance(logits.flatten(), wanted.flatten()) < BF16


def test_a_future_token_cannot_change_a_past_output():
    model, tokens = swapped(), some_tokens()
    fast, other = FastLlama(model, CONTEXT, 3), tokens.clone()
    other[:, 15:] = (other[:, 15:] + 1) % 97
    one, two = fast.forward(tokens, 0), fast.reserve(CONTEXT, 3).forward(other, 0)
    assert torch.equal(one[:, :15], two[:, :15]) and not torch.equal(one[:, 15:], two[:, 15:])


def test_without_a_kernel_a_step_is_a_forward_pass():
    model, tokens = swapped(), some_tokens()
    with kernels.using(kernels.PYTORCH):
        fast, other = FastLlama(model, CONTEXT, 3), FastLlama(model, CONTEXT, 3)
        fast.forward(tokens[:, :5]), other.forward(tokens[:, :5])
        for column in tokens[:, 5:].unbind(1):
            step = fast.step(column)
            assert step.dtype == torch.float32
            assert torch.equal(step, other.forward(column[:, None])[:, -1].float())
        assert fast.position == CONTEXT


def test_a_forward_pass_has_the_same_logits_with_every_version(compiled):
    model, tokens = swapped(), some_tokens()
    ours = FastLlama(model, CONTEXT, 3).forward(tokens, 0)
    with kernels.using(kernels.PYTORCH):
        assert torch.equal(FastLlama(model, CONTEXT, 3).forward(tokens, 0), ours)


def test_a_sequence_does_not_depend_on_the_others_of_its_batch(compiled):
    model, tokens = swapped(), some_tokens()
    together, fast = by_steps(FastLlama(model, CONTEXT, 3), tokens), FastLlama(model, CONTEXT)
    for row, wanted in zip(tokens, together, strict=True):
        assert torch.equal(by_steps(fast.reserve(CONTEXT), row[None])[0], wanted)


def test_a_step_does_not_depend_on_the_room_in_the_cache(compiled):
    model, tokens = swapped(), some_tokens()
    tight, wide = FastLlama(model, CONTEXT, 3), FastLlama(model, 64, 3)
    assert torch.equal(by_steps(tight, tokens), by_steps(wide, tokens))
    values, keys = tight.cache.values, tight.cache.keys
    assert values.shape == (3, 3, 2, CONTEXT, 8) and values.dtype == torch.bfloat16
    assert keys.shape == (3, 3, 2, 2, 4, 16, 2) and keys.dtype == torch.bfloat16


def test_any_number_of_threads_gives_the_same_steps(compiled, threads):
    model, tokens = swapped(), some_tokens(length=40)  # in the end so long that heads are shared
    threads(1)
    single = by_steps(FastLlama(model, 40, 3), tokens)
    threads(3)
    assert torch.equal(by_steps(FastLlama(model, 40, 3), tokens), single)


def test_the_course_s_own_model_gives_the_same(compiled):
    model, tokens = swapped(attention_bias=True), some_tokens()
    config = LlamaConfig.from_hugging_face(tiny_config(attention_bias=True).to_dict())
    own = replace_layers(Llama(config).requires_grad_(False))
    own.load_state_dict(model.state_dict())
    one, two = (FastLlama(m, CONTEXT, 3) for m in (model, own))
    assert torch.equal(one.forward(tokens[:, :9]), two.forward(tokens[:, :9]))
    assert torch.equal(by_steps(one, tokens[:, 9:]), by_steps(two, tokens[:, 9:]))


def test_a_bf16_model_gives_the_same_as_its_fp32_twin(compiled):
    model, tokens = swapped(), some_tokens()
    one, two = (by_steps(FastLlama(m, CONTEXT, 3), tokens) for m in (model, in_bf16(model)))
    assert torch.equal(one, two)


def test_the_logits_that_are_kept_are_the_last_ones():
    model, tokens = swapped(), some_tokens()
    fast = FastLlama(model, CONTEXT, 3)
    every = fast.forward(tokens, 0)
    assert torch.equal(fast.reserve(CONTEXT, 3).forward(tokens), every[:, -1:])
    assert torch.equal(fast.reserve(CONTEXT, 3).forward(tokens, 5), every[:, -5:])


def test_layers_that_need_no_merging_are_shared_with_the_origin():
    model = swapped()
    fast, block = FastLlama(model, CONTEXT), model.model.layers[1]
    assert fast.lm_head is model.lm_head
    assert fast.layers[1].o_proj is block.self_attn.o_proj
    assert fast.layers[1].down_proj is block.mlp.down_proj
    codes = [getattr(block.self_attn, name).codes() for name in ("q_proj", "k_proj", "v_proj")]
    assert torch.equal(fast.layers[1].qkv_proj.codes(), torch.cat(codes))
    assert type(fast.layers[1].gate_up_proj) is Int8FastLinear


def test_reserving_forgets_what_was_read(compiled):
    model, tokens = swapped(), some_tokens()
    fast = FastLlama(model, CONTEXT, 3)
    first = by_steps(fast, tokens)
    fast.reserve(30, 1).forward(some_tokens(1, 7, seed=9))
    assert fast.position == 7 and fast.cache.values.shape[1:4] == (1, 2, 30)
    assert fast.reserve(CONTEXT, 3) is fast and fast.position == 0
    assert torch.equal(by_steps(fast, tokens), first)


# --- decode attention -------------------------------------------------------------------------


def one_layer(heads, shared, dim, context):
    """A model of one layer, whose weights are never asked for."""
    return LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=dim,
        max_position_embeddings=context,
    )


def decode_attention(config, context, batch, keys, values, qkv, cache=None):
    """The kernel's attention of one new token of each sequence: (B, (H + 2 H_kv) D) -> (B, H, D)."""
    library, past = kernels.chosen().library, keys.shape[2]
    cache = cache or KeyValueCache(config, batch, context, library.keys_in_a_block())
    cache.write(0, 0, keys, values)
    half = config.head_dim // 2
    cos, sin = torch.ones(context, half), torch.zeros(context, half)  # positions turn nothing
    model = kernels.ModelStruct(
        keys=cache.keys.data_ptr(),
        values=cache.values.data_ptr(),
        key_scale=cache.key_scale.data_ptr() or None,
        value_scale=cache.value_scale.data_ptr() or None,
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        context=context,
        batch=batch,
    )
    out = torch.full((batch, config.num_attention_heads, config.head_dim), torch.nan)
    qkv = qkv.clone()
    library.decode_attention(
        model, 0, qkv.data_ptr(), past, out.data_ptr(), torch.get_num_threads()
    )
    return out


def attention_case(heads, shared, dim, length, batch, spread=1.0, seed=0):
    """(keys, values) of the past, the new token's (B, (H + 2 H_kv) D), and the result in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).bfloat16().float()

    keys, values = normal(batch, shared, length, dim), normal(batch, shared, length, dim)
    query = spread * normal(batch, heads, dim)
    qkv = torch.cat([query, keys[:, :, -1], values[:, :, -1]], 1).flatten(1)
    grouped = query.double().unflatten(1, (shared, -1)) / dim**0.5
    weights = (grouped @ keys.double().transpose(2, 3)).softmax(-1)
    wanted = (weights @ values.double()).flatten(1, 2)
    return keys[:, :, :-1], values[:, :, :-1], qkv, wanted


@pytest.mark.parametrize("dim", [2, 8, 18, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(
    ("heads", "shared"), [(1, 1), (3, 3), (4, 2), (9, 3), (8, 2), (5, 1), (7, 1)]
)
def test_decode_attention_is_the_formula_in_float64(compiled, heads, shared, dim):
    for length, batch in ((1, 1), (2, 3), (15, 1), (16, 2), (17, 1), (64, 1), (65, 2), (300, 1)):
        for context in (length, length + 13):
            keys, values, qkv, wanted = attention_case(heads, shared, dim, length, batch)
            config = one_layer(heads, shared, dim, context)
            found = decode_attention(config, context, batch, keys, values, qkv)
            assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()


@pytest.mark.parametrize("length", [511, 512, 1024, 4096])
@pytest.mark.parametrize(("heads", "shared", "dim"), [(9, 3, 64), (32, 8, 64), (4, 4, 128)])
def test_decode_attention_is_so_over_long_texts(compiled, heads, shared, dim, length, threads):
    keys, values, qkv, wanted = attention_case(heads, shared, dim, length, 2)
    config = one_layer(heads, shared, dim, length)
    threads(1)
    single = decode_attention(config, length, 2, keys, values, qkv)
    assert (single - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    threads(3)
    assert torch.equal(decode_attention(config, length, 2, keys, values, qkv), single)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 30.0, 1e4])
def test_decode_attention_survives_equal_and_far_scores(compiled, spread):
    """All keys alike, and one that takes everything, in whatever chunk it lies."""
    for seed in range(5):
        case = attention_case(6, 2, 64, 200, 1, spread, seed)
        found = decode_attention(one_layer(6, 2, 64, 200), 200, 1, *case[:3])
        # a score of some thousand has itself an error of FP32, which exp makes a relative one
        error = 2e-6 + 2e-7 * spread * 8
        assert (found - case[3]).abs().max() <= error * case[3].abs().max()


def test_a_nan_in_the_cache_is_seen_by_the_heads_that_read_it_and_by_no_other(compiled):
    keys, values, qkv, wanted = attention_case(4, 2, 32, 100, 1)
    keys[0, 1, 70, 3] = torch.nan
    found = decode_attention(one_layer(4, 2, 32, 100), 100, 1, keys, values, qkv)
    assert found[0, 2:].isnan().all()
    torch.testing.assert_close(found[0, :2], wanted[0, :2].float(), rtol=1e-5, atol=1e-6)


def in_int8(config, context, batch):
    return KeyValueCache(config, batch, context, 16, "int8")


def dequantized(cache, length):
    """What an int8 cache holds of the first layer, in float64: keys and values (B, H_kv, S, D)."""
    keys = cache.keys[0].transpose(3, 4).flatten(4).flatten(2, 3)
    parts = ((keys, cache.key_scale), (cache.values[0], cache.value_scale))
    return [(c[:, :, :length].double() * s[0, :, :, :length, None].double()) for c, s in parts]


def attention_over(cache, qkv, heads, dim, length):
    """The formula in float64 over an int8 cache as it stands."""
    keys, values = dequantized(cache, length)
    query = qkv.unflatten(1, (-1, dim))[:, :heads].double().unflatten(1, (keys.shape[1], -1))
    weights = (query / dim**0.5 @ keys.transpose(2, 3)).softmax(-1)
    return (weights @ values).flatten(1, 2)


@pytest.mark.parametrize("dim", [2, 8, 18, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(
    ("heads", "shared"), [(1, 1), (3, 3), (4, 2), (9, 3), (8, 2), (5, 1), (7, 1)]
)
def test_attention_over_an_int8_cache_is_the_formula_over_what_it_holds(
    compiled, heads, shared, dim
):
    for length, batch in ((1, 1), (2, 3), (15, 1), (16, 2), (17, 1), (64, 1), (65, 2), (300, 1)):
        for context in (length, length + 13):
            keys, values, qkv, plain = attention_case(heads, shared, dim, length, batch)
            config = one_layer(heads, shared, dim, context)
            cache = in_int8(config, context, batch)
            found = decode_attention(config, context, batch, keys, values, qkv, cache)
            wanted = attention_over(cache, qkv, heads, dim, length)
            assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()
            assert (found - plain).abs().max() <= 0.03 * plain.abs().max()
            # the kernel's codes of the new token are the definition's, bit for bit
            new = qkv.unflatten(1, (-1, dim))[:, heads:].unflatten(1, (2, shared))
            again = in_int8(config, context, batch)
            again.write(0, 0, keys, values)
            again.write(0, length - 1, *new.transpose(0, 1).unsqueeze(3))
            assert all(map(torch.equal, cache.tensors, again.tensors))


@pytest.mark.parametrize("length", [511, 512, 1024, 4096])
@pytest.mark.parametrize(("heads", "shared", "dim"), [(9, 3, 64), (32, 8, 64), (4, 4, 128)])
def test_attention_over_an_int8_cache_is_so_over_long_texts(
    compiled, heads, shared, dim, length, threads
):
    *case, _ = attention_case(heads, shared, dim, length, 2)
    config, found = one_layer(heads, shared, dim, length), []
    for count in (1, 3):
        threads(count)
        cache = in_int8(config, length, 2)
        found.append(decode_attention(config, length, 2, *case, cache))
    wanted = attention_over(cache, case[-1], heads, dim, length)
    assert (found[0] - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    assert torch.equal(*found)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_in_an_int8_cache_is_seen_by_the_heads_that_read_it(compiled, value):
    keys, values, qkv, wanted = attention_case(4, 2, 32, 100, 1)
    config = one_layer(4, 2, 32, 100)
    qkv[0, 5 * 32 + 3] = value  # the second key of the new token
    found = decode_attention(config, 100, 1, keys, values, qkv, in_int8(config, 100, 1))
    assert found[0, 2:].isnan().all()
    assert (found[0, :2] - wanted[0, :2]).abs().max() < 0.03


@pytest.mark.parametrize("block", [1, 16])
def test_an_int8_cache_holds_each_key_and_value_within_half_a_step(block):
    config = one_layer(2, 2, 6, 37)
    cache = KeyValueCache(config, 3, 37, block, "int8")
    keys, values = torch.randn(2, 3, 2, 37, 6) * torch.rand(37, 1) * 100
    for start, end in ((0, 5), (5, 6), (6, 37)):
        cache.write(0, start, keys[:, :, start:end], values[:, :, start:end])
    for written, read in zip((keys, values), cache.read(0, 37), strict=True):
        step = written.abs().amax(-1, keepdim=True) / 127
        rounding = 2**-8 * written.abs()  # to bf16, on the way out
        assert ((read.float() - written).abs() <= 0.501 * step + rounding).all()
    plain = KeyValueCache(config, 3, 37, block)
    assert cache.nbytes < plain.nbytes * (0.5 + 4 / (2 * 6)) * 1.35  # a scale for 6 numbers is much


def test_a_format_that_a_cache_cannot_have_is_refused():
    with refused(ValueError, "'int4'", "bf16 or int8"):
        FastLlama(swapped(), 8, cache="int4")


@pytest.mark.parametrize("name", ["grouped heads", "one key for all", "biases"])
def test_a_model_with_an_int8_cache_is_near_the_one_without(compiled, name):
    model, tokens = swapped(**MODELS[name]), some_tokens()
    plain, fast = FastLlama(model, CONTEXT, 3), FastLlama(model, CONTEXT, 3, cache="int8")
    wanted, steps = by_steps(plain, tokens), by_steps(fast, tokens)
    assert 0 < distance(steps.flatten(), wanted.flatten()) < 0.1
    passed = fast.reserve(CONTEXT, 3).forward(tokens, 0)
    assert distance(passed.flatten(), wanted.flatten()) < 2 * BF16
    fast.reserve(CONTEXT, 3).forward(tokens[:, :9])
    rest = by_steps(fast.grow(CONTEXT + 9), tokens[:, 9:])
    assert distance(rest.flatten(), wanted[:, 9:].flatten()) < 2 * BF16
    prompt = tokens[:, :5]
    found = FastLlama(model, 8, cache="int8").generate(prompt, 6)
    assert torch.equal(found[:, 0], FastLlama(model, 8).generate(prompt, 1)[:, 0])


@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_room_that_grows_keeps_what_was_read(compiled, cache):
    model, tokens = swapped(), some_tokens()
    whole = FastLlama(model, CONTEXT, 3, cache)
    wanted = by_steps(whole, tokens)
    fast, found = FastLlama(model, 1, 3, cache), []
    for column in tokens.unbind(1):
        found.append(fast.grow(fast.position + 1).step(column))
    assert torch.equal(torch.stack(found, 1), wanted) and fast.context == 32
    assert fast.grow(8) is fast and fast.context == 32
    with refused(ValueError, "context is 65", "1 to 64"):
        fast.grow(65)


@pytest.mark.parametrize("block", [1, 4, 16])
def test_a_cache_gives_back_what_was_written_in_any_pieces(block):
    config = one_layer(2, 2, 6, 37)
    cache = KeyValueCache(config, 3, 37, block)
    keys, values = torch.randn(2, 3, 2, 37, 6).bfloat16()
    for start, end in ((0, 5), (5, 6), (6, 33), (33, 37)):
        cache.write(0, start, keys[:, :, start:end], values[:, :, start:end])
        read = cache.read(0, end)
        assert torch.equal(read[0], keys[:, :, :end]) and torch.equal(read[1], values[:, :, :end])


def test_room_for_pytorchs_operations_gives_the_same_and_a_step_is_a_pass(compiled):
    model, tokens = swapped(), some_tokens()
    one, two = FastLlama(model, CONTEXT, 3), FastLlama(model, CONTEXT, 3)
    two.reserve(CONTEXT, 3, compiled=False)
    assert torch.equal(one.forward(tokens[:, :9], 0), two.forward(tokens[:, :9], 0))
    assert torch.equal(one.forward(tokens[:, 9:20], 0), two.forward(tokens[:, 9:20], 0))
    passed = one.forward(tokens[:, 20:21])[:, -1].float()
    assert torch.equal(two.step(tokens[:, 20]), passed)


# --- generation -------------------------------------------------------------------------------


@pytest.mark.parametrize("by_kernel", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_generation_is_the_loop_over_the_likeliest_tokens(by_kernel, batch):
    model, prompt = swapped(), some_tokens(batch, 7)
    fast, loop = FastLlama(model, 8), FastLlama(model, CONTEXT, batch)
    found = fast.generate(prompt, 12, compiled=by_kernel)
    wanted = [loop.forward(prompt)[:, -1].argmax(-1)]
    for _ in range(11):
        last = wanted[-1]
        logits = loop.step(last) if by_kernel else loop.forward(last[:, None])[:, -1]
        wanted.append(logits.argmax(-1))
    assert found.shape == (batch, 12) and torch.equal(found, torch.stack(wanted, 1))
    assert (fast.batch, fast.context) == (batch, 19)  # the cache was made to fit


def test_generation_by_steps_and_by_passes_finds_much_the_same(compiled):
    model, prompt = swapped(), some_tokens(3, 7)
    fast = FastLlama(model, CONTEXT, 3)
    one, two = fast.generate(prompt, 4), fast.generate(prompt, 4, compiled=False)
    assert torch.equal(one[:, 0], two[:, 0]) and (one == two).float().mean() > 0.5


def test_generation_forgets_what_was_read_before():
    model, prompt = swapped(), some_tokens(3, 7)
    fast = FastLlama(model, CONTEXT, 3)
    first, cache = fast.generate(prompt, 5), fast.cache
    other = fast.generate((prompt + 1) % 97, 9)
    assert not torch.equal(other[:, :5], first)
    assert torch.equal(fast.generate(prompt, 5), first)
    assert fast.cache is cache  # what is large enough stays
    alone = FastLlama(model, CONTEXT).generate(prompt[:1], 5)
    assert torch.equal(fast.generate(prompt[:1], 5), alone) and fast.batch == 1
    assert fast.generate(prompt, 1).shape == (3, 1)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_generation_ends_and_chooses_as_the_course_s_own_loop_does(by_kernel):
    """The same rows, the same end of each, the same random numbers, as far as logits agree."""
    model, prompt = swapped(), some_tokens(3, 7)
    fast = FastLlama(model, CONTEXT, 3)
    every = fast.generate(prompt, 12, by_kernel)
    end = {every[0, 4].item()}
    found = fast.generate(prompt, 12, by_kernel, end=end)
    for row, whole in zip(found, every, strict=True):
        at = next((i for i, token in enumerate(whole.tolist()) if token in end), 11)
        length = min(at + 1, found.shape[1])
        assert torch.equal(row[:length], whole[:length])
        assert (row[length:] == whole[at]).all()
    assert found.shape[1] <= 12
    seen = []

    def choose(logits, tokens):
        seen.append((logits.shape, tokens.shape[1]))
        return (tokens[:, -1] + 1) % 97

    counted = fast.generate(prompt, 3, by_kernel, choose)
    assert torch.equal(counted, (prompt[:, -1:] + torch.arange(1, 4)) % 97)
    assert seen == [((3, 97), 7), ((3, 97), 8), ((3, 97), 9)]


# --- faults -----------------------------------------------------------------------------------


def test_a_model_in_another_precision_is_refused():
    with refused(TypeError, "q_proj is Linear", "int8-fast", "replace_layers"):
        FastLlama(tiny_llama())


@pytest.mark.parametrize(("context", "batch"), [(0, 1), (-1, 1), (65, 1), (8, 0), (8, -2)])
def test_a_cache_that_cannot_be_is_refused(context, batch):
    fast = FastLlama(swapped(), 8)
    for make in (
        lambda: fast.reserve(context, batch),
        lambda: FastLlama(swapped(), context, batch),
    ):
        with refused(ValueError, f"context is {context}", f"batch {batch}", "1 to 64"):
            make()
    assert fast.forward(some_tokens(1, 8)).isfinite().all()  # the one it had is still there


def test_more_tokens_than_the_cache_holds_are_refused_and_nothing_is_read():
    fast = FastLlama(swapped(), 8, 2)
    with refused(ValueError, "9 tokens", "cache of 8", "reserve"):
        fast.forward(some_tokens(2, 9))
    assert fast.position == 0
    fast.forward(some_tokens(2, 8))
    for read in (
        lambda: fast.forward(some_tokens(2, 1)),
        lambda: fast.step(some_tokens(2, 1)[:, 0]),
    ):
        with refused(ValueError, "9 tokens", "cache of 8", "reserve"):
            read()
    assert fast.position == 8
    with refused(ValueError, "context is 65", "1 to 64"):
        fast.generate(some_tokens(2, 60), 5)


@pytest.mark.parametrize("token", [-1, 97, 2**40])
def test_a_token_that_is_not_in_the_vocabulary_is_refused(token):
    fast, tokens = FastLlama(swapped(), 8, 2), some_tokens(2, 3)
    tokens[1, 2] = token
    for read in (lambda: fast.forward(tokens), lambda: fast.step(tokens[:, 2])):
        with refused(ValueError, f"token {token} ", "vocabulary of 97"):
            read()
    assert fast.position == 0


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 0), (2, 2, 1), ()])
def test_tokens_of_another_shape_are_refused(shape):
    fast = FastLlama(swapped(), 8, 2)
    with refused(ValueError, f"shape {shape}", "(B, T)", "B = 2"):
        fast.forward(torch.zeros(shape, dtype=torch.long))
    with refused(ValueError, f"shape {shape}", "(B,)", "B = 2"):
        fast.step(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_tokens_may_be_integers_of_any_width_and_lie_in_any_order(compiled, dtype):
    model, tokens = swapped(), some_tokens()
    fast, wanted = FastLlama(model, CONTEXT, 3), by_steps(FastLlama(model, CONTEXT, 3), tokens)
    for column in range(4):
        strided = tokens.to(dtype).repeat(1, 2)[:, column]
        assert not strided.is_contiguous()
        assert torch.equal(fast.step(strided), wanted[:, column])


def test_what_is_no_number_of_tokens_or_no_token_is_refused():
    fast = FastLlama(swapped(**MODELS[next(iter(MODELS))]), CONTEXT, 1)
    with pytest.raises(ValueError, match="new_tokens is 0"):
        fast.generate(torch.ones(1, 3, dtype=torch.long), 0)
    with pytest.raises(TypeError, match="float32"):
        fast.step(torch.ones(1))


def test_a_layer_that_the_kernel_cannot_read_is_named():
    model = swapped()
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(40, 48)
    with refused(TypeError, "model.layers.1.mlp.down_proj is Linear", "int8-fast"):
        FastLlama(model)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_copy_reads_its_own_tensors(compiled, by_kernel):
    fast, tokens = FastLlama(swapped(), CONTEXT, 3), some_tokens()
    fast.reserve(CONTEXT, 3, by_kernel)
    before = by_steps(fast, tokens)
    other = copy.deepcopy(fast)
    for tensor in (fast.cache.keys, fast.cache.values, fast.embedding, *fast.buffers()):
        tensor.zero_()
    del fast
    other.position = 0
    assert torch.equal(by_steps(other, tokens), before)


def test_a_model_that_has_moved_is_described_anew(compiled):
    fast, tokens = FastLlama(swapped(), CONTEXT, 3), some_tokens()
    by_steps(fast, tokens[:, :3])
    with refused(ValueError, "on meta"):
        fast.to("meta").step(tokens[:, 3])


def test_a_cache_of_the_usual_size_is_no_longer_than_the_model_allows():
    limit = tiny_config().max_position_embeddings
    assert FastLlama(swapped()).context == min(1024, limit)
    longer = swapped(max_position_embeddings=2000)
    assert FastLlama(longer).context == 1024


@pytest.mark.parametrize("past", [0, 1, 63, 70])
@pytest.mark.parametrize("new", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (3, 3), (4, 1)])
def test_attention_in_blocks_of_queries_is_pytorchs(past, new, heads, shared):
    q, k, v = (torch.randn(2, h, n, 8) for h, n in ((heads, new), *((shared, past + new),) * 2))
    ours = causal_attention(q, k, v)
    mask = causal_mask(new, past)
    wanted = scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    rounded = causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - wanted).abs().max() < 0.06


def test_attention_survives_scores_that_no_exponential_holds():
    q = torch.tensor([[[[300.0], [-300.0]]]])
    k, v = torch.tensor([[[[2.0], [-2.0]]]]), torch.tensor([[[[1.0], [5.0]]]])
    assert causal_attention(q, k, v).flatten().tolist() == [1.0, 5.0]


# --- pages ------------------------------------------------------------------------------------


def large_model():
    """Weights of some 4 MiB: enough for a page of 2."""
    model = tiny_llama(
        hidden_size=256, intermediate_size=512, head_dim=32, num_attention_heads=8,
        num_key_value_heads=4, num_hidden_layers=6, vocab_size=512,
    )  # fmt: skip
    return replace_layers(model)


def packed(fast):
    layers = [layer for block in fast.layers for layer in block.children()]
    return [part for layer in (*layers, fast.lm_head) for part in (layer.weight, layer.scale)]


def test_weights_lie_one_after_another_in_large_pages_and_are_the_same():
    model, tokens = large_model(), torch.randint(512, (1, 9))
    with torch.inference_mode():
        wanted = model(tokens).logits
    before = weight_memory(model)
    fast = FastLlama(model, CONTEXT)
    assert weight_memory(model) == before  # shared with the model, not held twice
    attention = model.model.layers[3].self_attn
    assert attention.q_proj.weight.data_ptr() == fast.layers[3].qkv_proj.weight.data_ptr()
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, wanted)
    ends = [0, *(part.data_ptr() + part.nbytes for part in packed(fast))]
    gaps = [part.data_ptr() - end for part, end in zip(packed(fast), ends, strict=False)][1:]
    assert all(part.data_ptr() % pages.LINE == 0 for part in packed(fast))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert all(0 <= gap < pages.LINE for gap in gaps)


def test_a_second_model_from_the_same_layers_leaves_the_first_ones_memory_alone():
    model, tokens = large_model(), torch.randint(512, (9, 1))
    first = FastLlama(model, CONTEXT)
    before = [first.step(token) for token in tokens]
    kept = [part.data_ptr() for part in packed(first)]
    second = FastLlama(model, CONTEXT)
    first.position = 0
    assert all(torch.equal(first.step(t), one) for t, one in zip(tokens, before, strict=True))
    assert all(torch.equal(second.step(t), one) for t, one in zip(tokens, before, strict=True))
    if kernels.chosen().library is not None:
        alive = {buffer.data_ptr() for buffer in first._described[1][1]}
        assert set(kept) <= alive  # what the kernel's pointers name is still held


def test_without_large_pages_everything_stays_where_it_is(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    model = large_model()
    places = [layer.down_proj.weight.data_ptr() for layer in (b.mlp for b in model.model.layers)]
    fast = FastLlama(model, CONTEXT)
    assert [block.down_proj.weight.data_ptr() for block in fast.layers] == places


def test_a_system_that_refuses_large_pages_is_no_error(monkeypatch):
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("this system has none")

    class Refusing(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(pages.mmap, "mmap", Refusing)
    room, x = pages.LargePages([pages.LARGE]), torch.ones(3)
    assert room.copy(x) is x and torch.equal(room.zeros((2, 3), torch.int8), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.int8, torch.float32])
def test_what_is_copied_into_pages_is_the_same_and_stays_apart(dtype):
    torch.manual_seed(0)
    given = [
        torch.randint(0, 100, shape).to(dtype) for shape in ((3, 1000, 700), (1,), (0,), (7, 9))
    ]
    room = pages.LargePages([one.nbytes for one in given])
    found = [room.copy(one) for one in given]
    for one, other in zip(given, found, strict=True):
        assert torch.equal(one, other) and one.shape == other.shape and one.dtype == other.dtype
    found[0].fill_(1)
    assert torch.equal(found[1], given[1]) and torch.equal(found[3], given[3])
    empty = pages.LargePages([pages.LARGE]).zeros((2, pages.LARGE // 2), torch.int8)
    assert not empty.any() and copy.deepcopy(empty).shape == empty.shape


def test_a_long_cache_lies_in_pages_and_begins_with_zeros():
    model = FastLlama(large_model(), 64, batch=32)
    assert not model.cache.keys.any() and not model.cache.values.any()
    assert model.cache.nbytes >= pages.LARGE
