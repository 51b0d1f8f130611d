"""Say on which device torch works, and what follows from it: the precision of products, the random state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from approxrt.errors import DeviceError, InputError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return torch's device of a name: "auto" (a GPU where there is one), "cpu" or "cuda" ("cuda:1").

    Raises InputError for another name, DeviceError for a GPU that is not there.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in DEVICES[1:] or (index and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise DeviceError(
                f"device {device!r} was asked for, and torch {torch.__version__} sees {count} CUDA device(s): "
                "use --device cpu, or install torch's build for CUDA and a driver (approxrt doctor shows what is there)"
            )
    return torch.device(device)


def has_bf16(device: str | torch.device = "cpu") -> bool:
    """Tell whether the device multiplies bfloat16 faster than float32."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """Return the context in which products are computed in bfloat16, or in what their operands are."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the generators that dropout on `device` draws from, for `set_random_state`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor] | torch.Tensor, device: torch.device) -> None:
    """Go on from `random_state`, or from a CPU's state alone, as saved runs from before there was a choice hold it."""
    if isinstance(state, torch.Tensor):
        state = {"cpu": state}
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
