"""What a compression keeps on disk beside its output: enough to go on after an interrupt at any moment.

The folder `OUT.work` holds identity.json (which run this is), baseline.json and plan.json (measured once), state.pt
(the training), and candidate-N/ (finished artifacts) with candidate-N.json. Every file is written whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.artifact.layout import explain_os_error
from approxrt.errors import CompressionError, InputError

if TYPE_CHECKING:
    from approxrt.torch_models.encoder import Student


@dataclass(frozen=True)
class Candidate:
    """A built artifact and what was measured of it.

    drop      relative loss of the first metric against the dense model (negative: better)
    speedup   over the fastest float32 engine, padding removed, in turns in one process
    shrink    float32 weights over the whole folder
    """

    path: str
    metrics: dict[str, float]
    drop: float
    flip_rate: float | None
    bytes: int
    shrink: float
    ms: float
    speedup: float
    times: dict[str, Any]
    about: dict[str, Any]


class Work:
    """See the module's text. Raises InputError when the folder belongs to another run."""

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.folder = out.with_name(out.name + ".work")
        wanted = json.loads(json.dumps(identity))
        known = self.read("identity")
        if known is not None:
            changed = [f"{k}: {known.get(k)!r} -> {wanted[k]!r}" for k in wanted if known.get(k) != wanted[k]]
            if changed:
                raise InputError(
                    f"{str(self.folder)!r} holds another unfinished run ({'; '.join(changed)}); "
                    "repeat its command to go on with it, or remove the folder"
                )
        else:
            self.write("identity", wanted)

    @property
    def resumed(self) -> bool:
        """There is something to go on from."""
        return (self.folder / "state.pt").exists() or bool(self.candidates())

    def read(self, name: str) -> Any:
        """The content of NAME.json; None when there is none."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CompressionError(f"{self.folder / name}.json is damaged ({error}); remove the folder") from error

    def write(self, name: str, data: Any) -> None:
        """Write NAME.json atomically."""
        self._atomic(f"{name}.json", (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())

    def save_array(self, name: str, array: np.ndarray) -> None:
        """Write NAME.npy."""
        self._atomic(f"{name}.npy", array, lambda file, value: np.save(file, value, allow_pickle=False))

    def load_array(self, name: str) -> np.ndarray:
        """Read NAME.npy."""
        array: np.ndarray = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        return array

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the training's state."""
        import torch

        self._atomic("state.pt", dict(state), lambda file, value: torch.save(value, file))

    def load_state(self) -> dict[str, Any] | None:
        """The training's state; None when there is none yet."""
        import torch

        path = self.folder / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            return state
        except Exception as error:
            raise CompressionError(f"{path} cannot be read ({error}); remove it to start its stage anew") from error

    def save_weights(self, name: str, student: Student) -> None:
        """Keep a trained member's weights."""
        import torch

        weights = {key: student.weight(key).detach() for key in student.names() if student.weight(key).requires_grad}
        self._atomic(f"{name}.pt", weights, lambda file, value: torch.save(value, file))

    def load_weights(self, name: str, student: Student) -> bool:
        """Put kept weights into a student; false where there are none."""
        import torch

        path = self.folder / f"{name}.pt"
        if not path.exists():
            return False
        with torch.no_grad():
            for key, value in torch.load(path, weights_only=True).items():
                student.weight(key).copy_(value)
        return True

    def candidate_path(self, index: int) -> Path:
        """Where the artifact of a stage is written."""
        return self.folder / f"candidate-{index}"

    def candidates(self) -> list[Candidate]:
        """Finished ones, in order."""
        out: list[Candidate] = []
        while (data := self.read(f"candidate-{len(out)}")) is not None:
            out.append(Candidate(**data))
        return out

    def add(self, candidate: Candidate) -> None:
        """Note the next finished candidate; its artifact is on disk already."""
        self.write(f"candidate-{len(self.candidates())}", asdict(candidate))

    def remove(self) -> None:
        """Everything is done: the folder goes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _atomic(self, name: str, data: Any, save: Any = None) -> None:
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
