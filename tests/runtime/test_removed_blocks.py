"""Removed blocks: x = norm(x + bias) in the engine and in the reference, at no other cost; bad ones are refused.

A layer is given as (heads, FFN size); 0 is a removed block. Tolerances are those of test_encoder.py, a layer at a time.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from levels import EPS, every_level_of_linears
from paths import ROOT
from specs import TOKENIZER_JSON, random_tensors, small_spec

import approxrt
from approxrt.artifact.reader import Artifact, read_artifact
from approxrt.artifact.spec.encoder import HeadSpec, LayerSpec, ModelSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults, encoder_from_json
from approxrt.artifact.spec.formats import LINEAR_KINDS
from approxrt.artifact.summary import summarize
from approxrt.artifact.tensors import tensor_faults
from approxrt.artifact.writer import write_artifact
from approxrt.benchmark.limits import products
from approxrt.errors import ArtifactError
from approxrt.pruning.magnitude import prunable_linears, prune_tiles
from approxrt.quantization.rtn import quantize_model
from approxrt.runtime.cpu.engine import CpuEngine

Sizes = tuple[tuple[int, int], ...]
REMOVED: dict[str, Sizes] = {
    "first attention": ((0, 51), (2, 33)),
    "last attention": ((2, 51), (0, 33)),
    "first ffn": ((2, 0), (2, 33)),
    "last ffn": ((2, 51), (2, 0)),
    "a layer": ((2, 51), (0, 0), (2, 33)),
    "in a row": ((2, 0), (0, 51), (0, 0), (0, 33)),
    "alternating": ((0, 51), (2, 0), (0, 33), (2, 0)),
    "every attention": ((0, 51), (0, 33)),
    "every ffn": ((2, 0), (2, 0)),
    "everything": ((0, 0), (0, 0)),
}
every_removal = pytest.mark.parametrize("sizes", REMOVED.values(), ids=REMOVED)


def layers_of(sizes: Sizes, kind: str, head_dim: int = 20) -> tuple[LayerSpec, ...]:
    return tuple(
        LayerSpec(heads, head_dim, ffn, *[kind if heads else "f32"] * 4, *[kind if ffn else "f32"] * 2)
        for heads, ffn in sizes
    )


def spec_of(sizes: Sizes, kind: str = "s8", pooling: str = "cls", head_dim: int = 20, **changes: Any) -> ModelSpec:
    head = HeadSpec(pooling=pooling, dense_features=40)
    return small_spec(kind, layers=layers_of(sizes, kind, head_dim), head=head, **changes)


def artifact_of(path: Path, spec: ModelSpec) -> Artifact:
    return read_artifact(write_artifact(path, spec, random_tensors(spec), TOKENIZER_JSON, {}))


def sequences(lengths: tuple[int, ...], vocab: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, vocab, n).tolist() for n in lengths]


# -- numbers -----------------------------------------------------------------


def compare_with_the_reference(tmp_path: Path, spec: ModelSpec) -> None:
    import torch

    from approxrt.runtime.reference.encoder import reference_hidden, reference_logits

    torch.set_num_threads(1)  # matrices this small gain nothing from threads that wait for each other
    artifact = artifact_of(tmp_path / f"a-{spec.head.pooling}", spec)
    ids = sequences((1, 2, 3, 5, 8, 13, 16) * 4)
    truth = reference_logits(artifact.spec, artifact.tensors, ids)
    hidden = reference_hidden(artifact.spec, artifact.tensors, ids[:14])
    largest, depth = np.abs(truth).max(), len(spec.layers)
    terms = max(spec.hidden_size, *(max(l.num_heads * l.head_dim, l.intermediate_size) for l in spec.layers))
    for threads in (1, 2):
        engine = CpuEngine(artifact, threads=threads)
        error = np.abs(engine.forward(ids, None, "logits") - truth).max(axis=1)
        assert np.median(error) <= 12 * depth * terms * EPS * largest
        assert error.max() <= 2 * depth * largest / 127
        # Where one activation is rounded the other way all of a sequence differs: few do, hence the median over them.
        differences = [np.abs(engine.hidden(one) - want).max() for one, want in zip(ids[:14], hidden, strict=True)]
        highest = max(np.abs(want).max() for want in hidden)
        assert np.median(differences) <= 12 * depth * terms * EPS * highest
        assert max(differences) <= 2 * depth * highest / 127


@every_removal
@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_equals_the_reference(tmp_path: Path, kind: str, sizes: Sizes) -> None:
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    # Each removal and each kind meets both.
    pooling = ("cls", "mean")[(LINEAR_KINDS.index(kind) + list(REMOVED.values()).index(sizes)) % 2]  # type: ignore[arg-type]
    compare_with_the_reference(tmp_path, spec_of(sizes, kind, pooling))


@every_level_of_linears
def test_equals_the_reference_on_every_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    monkeypatch.setenv("APPROXRT_ISA", isa)
    for name in ("in a row", "alternating"):
        compare_with_the_reference(tmp_path / name, spec_of(REMOVED[name], "bsr_s8"))


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("sizes", [((0, 51), (2, 33)), ((0, 0), (2, 51))], ids=["attention", "layer"])
def test_a_first_block_behind_a_projection(tmp_path: Path, kind: str, sizes: Sizes) -> None:
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    compare_with_the_reference(tmp_path, spec_of(sizes, kind, embedding_size=24, projection_kind=kind))


def test_kinds_that_differ_by_layer(tmp_path: Path) -> None:
    """The norms of removed blocks quantise for whoever reads next, in the form that it reads."""
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    sizes: Sizes = ((0, 51), (2, 0), (0, 0), (0, 33), (2, 51), (2, 0))
    kinds = ("bsr_s4", "s8", "f32", "f32", "s4", "bsr_s8")
    layers = tuple(layers_of((size,), kind)[0] for size, kind in zip(sizes, kinds, strict=True))
    for pooling in ("cls", "mean"):
        head = HeadSpec(pooling=pooling, dense_features=40, dense_kind="s4", out_kind="s8")
        compare_with_the_reference(tmp_path, small_spec("s8", layers=layers, head=head))


# Head counts that differ, FFN sizes about the tile of 16, a neuron group of one.
PRUNED: Sizes = ((3, 51), (5, 1), (1, 15), (2, 17), (4, 32))


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("head_dim", [8, 32])
def test_heads_and_sizes_that_differ_by_layer(tmp_path: Path, kind: str, head_dim: int) -> None:
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    compare_with_the_reference(tmp_path, spec_of(PRUNED, kind, "cls" if head_dim == 8 else "mean", head_dim))


def test_the_reference_adds_the_bias() -> None:
    """By hand, for a layer of which nothing but two norms is left."""
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    from approxrt.runtime.reference.encoder import Reference

    spec = spec_of(((0, 0),), "f32")
    tensors = random_tensors(spec)

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + spec.layer_norm_eps)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    ids = [3, 5, 7]
    x = tensors["embeddings.word.weight"][ids].astype(float) + tensors["embeddings.position.weight"][:3]
    x = norm("embeddings.norm", x + tensors["embeddings.token_type.weight"][0])
    x = norm("layers.0.attention.norm", x + tensors["layers.0.attention.output.bias"])
    x = norm("layers.0.ffn.norm", x + tensors["layers.0.ffn.down.bias"])
    np.testing.assert_allclose(Reference(spec, tensors).hidden(ids).numpy(), x, rtol=1e-12)


# -- invariance --------------------------------------------------------------


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("sizes", [*REMOVED.values(), PRUNED], ids=[*REMOVED, "pruned"])
def test_a_sequence_does_not_depend_on_its_batch(tmp_path: Path, kind: str, sizes: Sizes) -> None:
    ids = sequences((1, 80, 3, 17, 64, 5, 33, 2, 79, 48, 1, 12))
    order = np.random.default_rng(1).permutation(len(ids))
    for pooling in ("cls", "mean"):
        artifact = artifact_of(tmp_path / pooling, spec_of(sizes, kind, pooling, 8, max_positions=80))
        engines = [CpuEngine(artifact, threads=threads) for threads in (1, 2, 3)]
        together = engines[1].forward(ids, None, "logits")
        for engine in engines:
            for i, sequence in enumerate(ids):
                np.testing.assert_array_equal(engine.forward([sequence], None, "logits")[0], together[i])
            np.testing.assert_array_equal(engine.forward([ids[i] for i in order], None, "logits"), together[order])
            np.testing.assert_array_equal(engine.forward(ids, None, "logits", budget=100), together)


@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s4"])
@every_removal
def test_first_tokens_alone_give_what_all_tokens_give(tmp_path: Path, kind: str, sizes: Sizes) -> None:
    """With CLS pooling, what follows the last attention runs for first tokens alone."""
    artifact = artifact_of(tmp_path / "a", spec_of(sizes, kind, max_positions=80))
    ids = sequences((1, 5, 16, 17, 80))
    for threads in (1, 2, 3):
        engine = CpuEngine(artifact, threads=threads)
        first = np.stack([engine.hidden(sequence)[0] for sequence in ids])
        np.testing.assert_array_equal(engine.forward(ids, None, "pooled"), first)
        for i, sequence in enumerate(ids):
            np.testing.assert_array_equal(engine.forward([sequence], None, "pooled")[0], first[i])


# -- costs -------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("lengths", [(3, 5), (40, 33)], ids=["few tokens", "many"])
@every_removal
def test_multiplies_no_more_than_is_left(tmp_path: Path, sizes: Sizes, lengths: tuple[int, ...], pooling: str) -> None:
    """The engine's own count against the sum over what the artifact holds; sizes are whole tiles here."""
    whole = tuple((heads, ffn // 16 * 16) for heads, ffn in sizes)
    layers = layers_of(whole, "s8", head_dim=16)
    head = HeadSpec(pooling=pooling)
    spec = small_spec("s8", 64, layers=layers, head=head, max_positions=64, labels=tuple(map(str, range(16))))
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {})
    for threads in (1, 2):
        model = approxrt.load(path, threads=threads)
        with model.profiling() as taken:
            model.forward(sequences(lengths))
        expected = products(model.info, pooling == "cls", [heads * 16 for heads, _ in whole], lengths)
        assert sum(op["macs"] for op in taken["ops"]) == sum(expected.values())
        ran = {op["op"] for op in taken["ops"]}
        assert ({"attention", "query, key, value", "output"} & ran != set()) == any(heads for heads, _ in whole)
        assert ({"ffn up, activation", "ffn down"} & ran != set()) == any(ffn for _, ffn in whole)


@every_removal
def test_no_allocation_after_warm_up(tmp_path: Path, sizes: Sizes) -> None:
    engine = CpuEngine(artifact_of(tmp_path / "a", spec_of(sizes, "s8", max_positions=128)), threads=2)
    ids = sequences((128, 100, 3))

    def ask() -> int:
        engine.forward(ids, None, "logits")
        engine.forward(ids[:1], None, "pooled")
        engine.hidden(ids[2])
        return engine.info()["scratch_bytes"]

    warm = ask()
    assert warm > 0 and {ask() for _ in range(3)} == {warm}


# -- artifacts ---------------------------------------------------------------


def test_the_spec_of_a_removed_block() -> None:
    spec = spec_of(((0, 51), (2, 0), (0, 0)))
    names = [name for name, _ in spec.linears()]
    assert [name for name in names if name.startswith("layers.0.")] == ["layers.0.ffn.up", "layers.0.ffn.down"]
    assert not any(name.startswith(("layers.1.ffn.", "layers.2.")) for name in names)
    assert list(spec.removed_biases()) == [
        ("layers.0.attention", "layers.0.attention.output.bias"),
        ("layers.1.ffn", "layers.1.ffn.down.bias"),
        ("layers.2.attention", "layers.2.attention.output.bias"),
        ("layers.2.ffn", "layers.2.ffn.down.bias"),
    ]
    shapes = {name: shape for name, _, shape in spec.dense_tensors()}
    assert {name for name in shapes if name.startswith("layers.2.")} == {
        f"layers.2.{part}" for part in ("attention.output.bias", "ffn.down.bias")
    } | {f"layers.2.{block}.norm.{part}" for block in ("attention", "ffn") for part in ("weight", "bias")}
    assert shapes["layers.0.attention.output.bias"] == shapes["layers.1.ffn.down.bias"] == (40,)
    assert encoder_from_json(spec.to_json()) == (spec, [])
    assert tensor_faults(spec, random_tensors(spec)) == []
    with pytest.raises(KeyError, match=r"layers\.1\.ffn\.up"):
        spec.with_linear_kinds({"layers.1.ffn.up": "s8"})


@every_removal
def test_summary_and_load(tmp_path: Path, sizes: Sizes) -> None:
    artifact = artifact_of(tmp_path / "a", spec_of(sizes))
    summary = summarize(artifact)
    left = [any(size) for size in sizes]
    assert summary["layer_density"] == [float(any_left) for any_left in left]
    assert summary["density"] == float(any(left)) and summary["mac_share"]["s8"] == float(any(left))
    assert summary["removed"] == [block for block, _ in artifact.spec.removed_biases()]
    assert sum(summary["bytes_by_kind"].values()) == summary["bytes"]["weights"]
    model = approxrt.load(artifact.path)
    assert model.info["removed"] == summary["removed"]
    assert np.isfinite(model.forward(sequences((3, 8)))).all()


def test_inspect_shows_them(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path / "a", spec_of(REMOVED["a layer"]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "COLUMNS": "160"}
    command = [sys.executable, "-m", "approxrt.cli.main", "inspect", str(artifact.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "removed: layers.1.attention, layers.1.ffn" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if "layers.1." in line and "removed:" not in line]
    assert [[word for word in row if word.isascii() and word != "|"] for row in rows] == [
        ["layers.1.attention", "removed", "0"],
        ["layers.1.ffn", "removed", "0"],
    ]


@pytest.mark.parametrize("kind", ["s4", "s8", "f32"])
@pytest.mark.parametrize("scope", ["linear", "global"])
@every_removal
def test_quantisation_and_pruning_pass_them_by(tmp_path: Path, sizes: Sizes, scope: Any, kind: Any) -> None:
    spec = spec_of(sizes, "f32")
    tensors = random_tensors(spec)
    masks = prune_tiles(spec, tensors, 0.5, scope) if kind != "f32" else {}
    assert set(masks) == (set(prunable_linears(spec)) if kind != "f32" else set())
    small, parts = quantize_model(spec, tensors, kind, masks)
    artifact = read_artifact(write_artifact(tmp_path / "a", small, parts, TOKENIZER_JSON, {}))
    assert list(artifact.spec.removed_biases()) == list(spec.removed_biases())
    for _, bias in spec.removed_biases():
        np.testing.assert_array_equal(artifact.tensors[bias], tensors[bias])
    assert np.isfinite(CpuEngine(artifact, threads=1).forward(sequences((3,)), None, "logits")).all()


# -- bad input ---------------------------------------------------------------

BAD_LAYERS = {
    "negative heads": ({"num_heads": -1}, "model.layers[0].num_heads is -1"),
    "negative ffn": ({"intermediate_size": -16}, "model.layers[0].intermediate_size is -16"),
    "no head_dim": ({"num_heads": 0, "head_dim": 0}, "model.layers[0].head_dim is 0"),
    "negative head_dim": ({"head_dim": -20}, "model.layers[0].head_dim is -20"),
    "huge heads": ({"num_heads": 1 << 40}, "model.layers[0].num_heads is 1099511627776"),
    "false heads": ({"num_heads": False}, "model.layers[0].num_heads is False"),
    "no ffn at all": ({"intermediate_size": None}, "model.layers[0].intermediate_size is None"),
    "kind of a removed query": ({"num_heads": 0}, "model.layers[0].query is 's8'; it must be 'f32'"),
    "kind of a removed output": ({"num_heads": 0}, "model.layers[0].attention_output is 's8'"),
    "kind of a removed up": ({"intermediate_size": 0}, "model.layers[0].ffn_up is 's8'; it must be 'f32'"),
    "kind of a removed down": ({"intermediate_size": 0}, "model.layers[0].ffn_down is 's8'"),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_bad_layers_are_named(case: str) -> None:
    changes, message = BAD_LAYERS[case]
    layer = dataclasses.replace(LayerSpec(2, 20, 51, *["s8"] * 6), **changes)
    spec = small_spec("s8", layers=(layer,))
    assert any(message in fault for fault in encoder_faults(spec)), encoder_faults(spec)
    _, faults = encoder_from_json(spec.to_json())
    assert any(message in fault for fault in faults), faults


BAD_TENSORS = {
    "missing bias": ({"layers.0.attention.output.bias": None}, "missing tensors: layers.0.attention.output.bias"),
    "short bias": ({"layers.0.ffn.down.bias": np.zeros(39, np.float32)}, "'layers.0.ffn.down.bias' is F32[39]"),
    "bias of rank 2": ({"layers.0.ffn.down.bias": np.zeros((1, 40), np.float32)}, "is F32[1, 40]"),
    "empty bias": ({"layers.0.attention.output.bias": np.zeros(0, np.float32)}, "is F32[0]; the config asks for F32["),
    "int8 bias": ({"layers.0.attention.output.bias": np.zeros(40, np.int8)}, "is I8[40]; the config asks for F32[40]"),
    "NaN bias": (
        {"layers.0.ffn.down.bias": np.full(40, np.nan, np.float32)},
        "'layers.0.ffn.down.bias' has 40 values that are NaN",
    ),
    "a weight that is left": (
        {"layers.0.ffn.down.weight": np.zeros((40, 51), np.float32)},
        "unexpected tensors: layers.0.ffn.down.weight",
    ),
    "an empty weight": (
        {"layers.0.attention.query.weight": np.zeros((0, 40), np.float32)},
        "unexpected tensors: layers.0.attention.query.weight",
    ),
    "a bias of a linear that is gone": (
        {"layers.0.ffn.up.bias": np.zeros(0, np.float32)},
        "unexpected tensors: layers.0.ffn.up.bias",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """By the writer, and by the reader of what a writer without checks wrote."""
    changes, message = BAD_TENSORS[case]
    spec = spec_of(((0, 0), (2, 33)))
    tensors = {name: array for name, array in {**random_tensors(spec), **changes}.items() if array is not None}
    with pytest.raises(ArtifactError) as written:
        write_artifact(tmp_path / "a", spec, tensors, TOKENIZER_JSON, {})
    assert message in str(written.value)
    monkeypatch.setattr("approxrt.artifact.writer.tensor_faults", lambda *_: [])
    monkeypatch.setattr("approxrt.artifact.writer._read_back", lambda *_: None)
    path = write_artifact(tmp_path / "a", spec, tensors, TOKENIZER_JSON, {})
    with pytest.raises(ArtifactError) as read:
        read_artifact(path)
    assert message in str(read.value)


def test_a_config_that_removes_what_is_stored(tmp_path: Path) -> None:
    """Sizes set to 0 behind the writer's back: every tensor too many is found."""
    spec = spec_of(((2, 51),), "f32")
    gone = dataclasses.replace(spec, layers=(dataclasses.replace(spec.layers[0], num_heads=0, intermediate_size=0),))
    faults = tensor_faults(gone, random_tensors(spec))
    assert len(faults) == 1 and faults[0].startswith("unexpected tensors: layers.0.attention.key.bias")


def test_the_engine_refuses_them_by_itself(tmp_path: Path) -> None:
    """The C++ side trusts nobody either: a bias that is missing, short or of another type."""
    from approxrt import _C
    from approxrt.runtime.cpu.engine import encoder_config

    spec = spec_of(((0, 0),))
    config, tensors = encoder_config(spec), random_tensors(spec)
    name = "layers.0.attention.output.bias"
    for bad in (None, np.zeros(39, np.float32), np.zeros(40, np.int8), np.zeros((40, 1), np.float32)):
        changed = {**tensors, name: bad} if bad is not None else {n: t for n, t in tensors.items() if n != name}
        with pytest.raises((ValueError, TypeError), match=r"attention\.output\.bias"):
            _C.Encoder(config, changed, "scalar", 1)
    for field in ("num_heads", "intermediate_size"):
        broken = {**config, "layers": [{**config["layers"][0], field: -1}]}
        with pytest.raises(ValueError, match=f"{field} is negative"):
            _C.Encoder(broken, tensors, "scalar", 1)
