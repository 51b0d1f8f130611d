"""The weights of a checkpoint folder, whatever file holds them.

safetensors files are mapped and need neither torch nor transformers. A PyTorch
state dict goes through `torch.load(weights_only=True)`, which runs no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact import files
from approxrt.artifact.files import open_large, read_config
from approxrt.artifact.layout import unreadable
from approxrt.artifact.tensorfile import Tensor, open_tensor_file
from approxrt.errors import CheckpointError, MissingDependencyError

SAFETENSORS = "model.safetensors"
PYTORCH = "pytorch_model.bin"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by name. Raises CheckpointError naming the file."""
    for name, reader in ((SAFETENSORS, _read_safetensors), (PYTORCH, _read_pytorch)):
        if (folder / name).exists():
            return reader(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                tensors |= reader(shard)
            return tensors
    raise CheckpointError(
        f"checkpoint {str(folder)!r} has no weights: {SAFETENSORS}, {SAFETENSORS}.index.json, "
        f"{PYTORCH} or {PYTORCH}.index.json is needed"
    )


# What torch.nn.DataParallel, torch.compile and Lightning put before every tensor's name.
WRAPPERS = ("module.", "_orig_mod.", "model.")


def unwrap(tensors: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], str]:
    """The tensors without what a training framework put before their names, and what that was.

    `prefix` is the family's own. Tensors outside the wrapper (a loss's, say) keep their names. Raises CheckpointError
    for an encoder that lies under another name.
    """
    anchor = "embeddings.word_embeddings.weight"
    found = [name.removesuffix(anchor) for name in tensors if name.endswith(anchor)]
    if not found or any(lead in ("", prefix) for lead in found):
        return tensors, ""
    lead = wrapper = found[0]
    while lead.startswith(WRAPPERS):
        lead = next(lead.removeprefix(name) for name in WRAPPERS if lead.startswith(name))
    if lead not in ("", prefix):
        raise CheckpointError(
            f"the encoder's tensors are called {found[0]}...; {prefix}... or no prefix is needed, or one of "
            f"{', '.join(WRAPPERS)} before it: rename them"
        )
    wrapper = wrapper.removesuffix(lead) if lead else wrapper
    return {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}, wrapper


def _shards(index: Path) -> Sequence[Path]:
    """The files that an index names, each once. Only names within the folder are followed."""
    data = read_json(index)
    weight_map = data.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no object `weight_map`")
    shards = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} lies outside the checkpoint's folder")
        shard = index.parent / name
        if not shard.exists():
            raise CheckpointError(f"{index} names the shard {name!r}, which is missing")
        shards.append(shard)
    return shards


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        file = open_tensor_file(path)
    except OSError as error:
        raise CheckpointError(unreadable(str(path), error)) from error
    if file.faults:
        raise CheckpointError(f"{path} is damaged: " + "; ".join(file.faults[:5]))
    return file.tensors


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError("torch", "compress", f"reading {path.name}") from None
    try:
        open_large(path).close()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(unreadable(str(path), error)) from error
    except Exception as error:
        # torch raises UnpicklingError, RuntimeError, EOFError, KeyError ... for damaged or unsafe files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is not a PyTorch state dict that can be loaded safely: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            continue
        value = value.detach().contiguous()
        if value.dtype == torch.bfloat16:
            tensors[str(name)] = Tensor("BF16", value.view(torch.int16).numpy().view(np.uint16))
        else:
            array = value.numpy()
            tensors[str(name)] = Tensor(_TORCH_NAMES.get(str(value.dtype), str(value.dtype)), array)
    return tensors


_TORCH_NAMES = {"torch.float32": "F32", "torch.float16": "F16", "torch.float64": "F64"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint. Raises CheckpointError naming the file."""
    data = read_any_json(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def read_any_json(path: Path) -> Any:
    """Whatever JSON a file of the checkpoint holds. Raises CheckpointError naming the file."""
    try:
        return read_config(path)
    except OSError as error:
        raise CheckpointError(unreadable(str(path), error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def read_text(path: Path) -> str:
    """The text of a file of the checkpoint. Raises CheckpointError naming the file."""
    try:
        return files.read_text(path)
    except OSError as error:
        raise CheckpointError(unreadable(str(path), error)) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no UTF-8 text: byte {error.start} is invalid") from error


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The same; nothing of a file that does not exist."""
    return read_json(path) if path.exists() else {}
