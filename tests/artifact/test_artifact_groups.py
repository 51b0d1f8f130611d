"""Artifacts with float16 scales of groups: rounding, what is stored, what is refused, and the mapping of nibbles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from decoders import small_decoder_spec
from hypothesis import given
from hypothesis import strategies as st
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.storage.groupwise import (
    dequantize_groups,
    kind_of,
    matrix_parts,
    pack_quarters,
    pack_unsigned,
    unpack_quarters,
    unpack_unsigned,
)
from approxrt.artifact.storage.int4 import row_integers
from approxrt.artifact.summary import summarize
from approxrt.artifact.tensors import tensor_faults
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError
from approxrt.quantization.groupwise import quantize_groups4, quantize_groups6, quantize_groups8
from approxrt.quantization.int4 import quantize_rows4
from approxrt.quantization.rtn import quantize_model

CARD = {"method": {}}


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_nibbles_come_back(n: int, k: int, seed: int) -> None:
    q = np.random.default_rng(seed).integers(0, 16, (n, k)).astype(np.uint8)
    packed = pack_unsigned(q)
    assert packed.shape == (n, -(-k // 2))
    np.testing.assert_array_equal(unpack_unsigned(packed, k), q)
    if k % 2:
        assert not (packed[:, -1] >> 4).any()


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_pairs_of_bits_come_back(n: int, k: int, seed: int) -> None:
    q = np.random.default_rng(seed).integers(0, 4, (n, k)).astype(np.uint8)
    packed = pack_quarters(q)
    assert packed.shape == (n, -(-k // 4))
    np.testing.assert_array_equal(unpack_quarters(packed, k), q)
    assert k % 4 == 0 or not (packed[:, -1] >> 2 * (k % 4)).any()


@pytest.mark.parametrize("k", [32, 33, 70, 576])
def test_what_lies_on_a_grid_already_stays(k: int) -> None:
    """Steps and offsets that float16 has, with both ends of every group's interval in use."""
    rng = np.random.default_rng(k)
    n, groups = 20, -(-k // 32)
    d = np.exp2(rng.integers(-8, -4, (n, groups))).astype(np.float16)
    q = rng.integers(0, 16, (n, k)).astype(np.uint8)
    q[:, 0::32], q[:, 1::32] = 0, 15
    if k % 32 == 1:
        q[:, -1] = 0
    parts = {"q4": pack_unsigned(q), "group_scale": d, "group_offset": (-d * 8).astype(np.float16)}
    weight = dequantize_groups(parts, k)
    np.testing.assert_array_equal(dequantize_groups(quantize_groups4(weight), k), weight)


def test_rounding_errs_less_than_the_symmetric_kind() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((64, 320)) + 0.3).astype(np.float32)
    own = ((dequantize_groups(quantize_groups4(weight), 320) - weight) ** 2).mean()
    q4, m, scale = quantize_rows4(weight)
    other = ((row_integers(q4, m, 320) * scale[:, None] - weight) ** 2).mean()
    assert own < 0.6 * other
    # Of 32 normal weights 15 steps of least error are some 0.27 apart: a twelfth of its square.
    assert own < 0.27**2 / 12 * 1.1


@pytest.mark.parametrize("fill", [0.0, 1.5, -3e-7, 1e6])
def test_equal_and_extreme_weights(fill: float) -> None:
    weight = np.full((3, 40), fill, np.float32)
    for parts in (quantize_groups4(weight), quantize_groups6(weight), quantize_groups8(weight)):
        assert all(np.isfinite(part).all() for part in parts.values())
        back = dequantize_groups(parts, 40)
        # float16: 11 bits above 2^-14, a last place of 2^-24 below, and an end at 65504 (times what 8 bits count)
        highest = 65504 * {"g4": 1, "g6": 31, "g8": 127}[kind_of(parts)]
        assert (np.abs(back - np.clip(weight, -highest, highest)) <= abs(fill) * 2**-10 + 127 * 2.0**-25).all()


def test_eight_bits_err_half_a_step() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 100)).astype(np.float32)
    parts = quantize_groups8(weight)
    assert kind_of(parts) == "g8" and parts["q"].min() >= -127
    d = np.repeat(parts["group_scale"].astype(np.float32), 32, axis=1)[:, :100]
    # half a step, and up to 127 times what float16 took off the step
    assert (np.abs(dequantize_groups(parts, 100) - weight) <= d * (0.5 + 127 * 2.0**-11)).all()


def test_six_bits_err_half_a_step() -> None:
    """Of less than the largest weight over 31; a twelfth of the square of a step is the mean."""
    weight = np.random.default_rng(0).standard_normal((16, 100)).astype(np.float32)
    parts = quantize_groups6(weight)
    errors = dequantize_groups(parts, 100) - weight
    d = np.repeat(np.abs(parts["group_scale"].astype(np.float32)), 32, axis=1)[:, :100]
    assert kind_of(parts) == "g6" and (np.abs(errors) <= d * 2.5).all()
    assert (errors**2).mean() < (d**2).mean() / 12 * 1.1


