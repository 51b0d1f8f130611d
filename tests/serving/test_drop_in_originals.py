"""SentenceTransformer and CrossEncoder beside the originals: each keyword gives the same, or an InputError."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint

pytest.importorskip("sentence_transformers", reason="the client is not installed (extra 'clients')")

import sentence_transformers as originals
import torch

from approxrt.conversion import convert
from approxrt.errors import InputError
from approxrt.serving.sentence_transformers import CrossEncoder, SentenceTransformer

TEXTS = ["a good film", "two hours that nobody will get back", "rain", "a good film " * 40]
PAIRS = [("a film", text) for text in TEXTS]
CLOSE = {"rtol": 0, "atol": 5e-5}  # float32 products in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    kinds: dict[str, dict[str, Any]] = {
        "embedder": {"plain": True, "pooling": "mean", "normalize": False, "max_seq_length": 48},
        "excluding": {"plain": True, "pooling": "mean", "max_seq_length": 48},
        "reranker": {"num_labels": 1},
        "classifier": {"num_labels": 3},
    }
    for name, options in kinds.items():
        checkpoint = build_checkpoint("bert", root / name, positions=64, seed=len(name), **options)
        if options.get("plain"):
            config = {"prompts": {"query": "the price of ", "passage": "an account of "}, "similarity_fn_name": "dot"}
            if name == "excluding":
                config["default_prompt_name"] = "query"
                pooling = json.loads((checkpoint / "1_Pooling" / "config.json").read_text())
                pooling["include_prompt"] = False
                (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
            (checkpoint / "config_sentence_transformers.json").write_text(json.dumps(config))
        convert(checkpoint, root / f"{name}.f32", bits=32)
    return root


def both(folder: Path, name: str, **options: Any) -> tuple[Any, Any]:
    """(the original, ours), made with the same keywords."""
    kind = "SentenceTransformer" if name in ("embedder", "excluding") else "CrossEncoder"
    ours = {"SentenceTransformer": SentenceTransformer, "CrossEncoder": CrossEncoder}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(originals, kind)(str(folder / name), **({"device": "cpu"} | options))
    return theirs, ours(folder / f"{name}.f32", **options)


def close(got: Any, want: Any) -> None:
    """Equal shapes and kinds, and values within the rounding of float32."""
    assert isinstance(got, torch.Tensor) == isinstance(want, torch.Tensor)
    assert isinstance(got, list) == isinstance(want, list)
    if isinstance(got, list) and got and isinstance(got[0], dict):
        assert [item.keys() for item in got] == [item.keys() for item in want]
        assert [item["corpus_id"] for item in got] == [item["corpus_id"] for item in want]
        got, want = ([item["score"] for item in items] for items in (got, want))
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, **CLOSE)  # type: ignore[call-overload]


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names, in their order, without `self` and collectors of the rest."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind not in kinds][1:]


# -- calls: (values that give the same, values that are refused) ----------------------

Values = dict[str, tuple[list[Any], list[Any]]]
POOL = {"input": None, "output": None, "processes": []}
SHARED: Values = {
    "prompt": ([None, "", "the rain "], [5]),
    "batch_size": ([1, 32], [0, -1]),
    "show_progress_bar": ([None, False], []),
    "convert_to_numpy": ([True, False], []),
    "convert_to_tensor": ([True, False], []),
    "device": ([None, "cpu", torch.device("cpu")], ["mps", ["cpu", "cpu"]]),
    "pool": ([None], [POOL]),
    "chunk_size": ([None, 2], []),
}
ENCODE: Values = SHARED | {
    "inputs": ([TEXTS, TEXTS[0], np.array(TEXTS), []], [None, 5]),
    "prompt_name": ([None, "query", "passage", "document"], ["other"]),
    "output_value": (["sentence_embedding"], ["token_embeddings", None]),
    "precision": (["float32"], ["int8", "binary"]),
    "normalize_embeddings": ([True, False], []),
    "truncate_dim": ([None, 8, 1000], [0]),
}
PREDICT: Values = SHARED | {
    "inputs": ([PAIRS, PAIRS[0], np.array(PAIRS), []], [None, 5]),
    "prompt_name": ([None], ["other"]),
    "activation_fn": ([None, torch.nn.Identity(), torch.nn.Tanh()], []),
    "apply_softmax": ([True, False, None], []),
}
RANK: Values = {k: v for k, v in PREDICT.items() if k not in ("inputs", "apply_softmax")} | {
    "query": (["a film", "rain"], []),
    "documents": ([TEXTS, TEXTS[:1]], [None]),
    "top_k": ([None, 2, 100], [0]),
    "return_documents": ([True, False], []),
}
for name in ("convert_to_numpy", "convert_to_tensor"):
    RANK.pop(name)
CALLS = [
    ("embedder", "encode", ENCODE),
    ("embedder", "encode_query", ENCODE),
    ("embedder", "encode_document", ENCODE),
    ("excluding", "encode", ENCODE),
    ("reranker", "predict", PREDICT),
    ("classifier", "predict", PREDICT),
    ("reranker", "rank", RANK),
]


@pytest.mark.parametrize(("name", "method", "values"), CALLS, ids=[f"{a}-{b}" for a, b, _ in CALLS])
def test_calls(folder: Path, name: str, method: str, values: Values) -> None:
    theirs, ours = both(folder, name)
    names = parameters(getattr(type(theirs), method))
    # The original has no argument that this does not know, in the same order where positions matter.
    assert sorted(names) == sorted(values)
    if not method.startswith("encode_"):
        assert parameters(getattr(type(ours), method)) == names
    base: dict[str, Any] = {"query": "a film", "documents": TEXTS} if method == "rank" else {"inputs": TEXTS}
    if method == "predict":
        base = {"inputs": PAIRS}
    for argument, (accepted, refused) in values.items():
        for value in accepted:
            given = base | {argument: value}
            close(getattr(ours, method)(**given), getattr(theirs, method)(**given))
        for value in refused:
            with pytest.raises(InputError, match=argument):
                getattr(ours, method)(**(base | {argument: value}))
    with pytest.raises(InputError, match="anything"):
        getattr(ours, method)(**base, anything=1)


def test_positions(folder: Path) -> None:
    theirs, ours = both(folder, "embedder")
    close(ours.encode(TEXTS, "query"), theirs.encode(TEXTS, "query"))
    close(ours.encode(TEXTS, None, "the rain "), theirs.encode(TEXTS, None, "the rain "))
    rest = (8, False, "sentence_embedding", "float32", True, False, "cpu", True, 5)
    close(ours.encode_query(TEXTS, None, None, *rest), theirs.encode_query(TEXTS, None, None, *rest))
    theirs, ours = both(folder, "reranker")
    close(
        ours.predict(PAIRS, None, "the rain ", 8, False, torch.nn.Tanh()),
        theirs.predict(PAIRS, None, "the rain ", 8, False, torch.nn.Tanh()),
    )
    close(ours.rank("a film", TEXTS, 2, True), theirs.rank("a film", TEXTS, 2, True))


# -- construction -------------------------------------------------------------------

# Defaults are what every other test makes: these are other values that are accepted, and values that are refused.
MAKE: Values = {
    "modules": ([], [[torch.nn.Identity()]]),
    "device": (["cpu"], ["mps"]),
    "prompts": ([{"query": "an account of "}, {"query": ""}], []),
    "default_prompt_name": ([], ["other"]),
    "cache_folder": (["x"], []),
    "trust_remote_code": ([True], []),
    "revision": ([], ["main"]),
    "local_files_only": ([True], []),
    "token": ([False], []),
    "model_kwargs": ([{}], [{"dtype": "float16"}]),
    "processor_kwargs": ([{}], [{"model_max_length": 5}]),
    "config_kwargs": ([{}], [{"num_labels": 1}]),
    "model_card_data": ([None], []),
    "backend": (["torch"], ["onnx"]),
}
OF_EMBEDDERS: Values = MAKE | {
    "use_auth_token": ([None], []),
    "default_prompt_name": (["query"], ["other"]),
    "similarity_fn_name": (["cosine", "euclidean", "manhattan", originals.SimilarityFunction.DOT_PRODUCT], ["x"]),
    "truncate_dim": ([8], [0]),
}
OF_CROSS_ENCODERS: Values = MAKE | {
    "num_labels": ([1], [2]),
    "max_length": ([12], [1000]),
    "activation_fn": ([torch.nn.Identity()], []),
    "keep_in_fp32_modules": ([[]], [["classifier"]]),
}


@pytest.mark.parametrize(("name", "values"), [("embedder", OF_EMBEDDERS), ("reranker", OF_CROSS_ENCODERS)])
def test_construction(folder: Path, name: str, values: Values) -> None:
    embeds = name == "embedder"
    kind = SentenceTransformer if embeds else CrossEncoder
    known = parameters(type(both(folder, name)[0]).__init__)
    assert sorted(known) == sorted([*values, "model_name_or_path"])
    for argument, (accepted, refused) in values.items():
        for value in accepted:
            theirs, ours = both(folder, name, **{argument: value})
            if embeds:
                for texts in (TEXTS, TEXTS[:1]):
                    close(ours.encode(texts), theirs.encode(texts))
                close(ours.encode_query(TEXTS), theirs.encode_query(TEXTS))
                rows = theirs.encode(TEXTS)
                np.testing.assert_allclose(
                    ours.similarity(rows, rows[:2]), theirs.similarity(rows, rows[:2]).numpy(), rtol=1e-4, atol=5e-3
                )
                np.testing.assert_allclose(
                    ours.similarity_pairwise(rows, rows[::-1].copy()),
                    theirs.similarity_pairwise(rows, rows[::-1].copy()).numpy(),
                    rtol=1e-4,
                    atol=5e-3,
                )
                assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
            else:
                close(ours.predict(PAIRS), theirs.predict(PAIRS))
        for value in refused:
            with pytest.raises(InputError, match="max_seq_length" if argument == "max_length" else argument):
                kind(folder / f"{name}.f32", **{argument: value})
    with pytest.raises(InputError, match="anything"):
        kind(folder / f"{name}.f32", anything=1)
    with pytest.raises(InputError, match="no artifact is given"):
        kind()
    assert kind(model_name_or_path=folder / f"{name}.f32").max_seq_length == (48 if embeds else 64)


def test_older_names(folder: Path) -> None:
    """Those that the original has renamed and still takes."""
    theirs, ours = both(folder, "reranker", default_activation_function=torch.nn.Tanh())
    close(ours.predict(sentences=PAIRS), theirs.predict(sentences=PAIRS))
    identity = torch.nn.Identity()
    close(ours.predict(PAIRS, activation_fct=identity, num_workers=0), theirs.predict(PAIRS, activation_fct=identity))
    old = {"apply_softmax": True, "convert_to_numpy": True, "convert_to_tensor": False, "num_workers": 0}
    close(ours.rank("a film", TEXTS, **old), theirs.rank("a film", TEXTS, **old))
    for positions in ((1,), (1, 12), (1, 12, torch.nn.Tanh()), (1, 12, None, "cpu")):
        theirs = originals.CrossEncoder(str(folder / "reranker"), *positions)
        close(CrossEncoder(folder / "reranker.f32", *positions).predict(PAIRS), theirs.predict(PAIRS))
    theirs, ours = both(folder, "embedder")
    close(ours.encode(sentences=TEXTS), theirs.encode(sentences=TEXTS))
    close(ours.encode(TEXTS, task="query"), theirs.encode(TEXTS, task="query"))
    assert ours.get_sentence_embedding_dimension() == theirs.get_sentence_embedding_dimension()


def test_settings_of_an_object(folder: Path) -> None:
    for name in ("embedder", "excluding"):
        theirs, ours = both(folder, name)
        assert ours.prompts == theirs.prompts and ours.default_prompt_name == theirs.default_prompt_name
        for model in (theirs, ours):
            model.max_seq_length = 7
        assert ours.max_seq_length == theirs.max_seq_length == ours.get_max_seq_length()
        close(ours.encode(TEXTS, prompt="a "), theirs.encode(TEXTS, prompt="a "))
        for model in (theirs, ours):
            model.prompts["other"], model.default_prompt_name = "good ", "other"
            model.similarity_fn_name = "euclidean"
        close(ours.encode(TEXTS), theirs.encode(TEXTS))
        rows = ours.encode(TEXTS)
        np.testing.assert_allclose(ours.similarity(rows, rows), theirs.similarity(rows, rows).numpy(), atol=5e-3)
        with theirs.truncate_embeddings(5), ours.truncate_embeddings(5):
            close(ours.encode(TEXTS), theirs.encode(TEXTS))
        assert ours.to("cpu") is ours and ours.eval() is ours and ours.device == str(theirs.device)
        with pytest.raises(InputError, match="device is 'cuda'"):
            ours.to("cuda")
    theirs, ours = both(folder, "reranker")
    for model in (theirs, ours):
        model.max_seq_length, model.activation_fn = 9, torch.nn.Tanh()
    assert ours.max_length == theirs.max_length and ours.num_labels == theirs.num_labels
    close(ours.predict(PAIRS), theirs.predict(PAIRS))
