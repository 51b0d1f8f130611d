"""The models of a server, by name: texts in, arrays out, through each model's queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from approxrt.errors import InputError
from approxrt.runtime.decoder_model import DecoderModel
from approxrt.runtime.model import Model
from approxrt.runtime.tokenize import Encoded, Text
from approxrt.serving.batcher import Batcher
from approxrt.serving.errors import RequestError, TooLarge, UnknownModel
from approxrt.serving.generator import Generator
from approxrt.serving.metrics import Metrics
from approxrt.serving.settings import Settings

INLINE_CHARACTERS = 4000  # tokenised on the event loop: a thread would take longer to start


@dataclass(frozen=True)
class Answer:
    """rows float32 [n, width]; tokens and truncated by text."""

    rows: np.ndarray
    tokens: list[int]
    truncated: list[bool]


class Served:
    """One model behind its queue."""

    def __init__(self, name: str, model: Model, settings: Settings, metrics: Metrics) -> None:
        self.name, self.model, self.settings, self.created = name, model, settings, int(time.time())
        self.batcher = Batcher(name, model.forward_ids, settings, metrics)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.model.labels

    @property
    def crowded(self) -> bool:
        """More waits than the next pass takes."""
        return self.batcher.waiting_tokens > self.settings.max_batch_tokens

    async def run(self, texts: Sequence[Text], output: str, truncate: bool) -> Answer:
        """`output` is "logits" or "pooled". Raises what `Model` raises, TooLarge, Overloaded and Unavailable."""
        encoded = await self._encode(texts, truncate)
        rows = await self.batcher.submit(encoded.ids, encoded.type_ids, output)
        return Answer(rows, [len(ids) for ids in encoded.ids], encoded.truncated)

    async def run_ids(self, ids: Sequence[Sequence[int]], output: str) -> Answer:
        """The same for token ids, specials included."""
        self._check_count(len(ids))
        spec = self.model.spec
        for i, row in enumerate(ids):
            if not 1 <= len(row) <= spec.max_length:
                raise RequestError(f"input {i} has {len(row)} tokens; it must have 1 to {spec.max_length}")
            if not 0 <= min(row) <= max(row) < spec.vocab_size:
                raise RequestError(f"input {i}: token ids must lie between 0 and {spec.vocab_size - 1}")
        rows = await self.batcher.submit([list(row) for row in ids], [[0] * len(row) for row in ids], output)
        return Answer(rows, [len(row) for row in ids], [False] * len(ids))

    async def embed(self, texts: Sequence[Text], normalize: bool, truncate: bool) -> Answer:
        """Pooled states, of length 1 if `normalize`."""
        answer = await self.run(texts, "pooled", truncate)
        return Answer(normalized(answer.rows) if normalize else answer.rows, answer.tokens, answer.truncated)

    def _check_count(self, count: int) -> None:
        if not count:
            raise RequestError("the list of inputs is empty: give at least one text")
        if count > self.settings.max_inputs:
            raise TooLarge(f"{count} inputs in one request; the limit is {self.settings.max_inputs}: send several")

    async def _encode(self, texts: Sequence[Text], truncate: bool) -> Encoded:
        self._check_count(len(texts))
        size = sum(len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in texts)
        if size <= INLINE_CHARACTERS:
            return self.model.encode(texts, truncate)
        return await asyncio.get_running_loop().run_in_executor(None, self.model.encode, texts, truncate)


class ServedDecoder:
    """A model that generates, behind its continuous batching."""

    labels = ()

    def __init__(self, name: str, model: DecoderModel, settings: Settings, metrics: Metrics) -> None:
        self.name, self.model, self.settings, self.created = name, model, settings, int(time.time())
        self.generator = Generator(name, model, settings, metrics)


class Registry:
    """Models by name; a request that names none gets the first that can do what it asks for."""

    def __init__(self, models: Iterable[tuple[str, Model]], settings: Settings, metrics: Metrics) -> None:
        self._served: dict[str, Served | ServedDecoder] = {}
        for name, model in models:
            if name in self._served:
                raise InputError(f"two artifacts are called {name!r}: give one of them another name (NAME=PATH)")
            if isinstance(model, DecoderModel):
                self._served[name] = ServedDecoder(name, model, settings, metrics)
            else:
                self._served[name] = Served(name, model, settings, metrics)
        if not self._served:
            raise InputError("no artifact to serve: give at least one")

    def __iter__(self) -> Iterator[Served | ServedDecoder]:
        return iter(self._served.values())

    def get(self, name: str | None, labels: bool | None = None) -> Served:
        """The encoder of that name; without a name the first with (or without) labels. Raises UnknownModel.

        A server with one model takes any name: clients send what they were once configured with.
        """
        encoders = [model for model in self if isinstance(model, Served)]
        fitting = [model for model in encoders if labels is None or bool(model.labels) == labels] or encoders
        found = self._named(name, fitting)
        if not isinstance(found, Served):
            raise RequestError(f"model {found.name!r} generates text: use /v1/completions or /v1/chat/completions")
        return found

    def decoder(self, name: str | None) -> ServedDecoder:
        """The decoder of that name, or without a name the first. Raises UnknownModel."""
        found = self._named(name, [model for model in self if isinstance(model, ServedDecoder)])
        if not isinstance(found, ServedDecoder):
            raise RequestError(f"model {found.name!r} does not generate text: use /predict, /embed or /rerank")
        return found

    def exactly(self, name: str) -> Served | ServedDecoder:
        """The model of that name and no other."""
        if name not in self._served:
            raise UnknownModel(f"no model is called {name!r}; there are {', '.join(map(repr, self._served))}")
        return self._served[name]

    def _named(self, name: str | None, fitting: Sequence[Served | ServedDecoder]) -> Served | ServedDecoder:
        if name is not None and name in self._served:
            return self._served[name]
        if name is None or len(self._served) == 1:
            return (fitting or list(self))[0]
        return self.exactly(name)

    async def close(self) -> None:
        """Finish what is queued."""
        await asyncio.gather(
            *(model.batcher.close() if isinstance(model, Served) else model.generator.close() for model in self)
        )


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def open_models(artifacts: Iterable[str], threads: int | None = None) -> list[tuple[str, Model]]:
    """(name, model) of each PATH or NAME=PATH; a name is the folder's if none is given."""
    from approxrt.runtime.loading import load

    models = []
    for item in artifacts:
        name, equals, path = item.partition("=")
        if not equals or "/" in name:
            name, path = Path(item).resolve().name, item
        if not name:
            raise InputError(f"{item!r} has an empty name: write NAME=PATH")
        models.append((name, load(path, device="cpu", threads=threads)))
    return models
