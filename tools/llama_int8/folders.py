"""Model folders that are not what they should be: each kind is told apart, with what to do."""

import json
from pathlib import Path

from llama_int8.errors import ModelFilesError
from llama_int8.names import did_you_mean

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".xz", ".zst")
GGUF = (
    "GGUF files are not read: take the model in Hugging Face's format (config.json with "
    "*.safetensors) that the file was made from, and give its folder"
)
CONVERT = (
    "the course loads safetensors only, since other files can run code. Where you trust it, convert "
    "it: transformers.AutoModelForCausalLM.from_pretrained({!r}).save_pretrained('NEW_FOLDER'), and "
    "copy the tokenizer's files there"
)


def check_model_folder(folder: Path, meta_too: bool = False) -> None:
    """Raise ModelFilesError, with what to do, for a folder of a kind that is not read here.

    `meta_too`: the caller also reads Meta's format. A folder in which a file is missing or damaged
    passes: whoever reads the file reports it.
    """
    names = {path.name for path in folder.iterdir()}
    if not names:
        raise ModelFilesError(
            f"{folder} is empty; give the folder that holds the model's files (config.json, "
            "model.safetensors, tokenizer.json)"
        )
    if "adapter_config.json" in names:
        raise ModelFilesError(_adapter(folder))
    if "config.json" not in names:
        _check_without_config(folder, names, meta_too)
    elif not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        _check_weights_kind(folder, names)


def _check_without_config(folder: Path, names: set[str], meta_too: bool) -> None:
    snapshots = [*folder.glob("snapshots/*/config.json"), *folder.glob("*/snapshots/*/config.json")]
    if snapshots:
        raise ModelFilesError(
            f"{folder} is the hub's cache, not a model's folder; give {_either(snapshots)}"
        )
    pickles = [n for n in names if n.startswith("consolidated.") and n.endswith(".pth")]
    if "params.json" in names or pickles:
        if not meta_too:
            raise ModelFilesError(
                f"{folder} is in Meta's format (params.json, consolidated.*.pth), and this reads "
                "Hugging Face's format only; Llama.from_pretrained and `course.py generate` read "
                "Meta's. Here give a folder with config.json and *.safetensors"
            )
        return
    _check_weights_kind(folder, names)
    if inside := list(folder.glob("*/config.json")):
        raise ModelFilesError(
            f"{folder} has no config.json, but a folder in it has; give {_either(inside)}"
        )
    if folder.name.startswith("models--") or "snapshots" in names:
        raise ModelFilesError(
            f"{folder} is the hub's cache of a model, and holds no complete snapshot; fetch the "
            "model again"
        )


def _check_weights_kind(folder: Path, names: set[str]) -> None:
    """Refuse weights that are there only in another kind of file."""
    if any(name.endswith(".safetensors") for name in names):
        return
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    pickles = sorted(name for name in names if name.lower().endswith(PICKLES))
    pickles = [name for name in pickles if name != "training_args.bin"]
    if pickles:
        raise ModelFilesError(
            f"{folder} holds its weights as {pickles[0]}; {CONVERT.format(str(folder))}"
        )
    if ggufs:
        raise ModelFilesError(f"{folder} holds its weights as {ggufs[0]}. {GGUF}")


def _adapter(folder: Path) -> str:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8-sig"))
        base = str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        base = "BASE_MODEL"
    return (
        f"{folder} holds an adapter (adapter_config.json; LoRA, most often), not a whole model. Merge "
        "it into its base model first: peft.AutoPeftModelForCausalLM.from_pretrained("
        f"{str(folder)!r}).merge_and_unload().save_pretrained('NEW_FOLDER') (base: {base}), and copy "
        "the tokenizer's files there"
    )


def explain_file(path: Path) -> str:
    """Say what to give instead of a file."""
    kind = path.suffix.lower()
    if kind == ".gguf":
        return f"{path} is a GGUF file. {GGUF}"
    if kind in ARCHIVES:
        return f"{path} is a packed file; unpack it and give the folder that holds config.json"
    beside = [name for name in ("config.json", "params.json") if (path.parent / name).exists()]
    if kind in PICKLES and not beside:
        return f"{path} is a file; {CONVERT.format(str(path.parent))}"
    if beside:
        return f"{path} is a file; give the folder that it is in: {path.parent}"
    return (
        f"{path} is a file; give a folder that holds a model's files (config.json, *.safetensors)"
    )


def explain_missing(folder: Path) -> str:
    """How far a path leads, and the name there that was meant."""
    if folder.is_symlink():
        return f"{folder} is a link to {folder.readlink()}, which does not exist"
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if not there.is_dir():
        return f"the folder {folder} does not exist: {there} is a file"
    wanted = folder.absolute().relative_to(there).parts[0]
    near = did_you_mean(wanted, [str(path.name) for path in there.iterdir()])
    return f"the folder {folder} does not exist; {there} exists and holds no {wanted!r}{near}"


def _either(configs: list[Path]) -> str:
    """Up to three folders to choose from, by the config.json in each."""
    folders = sorted(str(path.parent) for path in configs)
    more = f" (or one of {len(folders) - 3} more)" if len(folders) > 3 else ""
    return " or ".join(folders[:3]) + more
