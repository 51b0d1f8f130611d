"""The sentence-transformers files around an encoder: pooling, normalisation, maximum length.

`modules.json` lists a chain of modules; Transformer, Pooling (cls or mean) and
Normalize are what the engine runs. Anything else (a Dense layer, max pooling,
a default prompt) would change the embedding and is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from approxrt.artifact.tensorfile import parse_json
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.base import Pooling
from approxrt.models.weights import read_json, read_json_if_there

MODULES = "modules.json"
_SUPPORTED = "supported: Transformer, Pooling (cls or mean), Normalize"


def read_pooling(folder: Path) -> Pooling | None:
    """The pooling of a sentence-transformers folder; None when the folder is not one."""
    path = folder / MODULES
    if not path.exists():
        return None
    try:
        modules = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} is not a list of modules")
    mode, normalize = None, False
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            mode = _mode(read_json(_inside(folder, module.get("path")) / "config.json"))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedModelError(f"sentence-transformers module {kind!r} is not supported; {_SUPPORTED}")
    if mode is None:
        raise UnsupportedModelError(f"{path} has no Pooling module: token embeddings are not supported; {_SUPPORTED}")
    prompt = read_json_if_there(folder / "config_sentence_transformers.json").get("default_prompt_name")
    if prompt:
        raise UnsupportedModelError(
            f"default_prompt_name {prompt!r} puts a prompt before every text, which is not supported; "
            "put it into the texts yourself and set default_prompt_name to null"
        )
    return Pooling(mode, normalize)


def max_seq_length(folder: Path) -> int | None:
    """`max_seq_length` of sentence_bert_config.json, in tokens."""
    data = read_json_if_there(folder / "sentence_bert_config.json")
    if data.get("do_lower_case"):
        raise UnsupportedModelError(
            "do_lower_case=true in sentence_bert_config.json is not supported; "
            "lower-case in the tokenizer's normalizer instead"
        )
    length = data.get("max_seq_length")
    return length if type(length) is int and length > 0 else None


def _mode(config: dict[str, Any]) -> str:
    modes = {
        key.removeprefix("pooling_mode_"): value for key, value in config.items() if key.startswith("pooling_mode_")
    }
    chosen = [key for key, value in modes.items() if value]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [config["pooling_mode"]]
    names = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean"}
    if len(chosen) != 1 or chosen[0] not in names:
        raise UnsupportedModelError(f"pooling {' + '.join(chosen) or 'none'} is not supported; {_SUPPORTED}")
    return names[chosen[0]]


def _inside(folder: Path, name: Any) -> Path:
    path = (folder / str(name)).resolve()
    if folder.resolve() not in path.parents:
        raise CheckpointError(f"{folder / MODULES}: module path {name!r} lies outside the checkpoint's folder")
    return path
