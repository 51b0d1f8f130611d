"""The routes of text-embeddings-inference (TEI): /embed, /predict, /rerank, /similarity and /info."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from fastapi import APIRouter, Request, Response

from approxrt.runtime.activation import apply_activation
from approxrt.runtime.tokenize import Text
from approxrt.serving.disconnect import while_connected
from approxrt.serving.errors import RequestError
from approxrt.serving.registry import EmbedOptions, Registry, Served, ServedDecoder
from approxrt.serving.routes.body import Body, Integer, Neutral
from approxrt.serving.routes.common import (
    Side,
    StringLists,
    Strings,
    TokenIdLists,
    TokenIds,
    as_texts,
    rank,
    registry_of,
    relevance,
    reply,
)
from approxrt.serving.routes.route import JsonRoute
from approxrt.serving.settings import Settings
from approxrt.version import __version__

router = APIRouter(tags=["text-embeddings-inference"], route_class=JsonRoute)


class EmbedBody(Body):
    """`inputs`: a text, texts, token ids or lists of them. `dimensions`: so many elements, then normalised."""

    inputs: str | Strings | TokenIds | TokenIdLists
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Side | None = None
    prompt_name: str | None = None
    dimensions: Integer | None = None
    model: str | None = None

    plain: ClassVar[Neutral] = {"encoding_format": ("float",)}


class PredictBody(Body):
    """`inputs`: a text, [a text], a pair [a, b], or a list of [a] and [a, b]."""

    inputs: str | Strings | StringLists
    raw_scores: bool | None = None
    truncate: bool | None = None
    truncation_direction: Side | None = None
    model: str | None = None


class RerankBody(Body):
    query: str
    texts: Strings
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    truncation_direction: Side | None = None
    model: str | None = None


class Similarity(Body):
    source_sentence: str
    sentences: Strings


class SimilarityParameters(Body):
    truncate: bool | None = None
    truncation_direction: Side | None = None
    prompt_name: str | None = None


class SimilarityBody(Body):
    inputs: Similarity
    parameters: SimilarityParameters | None = None
    model: str | None = None

    def refuse_unknown(self, place: str = "") -> None:
        """Refuse unknown fields of the inner objects, too."""
        super().refuse_unknown(place)
        self.inputs.refuse_unknown(f"{place}inputs.")
        if self.parameters is not None:
            self.parameters.refuse_unknown(f"{place}parameters.")


@router.post("/embed")
async def embed(request: Request, body: EmbedBody) -> Response:
    """list[list[float]]: a vector a text."""
    served = registry_of(request).get(body.model, ("embedding",), "/embed")
    options = EmbedOptions(
        body.normalize is not False, bool(body.truncate), body.truncation_direction, body.prompt_name, body.dimensions
    )
    return reply(await while_connected(request, _embed(served, body.inputs, options), served.crowded))


async def _embed(served: Served, inputs: Any, options: EmbedOptions) -> np.ndarray:
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], str)):
        return (await served.embed(as_texts(inputs), options)).rows
    ids = [inputs] if inputs and isinstance(inputs[0], int) else inputs
    return (await served.embed_ids(ids, options)).rows


@router.post("/predict")
async def predict(request: Request, body: PredictBody) -> Response:
    """list[{score, label}], best first; a list of those for a list of inputs."""
    served = registry_of(request).get(body.model, ("classifier", "reranker"), "/predict")
    texts, single = sequences(body.inputs)
    function = "none" if body.raw_scores else None
    work = predictions(served, texts, function, bool(body.truncate), body.truncation_direction)
    answers = await while_connected(request, work, served.crowded)
    return reply(answers[0] if single else answers)


async def predictions(
    served: Served, texts: list[Text], function: str | None, truncate: bool, side: str | None = None
) -> list[list[dict[str, Any]]]:
    """[{score, label}] of each text, best first; `function` in place of the model's own makes scores of the outputs."""
    rows = (await served.run(texts, "logits", truncate, side)).rows
    scores = served.model.scores(rows) if function is None else apply_activation(rows, function)
    labels = served.labels
    return [
        [{"score": float(row[j]), "label": labels[j]} for j in np.argsort(-row, kind="stable").tolist()]
        for row in scores
    ]


