"""int8-fast behind Hugging Face's interface: `generate` reads each new token in one call.

On a CPU that is a call of the compiled kernel, on a GPU the start of a captured graph.
"""

import copy
import functools
from typing import Any, Self

from torch import Tensor, nn
from transformers import Cache, DynamicCache, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llama_int8.quantization.cpu.llama import FastLlama
from llama_int8.quantization.cpu.packing import quantize_groups
from llama_int8.quantization.gpu.linear import GpuInt8Linear
from llama_int8.quantization.gpu.llama import GraphLlama

# What `generate` can be asked for and needs nothing of a model but logits. All else, such as beams
# or hidden states, goes by Hugging Face's own cache.
ONLY_LOGITS = frozenset(
    """attention_mask bos_token_id do_sample eos_token_id generation_config input_ids inputs
    logits_processor max_length max_new_tokens min_length min_new_tokens num_return_sequences
    output_logits output_scores pad_token_id repetition_penalty return_dict_in_generate
    stopping_criteria streamer temperature top_k top_p transformers_version""".split()
)
USUAL = {"use_cache": True, "num_beams": 1}  # always allowed


class OneCallCache(Cache):
    """In the place of Hugging Face's cache: what `fast` has read of one text, and room for more."""

    def __init__(self, fast: FastLlama | GraphLlama) -> None:
        super().__init__(layers=[])
        if isinstance(fast, GraphLlama):
            self.reader = fast.reader_for(self)  # its graphs stay for the next text
        else:
            self.reader = copy.copy(fast)  # the same layers, keys and values of its own

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that were read."""
        return self.reader.position

    def read(self, tokens: Tensor, logits_to_keep: int) -> Tensor:
        """Read (B, T) tokens -> logits of the last ones, (B, `logits_to_keep`, V)."""
        reader = self.reader
        if reader.position == 0:
            reader.make_room(tokens.shape[1], len(tokens))
        reader.grow(reader.position + tokens.shape[1])
        if reader.position > 0 and tokens.shape[1] == 1:
            return reader.step(tokens[:, 0])[:, None]
        return reader.forward(tokens, logits_to_keep)


class RoundedCache(DynamicCache):
    """Hugging Face's cache with keys and values rounded to int8, as FastLlama's int8 cache does."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> Any:
        """Round, keep, and return all of a layer's keys and values."""
        rounded = []
        for states in (key_states, value_states):
            codes, scale = quantize_groups(states.float())
            rounded.append((codes * scale[..., None]).to(states.dtype))
        return super().update(*rounded, *args, **options)


class Int8CacheModel(LlamaModel):
    """The blocks of Hugging Face's LLaMA; attention reads keys and values as int8 holds them."""

    @functools.wraps(LlamaModel.forward)
    def forward(self, *args: Any, past_key_values: Cache | None = None, **settings: Any) -> Any:
        cache = RoundedCache() if past_key_values is None else past_key_values
        return super().forward(*args, past_key_values=cache, **settings)


class Int8FastForCausalLM(LlamaForCausalLM):
    """Hugging Face's LLaMA with int8-fast layers. Only `generate` differs: it uses the kernel."""

    cache_format = "bf16"

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        **settings: Any,
    ) -> CausalLMOutputWithPast:
        if isinstance(past_key_values, OneCallCache):
            # Looking at the mask means waiting for the card. Only a prompt can be padded: what was
            # read here was not, and `generate` adds ones.
            read = past_key_values.get_seq_length()
            if read or attention_mask is None or attention_mask.all():
                logits = past_key_values.read(input_ids, settings.get("logits_to_keep", 0))
                return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
            past_key_values = DynamicCache()  # rows of unequal length: Hugging Face's own way
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, **settings)

    @functools.wraps(LlamaForCausalLM.generate)
    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, *others: Any, **settings
    ) -> Any:
        asked = (generation_config or self.generation_config).to_diff_dict() | settings
        asked = {n for n, value in asked.items() if value is not None and USUAL.get(n) != value}
        if not others and asked <= ONLY_LOGITS:
            settings["past_key_values"] = OneCallCache(self._fast())
        return super().generate(inputs, generation_config, *others, **settings)

    def _fast(self) -> FastLlama | GraphLlama:
        """Made at first use; shares every layer's memory with this model."""
        if "fast" not in self.__dict__:  # not a submodule: its weights are this model's
            self.__dict__["fast"] = one_call_model(self, 1, self.cache_format)
        return self.__dict__["fast"]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.__dict__.pop("fast", None)  # tensors may move
        return super()._apply(fn, recurse)


def one_call_model(model: nn.Module, context: int, cache: str = "bf16") -> FastLlama | GraphLlama:
    """What reads a token of a model in int8-fast in one call: on a CPU, or on a GPU."""
    if isinstance(model.lm_head, GpuInt8Linear):
        return GraphLlama(model, context)
    return FastLlama(model, context, cache=cache)


def generating_in_one_call(model: LlamaForCausalLM, cache: str = "bf16") -> Int8FastForCausalLM:
    """The same object, and from now on its `generate` reads each new token in one call.

    `cache`: the format of keys and values, "bf16" or "int8", in scoring, too.
    """
    model.__class__ = Int8FastForCausalLM
    model.cache_format = cache
    if cache == "int8":
        model.model.__class__ = Int8CacheModel
    return model
