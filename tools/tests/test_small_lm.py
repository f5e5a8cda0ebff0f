"""The small models of the ablation: each made of the parts it names, trained and scored fairly."""

import math
import os
from dataclasses import replace

import pytest
import torch
from tiny_llama import tiny_config
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llama_int8.course import small_lm
from llama_int8.course.small_lm import (
    CHANGES,
    CONTEXT,
    LLAMA,
    ORIGINAL,
    POSITIONS,
    SCALINGS,
    WIDTH,
    SmallLM,
    corpus,
    in_parallel,
    learning_rate,
    loss_by_position,
    scaled_rope,
    train,
    train_all,
    training_losses,
)
from llama_int8.data import calibration_text, evaluation_text
from llama_int8.transformer.attention import causal_mask, sinusoidal_positions
from llama_int8.transformer.llama import RMSNorm, SwiGLU, rope_frequencies

VARIANTS = {**CHANGES, **POSITIONS}


def made(parts, seed=0, **options):
    torch.manual_seed(seed)
    return SmallLM(parts, **options).eval()


def some_bytes(length=40, batch=2):
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(1))


def renamed(state, names):
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


@torch.inference_mode()
def test_the_original_is_a_stack_of_pytorchs_own_encoder_layers():
    ours = made(ORIGINAL)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
    tokens = some_bytes()
    x = ours.embedding(tokens) * WIDTH**0.5 + sinusoidal_positions(tokens.shape[1], WIDTH)
    for block in ours.blocks:
        a, f, norms = block.attention, block.feed_forward, block.residuals
        layer.self_attn.in_proj_weight.copy_(
            torch.cat([p.weight for p in (a.q_proj, a.k_proj, a.v_proj)])
        )
        layer.self_attn.in_proj_bias.copy_(
            torch.cat([p.bias for p in (a.q_proj, a.k_proj, a.v_proj)])
        )
        layer.self_attn.out_proj.load_state_dict(a.o_proj.state_dict())
        layer.linear1.load_state_dict(f.fc1.state_dict())
        layer.linear2.load_state_dict(f.fc2.state_dict())
        layer.norm1.load_state_dict(norms[0].norm.state_dict())
        layer.norm2.load_state_dict(norms[1].norm.state_dict())
        x = layer(x, src_mask=~causal_mask(tokens.shape[1]))
    torch.testing.assert_close(ours(tokens), ours.lm_head(x), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_all_changes_together_are_hugging_faces_llama():
    ours = made(LLAMA)
    theirs = LlamaForCausalLM(
        tiny_config(
            vocab_size=256,
            hidden_size=WIDTH,
            intermediate_size=ours.blocks[0].feed_forward.gate_proj.out_features,
            num_hidden_layers=len(ours.blocks),
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=WIDTH // 4,
            rms_norm_eps=1e-5,
        )
    ).eval()
    names = {
        "embedding.": "model.embed_tokens.",
        "blocks.": "model.layers.",
        "attention.": "self_attn.",
        "feed_forward.": "mlp.",
        "residuals.0.norm": "input_layernorm",
        "residuals.1.norm": "post_attention_layernorm",
    }
    state = renamed(ours.state_dict(), names)
    state["model.norm.weight"] = state.pop("norm.weight")
    theirs.load_state_dict(state)
    tokens = some_bytes()
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_about_as_many_parameters_as_the_original(name):
    counts = [
        sum(p.numel() for p in made(parts).parameters()) for parts in (VARIANTS[name], ORIGINAL)
    ]
    learned = CONTEXT * 4 * WIDTH if VARIANTS[name].positions == "learned" else 0
    assert counts[0] - learned == pytest.approx(counts[1], rel=0.04)


@pytest.mark.parametrize("name", CHANGES)
def test_a_variant_has_the_parts_that_it_names_and_no_others(name):
    parts, model = CHANGES[name], made(CHANGES[name])
    kinds = [type(module) for module in model.modules()]
    changed = sum(
        a != b for a, b in zip(vars(parts).values(), vars(ORIGINAL).values(), strict=True)
    )
    assert changed == {"original": 0, "all: LLaMA": 7}.get(name, 1)
    assert (RMSNorm in kinds, nn.LayerNorm in kinds) == (parts.rms_norm, not parts.rms_norm)
    assert (SwiGLU in kinds) == parts.swiglu
    assert all(block.residuals[0].norm_first == parts.norm_first for block in model.blocks)
    assert isinstance(model.norm, nn.Identity) != parts.norm_first
    assert model.blocks[0].attention.k_proj.out_features == parts.key_value_heads * WIDTH // 4
    biases = [n for n, p in model.named_parameters() if n.endswith("bias") and "norm" not in n]
    assert bool(biases) == parts.bias


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_a_future_byte_cannot_change_a_past_output(name):
    model, tokens = made(VARIANTS[name]), some_bytes()
    changed = tokens.clone()
    changed[:, 25] ^= 1
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :25], before[:, :25])
    assert not torch.allclose(after[:, 25:], before[:, 25:])


