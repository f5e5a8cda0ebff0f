"""A tokenizer without training: one token for each byte, and the merges that a test asks for."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(*merges: tuple[str, str], start: bool = False) -> PreTrainedTokenizerFast:
    """`merges`: pairs of tokens that become one (a space is written "Ġ"), across words, too.

    `start`: whether a token `<s>` stands before every text, as Llama's tokenizers have it.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *letters, *(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
