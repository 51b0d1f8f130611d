"""The models of a server, by name: texts in, arrays out, through each model's queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.errors import InputError
from approxrt.runtime import answering
from approxrt.runtime.answering import Answerer, AnswerOptions
from approxrt.runtime.decoder_model import DecoderModel, Prompt
from approxrt.runtime.failures import check_rows
from approxrt.runtime.model import Model
from approxrt.runtime.tagging import Entity, TagOptions, TokenTagger
from approxrt.runtime.tokenize import Encoded, Text, with_prompt
from approxrt.serving.batcher import Batcher, Forward
from approxrt.serving.errors import ContextOverflow, RequestError, TooLarge, UnknownModel
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


@dataclass(frozen=True)
class EmbedOptions:
    """Say how texts become vectors.

    normalize    of length 1
    truncate     texts over the limit are cut; else they are an error
    side         what a cut text loses, "left" or "right"; None: what its tokenizer says
    prompt_name  of the model's prompts, the one before each text; None: its default prompt, if it has one
    dimensions   the first so many elements, before they are normalised; None: as many as the artifact says
    """

    normalize: bool = True
    truncate: bool = False
    side: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None


class Served:
    """One model behind its queue."""

    def __init__(self, name: str, model: Model, settings: Settings, metrics: Metrics) -> None:
        self.name, self.model, self.settings, self.created = name, model, settings, int(time.time())
        forward = _of_tokens(model) if model.spec.per_token else model.forward_ids
        self.batcher = Batcher(name, forward, settings, metrics)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.model.labels

    @property
    def kind(self) -> str:
        """Return the kind, as TEI sorts models: "embedding" without labels, "reranker" with one output, "classifier"
        with several. Of heads that read every token, which TEI has not: "token_classifier" and "question_answerer".
        """
        if self.model.spec.per_token:
            return "question_answerer" if self.model.spec.task_type == "question_answering" else "token_classifier"
        return "embedding" if not self.labels else "reranker" if len(self.labels) == 1 else "classifier"

    @property
    def crowded(self) -> bool:
        """More waits than the next pass takes."""
        return self.batcher.waiting_tokens > self.settings.max_batch_tokens

    async def run(self, texts: Sequence[Text], output: str, truncate: bool, side: str | None = None) -> Answer:
        """`output` is "logits" or "pooled". Raises what `Model` raises, TooLarge, Overloaded and Unavailable."""
        self.refuse_per_token()
        encoded = await self._encode(texts, truncate, side)
        rows = await self.batcher.submit(encoded.ids, encoded.type_ids, output)
        return Answer(rows, [len(ids) for ids in encoded.ids], encoded.truncated)

    async def embed(self, texts: Sequence[Text], options: EmbedOptions) -> Answer:
        """Pooled states of texts, behind the prompt that is asked for. Raises what `run` raises."""
        before = self.model.prompt(None, options.prompt_name)
        self._check_dimensions(options)
        encoded = await self._encode(with_prompt(texts, before), options.truncate, options.side)
        if before and not self.model.spec.text.include_prompt:
            # The engine pools whole texts; what leaves tokens out is done by the model itself.
            rows = check_rows(await self.batcher.alone(self.model.pooled, encoded, before))
        else:
            rows = await self.batcher.submit(encoded.ids, encoded.type_ids, "pooled")
        return Answer(
            _finished(rows, options, self.model.spec.head.truncate_dim),
            [len(ids) for ids in encoded.ids],
            encoded.truncated,
        )

    async def embed_ids(self, ids: Sequence[Sequence[int]], options: EmbedOptions) -> Answer:
        """The same for token ids, specials (and a prompt's) included, which are not cut."""
        for name in ("prompt_name", "side"):
            if getattr(options, name) is not None:
                field = "truncation_direction" if name == "side" else name
                raise RequestError(f"{field} is for texts; token ids are taken as they are: leave it out", param=field)
        self._check_count(len(ids))
        self._check_dimensions(options)
        spec = self.model.spec
        for i, row in enumerate(ids):
            if not 1 <= len(row) <= spec.max_length:
                raise RequestError(f"input {i} has {len(row)} tokens; it must have 1 to {spec.max_length}")
            if not 0 <= min(row) <= max(row) < spec.vocab_size:
                raise RequestError(f"input {i}: token ids must lie between 0 and {spec.vocab_size - 1}")
        rows = await self.batcher.submit([list(row) for row in ids], [[0] * len(row) for row in ids], "pooled")
        return Answer(
            _finished(rows, options, self.model.spec.head.truncate_dim), [len(row) for row in ids], [False] * len(ids)
        )

    async def tag(self, texts: str | list[str], options: TagOptions) -> list[list[Entity]]:
        """The entities of each text, as `EncoderModel.tag`. Raises what `run` raises."""
        items = [texts] if isinstance(texts, str) else texts
        return await self._by_tokens(self.model.tagger, items, (items, options))

    async def answer(
        self, questions: list[str], contexts: list[str], options: AnswerOptions
    ) -> list[list[answering.Answer]]:
        """The answers to each question, as `EncoderModel.answer`. Raises what `run` raises."""
        pairs = list(zip(questions, contexts, strict=True))
        return await self._by_tokens(self.model.answerer, pairs, (questions, contexts, options))

    async def _by_tokens(
        self, halves: TokenTagger | Answerer, texts: Sequence[Text], arguments: tuple[Any, ...]
    ) -> Any:
        """What the model's two halves make of texts, with the queue between them."""
        size = self._check_sizes(texts)
        inline = size <= INLINE_CHARACTERS
        loop = asyncio.get_running_loop()
        prepare = partial(halves.prepare, *arguments)
        inputs: Any = prepare() if inline else await loop.run_in_executor(None, prepare)
        rows = await self.batcher.submit_rows(inputs.ids, inputs.type_ids, "logits")
        finish = partial(halves.finish, inputs, rows)
        return finish() if inline else await loop.run_in_executor(None, finish)

    def refuse_per_token(self) -> None:
        """Raise RequestError for a model whose head reads every token: it has no logits of a text."""
        if self.model.spec.per_token:
            task = self.model.spec.task_type
            raise RequestError(f"model {self.name!r} is for {task}, which POST / and POST /models/{self.name} answer")

    def _check_dimensions(self, options: EmbedOptions) -> None:
        width = self.model.spec.pooled_size
        if options.dimensions is not None and not 1 <= options.dimensions <= width:
            text = f"dimensions is {options.dimensions}; model {self.name!r} has 1 to {width}"
            raise RequestError(text, param="dimensions")

    def _check_count(self, count: int) -> None:
        if not count:
            raise RequestError("the list of inputs is empty: give at least one text")
        if count > self.settings.max_inputs:
            raise TooLarge(f"{count} inputs in one request; the limit is {self.settings.max_inputs}: send several")

    def _check_sizes(self, texts: Sequence[Text]) -> int:
        """Return how many characters the texts have. Raises TooLarge."""
        self._check_count(len(texts))
        sizes = [len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in texts]
        most, size = self.settings.max_characters, sum(sizes)
        if max(sizes) > most:
            i = int(np.argmax(sizes))
            raise TooLarge(f"text {i} has {sizes[i]} characters; the limit is {most}: shorten it")
        return size

    async def _encode(self, texts: Sequence[Text], truncate: bool, side: str | None) -> Encoded:
        size = self._check_sizes(texts)
        if size <= INLINE_CHARACTERS:
            return self.model.encode(texts, truncate, side)
        return await asyncio.get_running_loop().run_in_executor(None, self.model.encode, texts, truncate, side)


def _of_tokens(model: Model) -> Forward:
    """The queue's way to a head that reads every token, which has nothing but logits."""
    return lambda ids, types, _: model.forward_tokens(ids, types)


class ServedDecoder:
    """A model that generates, behind its continuous batching."""

    labels = ()
    kind = "generator"

    def __init__(self, name: str, model: DecoderModel, settings: Settings, metrics: Metrics) -> None:
        self.name, self.model, self.settings, self.created = name, model, settings, int(time.time())
        self.generator = Generator(name, model, settings, metrics)
        self._longest = 0

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises ContextOverflow, before it is tokenised where it is long enough for that."""
        loop = asyncio.get_running_loop()
        if not isinstance(prompt, str):  # its template may take a while
            return await loop.run_in_executor(None, self.model.tokenize, prompt)
        if len(prompt) > self.settings.max_characters:
            most = self.settings.max_characters
            raise TooLarge(f"the prompt has {len(prompt)} characters; the limit is {most}: shorten it")
        if len(prompt) <= INLINE_CHARACTERS:
            return self.model.tokenize(prompt)
        return await loop.run_in_executor(None, self._tokenize_long, prompt)

    def _tokenize_long(self, prompt: str) -> list[int]:
        self._longest = self._longest or self.model.longest_token()
        most = self._longest * self.model.decoder_spec.max_positions
        if len(prompt) > most:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} characters; the model's context has "
                f"{self.model.decoder_spec.max_positions} tokens, at most {most} characters: shorten it"
            )
        return self.model.tokenize(prompt)


class Registry:
    """Models by name; a request that names none gets the only one that can do what it asks for."""

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

    def get(self, name: str | None, kinds: Sequence[str] | None, route: str) -> Served:
        """The encoder of that name; without a name, the only one of the first of `kinds` that any model is of.

        A server with one model takes any name: clients send what they were once configured with. Raises UnknownModel,
        and RequestError for a model of another kind, for none, and for several that fit.
        """
        wanted = kinds or ("classifier", "reranker", "embedding", "token_classifier", "question_answerer")
        if len(self._served) == 1:
            found = next(iter(self))
        else:
            groups = [[model for model in self if model.kind == kind] for kind in wanted]
            if kinds is None:
                groups = [[model for group in groups for model in group]]
            found = self._named(name, groups, route)
        if not isinstance(found, Served):
            raise RequestError(f"model {found.name!r} generates text: use /v1/completions or /v1/chat/completions")
        if found.kind not in wanted:
            found.refuse_per_token()
            use = "/embed" if found.kind == "embedding" else "/predict"
            raise RequestError(f"{route}: model {found.name!r} is for {found.model.spec.task_type}; use {use}")
        return found

    def reranker(self, name: str | None) -> Served:
        """The reranker of that name, or an embedder, which ranks by cosine; without a name the only reranker of pairs,
        or the only embedder where there is none.
        """
        pairs: list[Served | ServedDecoder] = [
            model for model in self
            if isinstance(model, Served) and model.kind == "reranker" and model.model.spec.inputs != "single"
        ]  # fmt: skip
        found = self._named(name, [pairs, [model for model in self if model.kind == "embedding"]], "/rerank")
        if not isinstance(found, Served):
            raise RequestError(f"model {found.name!r} generates text: use /v1/completions or /v1/chat/completions")
        return found

    def decoder(self, name: str | None) -> ServedDecoder:
        """The decoder of that name, or without a name the only one. Raises UnknownModel and RequestError."""
        found = self._named(name, [[model for model in self if isinstance(model, ServedDecoder)]], "text")
        if not isinstance(found, ServedDecoder):
            raise RequestError(f"model {found.name!r} does not generate text: use /predict, /embed or /rerank")
        return found

    def exactly(self, name: str) -> Served | ServedDecoder:
        """The model of that name and no other."""
        if name not in self._served:
            raise UnknownModel(f"no model is called {name!r}; there are {', '.join(map(repr, self._served))}")
        return self._served[name]

    def _named(
        self, name: str | None, groups: Sequence[Sequence[Served | ServedDecoder]], what: str
    ) -> Served | ServedDecoder:
        """The model of that name; without one, the only model of the first group that is not empty."""
        if len(self._served) == 1:
            return next(iter(self))
        if name is not None:
            return self.exactly(name)
        fitting = next((group for group in groups if group), ())
        if len(fitting) == 1:
            return fitting[0]
        if not fitting:
            shown = ", ".join(f"{model.name!r} ({model.kind})" for model in self)
            raise RequestError(f"{what}: no model here is for that; there are {shown}", param="model")
        shown = ", ".join(repr(model.name) for model in fitting)
        raise RequestError(f"{what}: several models can answer: name one of {shown} in 'model'", param="model")

    async def close(self) -> None:
        """Finish what is queued."""
        await asyncio.gather(
            *(model.batcher.close() if isinstance(model, Served) else model.generator.close() for model in self)
        )


def _finished(rows: np.ndarray, options: EmbedOptions, truncate_dim: int) -> np.ndarray:
    """Cut to the dimensions that are asked for, or to the artifact's own, then of length 1 if that is."""
    dimensions = options.dimensions or truncate_dim
    kept = np.ascontiguousarray(rows[:, :dimensions]) if dimensions else rows
    return normalized(kept) if options.normalize else kept


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def open_models(artifacts: Iterable[str], threads: int | None = None, mmap: bool = False) -> list[tuple[str, Model]]:
    """Return (name, model) of each PATH or NAME=PATH; a name is the folder's if none is given.

    `mmap` is that of `approxrt.load`.
    """
    from approxrt.runtime.loading import load

    models = []
    for item in artifacts:
        name, equals, path = item.partition("=")
        if not equals or "/" in name:
            name, path = Path(item).resolve().name, item
        if not name:
            raise InputError(f"{item!r} has an empty name: write NAME=PATH")
        models.append((name, load(path, device="cpu", threads=threads, mmap=mmap)))
    return models
