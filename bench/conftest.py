"""Settings of all microbenchmarks, and what their JSON says about the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kernel_report import context

# A round is at least half a millisecond of calls, a benchmark about a tenth of a second: the suite takes minutes.
TIMING = pytest.mark.benchmark(min_time=5e-4, max_time=0.1, min_rounds=5, warmup=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every benchmark here the same timing."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(TIMING)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Note at the time of the run what kernel_report.py publishes; drop what would name the machine."""
    output_json["approxrt"] = context(["pytest", *map(str, config.invocation_params.args)])
    output_json.get("machine_info", {}).pop("node", None)
