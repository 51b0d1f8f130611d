"""Requests drawn from the server's own OpenAPI description never bring it down: each gets an answer below 500."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from decoders import build_decoder
from hypothesis import HealthCheck, given, settings
from served import Address, build_models, load_models, running

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
schemathesis = pytest.importorskip("schemathesis", reason="requests are drawn by schemathesis (extra 'clients')")

import approxrt  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    folder: Path = tmp_path_factory.mktemp("schema")
    models = load_models(build_models(folder))
    models["writer"] = approxrt.load(approxrt.convert(build_decoder("llama", folder / "c"), folder / "w"), threads=1)
    with running(models, max_inputs=16, timeout_s=20) as address:
        yield address


def test_no_request_is_a_server_error(server: Address) -> None:
    description = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses = {found.ok().label: _statuses(found.ok()) for found in description.get_all_operations()}
    assert len(statuses) >= 20 and all(statuses.values())
    # Something was answered, too.
    assert {label for label, seen in statuses.items() if 200 in seen} >= {"POST /embed", "GET /v1/models"}


def _statuses(operation: Any) -> set[int]:
    """Return the answers to requests that are drawn for one route."""
    seen = set()

    @given(case=operation.as_strategy())
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int):
            case.body["max_tokens"] = min(case.body["max_tokens"], 8)  # long texts would only take time
        response = case.call()
        seen.add(response.status_code)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.json(), "an error says why"

    ask()
    return seen