@pytest.mark.parametrize("kind", ["sinusoidal", "learned", "rotary"])
@torch.inference_mode()
def test_every_kind_of_positions_tells_one_order_from_another(kind):
    model, tokens = made(POSITIONS[kind]), some_bytes(8, 1)
    swapped = tokens[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-6)


@torch.inference_mode()
def test_without_positions_the_order_of_what_the_first_layer_reads_is_lost():
    model, tokens = made(POSITIONS["none"], layers=1), some_bytes(8, 1)
    swapped = tokens[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    torch.testing.assert_close(model(tokens)[:, 2:], model(swapped)[:, 2:])


def test_sines_and_scaled_embedding_are_equally_large():
    for parts in (ORIGINAL, POSITIONS["sinusoidal"]):
        model = made(parts)
        scaled = model.embedding.weight.detach() * model.scale
        assert scaled.square().mean().sqrt() == pytest.approx(1, rel=0.05)
    assert sinusoidal_positions(CONTEXT, WIDTH).square().mean().sqrt() == pytest.approx(0.5**0.5)
    assert made(LLAMA).scale == 1


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    config = made(LLAMA).config
    plain, _ = scaled_rope(config, None)
    ntk, growth = scaled_rope(config, SCALINGS["NTK-aware"])
    slowed = plain / ntk
    assert slowed[0] == pytest.approx(1) and slowed[-1] == pytest.approx(4, rel=1e-5)
    assert (slowed.diff() > 0).all() and growth == 1


def test_yarn_blends_by_turns_and_sharpens_the_scores():
    config = made(LLAMA, longest=CONTEXT).config
    plain, _ = scaled_rope(config, None)
    scaling = {**SCALINGS["YaRN"], "original_max_position_embeddings": 4096}
    yarn, growth = scaled_rope(config, scaling)
    turns = 4096 * plain / (2 * math.pi)
    slowed = plain / yarn
    torch.testing.assert_close(slowed[turns >= 32], torch.ones(int((turns >= 32).sum())))
    torch.testing.assert_close(slowed[turns <= 1], torch.full([int((turns <= 1).sum())], 4.0))
    assert growth == pytest.approx(0.1 * math.log(4) + 1)  # Peng et al., section 3.4
    ours, _ = scaled_rope(config, SCALINGS["llama3"])
    torch.testing.assert_close(
        ours, rope_frequencies(replace(config, rope_scaling=SCALINGS["llama3"]))
    )


def test_yarn_is_hugging_faces_where_the_ramp_is_not_rounded():
    config = made(LLAMA).config
    theirs = tiny_config(
        hidden_size=WIDTH,
        num_attention_heads=4,
        head_dim=WIDTH // 4,
        max_position_embeddings=4 * CONTEXT,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": config.rope_theta,
            "factor": 4.0,
            "original_max_position_embeddings": CONTEXT,
        },
    )
    _, growth = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    assert scaled_rope(config, SCALINGS["YaRN"])[1] == pytest.approx(growth)


def test_the_byte_entropy_is_the_loss_of_who_knows_frequencies_alone():
    text, _ = corpus()
    counts = torch.bincount(text, minlength=256).double()
    logits = (counts / counts.sum()).log().float()
    nll = nn.functional.cross_entropy(logits.expand(len(text), 256), text) / math.log(2)
    assert small_lm.byte_entropy() == pytest.approx(nll.item(), rel=1e-4)


def test_counting_and_compressing_are_scored_on_text_that_they_have_not_read():
    found = small_lm.baselines()
    assert found["guessing"] == (8, 8)
    assert found["counted bytes"][0] == pytest.approx(small_lm.byte_entropy(), rel=0.01)
    held = [held_out for _, held_out in found.values()]
    assert held == sorted(held, reverse=True) and held[-1] > 1
    text, held_out = corpus()
    ones = {i: 1 + (text == i).sum().item() for i in range(256)}
    bits = [-math.log2(ones[b] / sum(ones.values())) for b in held_out.tolist()]
    assert found["counted bytes"][1] == pytest.approx(sum(bits) / len(bits))


