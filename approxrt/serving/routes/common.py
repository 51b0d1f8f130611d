"""Share what the adapters need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import Request, Response
from pydantic import BeforeValidator, Field

from approxrt.runtime.activation import apply_activation
from approxrt.runtime.tokenize import Text
from approxrt.serving.errors import RequestError
from approxrt.serving.registry import EmbedOptions, Registry, Served

# Token ids fit an int32.
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
# Lists whose validation ends at the first fault: a list has one cause to be refused, not a million.
Strings = Annotated[list[str], Field(fail_fast=True)]
StringLists = Annotated[list[Strings], Field(fail_fast=True)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
TokenIdLists = Annotated[list[TokenIds], Field(fail_fast=True)]
# TEI writes Left and Right, and reads them in small letters, too.
Side = Annotated[Literal["left", "right"], BeforeValidator(lambda x: x.lower() if isinstance(x, str) else x)]


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


def relevance(served: Served, rows: np.ndarray) -> np.ndarray:
    """The single output [n, 1] as TEI gives it, float64 [n]: through the activation that it names, or a sigmoid."""
    return apply_activation(rows, served.model.spec.head.activation_fn or "sigmoid")[:, 0].astype(np.float64)


def need_reranker(served: Served) -> Served:
    """The model if it can say how well two texts fit. Raises RequestError for a classifier."""
    served.refuse_per_token()
    if served.kind == "classifier":
        raise RequestError(
            f"model {served.name!r} has {len(served.labels)} labels; a reranker has one output, which says how well "
            "two texts fit: use /predict"
        )
    if served.kind == "reranker" and served.model.spec.inputs == "single":
        raise RequestError(f"model {served.name!r} takes single texts; a reranker takes pairs")
    return served


async def rank(
    served: Served, query: str, texts: list[str], truncate: bool, side: str | None = None
) -> tuple[np.ndarray, int]:
    """Return (outputs float [n] of texts for the query, tokens read): a reranker's raw ones, or an embedder's
    cosines."""
    need_reranker(served)
    if not texts:
        raise RequestError("the list of texts to rank is empty: give at least one")
    if served.labels:
        answer = await served.run([(query, text) for text in texts], "logits", truncate, side)
        return answer.rows[:, 0], sum(answer.tokens)
    answer = await served.embed([query, *texts], EmbedOptions(truncate=truncate, side=side))
    return (answer.rows[1:] @ answer.rows[0]).astype(np.float64), sum(answer.tokens)