def sequences(inputs: str | Sequence[str] | Sequence[Sequence[str]]) -> tuple[list[Text], bool]:
    """Return (texts and pairs, whether it is one). As in TEI a flat list is one text or one pair, a list of lists
    many."""
    if isinstance(inputs, str):
        return [inputs], True
    if not inputs:
        raise RequestError("inputs is an empty list: give at least one text")
    if all(isinstance(item, str) for item in inputs):
        if len(inputs) > 2:
            raise RequestError(
                f"inputs is a flat list of {len(inputs)} texts; a flat list is one text or one pair: "
                'write [["one text"], ["another"], ...]'
            )
        return [_sequence(inputs)], True  # type: ignore[arg-type]
    texts: list[Text] = []
    for i, item in enumerate(inputs):
        if isinstance(item, str) or not 1 <= len(item) <= 2:
            raise RequestError(f"inputs[{i}] must be [text] or [text, text]")
        texts.append(_sequence(item))
    return texts, False


def _sequence(item: Sequence[str]) -> Text:
    return item[0] if len(item) == 1 else (item[0], item[1])


@router.post("/rerank")
async def rerank(request: Request, body: RerankBody) -> Response:
    """list[{index, score, text?}], best first."""
    served = registry_of(request).reranker(body.model)
    work = rank(served, body.query, body.texts, bool(body.truncate), body.truncation_direction)
    scores, _ = await while_connected(request, work, served.crowded)
    if served.labels and not body.raw_scores:
        scores = relevance(served, scores[:, None])
    ranked = [{"index": i, "score": float(scores[i])} for i in np.argsort(-scores, kind="stable").tolist()]
    if body.return_text:
        ranked = [item | {"text": body.texts[int(item["index"])]} for item in ranked]
    return reply(ranked)


@router.post("/similarity")
async def similarity(request: Request, body: SimilarityBody) -> Response:
    """list[float]: the cosine of each sentence and the source sentence."""
    served = registry_of(request).get(body.model, ("embedding",), "/similarity")
    given = body.parameters or SimilarityParameters()
    options = EmbedOptions(
        truncate=bool(given.truncate), side=given.truncation_direction, prompt_name=given.prompt_name
    )
    work = cosines(served, body.inputs.source_sentence, body.inputs.sentences, options)
    return reply(await while_connected(request, work, served.crowded))


async def cosines(served: Served, source: str, sentences: list[str], options: EmbedOptions) -> np.ndarray:
    """float32 [n] of the sentences with the source. Raises RequestError for none."""
    if not sentences:
        raise RequestError("sentences is an empty list: give at least one")
    rows = (await served.embed([source, *sentences], options)).rows
    return rows[1:] @ rows[0]


@router.get("/info")
async def info(request: Request, model: str | None = None) -> Response:
    """Describe what is served, in TEI's words: the model of that name, or the first; `models` names all."""
    registry = registry_of(request)
    served = next(iter(registry)) if model is None else registry.exactly(model)
    settings = served.settings
    if isinstance(served, ServedDecoder):
        length = served.model.decoder_spec.max_positions
        kind: dict[str, Any] = {"generator": {"context": length}}
        return reply(_about(registry, served.name, kind, length, settings))
    spec = served.model.spec
    if not spec.labels:
        kind = {"embedding": {"pooling": spec.head.pooling}}
    else:
        names = dict(enumerate(spec.labels))
        kind = {served.kind: {
            "id2label": {str(i): name for i, name in names.items()},
            "label2id": {name: i for i, name in names.items()},
        }}  # fmt: skip
    return reply(_about(registry, served.name, kind, spec.max_length, settings))


def _about(registry: Registry, name: str, kind: dict[str, Any], length: int, settings: Settings) -> dict[str, Any]:
    return {
        "model_id": name,
        "model_dtype": "int8",
        "model_type": kind,
        "max_input_length": length,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_concurrent_requests": settings.max_queue,
        "max_client_batch_size": settings.max_inputs,
        "auto_truncate": False,
        "models": [item.name for item in registry],
        "version": __version__,
    }
