"""Attack a server as a hostile client does, again and again: bodies, heads and connections beyond every need.

Each attack is a coroutine of a port that ends within a few seconds; it does not care what it is answered.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
Attack = Callable[[int], Awaitable[None]]


def request(path: str, body: bytes) -> bytes:
    """One request's bytes."""
    return HEAD.format(path=path, size=len(body)).encode() + body


async def _send(port: int, *pieces: bytes, hold: float = 0.0) -> None:
    """Send pieces, read what comes for a while, and go."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 5)
        await asyncio.wait_for(reader.read(1 << 16), hold or 20)
    except (OSError, asyncio.TimeoutError):
        pass
    finally:
        writer.close()


async def bomb(port: int) -> None:
    """Eight megabytes of values that are none."""
    path, head, unit = random.choice(
        (
            ("/predict", '{"inputs":[', "{}"),
            ("/embed", '{"inputs":[', "[1]"),
            ("/", '{"inputs":[', "1.5"),
            ("/v1/completions", '{"prompt":[', "{}"),
            ("/v1/chat/completions", '{"messages":[', "{}"),
            ("/v2/models/model/infer", '{"inputs":[', "{}"),
        )
    )
    body = (head + ",".join([unit] * (7_900_000 // (len(unit) + 1))) + "]}").encode()
    await _send(port, request(path, body))


async def long_text(port: int) -> None:
    """A text of megabytes, cut or not."""
    body = json.dumps({"inputs": "film " * 1_500_000, "truncate": random.random() < 0.5}).encode()
    await _send(port, request("/predict", body))


async def many_texts(port: int) -> None:
    """A thousand texts as long as the model reads."""
    body = json.dumps({"inputs": [["film " * 505]] * 1024, "truncate": True}).encode()
    await _send(port, request("/predict", body))


async def endless_head(port: int) -> None:
    """Headers that do not end."""
    await _send(port, b"GET /health HTTP/1.1\r\n", *[b"X-A: b\r\n" * 8000] * 100)


async def pipelined(port: int) -> None:
    """Requests whose answers nobody reads."""
    await _send(port, *[b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2000] * 50, hold=0.5)


async def half_open(port: int) -> None:
    """Connections that wait, with half a head or half a body."""
    starts = (b"", b"POST /predict HTTP/1.1\r\nX-a: ", request("/predict", b"{" * 100)[:-50])
    await asyncio.gather(*(_send(port, random.choice(starts), hold=3.0) for _ in range(50)))


async def dripping(port: int) -> None:
    """A body that comes byte by byte, of a request that is refused."""
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    await _send(port, head, *[b"1\r\na\r\n" * 100] * 50, hold=1.0)


ATTACKS: tuple[Attack, ...] = (bomb, long_text, many_texts, endless_head, pipelined, half_open, dripping)


async def attack_until(port: int, end: float, counts: dict[str, int]) -> None:
    """Attack in every way, one after the other, until the loop's time is `end`."""
    loop = asyncio.get_running_loop()
    while loop.time() < end:
        attack = random.choice(ATTACKS)
        await attack(port)
        counts[attack.__name__] = counts.get(attack.__name__, 0) + 1
