"""Write an artifact folder, whole or not at all.

Everything goes into a temporary sibling folder that is synced to disk and then
renamed to its final name: one atomic step. An existing artifact is swapped with
the new one by renameat2(RENAME_EXCHANGE), so at every moment one whole artifact
has the name. A killed write leaves at most a hidden temporary folder, which the
next write to the same name removes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from approxrt.artifact.files import UnsuitableFile, parse_json, read_config
from approxrt.artifact.layout import CARD, CONFIG, TOKENIZER, WEIGHTS, explain_os_error, umask
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder import AnySpec, DecoderSpec
from approxrt.artifact.spec.decoder_schema import decoder_faults
from approxrt.artifact.spec.encoder import FORMAT_NAME, FORMAT_VERSION
from approxrt.artifact.spec.encoder_schema import encoder_faults
from approxrt.artifact.tensors import tensor_faults
from approxrt.artifact.tokenizer import parse_tokenizer
from approxrt.errors import ArtifactError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


# The folder of a written artifact -> what the card should say of it, too
Check = Callable[[Path], Mapping[str, Any]]


def write_artifact(
    path: str | os.PathLike[str],
    spec: AnySpec,
    tensors: Mapping[str, np.ndarray],
    tokenizer_json: bytes,
    card: Mapping[str, Any],
    overwrite: bool = False,
    check: Check | None = None,
) -> Path:
    """Write the artifact and return its path.

    `tensors` has the names, dtypes and shapes that `spec` asks for
    (`ModelSpec.dense_tensors`, plus the `TILE_PARTS` of block-sparse linears);
    `tokenizer_json` is the content of a `tokenizers` file. With `overwrite` an
    existing artifact (nothing else) at `path` is replaced. Raises ArtifactError
    with every fault of the content before anything is written, or naming the
    path and the mend when the disk refuses.

    What was written is read back, with the reader's own checks, before it gets its name; then it is given to `check`.
    What that returns is added to the card. Whatever is raised, nothing is left at `path` but what was there.
    """
    target = Path(os.path.abspath(os.path.realpath(path)))
    faults = _content_faults(spec, tensors, tokenizer_json, card)
    if faults:
        raise ArtifactError(target, [f"not written: {fault}" for fault in faults])
    check_target(target, overwrite)
    weights = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    config = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "model": spec.to_json(),
        "files": {WEIGHTS: _fingerprint(weights), TOKENIZER: _fingerprint(tokenizer_json)},
    }
    files = {
        WEIGHTS: weights,
        TOKENIZER: tokenizer_json,
        CARD: _to_json(card),
        CONFIG: _to_json(config),
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        _write_and_rename(target, files, check, card)
    except OSError as error:
        raise ArtifactError(target, [f"cannot be written: {explain_os_error(error)}"]) from error
    return target


def check_target(target: Path, overwrite: bool) -> None:
    """Raise ArtifactError when `target` exists and may not be replaced: callers ask before long work."""
    try:
        if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
            return
        if not target.is_dir():
            raise ArtifactError(target, ["exists and is not a folder; choose another name for the artifact"])
        if not _is_artifact(target):
            raise ArtifactError(
                target, ["exists and is not an approxrt artifact, so it is not replaced; choose another name"]
            )
        if not overwrite:
            raise ArtifactError(target, ["exists already; pass overwrite=True (--overwrite) to replace it"])
    except OSError as error:
        raise ArtifactError(target, [f"cannot be written: {explain_os_error(error)}"]) from error


# -- content ------------------------------------------------------------------


def _content_faults(
    spec: AnySpec, tensors: Mapping[str, np.ndarray], tokenizer_json: bytes, card: Mapping[str, Any]
) -> list[str]:
    faults = decoder_faults(spec) if isinstance(spec, DecoderSpec) else encoder_faults(spec)
    if not faults:
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        faults += tensor_faults(spec, contiguous)
    faults += _tokenizer_faults(tokenizer_json, spec, sound=not faults)
    for name, data in ((CARD, card), ("model.extra", spec.extra)):
        try:
            _to_json(data)
        except (TypeError, ValueError, RecursionError) as error:
            faults.append(f"{name} cannot be written as JSON: {error}")
    return faults


def _tokenizer_faults(tokenizer_json: bytes, spec: AnySpec, sound: bool) -> list[str]:
    """Return what is wrong with the tokenizer; its ids are compared with the rows of a `sound` spec's table."""
    try:
        if not isinstance(parse_json(tokenizer_json), dict):
            return [f"{TOKENIZER} is not a JSON object"]
    except ValueError as error:
        return [f"{TOKENIZER} is not valid JSON: {error}"]
    try:
        if sound:
            parse_tokenizer(tokenizer_json, spec.vocab_size)
    except ValueError as error:
        return [f"{TOKENIZER} {error}"]
    return []


def _to_json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# -- disk ---------------------------------------------------------------------


def _is_artifact(folder: Path) -> bool:
    try:
        config = read_config(folder / CONFIG)
    except (FileNotFoundError, NotADirectoryError, UnsuitableFile, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT_NAME


def _prefix(target: Path) -> str:
    return f".{target.name}.writing-"


def _write_and_rename(target: Path, files: Mapping[str, bytes], check: Check | None, card: Mapping[str, Any]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    lock = -1
    try:
        # Held until this process ends or is done: tells a live write from an abandoned one.
        lock = os.open(temporary, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.chmod(temporary, 0o777 & ~umask())
        for name, data in files.items():
            _write_file(temporary / name, data)
        _read_back(temporary, target)
        found = {} if check is None else check(temporary)
        if found:
            _write_file(temporary / CARD, _to_json({**card, **found}))
            _read_back(temporary, target)
        _sync_folder(temporary)
        if target.exists():
            _exchange(temporary, target)
        else:
            os.rename(temporary, target)
        _sync_folder(target.parent)
    finally:
        if lock >= 0:
            os.close(lock)
        # After an exchange this is the old artifact; after a failure, what was written so far.
        shutil.rmtree(temporary, ignore_errors=True)


def _read_back(written: Path, target: Path) -> None:
    """Raise ArtifactError, in the name of `target`, if what was written does not load."""
    try:
        read_artifact(written, mmap=True)
    except ArtifactError as error:
        raise ArtifactError(target, [f"not written: {fault}" for fault in error.faults]) from None


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders' names. Atomic where the kernel and file system can, else by two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = (os.fsencode(new), os.fsencode(old))
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(old))
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old-", dir=old.parent)) / old.name
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    shutil.rmtree(aside.parent, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Delete temporary folders of writes that were killed: nobody holds their lock any more."""
    for folder in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(handle)
