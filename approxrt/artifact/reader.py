"""Open an artifact folder: mapped, not copied, and checked in full before anything runs.

Needs numpy only. A fault is never the end of the search: everything that is
wrong is collected and raised together in one ArtifactError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.layout import (
    CARD,
    CONFIG,
    HASHED,
    IGNORED,
    MAX_JSON_BYTES,
    REQUIRED,
    TOKENIZER,
    WEIGHTS,
    explain_os_error,
)
from approxrt.artifact.mapped import MappedFile
from approxrt.artifact.spec.decoder import TASK, AnySpec, DecoderSpec
from approxrt.artifact.spec.decoder_schema import decoder_from_json
from approxrt.artifact.spec.encoder import FORMAT_NAME, FORMAT_VERSION, ModelSpec
from approxrt.artifact.spec.encoder_schema import encoder_from_json
from approxrt.artifact.tensorfile import parse_json, tensors_of
from approxrt.artifact.tensors import tensor_faults
from approxrt.errors import ArtifactError, UnsupportedTaskError


@dataclass(frozen=True)
class Artifact:
    """A sound artifact. `tensors` are read-only views into a memory map of model.safetensors."""

    path: Path
    any_spec: AnySpec
    tensors: Mapping[str, np.ndarray]
    tokenizer_path: Path
    card: dict[str, Any]
    weights: MappedFile

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

    def release_pages(self) -> None:
        """Drop the pages of the map from this process's memory: for when the weights have been copied."""
        self.weights.release_pages()


def read_artifact(path: str | os.PathLike[str], weights: MappedFile | None = None) -> Artifact:
    """Open and validate the artifact at `path`. Raises ArtifactError that lists every fault.

    `weights` is its weights file, if the caller mapped it early to have it hashed meanwhile.
    """
    folder = Path(path)
    present, faults = _look_into(folder)
    if not present:
        raise ArtifactError(folder, faults)
    config = _read_json(folder, CONFIG, faults) if CONFIG in present else None
    card = _read_json(folder, CARD, faults) if CARD in present else None
    if config is not None:
        version_faults = _version_faults(config)
        if version_faults:
            # Another version's fields and tensors would be judged by the wrong rules: say this alone.
            raise ArtifactError(folder, version_faults)
    weights = _map_weights(folder, weights, faults) if WEIGHTS in present else None
    spec: AnySpec | None = None
    if config is not None:
        model = config.get("model")
        decoder = isinstance(model, dict) and model.get("task_type") == TASK
        spec, spec_faults = decoder_from_json(model) if decoder else encoder_from_json(model)
        faults += spec_faults
    tensors: dict[str, np.ndarray] = {}
    if weights is not None:
        file = tensors_of(WEIGHTS, weights.buffer)
        faults += file.faults
        for name, tensor in file.tensors.items():
            if tensor.dtype == "BF16":
                # Its views are uint16, which must not pass for tile indices.
                faults.append(f"tensor {name!r} is BF16, which no artifact holds")
            else:
                tensors[name] = tensor.data
        if spec is not None and not file.faults:
            faults += tensor_faults(spec, tensors)
    if config is not None:
        faults += _fingerprint_faults(folder, present, config, weights)
    if faults or spec is None or card is None or weights is None:
        raise ArtifactError(folder, faults)
    return Artifact(folder, spec, tensors, folder / TOKENIZER, card, weights)


def _look_into(folder: Path) -> tuple[set[str], list[str]]:
    """Return (the artifact's files that are there, faults); no files when the folder is not worth reading."""
    try:
        if not folder.exists():
            return set(), ["does not exist; check the path, or make it with `approxrt convert`"]
        if not folder.is_dir():
            return set(), ["is a file, not a folder; an artifact is the folder that `approxrt convert` wrote"]
        names = {entry.name: entry.is_file() for entry in os.scandir(folder)}
    except OSError as error:
        return set(), [f"cannot be read: {explain_os_error(error)}"]
    if CONFIG in names and CARD not in names and {"tokenizer_config.json", "vocab.txt", "vocab.json"} & set(names):
        return set(), [
            f"has no {CARD}: this looks like a Hugging Face checkpoint; make an artifact of it with `approxrt convert`"
        ]
    faults = []
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        faults.append(f"missing files: {', '.join(missing)}")
    faults += [f"{name} is not a regular file" for name in REQUIRED if not names.get(name, True)]
    extra = sorted(name for name in names if name not in REQUIRED + IGNORED and not name.startswith("."))
    if extra:
        more = f" and {len(extra) - 8} more" if len(extra) > 8 else ""
        faults.append(f"files that are not part of an artifact: {', '.join(extra[:8])}{more}")
    return {name for name in REQUIRED if names.get(name)}, faults


def _read_json(folder: Path, name: str, faults: list[str]) -> dict[str, Any] | None:
    try:
        size = (folder / name).stat().st_size
        if size > MAX_JSON_BYTES:
            faults.append(f"{name} has {size} bytes; the limit is {MAX_JSON_BYTES}")
            return None
        data = parse_json((folder / name).read_bytes())
    except OSError as error:
        faults.append(f"{name} cannot be read: {explain_os_error(error)}")
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
            f"{CONFIG} says format {str(config.get('format'))[:40]!r}, not {FORMAT_NAME!r}: not an approxrt artifact; "
            "a Hugging Face checkpoint becomes one with `approxrt convert`"
        ]
    version = config.get("format_version")
    if type(version) is not int or version < 1:
        return [f"{CONFIG} says format_version {str(version)[:40]!r}; this approxrt reads version {FORMAT_VERSION}"]
    if version > FORMAT_VERSION:
        return [
            f"has format version {str(version)[:40]}; this approxrt reads version {FORMAT_VERSION}: "
            "upgrade approxrt (pip install --upgrade approxrt)"
        ]
    return []


def _map_weights(folder: Path, early: MappedFile | None, faults: list[str]) -> MappedFile | None:
    """The weights, hashed in the background while their tensors are checked."""
    if early is not None and early.is_still(folder / WEIGHTS):
        return early
    try:
        return MappedFile(folder / WEIGHTS)
    except OSError as error:
        faults.append(f"{WEIGHTS} cannot be read: {explain_os_error(error)}")
        return None


def _fingerprint_faults(
    folder: Path, present: set[str], config: dict[str, Any], weights: MappedFile | None
) -> Iterator[str]:
    """Sizes and SHA-256 of the recorded files against what is there."""
    recorded = config.get("files")
    if not isinstance(recorded, dict):
        yield f"{CONFIG} has no object `files` with sizes and checksums"
        return
    for name in HASHED:
        entry = recorded.get(name)
        if not isinstance(entry, dict) or type(entry.get("size")) is not int:
            yield f"{CONFIG}: files[{name!r}] needs size and sha256"
            continue
        if name not in present or (name == WEIGHTS and weights is None):
            continue  # said already
        try:
            file = weights if name == WEIGHTS and weights is not None else MappedFile(folder / name)
        except OSError as error:
            yield f"{name} cannot be read: {explain_os_error(error)}"
            continue
        if file.size != entry["size"]:
            yield (
                f"{name} has {file.size} bytes, {CONFIG} says {str(entry['size'])[:40]}: truncated or changed; "
                "copy or convert it again"
            )
        elif file.sha256() != entry.get("sha256"):
            yield f"{name} does not match its SHA-256: damaged or changed; copy or convert it again"
