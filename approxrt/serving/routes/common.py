"""What the adapters share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from approxrt.runtime.tokenize import Text
from approxrt.serving.errors import RequestError
from approxrt.serving.registry import Registry, Served

# Token ids fit an int32.
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Body(BaseModel):
    """A request's JSON. Unknown fields are ignored: clients send what other servers understand."""

    model_config = ConfigDict(extra="ignore", strict=False)


def registry_of(request: Request) -> Registry:
    """The server's models."""
    registry: Registry = request.app.state.registry
    return registry


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON of plain values and float arrays."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json", headers=headers)


def as_texts(inputs: str | Sequence[str]) -> list[Text]:
    """One text or a list of them."""
    return [inputs] if isinstance(inputs, str) else list(inputs)


def need(served: Served, labels: bool, what: str) -> Served:
    """The model if it has (or has not) labels; an error that says what it is otherwise."""
    if bool(served.labels) != labels:
        kind = served.model.spec.task_type
        raise RequestError(f"{what}: model {served.name!r} is for {kind}; use " + ("/embed" if labels else "/predict"))
    return served


def relevance(served: Served, rows: np.ndarray, raw: bool) -> np.ndarray:
    """One score a pair, float [n]: the single output, through a sigmoid unless `raw`; of two classes the second's.

    Raises RequestError for a model that does not say how well two texts fit.
    """
    wide = rows.astype(np.float64)
    if wide.shape[1] == 1:
        return wide[:, 0] if raw else 1.0 / (1.0 + np.exp(-wide[:, 0]))
    if wide.shape[1] == 2:
        margin = wide[:, 1] - wide[:, 0]
        return margin if raw else 1.0 / (1.0 + np.exp(-margin))
    raise RequestError(
        f"model {served.name!r} has {wide.shape[1]} labels; a reranker has one output, or two classes, "
        "the second of which says that texts fit"
    )


async def rank(served: Served, query: str, texts: list[str], raw: bool, truncate: bool) -> tuple[np.ndarray, int]:
    """(scores float [n] of texts for the query, tokens read): by a cross-encoder, or by an embedder's cosines."""
    if not texts:
        raise RequestError("the list of texts to rank is empty: give at least one")
    if served.labels:
        answer = await served.run([(query, text) for text in texts], "logits", truncate)
        return relevance(served, answer.rows, raw), sum(answer.tokens)
    answer = await served.embed([query, *texts], normalize=True, truncate=truncate)
    return (answer.rows[1:] @ answer.rows[0]).astype(np.float64), sum(answer.tokens)
