"""OpenAI's routes for embeddings and models: /v1/embeddings, /v1/models."""

from __future__ import annotations

import base64
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from approxrt.serving.disconnect import while_connected
from approxrt.serving.registry import Answer, EmbedOptions, Served, ServedDecoder
from approxrt.serving.routes.body import Body, Integer
from approxrt.serving.routes.common import Strings, TokenIdLists, TokenIds, as_texts, registry_of, reply
from approxrt.serving.routes.route import JsonRoute

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)


class EmbeddingsBody(Body):
    """`dimensions`: the first so many elements, of length 1 again (for models that were trained for it)."""

    input: str | Strings | TokenIds | TokenIdLists
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = None


@router.post("/embeddings")
async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """An embedding an input; base64 is little-endian float32. Texts over the model's limit are an error."""
    served = registry_of(request).get(body.model, ("embedding",), "embeddings")
    options = EmbedOptions(dimensions=body.dimensions)
    answer = await while_connected(request, _embed(served, body.input, options), served.crowded)
    rows = answer.rows.astype("<f4")
    encode: Any = (lambda row: base64.b64encode(row.tobytes()).decode()) if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": i, "embedding": row if encode is list else encode(row)}
        for i, row in enumerate(rows)
    ]
    tokens = sum(answer.tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return reply({"object": "list", "data": data, "model": served.name, "usage": usage})


async def _embed(served: Served, given: Any, options: EmbedOptions) -> Answer:
    if isinstance(given, str) or (given and isinstance(given[0], str)):
        return await served.embed(as_texts(given), options)
    return await served.embed_ids([given] if given and isinstance(given[0], int) else given, options)


@router.get("/models")
async def models(request: Request) -> Response:
    """All models that are served."""
    return reply({"object": "list", "data": [_about(served) for served in registry_of(request)]})


@router.get("/models/{name}")
async def model(request: Request, name: str) -> Response:
    """One of them."""
    return reply(_about(registry_of(request).exactly(name)))


def _about(served: Served | ServedDecoder) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "approxrt"}
