"""Make what is timed: a batch of full sequences, or the texts of a file in batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.errors import InputError
from approxrt.peers.source import pad

if TYPE_CHECKING:
    from approxrt.benchmark.results import Contestant

OURS = "approxrt"
BEST_BATCH = "data, best batch"

Call = Callable[[], object]


@dataclass
class Workload:
    """`calls(contestant)` is one repetition: a closure without preparation inside.

    lengths    of all its sequences, in tokens
    batches    of single contestants, where they differ from `batch`
    """

    name: str
    batch: int
    seq: int | None
    lengths: list[int]
    calls: Callable[[Contestant], Call]
    batches: Mapping[str, int] | None = None

    def batch_of(self, name: str) -> int:
        return self.batch if self.batches is None else self.batches[name]


def full_workloads(pairs: Sequence[tuple[int, int]], vocabulary: int, paddings: Collection[int] = ()) -> list[Workload]:
    """A batch of random ids for each (sequences, tokens), none of them in `paddings`: some models refuse their own."""
    plain = next(i for i in range(vocabulary - 1, 0, -1) if i not in paddings)
    rng = np.random.default_rng(0)
    out = []
    for batch, seq in pairs:
        ids = rng.integers(1, vocabulary, (batch, seq), dtype=np.int64)
        ids[np.isin(ids, list(paddings))] = plain
        out.append(Workload(f"{batch} x {seq}", batch, seq, [seq] * batch, partial(_call_full, ids)))
    return out


def data_workloads(texts: Sequence[list[int]], batches: Sequence[int]) -> list[Workload]:
    """All texts in batches of each size: peers get them sorted by length and padded, ours the packed run."""
    if not texts:
        raise InputError("the data file holds no texts to measure with")
    calls = _data_calls(texts, batches)
    lengths = [len(text) for text in texts]
    return [
        Workload(f"data, batches of {batch}", batch, None, lengths, partial(_call_at, calls, batch))
        for batch in batches
    ]


def best_batch_workload(texts: Sequence[list[int]], best: Mapping[str, int]) -> Workload:
    """The same texts, each contestant at the batch size that suited it best."""
    calls = _data_calls(texts, sorted(set(best.values())))

    def call(contestant: Contestant) -> Call:
        # A contestant without a time is one that failed, and may as well fail again.
        return calls(best.get(contestant.name, min(best.values())), contestant)

    return Workload(BEST_BATCH, 0, None, [len(text) for text in texts], call, best)


def _call_full(ids: np.ndarray, contestant: Contestant) -> Call:
    return lambda: contestant.engine.run(ids)


def _call_at(calls: Callable[[int, Contestant], Call], batch: int, contestant: Contestant) -> Call:
    return calls(batch, contestant)


def _data_calls(texts: Sequence[list[int]], batches: Sequence[int]) -> Callable[[int, Contestant], Call]:
    by_length = sorted(texts, key=len)
    padded = {batch: [pad(by_length[i : i + batch]) for i in range(0, len(by_length), batch)] for batch in set(batches)}

    def calls(batch: int, contestant: Contestant) -> Call:
        if contestant.family == OURS:
            packed: Any = contestant.engine
            if batch == 1:
                return lambda: [packed.run_packed([text]) for text in texts]
            return lambda: packed.run_packed(list(texts))
        return lambda: [contestant.engine.run(ids, mask) for ids, mask in padded[batch]]

    return calls
