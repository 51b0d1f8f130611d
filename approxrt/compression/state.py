"""Keep on disk what a compression needs to go on after an interrupt at any moment.

The folder `OUT.work` holds identity.json (which run this is, and the version of what lies beside it), records as JSON
(each a dataclass of `approxrt.compression.records`), arrays, state.pt (a training) and candidate-N/ (finished
artifacts) with candidate-N.json. Every file is written whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from approxrt.artifact.layout import explain_os_error
from approxrt.compression.records import Candidate, from_json, to_json
from approxrt.errors import CompressionError, InputError

VERSION = 2  # of all records together: another one is refused, not guessed at

Record = TypeVar("Record")


class Work:
    """See the module's text. Raises InputError when the folder belongs to another run, or to another version."""

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.folder = out.with_name(out.name + ".work")
        wanted = json.loads(json.dumps({"version": VERSION, **identity}))
        known = self._json("identity")
        if known is None:
            self._write_json("identity", wanted)
            return
        if known.get("version") != VERSION:
            raise InputError(
                f"{str(self.folder)!r} was written by another version of approxrt (its state has version "
                f"{known.get('version', 1)}, this one reads {VERSION}): finish that run with the version that began "
                "it, or remove the folder to start anew"
            )
        changed = [f"{k}: {known.get(k)!r} -> {wanted[k]!r}" for k in wanted if known.get(k) != wanted[k]]
        if changed:
            raise InputError(
                f"{str(self.folder)!r} holds another unfinished run ({'; '.join(changed)}); "
                "repeat its command to go on with it, or remove the folder"
            )

    # -- records ----------------------------------------------------------------

    def load(self, name: str, kind: type[Record]) -> Record | None:
        """Return the record NAME.json; None when there is none. Raises CompressionError for a damaged one."""
        data = self._json(name)
        if data is None:
            return None
        try:
            return from_json(data, kind)
        except Exception as error:
            raise self._damaged(f"{name}.json", str(error)) from error

    def save(self, name: str, record: Any) -> None:
        """Write a record as NAME.json."""
        self._write_json(name, to_json(record))

    def load_array(self, name: str) -> np.ndarray:
        """Read NAME.npy."""
        array: np.ndarray = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        return array

    def save_array(self, name: str, array: np.ndarray) -> None:
        """Write NAME.npy."""
        self._atomic(f"{name}.npy", array, lambda file, value: np.save(file, value, allow_pickle=False))

    # -- tensors ----------------------------------------------------------------

    def save_tensors(self, name: str, state: Mapping[str, Any]) -> None:
        """Write NAME.pt: tensors, numbers and texts, nested as they are."""
        import torch

        self._atomic(f"{name}.pt", dict(state), lambda file, value: torch.save(value, file))

    def load_tensors(self, name: str) -> dict[str, Any] | None:
        """Read NAME.pt; None when there is none. Raises CompressionError for a damaged one."""
        import torch

        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            return state
        except Exception as error:
            raise CompressionError(f"{path} cannot be read ({error}); remove it to start its stage anew") from error

    # -- candidates ---------------------------------------------------------------

    def candidate_path(self, index: int) -> Path:
        """Return where the artifact of a candidate is written."""
        return self.folder / f"candidate-{index}"

    def candidates(self) -> list[Candidate]:
        """Return the finished ones, in order."""
        out: list[Candidate] = []
        while (found := self.load(f"candidate-{len(out)}", Candidate)) is not None:
            out.append(found)
        return out

    def add(self, candidate: Candidate) -> None:
        """Note the next finished candidate; its artifact is on disk already."""
        self.save(f"candidate-{len(self.candidates())}", candidate)

    @property
    def resumed(self) -> bool:
        """Tell whether there is something to go on from."""
        return (self.folder / "state.pt").exists() or bool(self.candidates())

    @property
    def finished(self) -> bool:
        """Tell whether a larger budget would change nothing."""
        return bool(self._json("finished")) and bool(self.candidates())

    def finish(self) -> None:
        """Note that nothing is left to try."""
        self._write_json("finished", True)

    def remove(self) -> None:
        """Remove the folder, when everything is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- files ----------------------------------------------------------------------

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self._damaged(f"{name}.json", str(error)) from error

    def _write_json(self, name: str, data: Any) -> None:
        self._atomic(f"{name}.json", (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())

    def _damaged(self, name: str, reason: str) -> CompressionError:
        return CompressionError(f"{self.folder / name} is damaged ({reason}); remove the folder")

    def _atomic(self, name: str, data: Any, save: Callable[[Any, Any], None] | None = None) -> None:
        target = self.folder / name
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                if save is None:
                    file.write(data)
                else:
                    save(file, data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            # torch reports a write that the system refused as a RuntimeError about its own buffers
            reason = explain_os_error(error) if isinstance(error, OSError) else (str(error).splitlines() or [""])[0]
            raise CompressionError(
                f"{target} cannot be written: {reason}. Is the disk full? Free some space, then repeat the command: "
                "it goes on from its last state"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
