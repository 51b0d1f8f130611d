"""Artifacts for a GPU: pruned by whole blocks, stored as any other, read by both engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from families import build_checkpoint
from specs import random_tensors, small_spec

from approxrt.artifact.reader import read_artifact
from approxrt.conversion import convert
from approxrt.errors import InputError
from approxrt.pruning.magnitude import prune_tiles
from approxrt.runtime.cpu.engine import CpuEngine
from approxrt.runtime.cuda.layout import kept_blocks, model_layouts, stacked_tiles


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint("bert", tmp_path_factory.mktemp("checkpoint"), hidden=128, layers=1, ffn=256)


@pytest.mark.parametrize("block", [(16, 4), (64, 64), (32, 8)])
def test_tiles_are_kept_by_whole_blocks(block: tuple[int, int]) -> None:
    spec = small_spec("f32", hidden=160)
    masks = prune_tiles(spec, random_tensors(spec), 0.4, block=block)
    for name, mask in masks.items():
        blocks = kept_blocks(mask, *block)
        high, wide = block[0] // 16, block[1] // 4
        whole = np.repeat(np.repeat(blocks, high, 0)[: mask.shape[0]], wide, 1)[:, : mask.shape[1]]
        np.testing.assert_array_equal(mask, whole)
        assert blocks.sum() == max(1, round(0.4 * blocks.size)), name


@pytest.mark.parametrize("bits", [8, 4])
def test_the_gpu_runs_its_artifact_in_blocks_and_the_cpu_reads_it(checkpoint: Path, tmp_path: Path, bits: int) -> None:
    artifact = read_artifact(convert(checkpoint, tmp_path / "a", bits=bits, density=0.25, target="cuda"))
    assert artifact.card["method"]["target"] == "cuda" and "64x64" in artifact.card["method"]["pruning"]
    layouts = model_layouts(artifact.spec, artifact.tensors)
    inner = [layout for name, layout in layouts.items() if name.startswith("layers.")]
    assert inner and all(layout.block is not None and layout.cost == 1 for layout in inner)
    linears = dict(artifact.spec.linears())
    kept = stacked_tiles([("layers.0.ffn.up", linears["layers.0.ffn.up"])], artifact.tensors)
    assert kept is not None and kept.mean() == 0.25
    assert np.isfinite(CpuEngine(artifact, threads=1).forward([[1, 2, 3]], None, "logits")).all()


def test_inspect_says_what_the_other_target_costs(checkpoint: Path, tmp_path: Path) -> None:
    for target, low, high in (("cpu", 3.9, 4.1), ("cuda", 1.0, 1.0)):
        out = str(tmp_path / target)
        code, text = run_command("convert", str(checkpoint), "--out", out, "--density", "0.25", "--target", target)
        assert code == 0, text
        code, text = run_command("inspect", out, "--json")
        gpu = json.loads(text)["gpu"]
        assert code == 0 and gpu["target"] == target and low <= gpu["cost"] <= high
        code, text = run_command("inspect", out)
        assert f"made for {target}" in text and ("convert with --target cuda" in text) == (target == "cpu")


def test_unknown_target(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="target is 'tpu'; it must be one of cpu, cuda"):
        convert(checkpoint, tmp_path / "a", target="tpu")


def test_inspect_says_what_a_gpu_does_not_run(tmp_path: Path) -> None:
    folder = build_checkpoint("albert", tmp_path / "c")
    artifact = convert(folder, tmp_path / "a")
    code, text = run_command("inspect", str(artifact))
    assert code == 0 and "a GPU does not run it: it has layers that are shared" in text
