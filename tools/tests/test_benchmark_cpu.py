"""The benchmark's command line: what it cannot measure it refuses in one line, before it loads."""

import importlib.machinery
import sys
import types

import pytest

import benchmark_cpu


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Assert that the command ends with these words, and leaves nothing."""

    def run(*arguments, says):
        command = ["benchmark_cpu.py", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        assert benchmark_cpu.main() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and says in line
        assert not (tmp_path / "out").exists()

    return run


def test_a_text_beyond_the_models_context_is_refused(fails):
    says = "make 2,064 tokens, and the model takes 2,048; take less by --prompt"
    fails("--model", "synthetic:llama-7b", "--context", "32,2048", says=says)
    says = "make 4,000 tokens, and the model takes 2,048"
    fails("--model", "synthetic:llama-7b", "--prompt", "4000", says=says)


def test_an_unknown_model_is_refused(fails):
    fails("--model", "llama", says="'llama' is neither a registered model nor a folder")


@pytest.mark.parametrize("name", ["int8-fast", "", "Q8_0"])
def test_a_file_for_another_program_cannot_take_the_name_of_one_of_our_paths(fails, tmp_path, name):
    file = tmp_path / "model.gguf"
    file.write_text("")
    entry = f"{name}={file}"
    fails("--gguf", entry, says=f"--gguf is {entry!r}; it must be llama.cpp-NAME=FILE")


def test_a_file_that_is_not_there_or_a_name_that_is_there_twice_is_refused(fails, tmp_path):
    fails("--gguf", "llama.cpp-Q8_0=missing.gguf", says="with a file that is there")
    fails("--gguf", "llama.cpp-Q8_0", says="it must be llama.cpp-NAME=FILE")
    file = tmp_path / "model.gguf"
    file.write_text("")
    twice = ["--gguf", f"llama.cpp-Q8_0={file}"] * 2
    fails(*twice, says="each name once")


def test_files_are_found_by_name(tmp_path):
    file = tmp_path / "a=b.gguf"
    file.write_text("")
    assert benchmark_cpu.gguf_files([f"llama.cpp-Q8_0={file}"]) == {"llama.cpp-Q8_0": file}
    assert benchmark_cpu.gguf_files([]) == {}


class LlamaCpp(types.ModuleType):
    """Stands for llama-cpp-python: keeps what it is asked for."""

    __version__ = "1.2.3"

    def __init__(self):
        super().__init__("llama_cpp")
        self.__spec__ = importlib.machinery.ModuleSpec("llama_cpp", None)
        self.made = []

    def Llama(self, file, **settings):
        self.made.append((file, settings))

    def llama_backend_init(self):
        pass

    def llama_print_system_info(self):
        return b"CPU : AVX2 = 1 | FMA = 1 |  "


@pytest.fixture
def llama_cpp(monkeypatch):
    module = LlamaCpp()
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.delitem(sys.modules, "llama_cpp._ggml", raising=False)
    return module


def test_llama_cpp_runs_with_its_flash_attention_and_without(llama_cpp, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr(benchmark_cpu, "torchao_runner", lambda model: None)
    monkeypatch.setattr(benchmark_cpu, "survives", lambda *asked: True)
    file = tmp_path / "q8.gguf"
    found = benchmark_cpu.peers("mine", {"llama.cpp-Q8_0": file}, 99, tmp_path)
    names = [name for name in found if name.startswith("llama.cpp")]
    assert names == ["llama.cpp-Q8_0", "llama.cpp-Q8_0, flash"]
    assert [settings["flash_attn"] for _, settings in llama_cpp.made] == [False, True]
    assert {(made, settings["n_ctx"]) for made, settings in llama_cpp.made} == {(str(file), 99)}


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            "class Llama:\n    def __init__(self, *a, **k): pass\n    def eval(self, tokens): pass",
            "",
        ),
        ("import os, signal\ndef Llama(*a, **k): os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("def Llama(*a, **k): raise ValueError('no such file')", "status 1"),
    ],
)
def test_a_build_that_ends_its_process_is_left_out(module, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "llama_cpp.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    survived = benchmark_cpu.survives("llama.cpp-Q8_0", tmp_path / "q8.gguf", True)
    said = capsys.readouterr().out
    assert survived == (not says)
    assert says in said and ("llama.cpp-Q8_0 is left out" in said) == bool(says)


def test_the_build_of_llama_cpp_is_told_as_far_as_it_tells(llama_cpp, monkeypatch):
    told = {"llama-cpp-python": "1.2.3", "built for": "CPU : AVX2 = 1 FMA = 1"}
    assert benchmark_cpu.build_of_llama_cpp() == told
    library = types.SimpleNamespace(ggml_commit=lambda: b"abc123")
    monkeypatch.setitem(sys.modules, "llama_cpp._ggml", types.SimpleNamespace(libggml=library))
    assert benchmark_cpu.build_of_llama_cpp() == told | {"ggml_commit": "abc123"}


def test_contexts_are_those_that_the_model_takes(monkeypatch, tmp_path):
    """The default leaves out what is too long; what was asked for by name is refused."""
    asked = []

    class Enough(Exception):
        pass

    def stop(options):
        asked.append(options.context)
        raise Enough

    monkeypatch.setattr(benchmark_cpu, "max_length", stop)
    for model in ("synthetic:llama-7b", "smollm2-135m"):
        command = ["benchmark_cpu.py", "--out", str(tmp_path), "--model", model]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(Enough):
            benchmark_cpu.main()
    assert asked == [[32, 512], [32, 512, 2048]]
