"""Reranking as cohere's clients call it: /v1/rerank and /v2/rerank."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, ClassVar

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import Field

from approxrt.runtime.activation import apply_activation
from approxrt.serving.disconnect import while_connected
from approxrt.serving.errors import RequestError
from approxrt.serving.routes.body import Body, Integer, Neutral
from approxrt.serving.routes.common import rank, registry_of, reply
from approxrt.serving.routes.route import JsonRoute

router = APIRouter(tags=["cohere"], route_class=JsonRoute)


class RerankBody(Body):
    """Documents over the model's limit are cut, as cohere does. `max_tokens_per_doc` may not ask for an earlier cut."""

    query: str
    documents: Annotated[list[str | dict[str, Any]], Field(fail_fast=True)]
    model: str | None = None
    top_n: Integer | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Integer | None = None

    # Of a document that is an object, its text is ranked; a long one is cut, not ranked in several chunks.
    plain: ClassVar[Neutral] = {"rank_fields": (["text"], []), "max_chunks_per_doc": (1,)}


@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(request: Request, body: RerankBody) -> Response:
    """The documents' places, best first, with relevances between 0 and 1."""
    if body.top_n is not None and body.top_n < 1:
        raise RequestError(f"top_n is {body.top_n}; it must be at least 1", param="top_n")
    served = registry_of(request).reranker(body.model)
    limit = served.model.spec.max_length
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < limit:
        raise RequestError(
            f"max_tokens_per_doc is {body.max_tokens_per_doc}; model {served.name!r} cuts query and document together "
            f"to {limit} tokens: leave it out",
            param="max_tokens_per_doc",
        )
    texts = [_text(document, i) for i, document in enumerate(body.documents)]
    outputs, tokens = await while_connected(request, rank(served, body.query, texts, truncate=True), served.crowded)
    # Cosines of an embedder may be negative.
    scores = apply_activation(outputs[:, None], "sigmoid")[:, 0] if served.labels else np.clip(outputs, 0.0, 1.0)
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": float(scores[i])} for i in order.tolist()]
    if body.return_documents:
        results = [item | {"document": {"text": texts[item["index"]]}} for item in results]
    version = "2" if request.url.path.startswith("/v2") else "1"
    meta = {
        "api_version": {"version": version},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": tokens},
    }
    return reply({"id": str(uuid.uuid4()), "results": results, "meta": meta})


def _text(document: str | dict[str, Any], index: int) -> str:
    if isinstance(document, str):
        return document
    if not isinstance(document.get("text"), str):
        raise RequestError(f"documents[{index}] must be a text or an object with a text under 'text'")
    return str(document["text"])
