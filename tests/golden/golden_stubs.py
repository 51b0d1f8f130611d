"""Replace all that depends on the machine or the hour: the clock, times of engines, and what the CPU is called.

Times follow bytes of weights instead, so that plans made of them are the same everywhere. A function is replaced in
every module that holds it, by whatever name, so that these stubs outlive moves of code.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import sys
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

import approxrt
from approxrt.artifact.spec.formats import FORMATS
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.cpu.engine import CpuEngine
from approxrt.significance import decoder_latency, latency, workload
from approxrt.torch_models import device

BYTES_PER_MS = 2000.0  # of weights in layers: some ten milliseconds for the models here
BASE_MS = 0.5
TICK = 1e-6  # seconds that the clock goes on whenever it is looked at


class Timed(SimpleNamespace):
    """Stands for a run of an engine that takes `ms`."""

    ms: float

    def __call__(self) -> None:
        return None


def milliseconds(tensors: Mapping[str, np.ndarray]) -> float:
    """Return the milliseconds that a model with these tensors is said to take."""
    size = sum(
        np.asarray(a).nbytes for name, a in tensors.items() if name.startswith("layers.") and ".norm." not in name
    )
    return BASE_MS + size / BYTES_PER_MS


def take_turns(runs: Mapping[str, Any], *args: Any, **options: Any) -> dict[str, workload.Timing]:
    """The times that runs stand for; a real one takes a millisecond."""
    out = {}
    for name, run in runs.items():
        ms = float(getattr(run, "ms", 1.0))
        out[name] = workload.Timing(ms, ms, ms, 1)
    return out


def measure_table(wanted: latency.BlockTimes, *args: Any, **options: Any) -> Any:
    """Times of blocks by the bytes of their weights."""
    points = {}
    spec, kinds = wanted.spec, wanted.kinds
    dim, hidden = max(layer.head_dim for layer in spec.layers), spec.hidden_size
    most = {
        "attention": max(layer.num_heads for layer in spec.layers),
        "ffn": max(layer.intermediate_size for layer in spec.layers),
    }
    for stored in kinds:
        width = FORMATS[stored].bits
        for kind, count in most.items():
            sizes, densities = np.array([count]), np.array([0.03, 1.0])
            weights = count * (4 * dim if kind == "attention" else 2) * hidden
            each = weights * width / 8 / BYTES_PER_MS
            points[kind, stored] = (sizes, densities, np.outer(np.array([each]), densities))
    return latency.MeasuredTable(points, BASE_MS)


def _recorded(cls: type) -> None:
    """From now on engines of the class know what they are said to take."""
    original = cls.__init__  # type: ignore[misc]

    def init(self: Any, artifact: Any, *args: Any, **options: Any) -> None:
        original(self, artifact, *args, **options)
        self.golden_ms = milliseconds(artifact.tensors)

    cls.__init__ = init  # type: ignore[misc]


def install() -> None:
    """Replace them all, for the life of this process."""
    for module in pkgutil.walk_packages(approxrt.__path__, "approxrt."):
        # Kernels need a GPU's compiler, engines of peers their packages; none of them decides anything here.
        if not module.name.startswith(
            ("approxrt.kernels", "approxrt.benchmark", "approxrt.serving", "approxrt.runtime.")
        ):
            importlib.import_module(module.name)

    _recorded(CpuEngine)
    _recorded(DecoderEngine)
    replacements: dict[Callable[..., Any], Callable[..., Any]] = {
        workload.take_turns: take_turns,
        workload.engine_run: lambda spec, tensors, *args, **options: Timed(ms=milliseconds(tensors)),
        workload.peer_runs: lambda *args, **options: {},
        latency.measure_table: measure_table,
        latency.cpu_name: lambda: "golden",
        decoder_latency.decode_run: lambda engine, *args, **options: Timed(ms=engine.golden_ms),
        device.has_bf16: lambda *args: False,
    }
    for name, module in list(sys.modules.items()):
        if name == "approxrt" or name.startswith("approxrt."):
            for attribute, value in list(vars(module).items()):
                if callable(value) and getattr(value, "__hash__", None) and value in replacements:
                    setattr(module, attribute, replacements[value])
    ticks = itertools.count()
    time.monotonic = lambda: next(ticks) * TICK  # type: ignore[assignment]
