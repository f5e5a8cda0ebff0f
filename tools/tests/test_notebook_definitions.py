"""What a notebook builds in front of the reader is what the package holds."""

import ast
import inspect
import json

import pytest
from conftest import ROOT

from llama_int8.lessons.n06 import formats, grids
from llama_int8.quantization import llm_int8, quantize
from llama_int8.transformer import attention, flash, generation, llama

HOMES = {
    "01_attention_and_causal_masking": (
        [attention],
        "attention_weights scaled_dot_product_attention".split(),
    ),
    "02_the_transformer": (
        [attention],
        "sinusoidal_positions layer_norm FeedForward EncoderDecoder Residual".split(),
    ),
    "04_llama_from_scratch": (
        [llama],
        "rope_frequencies rope_rotation".split(),
    ),
    "06_quantization_math": (
        [quantize, formats, grids],
        """Quantized in_blocks absmax_quantize zeropoint_quantize dequantize quantized_matmul
        signal_to_noise bit_fields value_of_bits shifted turn turned""".split(),
    ),
    "07_outliers_and_llm_int8": (
        [llm_int8],
        ["replace_linears"],
    ),
    "09_flash_attention": (
        [flash],
        "flash_attention_2 flash_backward FlashAttention flash_attention".split(),
    ),
}
# Written by the learner, or shown, in a plainer form; test_attention.py, test_generation.py,
# test_llama.py, test_int8_linear.py and test_flash.py compare what both give.
BY_THE_LEARNER = {
    "01_attention_and_causal_masking": "causal_mask padding_mask MultiHeadAttention",
    "02_the_transformer": "EncoderBlock DecoderBlock",
    "03_generation_and_decoding": """KVCache next_logits scale_temperature keep_top_k keep_top_p
    penalize_repetition sampling_probabilities Sampler greedy generate extend beam_search""",
    "04_llama_from_scratch": """RMSNorm SwiGLU rotate single_query_attention
    GroupedQueryAttention LlamaBlock Llama""",
    "07_outliers_and_llm_int8": "vectorwise_quantize Int8Linear",
    "09_flash_attention": "online_softmax",
}
# Used by a lesson and not shown in it: what counts, and the version beside the one that is shown.
ONLY_IN_THE_PACKAGE = """Traffic Tile finite online_step blocks for_each_head hide_future divide
    standard_attention flash_attention_1 block_sizes standard_traffic flash_traffic"""
PAIRS = [(notebook, name) for notebook, (_, names) in HOMES.items() for name in names]


class Bare(ast.NodeTransformer):
    """Takes away what explains or guards: docstrings, type hints, calls of `_check...`."""

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns = None
        node.body = [n for n in node.body if not (_is_text(n) or _is_check(n))] or [ast.Pass()]
        return node

    def visit_ClassDef(self, node):
        self.generic_visit(node)
        node.body = [n for n in node.body if not _is_text(n)]
        return node

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        if node.value is None:  # a field of a dataclass
            return ast.Expr(node.target)
        return ast.Assign(targets=[node.target], value=node.value)


def _is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_check(node):
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", "").startswith("_check")


def bare(source: str) -> str:
    """The code without explanations and guards, in one form whatever its line breaks."""
    (definition,) = ast.parse(source).body
    return ast.unparse(ast.fix_missing_locations(Bare().visit(definition)))


def definitions(notebook: str) -> dict[str, str]:
    """Source of every top-level function and class of a notebook, by name."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    found = {}
    for cell in cells["cells"]:
        if cell["cell_type"] == "code" and cell["id"] != "bootstrap":
            source = "".join(cell["source"])
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
                    found[node.name] = "\n".join(source.splitlines()[first : node.end_lineno])
    return found


@pytest.mark.parametrize(("notebook", "name"), PAIRS, ids=[name for _, name in PAIRS])
def test_the_notebook_and_the_package_hold_the_same_definition(notebook, name):
    home = next(module for module in HOMES[notebook][0] if hasattr(module, name))
    in_package = inspect.getsource(getattr(home, name))
    assert bare(definitions(notebook)[name]) == bare(in_package)


def test_a_difference_is_seen():
    assert bare("def f(x: int) -> int:\n    'Text.'\n    _check(x)\n    return x + 1") == bare(
        "def f(x):\n    return x + 1"
    )
    assert bare("def f(x):\n    return x + 1") != bare("def f(x):\n    return x + 2")
    assert bare("def f(x, n=1):\n    return x") != bare("def f(x, n=2):\n    return x")


def public(module):
    """The functions and classes that a module defines itself, without those that begin with "_"."""
    return {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        and inspect.isroutine(value) | inspect.isclass(value)
        and not name.startswith("_")
    }


@pytest.mark.parametrize("notebook", HOMES)
def test_what_a_notebook_is_said_to_build_is_in_its_modules(notebook):
    modules, names = HOMES[notebook]
    assert set(names) <= set().union(*map(public, modules))


def test_every_public_definition_of_these_modules_is_built_in_one_notebook_or_named_as_not_shown():
    modules = {generation, *(module for modules, _ in HOMES.values() for module in modules)}
    built = [name for _, names in HOMES.values() for name in names]
    built += [name for names in BY_THE_LEARNER.values() for name in names.split()]
    built += ONLY_IN_THE_PACKAGE.split()
    assert sorted(built) == sorted(name for module in modules for name in public(module))
