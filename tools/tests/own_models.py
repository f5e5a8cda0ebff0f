"""Tiny models of a user's own: the kinds of LLaMA that people bring, with random weights.

Each function writes a folder in Hugging Face's format, model and tokenizer, as a reader has it on
disk. What the kinds differ in is what notebooks trip over: biases, chat form, start and end
tokens, shared heads, RoPE, tied embeddings, depth and context.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llama_int8.data import calibration_text

WORDS = "<|begin|>", "<|end|>", "<|turn_end|>", "<|role|>", "<|role_end|>"
LLAMA2_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|role|>{{ m['role'] }}<|role_end|>\n\n"
    "{{ m['content'] }}<|turn_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|role|>assistant<|role_end|>\n\n{% endif %}"
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}


def base_model(folder: Path) -> None:
    """A base model: biases everywhere, no chat form, nothing before a text, 6 layers, 1,024 tokens."""
    tokens = bytes_tokenizer(folder, size=400)
    changes = {"attention_bias": True, "mlp_bias": True, "max_position_embeddings": 1024}
    llama(folder, tokens, num_hidden_layers=6, **changes)


def llama2_like(folder: Path) -> None:
    """LLaMA 2's kind: "▁" for blanks, bytes for what is unknown, [INST], a key head per head."""
    tokens = llama2_tokenizer(folder, size=800)
    llama(folder, tokens, num_hidden_layers=8, num_key_value_heads=4, max_position_embeddings=4096)


def llama32_like(folder: Path) -> None:
    """Llama 3.2's kind: scaled RoPE, one table for both ends, shared heads, two end tokens."""
    tokens = bytes_tokenizer(folder, size=1200, start=True, chat=LLAMA3_CHAT)
    changes = {"rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 131_072}
    ends = {"eos_token_id": [tokens["<|end|>"], tokens["<|turn_end|>"]]}
    llama(folder, tokens, num_hidden_layers=12, tie_word_embeddings=True, **changes, **ends)


def smallest(folder: Path) -> None:
    """One layer, one head of 32 in a width of 48, 128 tokens of context, 240 tokens and no end."""
    tokens = letters_tokenizer(folder, size=240)
    shapes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 128}
    llama(folder, tokens, eos_token_id=None, bos_token_id=None, **shapes, **heads)


KINDS: dict[str, Callable[[Path], None]] = {
    "base": base_model,
    "llama2": llama2_like,
    "llama32": llama32_like,
    "smallest": smallest,
}
"""The kinds that every notebook must run with, by name."""


def llama(folder: Path, tokens: dict[str, int], seed: int = 0, **changes) -> None:
    """Save a LLaMA of width 128 with random weights and a row for each of `tokens`."""
    shapes = {
        "vocab_size": len(tokens),
        "hidden_size": 128,
        "intermediate_size": 224,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": tokens.get("<|begin|>", tokens.get("<s>")),
        "eos_token_id": tokens.get("<|end|>", tokens.get("</s>")),
        "initializer_range": 0.05,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(shapes | changes)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # transformers begins with zeros, which nobody would miss
            torch.nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(folder)


def bytes_tokenizer(
    folder: Path, size: int, start: bool = False, chat: str | None = None
) -> dict[str, int]:
    """Save a BPE over bytes as GPT-2 and Llama 3 have it; returns its tokens.

    `start`: whether a token stands before every text.
    """
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    how = {"special_tokens": list(WORDS), "initial_alphabet": letters, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=size, **how)
    tokenizer.train_from_iterator([calibration_text()], trainer)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A",
            special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))],
        )
    return _save(folder, tokenizer, chat, bos_token=WORDS[0], eos_token=WORDS[1])


def llama2_tokenizer(folder: Path, size: int) -> dict[str, int]:
    """Save a BPE as LLaMA 1 and 2 have it in `tokenizer.json`; returns its tokens."""
    specials = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(token_models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()  # in training only: no merge across words
    trainer = trainers.BpeTrainer(
        vocab_size=size - 256, special_tokens=specials, show_progress=False
    )
    learner.train_from_iterator([calibration_text()], trainer)
    learned = json.loads(learner.to_str())["model"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    words = sorted(learned["vocab"], key=learned["vocab"].get)
    names = [*specials, *raw, *(word for word in words if word not in specials)]
    merges = [tuple(pair) for pair in learned["merges"]]
    numbered = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(
        token_models.BPE(numbered, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _save(folder, tokenizer, LLAMA2_CHAT, **ends)


def letters_tokenizer(folder: Path, size: int) -> dict[str, int]:
    """Save a BPE over the letters of a text, `<unk>` for all others; returns its tokens."""
    tokenizer = Tokenizer(token_models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([calibration_text()], trainer)
    return _save(folder, tokenizer, None, unk_token="<unk>")


def _save(folder: Path, tokenizer: Tokenizer, chat: str | None, **special: str) -> dict[str, int]:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return tokenizer.get_vocab()