@pytest.mark.parametrize("kind", ["g4", "g6", "g8"])
@pytest.mark.parametrize("decoder", [False, True])
def test_an_artifact_comes_back(tmp_path: Path, kind: str, decoder: bool) -> None:
    spec = small_decoder_spec(kind) if decoder else small_spec(kind)
    tensors = random_tensors(spec)
    artifact = read_artifact(write_artifact(tmp_path / "a", spec, tensors, TOKENIZER_JSON, CARD))
    assert artifact.any_spec == spec and set(artifact.tensors) == set(tensors)
    assert all(np.array_equal(artifact.tensors[name], array) for name, array in tensors.items())
    summary = summarize(artifact)
    assert summary["mac_share"][kind] == 1
    size = sum(part.nbytes for part in matrix_parts("layers.0.ffn.up", tensors).values()) + 4 * 51
    assert next(x["bytes"] for x in summary["linears"] if x["name"] == "layers.0.ffn.up") == size
    assert summary["bytes_by_kind"][kind] > sum(x["bytes"] for x in summary["linears"] if x["kind"] == kind)


@pytest.mark.parametrize("kind, part", [("g4", "group_scale"), ("g4", "group_offset"), ("g8", "group_scale")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_that_are_no_numbers_are_refused(kind: str, part: str, value: float) -> None:
    for name in ("layers.0.ffn.up", "embeddings.word"):
        spec = small_spec(kind)
        tensors = {key: array.copy() for key, array in random_tensors(spec).items()}
        tensors[f"{name}.{part}"][1, 1] = value
        assert [f"tensor '{name}.{part}' has 1 values that are NaN or infinite"] == tensor_faults(spec, tensors)


def test_other_shapes_and_types_are_refused() -> None:
    spec = small_spec("g4")
    tensors = random_tensors(spec)
    for name, array in (
        ("layers.0.ffn.up.group_scale", tensors["layers.0.ffn.up.group_scale"].astype(np.float32)),
        ("layers.0.ffn.up.group_scale", tensors["layers.0.ffn.up.group_scale"][:, :1].copy()),
        ("layers.0.ffn.up.group_offset", tensors["layers.0.ffn.up.group_offset"].view(np.uint16)),
        ("layers.0.ffn.down.q4", tensors["layers.0.ffn.down.q4"][:, :-1].copy()),
        ("embeddings.word.q4", tensors["embeddings.word.q4"].view(np.int8)),
    ):
        faults = tensor_faults(spec, tensors | {name: array})
        assert len(faults) == 1 and repr(name) in faults[0] and "the config asks for" in faults[0]
    faults = tensor_faults(spec, tensors | {"layers.0.ffn.up.scale": np.ones(51, np.float32)})
    assert faults == ["unexpected tensors: layers.0.ffn.up.scale"]
    del tensors["layers.0.ffn.up.group_offset"]
    assert tensor_faults(spec, tensors) == ["missing tensors: layers.0.ffn.up.group_offset"]


def test_a_surplus_nibble_is_refused() -> None:
    spec = small_spec("g4")
    tensors = {name: array.copy() for name, array in random_tensors(spec).items()}
    tensors["layers.0.ffn.down.q4"][3, -1] |= 0x10
    (fault,) = tensor_faults(spec, tensors)
    assert "weights past input 51" in fault
    spec = small_spec("g6")
    tensors = {name: array.copy() for name, array in random_tensors(spec).items()}
    tensors["layers.0.ffn.down.q2"][3, -1] |= 0x40
    (fault,) = tensor_faults(spec, tensors)
    assert "ffn.down.q2" in fault and "weights past input 51" in fault


def test_hostile_files_are_refused_whole(tmp_path: Path) -> None:
    """A config that claims the kind for tensors of another, and float16 where nothing asks for it."""
    path = write_artifact(tmp_path / "a", small_spec("g8"), random_tensors(small_spec("g8")), TOKENIZER_JSON, CARD)
    config = json.loads((path / "config.json").read_text())
    config["model"]["layers"][0]["ffn_up"] = "g4"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"missing tensors: .*ffn\.up\.q4") as raised:
        read_artifact(path)
    assert "unexpected tensors: layers.0.ffn.up.q" in str(raised.value)
    config["model"]["layers"][0]["ffn_up"] = "g5"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"'g5'; it must be one of .*g4, g6, g8"):
        read_artifact(path)


def test_a_model_of_five_bits() -> None:
    spec = small_decoder_spec("f32", tied_embeddings=False)
    tensors = random_tensors(spec)
    rounded, parts = quantize_model(spec, tensors, "g4")
    assert rounded.embedding_kind == "g8" and rounded.head_kind == "g8"
    kinds = {linear.kind for name, linear in rounded.linears() if name != "head.out"}
    assert kinds == {"g4"} and not tensor_faults(rounded, parts)
    given = {"embeddings.word": quantize_groups4(tensors["embeddings.word.weight"])}
    rounded, taken = quantize_model(spec, tensors, "g4", grouped=given)
    assert rounded.embedding_kind == "g4" and taken["embeddings.word.q4"] is given["embeddings.word"]["q4"]
    with pytest.raises(ValueError, match="dense"):
        quantize_model(spec, tensors, "g4", masks={"layers.0.ffn.up": np.ones((4, 10), bool)})
