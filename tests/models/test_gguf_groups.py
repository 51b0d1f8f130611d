"""A .gguf file's own 4- and 8-bit blocks in the artifact: the very numbers, rows of heads in their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import decoder_tokenizer

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from approxrt.artifact.reader import read_artifact  # noqa: E402
from approxrt.artifact.storage.groupwise import dequantize_groups, matrix_parts  # noqa: E402
from approxrt.conversion import convert  # noqa: E402
from approxrt.models.gguf_groups import artifact_name, split_blocks  # noqa: E402
from approxrt.runtime.cpu.decoder_engine import DecoderEngine  # noqa: E402
from approxrt.runtime.reference.decoder import DecoderReference  # noqa: E402

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 64, 4, 2, 96, 2
KINDS = {
    "attn_q": "Q4_1", "attn_k": "Q4_0", "attn_v": "Q4_1", "attn_output": "Q8_0",
    "ffn_gate": "Q4_0", "ffn_up": "Q4_1", "ffn_down": "F32",
}  # fmt: skip
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // 2, HIDDEN), "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}  # fmt: skip


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes the rows of query and key: i and i + head_dim / 2 become neighbours."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_model(path: Path, table: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A random Llama; returns, by the artifact's names, the floats that its blocks stand for, rows put back."""
    rng = np.random.default_rng(seed)
    tokenizer = json.loads(decoder_tokenizer().to_str())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(vocab, key=vocab.__getitem__))
    writer.add_token_types([1] * len(vocab))
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    expected: dict[str, np.ndarray] = {}

    def add(name: str, shape: tuple[int, ...], kind: str, heads: int = 0) -> None:
        weight = rng.normal(0, 0.3, shape).astype(np.float32)
        stored = interleaved(weight, heads) if heads else weight
        if kind == "F32":
            writer.add_tensor(name, stored)
            back = stored
        else:
            form = gguf.GGMLQuantizationType[kind]
            blocks = gguf.quants.quantize(stored, form)
            writer.add_tensor(name, blocks, raw_dtype=form)
            back = gguf.quants.dequantize(blocks, form)
        if artifact_name(name):
            rows = np.arange(len(back), dtype=np.float32)[:, None]
            order = interleaved(rows, heads)[:, 0].astype(int) if heads else np.arange(len(back))
            straight = np.empty_like(back)
            straight[order] = back
            expected[artifact_name(name) or ""] = straight

    add("token_embd.weight", (len(vocab), HIDDEN), table)
    add("output_norm.weight", (HIDDEN,), "F32")
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{norm}.weight", (HIDDEN,), "F32")
        for part, kind in KINDS.items():
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part, 0)
            add(f"blk.{i}.{part}.weight", SHAPES[part], kind, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("table", ["Q8_0", "Q4_1"])
def test_blocks_stay_what_they_are(tmp_path: Path, table: str) -> None:
    expected = write_model(tmp_path / "model.gguf", table)
    artifact = read_artifact(convert(tmp_path / "model.gguf", tmp_path / "a", bits=5))
    spec = artifact.decoder_spec
    kinds: dict[str, Any] = {name: linear.kind for name, linear in spec.linears()}
    assert artifact.card["method"]["matrices_as_in_the_file"] == LAYERS * 6 + 1
    for name, weight in expected.items():
        if name == "embeddings.word":
            assert spec.embedding_kind == {"Q8_0": "g8", "Q4_1": "g4"}[table]
        else:
            assert kinds[name] == ("g8" if name.endswith("attention.output") else "g4")
        found = dequantize_groups(matrix_parts(name, artifact.tensors), weight.shape[1])
        if name.endswith("ffn.down"):  # floats in the file: rounded
            assert 0 < np.abs(found - weight).max() < 0.12
        else:
            np.testing.assert_array_equal(found, weight)
    ids = np.random.default_rng(1).integers(0, spec.vocab_size, 20).tolist()
    engine = DecoderEngine(artifact, 2, "f32")
    logits = engine.step([engine.cache(20)], [ids], True)
    reference = DecoderReference(spec, artifact.tensors).next_logits(ids)
    # as in test_decoder.py: float32 against float64, and one step of one activation in few tokens
    errors = np.abs(logits - reference).max(axis=1) / np.abs(reference).max()
    assert np.quantile(errors, 0.5) < 300 * 1.2e-7 and errors.max() < 0.05


def test_other_widths_round(tmp_path: Path) -> None:
    """Without bits=5 the file's blocks are floats like any others."""
    write_model(tmp_path / "model.gguf", "Q8_0")
    artifact = read_artifact(convert(tmp_path / "model.gguf", tmp_path / "a", bits=4))
    assert {linear.kind for _, linear in artifact.decoder_spec.linears()} == {"s4"}
    assert "matrices_as_in_the_file" not in artifact.card["method"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_split_blocks_are_the_packages(kind: str) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (7, 160)).astype(np.float32)
    form = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quants.quantize(weight, form)
    parts = split_blocks(blocks, kind)
    np.testing.assert_array_equal(dequantize_groups(parts, 160), gguf.quants.dequantize(blocks, form))


def test_names() -> None:
    assert artifact_name("blk.12.attn_k.weight") == "layers.12.attention.key"
    assert artifact_name("output.weight") == "head.out"
    for name in ("blk.0.attn_qkv.weight", "blk.0.attn_norm.weight", "output_norm.weight", "blk.x.attn_k.weight"):
        assert artifact_name(name) is None