@torch.inference_mode()
def test_scaling_concerns_rotary_positions_alone():
    tokens = some_bytes()
    for kind, parts in POSITIONS.items():
        model = made(parts)
        for name, scaling in SCALINGS.items():
            same = torch.equal(model(tokens, scaling), model(tokens))
            assert same == (kind != "rotary" or name == "as trained")


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth():
    rates = [learning_rate(step, 1000, 3e-4, 100) for step in range(1001)]
    assert rates[0] == pytest.approx(3e-6)
    assert max(rates) == rates[99] == pytest.approx(3e-4)
    assert rates[550] == pytest.approx(3e-4 * 0.55)
    assert rates[1000] == pytest.approx(3e-5)
    assert rates[99:] == sorted(rates[99:], reverse=True)


def test_what_is_held_out_was_not_trained_on():
    trained, held_out = (bytes(part.tolist()) for part in corpus())
    texts = [evaluation_text().encode(), calibration_text().encode()]
    assert len(trained) + len(held_out) == sum(map(len, texts))
    windows = {trained[i : i + 64] for i in range(len(trained) - 64)}
    assert not any(held_out[i : i + 64] in windows for i in range(len(held_out) - 64))


def test_training_repeats_itself_and_lowers_the_loss():
    first, second = (train(LLAMA, 8, seed=3, layers=1, batch=4, context=32) for _ in range(2))
    assert first[1] == second[1]
    assert first[1][-1] < first[1][0] - 1
    assert train(LLAMA, 8, seed=4, layers=1, batch=4, context=32)[1] != first[1]


class Unigram(nn.Module):
    """Says the same whatever it is shown."""

    def forward(self, tokens, scaling=None):
        logits = torch.linspace(-3, 3, 256)
        return logits.expand(*tokens.shape, 256)


def test_losses_stand_beside_the_right_bytes_and_windows_overlap_by_one_context():
    losses = loss_by_position(Unigram(), 4 * CONTEXT)
    _, held_out = corpus()
    bits = -torch.linspace(-3, 3, 256).log_softmax(-1) / math.log(2)
    torch.testing.assert_close(losses[0], bits[held_out[1 : 4 * CONTEXT + 1]])
    torch.testing.assert_close(losses[:-3, 3 * CONTEXT :], losses[3:, :CONTEXT])


@pytest.mark.slow
def test_parallel_work_comes_back_by_name_and_equals_work_done_here(threads):
    tasks = {f"seed {seed}": (LLAMA, 3, seed, 1, 2, 16) for seed in range(2)}
    found = in_parallel(training_losses, tasks)
    assert list(found) == list(tasks)
    threads(1)  # as in the workers
    assert found["seed 1"] == train(*tasks["seed 1"])[1]


def test_a_kept_stage_is_not_computed_again():
    found = in_parallel(os.getpid, {"a": (), "b": ()}, stage=lambda name, compute: f"kept {name}")
    assert found == {"a": "kept a", "b": "kept b"}


def test_an_error_in_a_worker_reaches_the_reader():
    with pytest.raises(ZeroDivisionError):
        in_parallel(divmod, {"wrong": (1, 0)})


@pytest.mark.slow
def test_each_seed_of_each_variant_is_kept_under_its_own_name(monkeypatch):
    names = []

    def stage(name, compute):
        names.append(name)
        return {"held_out": name}

    found, by_rate = train_all({"a": ORIGINAL, "b": LLAMA}, 1, 2, stage, {"a": [0.5]})
    assert found["b"] == [{"held_out": "b-0"}, {"held_out": "b-1"}]
    assert by_rate == {"a": {0.5: {"held_out": "a-0 at 0.5"}, small_lm.PEAK_RATE: found["a"][0]}}
    assert sorted(names) == ["a-0", "a-0 at 0.5", "a-1", "b-0", "b-1"]


@pytest.mark.slow
def test_measured_models_say_where_they_were_scored(monkeypatch):
    monkeypatch.setattr(small_lm, "train", lambda *_, rate: (made(LLAMA), [9.0] * 18 + [3.0, 2.0]))
    measured = small_lm.train_and_measure(LLAMA, 20, 0)
    assert measured["training"] == 2.5  # the last tenth of the steps
    assert set(measured["beyond"]) == set(SCALINGS)
    bins = torch.tensor(measured["beyond"]["as trained"])
    whole = loss_by_position(made(LLAMA), small_lm.BEYOND)
    torch.testing.assert_close(bins[:, 0], whole[:, : small_lm.BIN].mean(1))
    assert "beyond" not in small_lm.train_and_measure(ORIGINAL, 1, 0)
