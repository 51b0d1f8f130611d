"""Fitting a preview of a decoder's head: it keeps its bound on states that it has not seen, and pays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="random checkpoints need torch")

from decoders import build_decoder
from families import CORPUS
from grouped_decoders import grouped_checkpoint
from lm_checkpoints import text
from previewed_decoders import InMemory, previewed
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder_schema import decoder_faults
from approxrt.artifact.storage.groupwise import dequantize_groups
from approxrt.artifact.tensors import tensor_faults
from approxrt.cli.main import app
from approxrt.conversion import convert
from approxrt.errors import DataError, InputError
from approxrt.quantization.groupwise import quantize_groups8
from approxrt.quantization.low_rank_head import build_preview, with_preview
from approxrt.quantization.rtn import quantize_model
from approxrt.runtime.cpu.decoder_engine import DecoderEngine

VOCAB, WIDTH = 3000, 256


def table_and_states(states: int = 1500) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A head of many words, and states whose energy falls steeply, about a mean that is not zero."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    energy = 3 * np.exp(-np.arange(WIDTH) / 25) + 0.02
    hidden = (rng.standard_normal((states, WIDTH)) * energy) @ basis.T + rng.standard_normal(WIDTH) * 0.3
    words = rng.standard_normal((VOCAB, WIDTH)) * 0.35
    return quantize_groups8(words.astype(np.float32)), hidden.astype(np.float32)


def divergence(full: np.ndarray, other: np.ndarray) -> float:
    full, other = (x.astype(np.float64) - x.max(axis=1, keepdims=True) for x in (full, other))
    full, other = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (full, other))
    return float((np.exp(full) * (full - other)).sum(axis=1).mean())


@pytest.mark.parametrize("max_kl", [0.003, 0.03])
def test_bound_holds_on_unseen_states(max_kl: float) -> None:
    table, states = table_and_states()
    preview = build_preview(table, states[:1000], states[1000:1200], max_kl)
    unseen = states[1200:]
    project, out = (
        {n.rpartition(".")[2]: t for n, t in preview.tensors.items() if n.startswith(f"head.preview.{part}.")}
        for part in ("project", "out")
    )
    y = unseen @ dequantize_groups(project, WIDTH).T + project["bias"]
    near = y @ dequantize_groups(out, preview.spec.width).T + out["bias"]
    whole = unseen @ dequantize_groups(table, WIDTH).T
    refined = near >= near.max(axis=1, keepdims=True) - preview.spec.margin
    mixed = np.where(refined, whole, near)
    assert 0 < preview.kl <= max_kl
    assert divergence(whole, mixed) < 1.5 * max_kl
    assert refined.sum(axis=1).mean() == pytest.approx(preview.rows, rel=0.2)
    # Without the exact words it would be far off; with them fewer bytes are read than the table has.
    assert divergence(whole, near) > 2 * max_kl
    assert preview.bytes < 0.9 * sum(part.nbytes for part in table.values())
    assert (mixed.argmax(axis=1) == whole.argmax(axis=1)).mean() > 0.98 and preview.agreement > 0.98


def test_more_divergence_costs_less_and_the_same_states_give_the_same_preview() -> None:
    table, states = table_and_states()
    strict, again, loose = (build_preview(table, states[:1000], states[1000:1200], kl) for kl in (0.003, 0.003, 0.03))
    assert loose.bytes < strict.bytes and strict.kl < loose.kl
    assert strict.spec == again.spec
    for name, tensor in strict.tensors.items():
        np.testing.assert_array_equal(tensor, again.tensors[name])


def test_what_cannot_be_fitted_is_an_error() -> None:
    table, states = table_and_states(600)
    hidden, check = states[:500], states[500:]
    with pytest.raises(InputError, match="hidden has 100 states; at least 256"):
        build_preview(table, hidden[:100], check)
    with pytest.raises(InputError, match="check has 3 states; at least 16"):
        build_preview(table, hidden, check[:3])
    broken = hidden.copy()
    broken[3, 5] = np.nan
    with pytest.raises(InputError, match="1 values that are NaN"):
        build_preview(table, broken, check)
    with pytest.raises(InputError, match=r"float32 \[tokens, 256\] is needed"):
        build_preview(table, hidden[:, :64], check)
    with pytest.raises(InputError, match="needs kind g8"):
        build_preview({"q": table["q"], "scale": table["group_scale"]}, hidden, check)
    with pytest.raises(InputError, match="max_kl is 0"):
        build_preview(table, hidden, check, 0)
    flat = np.random.default_rng(1).standard_normal((600, WIDTH)).astype(np.float32)
    with pytest.raises(InputError, match="no preview within 1e-09 nats"):
        build_preview(table, flat[:500], flat[500:], 1e-9)


def test_a_decoder_with_a_preview(tmp_path: Path) -> None:
    loaded = grouped_checkpoint(build_decoder("llama", tmp_path / "c", tie_word_embeddings=True, hidden=96, heads=4))
    spec, tensors = quantize_model(loaded.spec, loaded.tensors, "g4", {}, lambda *_: None, loaded.grouped, "g8")
    built = InMemory(spec, tensors)
    ids = np.random.default_rng(0).integers(0, spec.vocab_size, 6000).tolist()
    with_head, parts, preview = with_preview(built, ids, 0.2)
    assert decoder_faults(with_head) == [] and tensor_faults(with_head, parts) == []
    assert with_head.head_preview == preview.spec
    logits = [
        engine.step([engine.cache(100)], [ids[:100]], True)
        for engine in (DecoderEngine(InMemory(with_head, parts), 2), DecoderEngine(built, 2))
    ]
    assert 0 < divergence(logits[1], logits[0]) < 0.4
    with pytest.raises(InputError, match="has a preview already"):
        with_preview(InMemory(with_head, parts), ids)
    with pytest.raises(InputError, match="the text has 50 tokens"):
        with_preview(built, ids[:50])
    untied = previewed(1.0, tied_embeddings=False)
    with pytest.raises(InputError, match="not the embedding table"):
        with_preview(InMemory(dataclasses.replace(untied.decoder_spec, head_preview=None), untied.tensors), ids)


def test_convert(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "c", tie_word_embeddings=True, hidden=256, heads=4)
    words = tmp_path / "text.txt"
    words.write_text((text() + " ") * 20)
    with pytest.raises(InputError, match="is faster than the head"):
        convert(folder, tmp_path / "a", bits=5, head_preview=words)
    # Logits that are nearly the same for all words: an untrained head that is sure of nothing.
    weights = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(weights | {name: weights[name] * np.float32(0.1)}, folder / "model.safetensors", {"format": "pt"})
    arguments = ["convert", str(folder), "--out", str(tmp_path / "a"), "--bits", "5", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--head-preview", str(words)])
    assert done.exit_code == 0, done.output
    artifact = read_artifact(json.loads(done.stdout)["artifact"])
    assert artifact.decoder_spec.head_preview is not None
    assert 0 < artifact.card["method"]["head_preview"]["kl_nats"] <= 0.003


def test_convert_refuses_what_cannot_have_one(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "c", tie_word_embeddings=False)
    words = tmp_path / "text.txt"
    words.write_text(" ".join(CORPUS) * 50)
    for wrong in ({"bits": 8}, {"bits": 5, "table_bits": 6}, {"bits": 4}):
        with pytest.raises(InputError, match="use bits=5 and table_bits=8"):
            convert(folder, tmp_path / "a", head_preview=words, **wrong)
    with pytest.raises(DataError, match="cannot be read"):
        convert(folder, tmp_path / "a", bits=5, head_preview=tmp_path / "none.txt")
    with pytest.raises(InputError, match="not the embedding table"):
        convert(folder, tmp_path / "a", bits=5, head_preview=words)
    assert not (tmp_path / "a").exists()
