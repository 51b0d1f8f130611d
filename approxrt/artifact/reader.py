"""Open an artifact folder: read once, and checked in full before anything runs.

Needs numpy only. A fault is never the end of the search: everything that is
wrong is collected and raised together in one ArtifactError.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.early import open_file
from approxrt.artifact.files import read_bounded, read_config
from approxrt.artifact.layout import (
    CARD,
    CONFIG,
    HASHED,
    IGNORED,
    REQUIRED,
    TOKENIZER,
    WEIGHTS,
    explain_os_error,
    unreadable,
)
from approxrt.artifact.mapped import WeightsFile
from approxrt.artifact.spec.decoder import TASK, AnySpec, DecoderSpec
from approxrt.artifact.spec.decoder_schema import decoder_from_json
from approxrt.artifact.spec.encoder import FORMAT_NAME, FORMAT_VERSION, ModelSpec
from approxrt.artifact.spec.encoder_schema import encoder_from_json
from approxrt.artifact.tensorfile import tensors_of
from approxrt.artifact.tensors import tensor_faults
from approxrt.errors import ArtifactError, UnsupportedTaskError

# Weights of another size than config.json says are copied up to here, so that all their faults are told at once.
_LOOKED_AT = 64 << 20


@dataclass(frozen=True)
class Artifact:
    """A sound artifact: what its files held when they were read, once.

    tensors         read-only views into this process's copy of model.safetensors, or into a map of it
    tensor_bytes    size of each tensor
    tokenizer_json  the content of tokenizer.json, which was hashed
    files           size of each file in the folder
    weights         what `tensors` are views into; None once they are gone
    """

    path: Path
    any_spec: AnySpec
    tensors: Mapping[str, np.ndarray]
    tensor_bytes: Mapping[str, int]
    tokenizer_json: bytes
    card: dict[str, Any]
    files: Mapping[str, int]
    weights: WeightsFile | None

    @property
    def spec(self) -> ModelSpec:
        """An encoder's spec. Raises UnsupportedTaskError for a decoder."""
        if isinstance(self.any_spec, ModelSpec):
            return self.any_spec
        raise UnsupportedTaskError(
            f"{str(self.path)!r} is a {self.any_spec.architecture} decoder; this needs an encoder: use generate, "
            "or eval --task lm"
        )

    @property
    def decoder_spec(self) -> DecoderSpec:
        """A decoder's spec. Raises UnsupportedTaskError for an encoder."""
        if isinstance(self.any_spec, DecoderSpec):
            return self.any_spec
        raise UnsupportedTaskError(
            f"{str(self.path)!r} is a {self.any_spec.architecture} encoder for {self.any_spec.task_type}; "
            "this needs a decoder"
        )

    def without_weights(self) -> Artifact:
        """Return what is left to know once an engine has packed the weights: which tiles there are, and all sizes.

        The memory of the weights is freed with the last view into it.
        """
        if self.weights is not None:
            self.weights.release_pages()
        kept = {name: array.copy() for name, array in self.tensors.items() if name.endswith(_TILE_PLACES)}
        return dataclasses.replace(self, tensors=kept, tokenizer_json=b"", weights=None)


# What `approxrt.artifact.summary` looks into.
_TILE_PLACES = (".indices", ".indptr")


@dataclass(frozen=True)
class _Opening:
    """Say how the weights are opened: what the caller has opened already, and whether they are mapped."""

    early: WeightsFile | None
    mmap: bool


def read_artifact(path: str | os.PathLike[str], weights: WeightsFile | None = None, mmap: bool = False) -> Artifact:
    """Open and validate the artifact at `path`. Raises ArtifactError that lists every fault.

    `weights` is its weights file, if the caller opened it early to have it hashed meanwhile; it is opened anew when it
    was replaced since. `mmap` reads the weights where they lie, as `approxrt.load` says.
    """
    folder = Path(path)
    files, faults = _look_into(folder)
    present = {name for name in REQUIRED if name in files}
    if not present:
        raise ArtifactError(folder, faults)
    config = _read_json(folder, CONFIG, faults) if CONFIG in present else None
    card = _read_json(folder, CARD, faults) if CARD in present else None
    if config is not None:
        version_faults = _version_faults(config)
        if version_faults:
            # Another version's fields and tensors would be judged by the wrong rules: say this alone.
            raise ArtifactError(folder, version_faults)
    recorded = _Recorded.of(config, faults)
    tokenizer_json = _read_tokenizer(folder, recorded, faults) if TOKENIZER in present else None
    weights = _open_weights(folder, recorded, _Opening(weights, mmap), faults) if WEIGHTS in present else None
    spec: AnySpec | None = None
    if config is not None:
        model = config.get("model")
        decoder = isinstance(model, dict) and model.get("task_type") == TASK
        spec, spec_faults = decoder_from_json(model) if decoder else encoder_from_json(model)
        faults += spec_faults
    tensors = {} if weights is None else _read_tensors(weights, spec, faults)
    if weights is not None:
        faults += recorded.faults(WEIGHTS, weights.size, weights.sha256)
    if faults or spec is None or card is None or weights is None or tokenizer_json is None:
        raise ArtifactError(folder, faults)
    sizes = {name: array.nbytes for name, array in tensors.items()}
    return Artifact(folder, spec, tensors, sizes, tokenizer_json, card, files, weights)


