"""Keep the books of which passes are replayed from a CUDA graph; no device is needed.

Capturing costs tens of milliseconds and some memory, so the first pass of a bucket runs as plain launches (which also
compiles its kernels: nothing may compile during a capture), and the second captures. Of more than `limit` graphs the
one that was used least recently goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Graph = TypeVar("Graph")
Result = TypeVar("Result")


class GraphCache(Generic[Graph, Result]):
    """`capture(key)` makes a graph, `run(key)` executes the pass without one, `replay(graph)` with one."""

    def __init__(
        self,
        capture: Callable[[Hashable], Graph],
        run: Callable[[Hashable], Result],
        replay: Callable[[Graph], Result],
        limit: int = 64,
    ) -> None:
        self._capture, self._run, self._replay, self._limit = capture, run, replay, limit
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, key: Hashable) -> Result:
        """Execute the pass `key`; its result."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
        elif key in self._seen:
            self._graphs[key] = self._capture(key)
            if len(self._graphs) > self._limit:
                self._graphs.popitem(last=False)
        else:
            self._seen.add(key)
            return self._run(key)
        return self._replay(self._graphs[key])
