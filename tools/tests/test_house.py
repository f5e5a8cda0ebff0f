"""The import rule of tools/README.md: imports point down, and never in a circle."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib import import_module

import pytest
from conftest import ROOT

import llama_int8

TOOLS = ROOT / "tools"
PACKAGE = "llama_int8"
# From the top down. What stands below all of them imports none of them.
LAYERS = (
    "lessons",
    "course",
    "evaluation",
    "measure",
    "models",
    "quantization",
    "transformer",
)
BOTTOM = ("data", "dtypes", "profiles", "errors", "files", "folders", "names", "processor")


def modules(root):
    """Path by dotted name, of the package and of the scripts beside it."""
    paths = [*root.glob("*.py"), *(root / PACKAGE).rglob("*.py")]
    parts = {path: path.relative_to(root).with_suffix("").parts for path in paths}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in parts.items()}


def imported(name, tree, known):
    """The modules in `known` that an import anywhere in a module names, lazy ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide where a name comes from"
            if node.module == PACKAGE and name.startswith(f"{PACKAGE}."):
                yield PACKAGE  # its public interface is for others
            both = [(node.module, f"{node.module}.{alias.name}") for alias in node.names]
            targets = [full if full in known else module for module, full in both]
        else:
            continue
        yield from (target for target in targets if target in known)


def graph(root):
    known = modules(root)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in known.items()}
    return {name: set(imported(name, tree, known)) for name, tree in trees.items()}


IMPORTS = graph(TOOLS)


def room(module):
    """The layer of a module of the package: its first name under `llama_int8`."""
    return module.split(".")[1] if "." in module else ""


def height(module):
    return len(LAYERS) - LAYERS.index(room(module)) if room(module) in LAYERS else 0


def upward(imports):
    """(module, what it imports) wherever that lies in a higher layer, or in another lesson."""
    for module, targets in imports.items():
        if not module.startswith(f"{PACKAGE}."):
            continue
        for target in targets:
            lessons = room(module) == room(target) == "lessons" and module.count(".") > 1
            other = lessons and module.split(".")[2] != target.split(".")[2]
            from_the_package = target == PACKAGE or not target.startswith(PACKAGE)
            if height(target) > height(module) or other or from_the_package:
                yield module, target


def circle(imports):
    """The modules of a circle of imports, in order; empty where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_module_of_the_package_is_in_a_room_that_the_map_names():
    rooms = {room(name) for name in IMPORTS if name.startswith(f"{PACKAGE}.")}
    assert rooms == {*LAYERS, *BOTTOM}


def test_imports_point_down_and_never_from_one_lesson_to_another():
    assert list(upward(IMPORTS)) == []


def test_no_imports_form_a_circle():
    assert circle(IMPORTS) == []


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("models.load", "measure.latency"),
        ("transformer.llama", "quantization.matmul"),
        ("errors", "models.registry"),
        ("lessons.n06.figures", "lessons.n07.figures"),
        ("measure.results", "lessons"),
    ],
)
def test_a_step_up_or_across_would_be_found(module, target):
    module, target = f"{PACKAGE}.{module}", f"{PACKAGE}.{target}"
    assert list(upward({module: {target}})) == [(module, target)]
    assert list(upward({module: {PACKAGE}, "course": {module}})) == [(module, PACKAGE)]


def test_a_circle_would_be_found_even_behind_a_lazy_import(tmp_path):
    (tmp_path / "one.py").write_text("def f():\n    import two\n")
    (tmp_path / "two.py").write_text("from one import f\n")
    assert set(circle(graph(tmp_path))) == {"one", "two"}


def test_the_map_names_every_file():
    text = (TOOLS / "README.md").read_text(encoding="utf-8").split("```")[1]
    words = set(re.findall(r"[\w.]+", text))
    lessons = ("figures.py", "exercises.py", "__init__.py")
    for name, path in modules(TOOLS).items():
        if path.name not in lessons:
            assert {path.name, path.stem} & words, (
                f"tools/README.md does not say what {name} is for"
            )
    named = {word for word in words if word.endswith(".py")}
    there = {path.name for path in TOOLS.rglob("*.py")}
    assert named <= there, (
        f"tools/README.md names {', '.join(sorted(named - there))}, which are gone"
    )


# --- the public interface -----------------------------------------------------------------------


def test_importing_the_package_loads_nothing_else():
    code = "import sys, llama_int8; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOOLS)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", llama_int8.PUBLIC)
def test_each_public_name_is_the_one_of_the_module_that_holds_it(name):
    home = import_module(f"llama_int8.{llama_int8.PUBLIC[name]}")
    assert getattr(llama_int8, name) is getattr(home, name)
    assert name in dir(llama_int8) and name in llama_int8.__all__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = llama_int8.load_modle


def test_the_public_calls_take_the_arguments_that_others_rely_on():
    """A whole path through the interface, by the names that the documentation gives."""
    import torch

    from llama_int8 import (
        Int8Linear,
        Llama,
        LlamaConfig,
        absmax_quantize,
        causal_mask,
        dequantize,
        flash_attention,
        replace_linears,
        scaled_dot_product_attention,
        zeropoint_quantize,
    )

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    attended = scaled_dot_product_attention(q, k, v, mask=causal_mask(5))
    output = attended[0] if isinstance(attended, tuple) else attended
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(flash_attention(q, k, v, causal=True), expected)
    for quantize in (absmax_quantize, zeropoint_quantize):
        torch.testing.assert_close(dequantize(quantize(q)), q, rtol=0, atol=0.02)
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(3, 8)
    torch.testing.assert_close(
        Int8Linear.from_linear(layer, threshold=6.0)(x), layer(x), rtol=0, atol=0.05
    )
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=16,
    )
    model = replace_linears(Llama(config), threshold=6.0, skip=("lm_head",))
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 32)


def test_githubs_workflows_keep_to_its_schema(tmp_path):
    check = [sys.executable, "-m", "check_jsonschema"]
    check += ["--builtin-schema", "vendor.github-workflows"]
    workflows = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
    done = subprocess.run([*check, *workflows], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(workflows[0].read_text(encoding="utf-8").replace("runs-on", "run-on"))
    done = subprocess.run([*check, wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "'runs-on' is a required property" in done.stdout
