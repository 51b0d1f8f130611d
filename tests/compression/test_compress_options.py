"""Options of a compression, and the candidate that it chooses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import approxrt

torch = pytest.importorskip("torch", reason="compression trains in torch")
pytest.importorskip("transformers", reason="compression reads data through transformers' tokenizers")

from approxrt.compression.options import CompressOptions, parse_drop, parse_duration  # noqa: E402
from approxrt.compression.records import Candidate, Origin, Provenance  # noqa: E402
from approxrt.compression.report import choose, pareto, shortfalls  # noqa: E402
from approxrt.errors import InputError  # noqa: E402
from approxrt.training.data import folds, vector_agreement  # noqa: E402


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": ("fast",)}, "objective is fast"),
        ({"objective": ()}, "objective is empty"),
        ({"speedup": 0.5}, "speedup is 0.5"),
        ({"shrink": float("nan")}, "shrink is nan"),
        ({"max_drop": 1.5}, "max_drop is 1.5"),
        ({"budget": 1}, "budget is 1"),
        ({"recipe": "magic"}, "recipe is 'magic'"),
        ({"target": "tpu"}, "target is 'tpu'"),
        ({"method": "luck"}, "method is 'luck'"),
        ({"method": "magnitude"}, "recipe one-shot"),
        ({"objective": ("accuracy",), "speedup": 4}, "exclude each other"),
        ({"objective": ("accuracy",), "recipe": "one-shot"}, "needs training"),
        ({"limit": 3}, "limit is 3"),
        ({"epochs": 0}, "epochs is 0"),
        ({"val_fraction": 1}, "val_fraction is 1"),
        ({"vocabulary": "tiny"}, "vocabulary is 'tiny'"),
    ],
)
def test_senseless_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompressOptions(**changes).check()


def test_units() -> None:
    assert parse_drop("0.5%") == 0.005 and parse_drop("0.01") == 0.01
    assert [parse_duration(x) for x in ("90", "90s", "30m", "2h")] == [90, 90, 1800, 7200]
    for wrong in ("", "5 %%", "1.2.3", "soon"):
        with pytest.raises(InputError):
            parse_drop(wrong)
        with pytest.raises(InputError):
            parse_duration(wrong)


def candidate(drop: float, speedup: float, size: int = 1000) -> Candidate:
    return Candidate("", {"accuracy": 0.9}, drop, 0.0, size, 1e6 / size, 1.0, speedup, {}, Provenance(Origin.PLANNED))


def test_choice_and_front() -> None:
    wanted = dataclasses.replace(CompressOptions(), speedup=4.0, max_drop=0.01)
    good, fast, lossy = candidate(0.005, 4.2), candidate(0.009, 5.0), candidate(0.05, 9.0)
    assert choose([good, fast, lossy], wanted) is fast
    assert choose([lossy, candidate(0.0, 3.5)], wanted).speedup == 3.5
    assert not shortfalls(good, wanted, "accuracy")
    assert "5.00 %" in shortfalls(lossy, wanted, "accuracy")[0]
    assert "2.00x faster" in shortfalls(candidate(0, 2), wanted, "accuracy")[0]
    assert pareto([good, fast, lossy, candidate(0.01, 4.0)]) == [good, fast, lossy]


def test_folds_and_agreement() -> None:
    parts = folds(11, 3, 0)
    assert sorted(np.concatenate(parts)) == list(range(11))
    vectors = np.random.default_rng(0).standard_normal((30, 8))
    assert vector_agreement(3 * vectors, vectors) == {"cosine": pytest.approx(1), "top1": 1.0, "top10": 1.0}
    other = vector_agreement(np.random.default_rng(1).standard_normal((30, 8)), vectors)
    assert other["top1"] < 0.3 and other["cosine"] < 0.5


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    """Named before anything is read: the checkpoint's folder is not even looked for."""
    from approxrt.errors import DeviceError

    with pytest.raises(InputError, match="device is 'tpu'; it must be one of auto, cpu, cuda"):
        approxrt.compress(tmp_path / "c", tmp_path, out=tmp_path / "a", task="sst2", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="use --device cpu"):
            approxrt.compress(tmp_path / "c", tmp_path, out=tmp_path / "a", task="sst2", device="cuda")


def test_options_are_said_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="options is given, and beside it speedup"):
        approxrt.compress("c", "d", out=tmp_path / "a", task="sst2", options=CompressOptions(), speedup=8)
    with pytest.raises(InputError, match="beside it objective"):
        approxrt.compress("c", "d", out=tmp_path / "a", task="sst2", options=CompressOptions(), objective="size")
