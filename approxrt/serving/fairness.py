"""The order in which waiting texts get their turn: clients take turns, and large requests go slice by slice.

Requests whose texts fit into one slice are small. A pass is made either of small requests, one of each client after the
other, or of one slice of a large request; where both wait they alternate, and small ones may be taken beside a slice
that is under way. So a small request waits at most for one slice, however much a neighbour has sent, and large ones
never stop. A request's texts stay in order (round robin over flows: Nagle 1987, RFC 970; by size as in Shreedhar &
Varghese 1995, deficit round robin).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")
# Who sent the request that runs in this context: an address. Of what no client sent, "".
CLIENT: ContextVar[str] = ContextVar("approxrt-client", default="")


class WaitingText:
    """One text in the queue, with the future of its answer float32 [width]."""

    __slots__ = ("future", "ids", "output", "since", "types")

    def __init__(self, ids: list[int], types: list[int], output: str, future: asyncio.Future[np.ndarray]) -> None:
        self.ids, self.types, self.output, self.future = ids, types, output, future
        self.since = time.perf_counter()


class _Flow:
    """Hold what is left of one request."""

    __slots__ = ("client", "texts", "tokens")

    def __init__(self, client: str, texts: deque[WaitingText], tokens: int) -> None:
        self.client, self.texts, self.tokens = client, texts, tokens


class Turns(Generic[T]):
    """Things by client; clients take turns, and each has its own in the order in which they came."""

    def __init__(self) -> None:
        self.clients: OrderedDict[str, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for things in self.clients.values():
            yield from things

    def add(self, client: str, thing: T) -> None:
        """Append a client's next one."""
        self.clients.setdefault(client, deque()).append(thing)
        self._count += 1

    def first(self) -> T:
        """Return what `pop` would take."""
        return next(iter(self.clients.values()))[0]

    def pop(self) -> T:
        """Take the first client's first one out; the client's next one has its turn after all others."""
        client, things = next(iter(self.clients.items()))
        thing = things.popleft()
        self._count -= 1
        if things:
            self.clients.move_to_end(client)
        else:
            del self.clients[client]
        return thing


class FairQueue:
    """See the module's text.

    slice_tokens   tokens of a slice; may be set anew at any time
    took_large     whether the last `take` gave a slice of a large request
    """

    def __init__(self, slice_tokens: int) -> None:
        self.slice_tokens = slice_tokens
        self.tokens = 0
        self._small, self._large = Turns[_Flow](), Turns[_Flow]()
        self._texts: dict[str, int] = {}  # that wait, by client
        self._count = 0
        self._large_is_next = self.took_large = False

    def __len__(self) -> int:
        """Return how many texts wait."""
        return self._count

    def __iter__(self) -> Iterator[WaitingText]:
        for turns in (self._small, self._large):
            for flow in turns:
                yield from flow.texts

    def has_room(self, client: str, count: int, most: int) -> bool:
        """Tell whether so many texts more of a client may wait where `most` of all may.

        A client that waits with less than its share may, though others have filled the queue.
        """
        if self._count + count <= most or not self._count:
            return True
        clients = len(self._texts) + (client not in self._texts)
        return clients > 1 and self._texts.get(client, 0) + count <= most // clients

    def add(self, client: str, texts: list[WaitingText]) -> None:
        """Append one request."""
        tokens = sum(len(text.ids) for text in texts)
        self._put(_Flow(client, deque(texts), tokens))
        self.tokens += tokens
        self._count += len(texts)
        self._texts[client] = self._texts.get(client, 0) + len(texts)

    @property
    def has_small(self) -> bool:
        """Tell whether a small request waits."""
        return bool(self._small)

    def take(self, room: int) -> list[WaitingText]:
        """Return the texts of the next pass, of one output; `room` in tokens, which a single text may exceed."""
        large = bool(self._large) and (self._large_is_next or not self._small)
        self._large_is_next = not large
        batch: list[WaitingText] = []
        # A request of which nobody waits any more gives nothing, and the next one has its turn.
        while large and self._large and not batch:
            self._take_from(self._large.pop(), batch, min(room, self.slice_tokens))
        self.took_large = bool(batch)
        return batch or self.take_small(room)

    def take_small(self, room: int) -> list[WaitingText]:
        """Return the texts of the next pass of small requests."""
        batch: list[WaitingText] = []
        while self._small:
            flow = self._small.first()
            if batch and (flow.tokens > room or flow.texts[0].output != batch[0].output):
                break
            room -= self._take_from(self._small.pop(), batch, room)
        return batch

    def __bool__(self) -> bool:
        return bool(self._small or self._large)

    def _put(self, flow: _Flow) -> None:
        (self._small if flow.tokens <= self.slice_tokens else self._large).add(flow.client, flow)

    def _take_from(self, flow: _Flow, batch: list[WaitingText], room: int) -> int:
        """Move a request's next texts into `batch`, as many as fit; return their tokens. What is left waits on."""
        taken = 0
        while flow.texts:
            text = flow.texts[0]
            gone = text.future.done()  # its client has left, or it waited too long
            if not gone and batch and taken + len(text.ids) > room:
                break
            flow.texts.popleft()
            flow.tokens -= len(text.ids)
            self.tokens -= len(text.ids)
            self._count -= 1
            self._texts[flow.client] -= 1
            if not gone:
                batch.append(text)
                taken += len(text.ids)
        if flow.texts:
            self._put(flow)
        elif not self._texts[flow.client]:
            del self._texts[flow.client]
        return taken
