"""Launching passes: pinned memory on the way in and out, one block of integers on the device, CUDA graphs.

This is all of the runtime that speaks to the CUDA driver by way of torch. On the CPU (kernels under triton's
interpreter) the same passes run launch by launch, without pinned memory and graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from approxrt.runtime.cuda.graphs import GraphCache


class Runner:
    """Runs `run(key, block)`, whose block of int32 [integers] is on the device and whose result is rows of floats.

    Two passes may be in flight: a third waits for the first. One thread at a time.
    """

    def __init__(self, device: torch.device, run: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        self.device, self._run_pass = device, run
        self._slots, self._turn = [Slot(device), Slot(device)], 0
        self._graphs = self._no_graphs()
        self._block = torch.zeros(0, dtype=torch.int32, device=device)
        self._pool: Any = None

    @property
    def graphs(self) -> int:
        """Count the graphs that are captured."""
        return len(self._graphs)

    def start(self, key: Any, integers: int, fill: Callable[[np.ndarray], object], rows: int | None) -> Slot:
        """Let `fill` write the pass's integers, launch it, and have `rows` of its result (None: all) copied out.

        `key` is hashable and decides all sizes: passes of equal keys share a graph. Ask the slot for its `answer`
        before starting the pass after next.
        """
        self._turn = 1 - self._turn
        slot = self._slots[self._turn]
        block = slot.block(integers)
        fill(block.numpy())
        if self._block.numel() < integers:
            # Graphs hold the old block's address and are captured anew.
            self._graphs = self._no_graphs()
            self._block = torch.zeros(1 << (integers - 1).bit_length(), dtype=torch.int32, device=self.device)
        self._block[:integers].copy_(block, non_blocking=True)
        request = key, integers
        result = self._graphs(request) if self.device.type == "cuda" else self._run(request)
        slot.take(result, result.shape[0] if rows is None else rows)
        return slot

    def _no_graphs(self) -> GraphCache[Any, Any]:
        return GraphCache(self._capture, self._run, _replay)

    def _run(self, request: Any) -> torch.Tensor:
        key, integers = request
        return self._run_pass(key, self._block[:integers])

    def _capture(self, request: Any) -> tuple[Any, torch.Tensor]:
        """Return (graph, the tensor that a replay writes)."""
        # Passes run one after the other and their results are copied out at once: all graphs share one pool.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self._run(request)
        return graph, result


def _replay(captured: tuple[Any, torch.Tensor]) -> torch.Tensor:
    graph, result = captured
    graph.replay()
    return result


class Slot:
    """Pinned memory of one pass in flight: its integers on the way in, its rows on the way out."""

    def __init__(self, device: torch.device) -> None:
        self.pinned = device.type == "cuda"
        self.done = torch.cuda.Event() if self.pinned else None
        self._in = torch.zeros(0, dtype=torch.int32)
        self._out = torch.zeros(0)
        self._rows = self._out

    def block(self, integers: int) -> torch.Tensor:
        """Room for a pass, once the last one that used this slot is over."""
        if self.done is not None:
            self.done.synchronize()
        if self._in.numel() < integers:
            self._in = self._room(1 << (integers - 1).bit_length(), self._in.dtype)
        return self._in[:integers]

    def take(self, result: torch.Tensor, rows: int) -> None:
        """Copy the first `rows` of a device result here, after what was launched before."""
        count = rows * result.shape[1]
        if self._out.numel() < count:
            self._out = self._room(1 << (count - 1).bit_length(), self._out.dtype)
        self._rows = self._out[:count].view(rows, -1)
        self._rows.copy_(result[:rows], non_blocking=True)
        if self.done is not None:
            self.done.record()

    def answer(self) -> np.ndarray:
        """A copy of the rows, when they are here."""
        if self.done is not None:
            self.done.synchronize()
        return np.array(self._rows.numpy())

    def _room(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, pin_memory=self.pinned)
