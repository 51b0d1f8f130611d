"""int4 tensors in an artifact: every corruption named, what passes is in range, kinds mixed, reading fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from artifact_edits import CARD, DOWN, UP, edit_config, edit_tensors, replace_tensor, set_value, write
from hypothesis import given
from hypothesis import strategies as st
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.encoder import LayerSpec
from approxrt.artifact.tensors import tensor_faults
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError

INT4_CORRUPTIONS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "low nibble": ("s4", set_value(f"{UP}.q4", (50, 3), 0x80), f"tensor '{UP}.q4' has 1 nibbles of 0"),
    "high nibble": ("s4", set_value(f"{UP}.q4", (0, 19), 0x08), f"tensor '{UP}.q4' has 1 nibbles of 0"),
    "both nibbles": ("s4", set_value(f"{UP}.q4", (0, 19), 0), f"tensor '{UP}.q4' has 2 nibbles of 0"),
    "surplus nibble": (
        "s4",
        set_value(f"{DOWN}.q4", (4, 25), 0x98),
        f"tensor '{DOWN}.q4' has weights past input 51; the surplus nibble",
    ),
    "m of 0": ("s4", set_value(f"{UP}.group_scale", (1, 1), 0), "1 group scales outside 1 to 18 (the first is 0 at 3)"),
    "m of 19": ("s4", set_value(f"{UP}.group_scale", (0, 0), 19), "outside 1 to 18 (the first is 19 at 0)"),
    "q4 dtype": ("s4", replace_tensor(f"{UP}.q4", lambda a: a.view(np.int8)), "is I8[51, 20]; the config asks for U8"),
    "q4 shape": (
        "s4",
        replace_tensor(f"{UP}.q4", lambda a: a[:, :-1]),
        "is U8[51, 19]; the config asks for U8[51, 20]",
    ),
    "q4 gone": ("s4", lambda f: edit_tensors(f, lambda t: t.pop(f"{UP}.q4")), f"missing tensors: {UP}.q4"),
    "scales shape": ("s4", replace_tensor(f"{UP}.group_scale", lambda a: a[:, :1]), "asks for U8[51, 2]"),
    "scale": ("s4", set_value(f"{UP}.scale", 7, np.inf), "1 values that are NaN or infinite"),
    "embedding nibble": (
        "s4",
        set_value("embeddings.word.q4", (3, 3), 0x0F),
        "'embeddings.word.q4' has 1 nibbles of 0",
    ),
    "embedding m": (
        "s4",
        set_value("embeddings.word.group_scale", (3, 1), 0),
        "outside 1 to 255 (the first is 0 at 7)",
    ),
    "tile nibble": ("bsr_s4", set_value(f"{UP}.tiles4", (0, 2, 1), 0x0F), f"'{UP}.tiles4' has 1 nibbles of 0"),
    "tile m": ("bsr_s4", set_value(f"{UP}.group_scale", (0, 3), 255), "outside 1 to 18 (the first is 255 at 3)"),
    "fewer groups": ("bsr_s4", replace_tensor(f"{UP}.group_scale", lambda a: a[:-1]), "a row for every 8 tiles"),
    "groups dtype": ("bsr_s4", replace_tensor(f"{UP}.group_scale", lambda a: a.astype(np.int32)), "is I32["),
    "tiles4 shape": ("bsr_s4", replace_tensor(f"{UP}.tiles4", lambda a: a.reshape(-1, 32)), "U8[nnz, 16, 2] is needed"),
    "tiles4 gone": (
        "bsr_s4",
        lambda f: edit_tensors(f, lambda t: t.pop(f"{UP}.tiles4")),
        f"missing tensors: {UP}.tiles4",
    ),
    "fewer tiles4": ("bsr_s4", replace_tensor(f"{UP}.tiles4", lambda a: a[:-1]), "indices"),
    "index": ("bsr_s4", set_value(f"{UP}.indices", -1, 65535), "the largest is 65535"),
    "indptr falls": ("bsr_s4", set_value(f"{UP}.indptr", 1, 10_000), "falls in between"),
    "row padding": ("bsr_s4", set_value(f"{UP}.tiles4", (-1, 3, 0), 0x89), "rows past output 51"),
    "column padding": ("bsr_s4", lambda f: edit_tensors(f, dirty_nibble), "columns past input 51"),
    "int8 tiles": (
        "bsr_s4",
        lambda f: edit_config(f, lambda c: c["model"]["layers"][0].update(ffn_up="bsr_s8")),
        f"missing tensors: {UP}.tiles",
    ),
}


def dirty_nibble(tensors: dict[str, np.ndarray]) -> None:
    """The fourth input of a last tile that has three."""
    tiles = tensors[f"{DOWN}.tiles4"].copy()
    (last,) = np.nonzero(tensors[f"{DOWN}.indices"] == 12)
    tiles[last[0], 0, 1] = tiles[last[0], 0, 1] & 15 | 0x90
    tensors[f"{DOWN}.tiles4"] = tiles


@pytest.mark.parametrize("case", INT4_CORRUPTIONS)
def test_corruption_of_int4_is_named(tmp_path: Path, case: str) -> None:
    kind, corrupt, expected = INT4_CORRUPTIONS[case]
    path = write(tmp_path / "a", kind)
    corrupt(path)
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    assert expected in str(caught.value)


@given(kind=st.sampled_from(["s4", "bsr_s4"]), seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
def test_random_bytes_in_int4_tensors_are_sound_or_refused(kind: str, seed: int, count: int) -> None:
    """Tensors that pass have only weights and scales in range: looked at one by one."""
    rng = np.random.default_rng(seed)
    spec = small_spec(kind)
    tensors = {name: array.copy() for name, array in random_tensors(spec, seed).items()}
    names = [name for name in tensors if tensors[name].dtype == np.uint8]
    for _ in range(count):
        array = tensors[names[rng.integers(len(names))]].reshape(-1)
        array[rng.integers(array.size)] = rng.integers(256)
    sound = all(
        1 <= byte <= (255 if name.startswith("embeddings") else 18)
        if name.endswith("scale")
        else byte & 15 and byte >> 4
        for name in names
        for byte in tensors[name].reshape(-1).tolist()
    )
    faults = tensor_faults(spec, tensors)
    assert sound or faults
    for fault in faults:
        assert "nibbles" in fault or "group scales" in fault or "past" in fault, fault


def test_mixed_kinds_in_one_artifact(tmp_path: Path) -> None:
    layers = (LayerSpec(2, 20, 51, "s4", "s8", "f32", "bsr_s4", "bsr_s8", "s4"),)
    for embedding in ("f32", "s8", "s4"):
        spec = small_spec(layers=layers, embedding_kind=embedding)
        tensors = random_tensors(spec)
        artifact = read_artifact(write_artifact(tmp_path / embedding, spec, tensors, TOKENIZER_JSON, CARD))
        assert artifact.spec == spec and set(artifact.tensors) == set(tensors)


def test_reading_int4_is_fast(tmp_path: Path) -> None:
    """As of int8 (test_artifact.py): half the bytes to hash, and nibbles to look at."""
    layers = (LayerSpec(12, 32, 1536, *["s4"] * 3, *["bsr_s4"] * 3),) * 6
    spec = small_spec("s4", hidden=384, layers=layers, vocab_size=30522, max_positions=512, max_length=512)
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, CARD)
    times = []
    for _ in range(7):
        start = time.process_time()
        read_artifact(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.1, times
