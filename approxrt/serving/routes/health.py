"""Answer what orchestrators ask: alive, ready, and how it goes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from approxrt.serving.errors import Unavailable

router = APIRouter(tags=["health"])


# Load balancers ask with HEAD as well as with GET.
@router.get("/live")
@router.head("/live", include_in_schema=False)
async def live() -> Response:
    """200 as long as the process answers."""
    return Response(status_code=200)


@router.get("/health")
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 when requests are welcome, 503 while the server shuts down."""
    check_ready(request)
    return Response(status_code=200)


def check_ready(request: Request) -> None:
    """Raise Unavailable once the server has been told to stop."""
    if request.app.state.activity.draining:
        raise Unavailable("the server is shutting down")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    found = request.app.state.metrics
    return Response(found.text(), media_type=found.content_type)
