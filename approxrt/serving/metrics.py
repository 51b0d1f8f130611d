"""Prometheus metrics of one server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 64, 256, 1024, 4096, 16384)


class Metrics:
    """A registry of its own, so that two servers in one process do not share their counts."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at = self.registry
        self.requests = Counter("approxrt_requests", "Requests by route and status.", ("route", "status"), registry=at)
        self.seconds = Histogram(
            "approxrt_request_seconds",
            "From the first byte in to the last out.",
            ("route",),
            buckets=SECONDS,
            registry=at,
        )
        self.queue = Gauge("approxrt_queue_size", "Texts that wait for the engine.", ("model",), registry=at)
        self.waited = Histogram(
            "approxrt_queue_seconds", "What a text waits for the engine.", ("model",), buckets=SECONDS, registry=at
        )
        self.batch_size = Histogram("approxrt_batch_size", "Texts a pass.", ("model",), buckets=SIZES, registry=at)
        self.batch_tokens = Histogram(
            "approxrt_batch_tokens", "Tokens a pass.", ("model",), buckets=TOKENS, registry=at
        )
        self.tokens = Counter("approxrt_tokens", "Tokens that the engine has read.", ("model",), registry=at)
        self.failed = Counter(
            "approxrt_failed", "Texts that ended with an error of the model's.", ("model", "error"), registry=at
        )
        self.rejected = Counter("approxrt_rejected", "Requests that found the queue full.", ("model",), registry=at)

    def text(self) -> bytes:
        """All metrics in the exposition format."""
        return generate_latest(self.registry)