def _look_into(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return (size of each regular file, faults); no files when the folder is not worth reading."""
    try:
        if not folder.exists():
            return {}, ["does not exist; check the path, or make it with `approxrt convert`"]
        if not folder.is_dir():
            return {}, ["is a file, not a folder; an artifact is the folder that `approxrt convert` wrote"]
        with os.scandir(folder) as entries:
            names = {entry.name: entry.stat().st_size if entry.is_file() else None for entry in entries}
    except OSError as error:
        return {}, [f"cannot be read: {explain_os_error(error)}"]
    if CONFIG in names and CARD not in names and {"tokenizer_config.json", "vocab.txt", "vocab.json"} & set(names):
        return {}, [
            f"has no {CARD}: this looks like a Hugging Face checkpoint; make an artifact of it with `approxrt convert`"
        ]
    faults = []
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        faults.append(f"missing files: {', '.join(missing)}")
    faults += [f"{name} is not a regular file" for name in REQUIRED if name in names and names[name] is None]
    extra = sorted(name for name in names if name not in REQUIRED + IGNORED and not name.startswith("."))
    if extra:
        more = f" and {len(extra) - 8} more" if len(extra) > 8 else ""
        faults.append(f"files that are not part of an artifact: {', '.join(extra[:8])}{more}")
    return {name: size for name, size in sorted(names.items()) if size is not None}, faults


def _read_json(folder: Path, name: str, faults: list[str]) -> dict[str, Any] | None:
    try:
        data = read_config(folder / name)
    except OSError as error:
        faults.append(unreadable(name, error))
        return None
    except ValueError as error:
        faults.append(f"{name} is not valid JSON: {error}")
        return None
    if not isinstance(data, dict):
        faults.append(f"{name} is not a JSON object")
        return None
    return data


def _version_faults(config: dict[str, Any]) -> list[str]:
    if config.get("format") != FORMAT_NAME:
        return [
            f"{CONFIG} says format {_short(config.get('format'))}, not {FORMAT_NAME!r}: not an approxrt artifact; "
            "a Hugging Face checkpoint becomes one with `approxrt convert`"
        ]
    version = config.get("format_version")
    if type(version) is not int or version < 1:
        return [f"{CONFIG} says format_version {_short(version)}; this approxrt reads version {FORMAT_VERSION}"]
    if version > FORMAT_VERSION:
        return [
            f"has format version {str(version)[:40]}; this approxrt reads version {FORMAT_VERSION}: "
            "upgrade approxrt (pip install --upgrade approxrt)"
        ]
    return []


def _short(value: Any) -> str:
    return repr(str(value)[:40])


@dataclass(frozen=True)
class _Recorded:
    """The sizes and SHA-256 that config.json records, by file."""

    entries: Mapping[str, dict[str, Any]]

    @staticmethod
    def of(config: dict[str, Any] | None, faults: list[str]) -> _Recorded:
        files = {} if config is None else config.get("files")
        if not isinstance(files, dict):
            faults.append(f"{CONFIG} has no object `files` with sizes and checksums")
            return _Recorded({})
        entries = {}
        for name in HASHED if config is not None else ():
            entry = files.get(name)
            if isinstance(entry, dict) and type(entry.get("size")) is int:
                entries[name] = entry
            else:
                faults.append(f"{CONFIG}: files[{name!r}] needs size and sha256")
        return _Recorded(entries)

    def has_size(self, name: str, size: int) -> bool:
        """Tell whether the file has this size, as far as is known."""
        return name not in self.entries or self.entries[name]["size"] == size

    def faults(self, name: str, size: int, sha256: Callable[[], str]) -> list[str]:
        """Size and SHA-256 of a recorded file against what is there."""
        if name not in self.entries:
            return []  # said already
        if not self.has_size(name, size):
            recorded = str(self.entries[name]["size"])[:40]
            return [
                f"{name} has {size} bytes, {CONFIG} says {recorded}: truncated or changed; copy or convert it again"
            ]
        if sha256() != self.entries[name].get("sha256"):
            return [f"{name} does not match its SHA-256: damaged or changed; copy or convert it again"]
        return []


def _read_tokenizer(folder: Path, recorded: _Recorded, faults: list[str]) -> bytes | None:
    try:
        data = read_bounded(folder / TOKENIZER)
    except OSError as error:
        faults.append(unreadable(TOKENIZER, error))
        return None
    faults += recorded.faults(TOKENIZER, len(data), lambda: hashlib.sha256(data).hexdigest())
    return data


def _open_weights(folder: Path, recorded: _Recorded, opening: _Opening, faults: list[str]) -> WeightsFile | None:
    """Return the weights, which a thread hashes while their tensors are checked."""
    path, early = folder / WEIGHTS, opening.early
    if early is not None and early.is_still(path):
        return early
    try:
        size = path.stat().st_size
        if size > _LOOKED_AT and not recorded.has_size(WEIGHTS, size):
            # Nobody waits for gigabytes to be read that do not belong here.
            faults += recorded.faults(WEIGHTS, size, str)
            return None
        return open_file(path, opening.mmap)
    except OSError as error:
        faults.append(unreadable(WEIGHTS, error))
        return None


def _read_tensors(weights: WeightsFile, spec: AnySpec | None, faults: list[str]) -> dict[str, np.ndarray]:
    """Return the tensors of the file, checked against `spec` if the file is sound."""
    try:
        file = tensors_of(WEIGHTS, weights.buffer, weights.header)
    except OSError as error:
        faults.append(unreadable(WEIGHTS, error))
        return {}
    faults += file.faults
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in file.tensors.items():
        if tensor.dtype == "BF16":
            # Its views are uint16, which must not pass for tile indices.
            faults.append(f"tensor {name[:200]!r} is BF16, which no artifact holds")
        else:
            tensors[name] = tensor.data
    if spec is not None and not file.faults:
        faults += tensor_faults(spec, tensors)
    return tensors
