"""Reranking as cohere's clients call it: /v1/rerank and /v2/rerank."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from approxrt.serving.errors import RequestError
from approxrt.serving.routes.common import Body, rank, registry_of, reply
from approxrt.serving.routes.route import JsonRoute
from approxrt.serving.watch import while_connected

router = APIRouter(tags=["cohere"], route_class=JsonRoute)


class RerankBody(Body):
    """Documents over the model's limit are cut, as cohere does."""

    query: str
    documents: list[str | dict[str, Any]]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool = False


@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(request: Request, body: RerankBody) -> Response:
    """The documents' places, best first, with relevances between 0 and 1."""
    if body.top_n is not None and body.top_n < 1:
        raise RequestError(f"top_n is {body.top_n}; it must be at least 1")
    served = registry_of(request).get(body.model)
    texts = [_text(document, i) for i, document in enumerate(body.documents)]
    scores, tokens = await while_connected(
        request, rank(served, body.query, texts, raw=False, truncate=True), served.crowded
    )
    scores = np.clip(scores, 0.0, 1.0)  # cosines of an embedder may be negative
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
