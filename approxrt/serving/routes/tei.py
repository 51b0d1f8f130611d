"""The routes of text-embeddings-inference (TEI): /embed, /predict, /rerank, /info and POST /."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

import approxrt
from approxrt.runtime.tokenize import Text
from approxrt.serving.errors import RequestError
from approxrt.serving.registry import Registry, Served, ServedDecoder, normalized
from approxrt.serving.routes.common import Body, TokenId, as_texts, need, rank, registry_of, reply
from approxrt.serving.routes.route import JsonRoute
from approxrt.serving.settings import Settings
from approxrt.serving.watch import while_connected

router = APIRouter(tags=["text-embeddings-inference"], route_class=JsonRoute)


class EmbedBody(Body):
    """`inputs`: a text, texts, token ids or lists of them."""

    inputs: str | list[str] | list[TokenId] | list[list[TokenId]]
    normalize: bool = True
    truncate: bool = False
    model: str | None = None


class PredictBody(Body):
    """`inputs`: a text, a pair [a, b], or a list of [a] and [a, b]."""

    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = False
    truncate: bool = False
    model: str | None = None


class RerankBody(Body):
    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False
    model: str | None = None


class RootBody(Body):
    """What huggingface_hub's client posts to a bare address: the body of /predict or of /embed, by the model."""

    inputs: Any
    parameters: dict[str, Any] | None = None
    normalize: bool = True
    truncate: bool = True
    model: str | None = None


@router.post("/embed")
async def embed(request: Request, body: EmbedBody) -> Response:
    """list[list[float]]: a vector a text."""
    served = registry_of(request).get(body.model, labels=False)
    return reply(await while_connected(request, _embed(served, body), served.crowded))


async def _embed(served: Served, body: EmbedBody) -> np.ndarray:
    if isinstance(body.inputs, str) or (body.inputs and isinstance(body.inputs[0], str)):
        answer = await served.embed(as_texts(body.inputs), body.normalize, body.truncate)
        return answer.rows
    ids: Any = body.inputs
    if ids and isinstance(ids[0], int):
        ids = [ids]
    rows = (await served.run_ids(ids, "pooled")).rows
    return normalized(rows) if body.normalize else rows


@router.post("/predict")
async def predict(request: Request, body: PredictBody) -> Response:
    """list[{score, label}], best first; a list of those for a list of inputs."""
    served = need(registry_of(request).get(body.model, labels=True), True, "predict")
    texts, single = _sequences(served, body.inputs)
    answers = await while_connected(request, _predict(served, texts, body.raw_scores, body.truncate), served.crowded)
    return reply(answers[0] if single else answers)


async def _predict(served: Served, texts: list[Text], raw: bool, truncate: bool) -> list[list[dict[str, Any]]]:
    rows = (await served.run(texts, "logits", truncate)).rows
    scores = rows if raw else served.model.scores(rows)
    labels = served.labels
    return [
        [{"score": float(row[j]), "label": labels[j]} for j in np.argsort(-row, kind="stable").tolist()]
        for row in scores
    ]


def _sequences(served: Served, inputs: str | list[str] | list[list[str]]) -> tuple[list[Text], bool]:
    """(texts and pairs, whether it is one). Two strings are a pair, as in TEI, unless the model takes none."""
    if isinstance(inputs, str):
        return [inputs], True
    if not inputs:
        raise RequestError("inputs is an empty list: give at least one text")
    if all(isinstance(item, str) for item in inputs):
        if len(inputs) == 2 and served.model.spec.inputs != "single":
            return [(inputs[0], inputs[1])], True  # type: ignore[list-item]
        return list(inputs), False  # type: ignore[arg-type]
    texts: list[Text] = []
    for i, item in enumerate(inputs):
        if not isinstance(item, list) or not 1 <= len(item) <= 2:
            raise RequestError(f"inputs[{i}] must be [text] or [text, text]")
        texts.append(item[0] if len(item) == 1 else (item[0], item[1]))
    return texts, False


@router.post("/rerank")
async def rerank(request: Request, body: RerankBody) -> Response:
    """list[{index, score, text?}], best first."""
    served = registry_of(request).get(body.model)
    scores, _ = await while_connected(
        request, rank(served, body.query, body.texts, body.raw_scores, body.truncate), served.crowded
    )
    ranked = [{"index": i, "score": float(scores[i])} for i in np.argsort(-scores, kind="stable").tolist()]
    if body.return_text:
        ranked = [item | {"text": body.texts[int(item["index"])]} for item in ranked]
    return reply(ranked)


@router.post("/")
async def root(request: Request, body: RootBody) -> Response:
    """/predict for a model with labels, /embed for one without."""
    served = registry_of(request).get(body.model)
    options = {k: v for k, v in (body.parameters or {}).items() if k in ("truncate", "normalize", "top_k")}
    truncate = bool(options.get("truncate", body.truncate))
    inputs = body.inputs
    if isinstance(inputs, dict):  # the client's sentence pairs
        text, pair = inputs.get("text"), inputs.get("text_pair")
        inputs = text if pair is None else [[text, pair]]
    if not _is_texts(inputs):
        raise RequestError("inputs must be a text, a list of texts or a list of [text, text_pair]")
    if served.labels:
        texts, _ = _sequences(served, inputs)
        answers = await while_connected(request, _predict(served, texts, False, truncate), served.crowded)
        top = options.get("top_k")
        if isinstance(top, int) and top > 0:
            answers = [answer[:top] for answer in answers]
        return reply(answers)
    if not (isinstance(inputs, str) or all(isinstance(item, str) for item in inputs)):
        raise RequestError(f"model {served.name!r} embeds single texts: give a text or a list of texts")
    normalize = bool(options.get("normalize", body.normalize))
    answer = await while_connected(request, served.embed(as_texts(inputs), normalize, truncate), served.crowded)
    return reply(answer.rows)


def _is_texts(inputs: Any) -> bool:
    if isinstance(inputs, str):
        return True
    return isinstance(inputs, list) and all(
        isinstance(item, str) or (isinstance(item, list) and all(isinstance(part, str) for part in item))
        for item in inputs
    )


@router.get("/info")
async def info(request: Request, model: str | None = None) -> Response:
    """What is served, in TEI's words."""
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
        kind = {"reranker" if len(names) == 1 else "classifier": {
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
        "version": approxrt.__version__,
    }
