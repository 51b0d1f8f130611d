"""Read what a compression keeps beside its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from approxrt.compression.records import Candidate, from_json


def kept_candidates(work: Path) -> list[dict[str, Any]]:
    """The candidates of `OUT.work`, as a report has them."""
    import json

    found: list[dict[str, Any]] = []
    while (path := work / f"candidate-{len(found)}.json").exists():
        found.append(from_json(json.loads(path.read_text()), Candidate).to_report())
    return found
