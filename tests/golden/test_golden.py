"""Compare what the code makes of fixed inputs with what is written down in golden.json.

    python tests/golden/golden_cases.py tests/golden/golden.json

writes it anew, after a change that is meant to change something; the commit says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden_cases import CASES

pytest.importorskip("torch", reason="most cases train or prune in torch")
pytest.importorskip("transformers", reason="checkpoints are built by transformers")

HERE = Path(__file__).resolve().parent
RECORDED = json.loads((HERE / "golden.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the cases with today's code, and return the facts of each."""
    path = tmp_path_factory.mktemp("golden") / "found.json"
    subprocess.run([sys.executable, str(HERE / "golden_cases.py"), str(path)], check=True, timeout=900)
    facts: dict[str, Any] = json.loads(path.read_text())
    if facts["numerics"] != RECORDED["numerics"]:
        pytest.skip("this CPU's numerical libraries compute other bits than those that golden.json was written with")
    return facts["cases"]


def test_every_case_is_written_down() -> None:
    assert sorted(RECORDED["cases"]) == sorted(CASES)


@pytest.mark.parametrize("name", sorted(RECORDED["cases"]))
def test_unchanged(found: dict[str, Any], name: str) -> None:
    assert found[name] == RECORDED["cases"][name]
