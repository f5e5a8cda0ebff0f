"""The benchmark's command line: what it cannot measure it refuses in one line, before it loads."""

import sys

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
