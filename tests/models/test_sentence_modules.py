"""Modules of sentence-transformers: poolings, Dense, Normalize and truncate_dim give the original's vectors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from levels import every_level_of_linears
from originals import assert_close, edit_json
from specs import random_tensors, small_spec

import approxrt
from approxrt.artifact.memory import Memory
from approxrt.artifact.spec.encoder import POOLINGS, HeadSpec, ModelSpec, ProjectionSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults, encoder_from_json
from approxrt.errors import CheckpointError, DeviceError, UnsupportedModelError
from approxrt.models.checkpoint import load_checkpoint
from approxrt.runtime.cpu.engine import CpuEngine
from approxrt.runtime.encoder_model import EncoderModel
from approxrt.runtime.pooling import pool_states

TEXTS = ["a gripping film", "good", "two hours that nobody in the room will ever get back"]
SEVERAL = (["cls", "mean"], ["max", "mean_sqrt_len_tokens", "lasttoken"], list(POOLINGS))
QUERY = {"prompts": {"query": "good bad: "}}


def saved(tmp_path: Path, family: str = "bert", modules: Any = (), pooling: Any = "mean", **config: Any) -> Path:
    """A folder that sentence-transformers itself saves: an encoder, a pooling, further modules.

    modules  called with the width of the pooled vector; pooling: mode or modes; config: of the folder's own file
    """
    original = pytest.importorskip("sentence_transformers", reason="the original is not installed (extra 'clients')")
    import torch

    torch.manual_seed(0)
    encoder = build_checkpoint(family, tmp_path / "encoder", plain=True, positions=64)
    models = original.sentence_transformer.modules
    chain = [models.Transformer(str(encoder)), models.Pooling(64, pooling_mode=pooling)]
    for module in modules:
        chain.append(
            module(models, chain[-1].get_embedding_dimension() if hasattr(chain[-1], "get_embedding_dimension") else 64)
        )
    model = original.SentenceTransformer(modules=chain, device="cpu")
    model.save(str(tmp_path / "c"))
    if config:
        edit_json(tmp_path / "c" / "config_sentence_transformers.json", **config)
    return tmp_path / "c"


def dense(features: int, activation: str = "Tanh", bias: bool = True) -> Any:
    """A Dense module with weights wide enough that its activation bends them."""

    def build(models: Any, width: int) -> Any:
        import torch

        module = models.Dense(width, features, bias=bias, activation_function=getattr(torch.nn, activation)())
        torch.nn.init.normal_(module.linear.weight, std=2 / width**0.5)
        return module

    return build


def normalize(models: Any, width: int) -> Any:
    module = models.Normalize()
    module.get_embedding_dimension = lambda: width
    return module


def theirs_and_ours(folder: Path, out: Path, **options: Any) -> tuple[np.ndarray, EncoderModel]:
    import sentence_transformers

    model = approxrt.load(approxrt.convert(folder, out, bits=32), threads=2)
    assert isinstance(model, EncoderModel)
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, **options), model


@pytest.mark.parametrize("pooling", [*POOLINGS, *SEVERAL], ids=str)
def test_poolings(tmp_path: Path, pooling: Any) -> None:
    theirs, ours = theirs_and_ours(saved(tmp_path, pooling=pooling), tmp_path / "a")
    modes = [pooling] if isinstance(pooling, str) else pooling
    assert ours.spec.head.poolings == tuple(modes) and theirs.shape == (3, 64 * len(modes))
    assert_close(ours.embed(TEXTS, normalize=False), theirs)


@pytest.mark.parametrize("pooling", [*POOLINGS, list(POOLINGS)], ids=str)
def test_prompts_that_are_left_out(tmp_path: Path, pooling: Any) -> None:
    folder = saved(tmp_path, pooling=pooling, **QUERY)
    edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    theirs, ours = theirs_and_ours(folder, tmp_path / "a", prompt_name="query")
    assert_close(ours.embed(TEXTS, normalize=False, prompt_name="query"), theirs)


@pytest.mark.parametrize(
    "modules",
    [
        (dense(24),),
        (dense(100, "Identity", bias=False), normalize),
        (dense(48, "ReLU"), dense(17, "GELU")),
        (normalize, dense(32, "Identity"), normalize, dense(33), normalize),
    ],
    ids=["Tanh", "without bias", "two", "amid Normalize"],
)
@pytest.mark.parametrize("pooling", ["mean", "cls", ["mean", "max"]], ids=str)
def test_dense_modules(tmp_path: Path, modules: Any, pooling: Any) -> None:
    folder = saved(tmp_path, modules=modules, pooling=pooling)
    theirs, ours = theirs_and_ours(folder, tmp_path / "a", normalize_embeddings=True)
    assert ours.spec.pooled_size == ours.spec.vector_size == theirs.shape[1]
    assert_close(ours.embed(TEXTS), theirs)
    from approxrt.serving.sentence_transformers import SentenceTransformer

    raw, _ = theirs_and_ours(folder, tmp_path / "b")
    drop_in = SentenceTransformer(ours)
    assert drop_in.get_embedding_dimension() == theirs.shape[1]
    assert_close(drop_in.encode(TEXTS), raw)


@pytest.mark.parametrize("modules", [(), (normalize,), (dense(24),), (dense(24), normalize)])
def test_the_first_elements(tmp_path: Path, modules: Any) -> None:
    """The original takes truncate_dim when it is opened; a folder that names one is given by that from then on."""
    import sentence_transformers

    from approxrt.serving.sentence_transformers import SentenceTransformer

    folder = saved(tmp_path, modules=modules, truncate_dim=10)
    original = sentence_transformers.SentenceTransformer(str(folder), device="cpu", truncate_dim=10)
    model = approxrt.load(approxrt.convert(folder, tmp_path / "a", bits=32))
    assert model.spec.vector_size == 10 and model.spec.head.truncate_dim == 10
    assert_close(model.embed(TEXTS), original.encode(TEXTS, normalize_embeddings=True))
    drop_in = SentenceTransformer(model)
    assert drop_in.get_embedding_dimension() == 10
    assert_close(drop_in.encode(TEXTS), original.encode(TEXTS))
    assert drop_in.encode(TEXTS, truncate_dim=12).shape == (3, 12)


def test_dense_modules_behind_other_families(tmp_path: Path) -> None:
    for family in ("mpnet", "albert"):
        folder = saved(tmp_path / family, family, (dense(24), normalize), ["mean", "cls"])
        theirs, ours = theirs_and_ours(folder, tmp_path / family / "a")
        assert_close(ours.embed(TEXTS), theirs)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"activation_function": "torch.nn.modules.activation.Sigmoid"}, UnsupportedModelError, "Sigmoid' is not"),
        ({"activation_function": "my_code.Tanh"}, UnsupportedModelError, "my_code.Tanh' is not supported; supported: "),
        ({"activation_function": 3}, UnsupportedModelError, "activation_function 3"),
        ({"use_residual": True}, UnsupportedModelError, "use_residual"),
        ({"module_input_name": "token_embeddings"}, UnsupportedModelError, "module_input_name 'token_embeddings'"),
        ({"out_features": 0}, CheckpointError, "out_features is 0; an integer between 1"),
        (
            {"out_features": 25},
            CheckpointError,
            r"'linear.weight' has shape \[24, 64\]; config.json asks for \[25, 64\]",
        ),
        ({"bias": False}, CheckpointError, "the tensors of a Dense are linear.weight; there are linear"),
    ],
    ids=str,
)
def test_dense_modules_that_are_refused(tmp_path: Path, changes: dict, error: type[Exception], named: str) -> None:
    folder = saved(tmp_path, modules=(dense(24),))
    edit_json(folder / "2_Dense" / "config.json", **changes)
    with pytest.raises(error, match=named):
        load_checkpoint(folder)


def test_what_does_not_go_together(tmp_path: Path) -> None:
    folder = saved(tmp_path, modules=(dense(24),))
    edit_json(folder / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(UnsupportedModelError, match="include_prompt false before a Dense is not supported"):
        load_checkpoint(folder)
    edit_json(folder / "1_Pooling" / "config.json", include_prompt=True, pooling_mode=["mean", "cls"])
    with pytest.raises(CheckpointError, match="Dense module 0 reads 64 elements; its input has 128"):
        load_checkpoint(folder)
    shutil.rmtree(folder / "2_Dense")
    with pytest.raises(CheckpointError, match="2_Dense"):
        load_checkpoint(folder)


# -- the engine ---------------------------------------------------------------


def embedder(pooling: str, *projections: ProjectionSpec, **changes: Any) -> ModelSpec:
    head = HeadSpec(pooling, projections=projections, **changes)
    return small_spec("f32", labels=(), task_type="embedding", head=head, max_positions=64, max_length=64)


@every_level_of_linears
@pytest.mark.parametrize("pooling", [*POOLINGS, "mean+max", "+".join(POOLINGS)])
def test_the_engine_computes_the_reference(isa: str, pooling: str) -> None:
    pytest.importorskip("torch", reason="the reference is written in torch")
    from approxrt.runtime.reference.encoder import reference_embeddings

    rng = np.random.default_rng(0)
    ids = [rng.integers(2, 30, n).tolist() for n in (1, 2, 7, 33, 64)]
    for projections in ((), (ProjectionSpec(33, "tanh", True), ProjectionSpec(50, "gelu"))):
        spec = embedder(pooling, *projections)
        model = Memory(spec, random_tensors(spec))
        exact = reference_embeddings(spec, model.tensors, ids)
        got = CpuEngine(model, 1, isa=isa).forward(ids, None, "pooled")
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
        two = CpuEngine(model, 2, isa=isa)
        np.testing.assert_array_equal(two.forward(ids, None, "pooled"), got)
        alone = np.concatenate([two.forward([row], None, "pooled") for row in ids])
        np.testing.assert_array_equal(alone, got)


def test_many_texts_go_through_projections_in_blocks() -> None:
    spec = embedder("cls+lasttoken", ProjectionSpec(17, "relu"))
    engine = CpuEngine(Memory(spec, random_tensors(spec)), 2)
    ids = [[2 + i % 20, 3, 4] for i in range(101)]
    got = engine.forward(ids, None, "pooled")
    np.testing.assert_array_equal(got, np.concatenate([engine.forward([row], None, "pooled") for row in ids]))


def test_pooling_of_nothing() -> None:
    states = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert pool_states(states, ["cls", "lasttoken", "mean"], 3).tolist() == [0, 1, 0, 0, 0, 0]
    assert np.isneginf(pool_states(states, ["max"], 3)).all()
    assert pool_states(states, ["weightedmean"], 1).tolist() == [(2 * 2 + 3 * 4) / 5, (2 * 3 + 3 * 5) / 5]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pooling": "mean+min"}, "model.head.pooling is 'min'; it must be one of"),
        ({"pooling": "+".join(["mean"] * 9)}, "model.head.pooling has 9 modes"),
        ({"projections": (ProjectionSpec(0),)}, "projections[0].features is 0; it must be between 1"),
        ({"projections": (ProjectionSpec(8, "silu"),)}, "projections[0].activation is 'silu'"),
        ({"projections": (ProjectionSpec(8),) * 9}, "projections has 9 entries; the limit is 8"),
        ({"projections": [1]}, "model.head.projections is a list; a sequence of projections is needed"),
        ({"truncate_dim": 41}, "truncate_dim is 41; it must be between 0 and 40"),
        ({"truncate_dim": True}, "truncate_dim is True; an integer is needed"),
    ],
    ids=str,
)
def test_faults_of_specs(changes: dict[str, Any], named: str) -> None:
    spec = embedder("mean")
    faults = encoder_faults(dataclasses.replace(spec, head=dataclasses.replace(spec.head, **changes)))
    assert any(named in fault for fault in faults), faults


def test_specs_to_json_and_back() -> None:
    spec = embedder("mean+max", ProjectionSpec(8, "tanh", True), truncate_dim=5)
    assert encoder_from_json(json.loads(json.dumps(spec.to_json()))) == (spec, [])
    assert not {"projections", "truncate_dim"} & set(embedder("mean").to_json()["head"])
    data = spec.to_json()
    data["head"]["projections"] = [{"features": 8, "power": 2}]
    assert any("projections[0] has unknown fields: 'power'" in fault for fault in encoder_from_json(data)[1])


@pytest.mark.parametrize("changes", [{"pooling": "mean+cls"}, {"projections": (ProjectionSpec(8),)}])
def test_heads_of_labels_and_gpus_have_none(changes: dict[str, Any]) -> None:
    pytest.importorskip("torch", reason="the GPU engine imports it")
    from approxrt.runtime.cuda.engine import CudaEngine

    labelled = small_spec("f32", head=HeadSpec(**changes))
    assert any("are for models without labels" in fault for fault in encoder_faults(labelled))
    spec = embedder("mean")
    spec = dataclasses.replace(spec, head=dataclasses.replace(spec.head, **changes))
    with pytest.raises(DeviceError, match=r"(pooling mean\+cls|linears behind the pooling).*device='cpu'"):
        CudaEngine(Memory(spec, random_tensors(spec)), "cpu")
