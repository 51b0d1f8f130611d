"""Every family's conversion: the f32 artifact computes what transformers computes, and bad checkpoints are named.

The comparison runs in float64 on both sides, from the same float32 weights, so
only the order of summation differs. A sum of K terms errs by at most K * eps of
its terms' magnitude; with K <= 512 (or 512 tokens), some ten sums in a row a
layer, two layers, and terms that exceed the result by less than 100:
512 * 20 * 100 * 2.2e-16 < 3e-10 relative to the largest value.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from families import ALL_TYPES, FAMILIES, build_checkpoint, is_roberta
from safetensors.numpy import load_file, save_file

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.encoder_schema import encoder_faults
from approxrt.conversion import convert
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.checkpoint import load_checkpoint

torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

from approxrt.runtime.reference.encoder import reference_embeddings, reference_hidden, reference_logits  # noqa: E402

TOLERANCE = 3e-10

# head_dim 32, 64 and 13; hidden sizes that are and are not multiples of the 16x4 tile
SIZES = {
    "head_dim 32": {"hidden": 64, "heads": 2, "ffn": 128},
    "head_dim 64": {"hidden": 128, "heads": 2, "ffn": 80, "layers": 1},
    "head_dim 13": {"hidden": 39, "heads": 3, "ffn": 51},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def sequences(vocab: int, lengths: tuple[int, ...] = (1, 2, 7, 33)) -> list[list[int]]:
    """Random ids without the padding id (0 or 1), which RoBERTa's positions skip."""
    rng = np.random.default_rng(0)
    return [rng.integers(2, vocab, n).tolist() for n in lengths]


def run_transformers(folder: Path, ids: list[list[int]], types: list[list[int]] | None = None, plain: bool = False):
    """float64 logits [n, labels], or hidden states by sequence, one sequence at a time."""
    factory = transformers.AutoModel if plain else transformers.AutoModelForSequenceClassification
    model = factory.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    outputs = []
    with torch.no_grad():
        for i, sequence in enumerate(ids):
            extra = {} if types is None else {"token_type_ids": torch.tensor([types[i]])}
            out = model(input_ids=torch.tensor([sequence]), **extra)
            outputs.append((out.last_hidden_state if plain else out.logits)[0].numpy())
    return outputs if plain else np.stack(outputs)


def assert_equal_in_float64(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.float64 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
    assert np.abs(theirs).max() > 1e-2, "a comparison of zeros shows nothing"


def artifact_of(folder: Path, **options):
    return read_artifact(convert(folder, folder.parent / f"{folder.name}.artifact", **{"bits": 32, **options}))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(tmp_path: Path, family: str, size: str) -> None:
    folder = build_checkpoint(family, tmp_path / "c", **SIZES[size])
    artifact = artifact_of(folder)
    ids = sequences(artifact.spec.vocab_size)
    ours = reference_logits(artifact.spec, artifact.tensors, ids)
    assert_equal_in_float64(ours, run_transformers(folder, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_512_tokens(tmp_path: Path, family: str) -> None:
    folder = build_checkpoint(family, tmp_path / "c", layers=1)
    artifact = artifact_of(folder)
    assert artifact.spec.max_positions == artifact.spec.max_length == 512
    ids = sequences(artifact.spec.vocab_size, (512, 511))
    ours = reference_logits(artifact.spec, artifact.tensors, ids)
    assert_equal_in_float64(ours, run_transformers(folder, ids))


@pytest.mark.parametrize("family", ["camembert", "xlm-roberta"])
def test_models_that_share_robertas_code(tmp_path: Path, family: str) -> None:
    folder = build_checkpoint(family, tmp_path / "c", layers=1)
    artifact = artifact_of(folder)
    ids = sequences(artifact.spec.vocab_size)
    ours = reference_logits(artifact.spec, artifact.tensors, ids)
    assert_equal_in_float64(ours, run_transformers(folder, ids))


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_pairs_use_token_types(tmp_path: Path, family: str) -> None:
    folder = build_checkpoint(family, tmp_path / "c")
    artifact = artifact_of(folder)
    ids = sequences(artifact.spec.vocab_size)
    types = [[0] * (len(s) // 2) + [1] * (len(s) - len(s) // 2) for s in ids]
    ours = reference_logits(artifact.spec, artifact.tensors, ids, types)
    assert_equal_in_float64(ours, run_transformers(folder, ids, types))
    untyped = reference_logits(artifact.spec, artifact.tensors, ids)
    assert np.abs(ours - untyped).max() > 1e-3, "token types must matter for this test to mean anything"


@pytest.mark.parametrize("family", ALL_TYPES)
def test_tokenized_pairs_and_texts_in_a_padded_batch(tmp_path: Path, family: str) -> None:
    """The path of real text: the artifact's tokenizer, and transformers with padding and a mask."""
    from tokenizers import Tokenizer

    folder = build_checkpoint(family, tmp_path / "c", layers=1)
    artifact = artifact_of(folder)
    tokenizer = Tokenizer.from_buffer(artifact.tokenizer_json)
    texts = ["a gripping film", ("the quick brown fox", "She sold 42 seashells!"), "good"]
    encoded = [tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text) for text in texts]
    ids, types = [e.ids for e in encoded], [e.type_ids for e in encoded]
    ours = reference_logits(artifact.spec, artifact.tensors, ids, types)
    longest, pad = max(map(len, ids)), artifact.spec.pad_token_id
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    batch = {
        "input_ids": torch.tensor([s + [pad] * (longest - len(s)) for s in ids]),
        "attention_mask": torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in ids]),
    }
    if artifact.spec.type_vocab_size:
        batch["token_type_ids"] = torch.tensor([t + [0] * (longest - len(t)) for t in types])
    with torch.no_grad():
        theirs = model(**batch).logits.numpy()
    assert_equal_in_float64(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_plain_encoders_with_pooling(tmp_path: Path, family: str, pooling: str) -> None:
    folder = build_checkpoint(family, tmp_path / "c", plain=True, pooling=pooling, max_seq_length=100, layers=1)
    artifact = artifact_of(folder)
    spec = artifact.spec
    assert (spec.task_type, spec.labels, spec.max_length) == ("embedding", (), 100)
    assert (spec.head.pooling, spec.head.normalize) == (pooling, True)
    ids = sequences(spec.vocab_size)
    theirs = run_transformers(folder, ids, plain=True)
    for ours, hidden in zip(reference_hidden(spec, artifact.tensors, ids), theirs, strict=True):
        assert_equal_in_float64(ours, hidden)
    pooled = np.stack([hidden[0] if pooling == "cls" else hidden.mean(axis=0) for hidden in theirs])
    assert_equal_in_float64(reference_embeddings(spec, artifact.tensors, ids), pooled)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    assert_equal_in_float64(reference_embeddings(spec, artifact.tensors, ids, normalize=True), unit)


def test_electra_projects_small_embeddings(tmp_path: Path) -> None:
    folder = build_checkpoint("electra", tmp_path / "c", embedding=24)
    artifact = artifact_of(folder)
    assert artifact.spec.has_projection and artifact.spec.embedding_size == 24
    ids = sequences(artifact.spec.vocab_size)
    assert_equal_in_float64(reference_logits(artifact.spec, artifact.tensors, ids), run_transformers(folder, ids))


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
def test_activations(tmp_path: Path, activation: str) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", activation=activation, layers=1)
    artifact = artifact_of(folder)
    ids = sequences(artifact.spec.vocab_size)
    assert_equal_in_float64(reference_logits(artifact.spec, artifact.tensors, ids), run_transformers(folder, ids))


def test_roberta_fold_rounds_once(tmp_path: Path) -> None:
    """Folding the token type into positions costs one float32 rounding of the table, no more."""
    folder = build_checkpoint("roberta", tmp_path / "c", plain=True)
    weights = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"):
        weights[name] = rng.normal(0, 1, weights[name].shape).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    table = load_checkpoint(folder).tensors["embeddings.position.weight"]
    exact = weights["embeddings.position_embeddings.weight"][2:].astype(np.float64)
    exact = exact + weights["embeddings.token_type_embeddings.weight"][0]
    assert len(table) == 512
    assert np.all(np.abs(table - exact) <= 2.0**-24 * np.abs(exact) * (1 + 1e-6))


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "expected"),
    [
        (1, None, "regression"),
        (2, None, "classification"),
        (4, "multi_label_classification", "multi_label"),
        (3, "regression", "regression"),
        (3, "single_label_classification", "classification"),
    ],
)
def test_tasks(tmp_path: Path, num_labels: int, problem_type: str | None, expected: str) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", num_labels=num_labels, problem_type=problem_type, layers=1)
    spec = load_checkpoint(folder).spec
    assert spec.task_type == expected and spec.num_outputs == num_labels


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("safetensors", [True, False])
def test_half_precision_weights_widen_exactly(tmp_path: Path, dtype: str, safetensors: bool) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", dtype=dtype, safetensors=safetensors, layers=1)
    tensors = load_checkpoint(folder).tensors
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    expected = model.state_dict()["bert.encoder.layer.0.intermediate.dense.weight"].numpy()
    np.testing.assert_array_equal(tensors["layers.0.ffn.up.weight"], expected)
    assert tensors["layers.0.ffn.up.weight"].dtype == np.float32


def test_sharded_checkpoint(tmp_path: Path) -> None:
    whole = build_checkpoint("bert", tmp_path / "whole")
    sharded = build_checkpoint("bert", tmp_path / "sharded", shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    a, b = load_checkpoint(whole).tensors, load_checkpoint(sharded).tensors
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "../whole/model.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
        load_checkpoint(sharded)


# -- what is refused ----------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint("bert", tmp_path_factory.mktemp("sound") / "c", layers=1)


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "c"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "named", "supported"),
    [
        (
            {"model_type": "gpt2"},
            "model_type 'gpt2'",
            "albert, bert, camembert, distilbert, electra, mpnet, nomic_bert, roberta, xlm-roberta",
        ),
        ({"hidden_act": "silu"}, "activation 'silu'", "gelu, gelu_python, gelu_new"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'", "absolute"),
        ({"is_decoder": True}, "is_decoder=true", "encoders only"),
        ({"architectures": ["BertForMultipleChoice"]}, "head 'BertForMultipleChoice'", "ForSequenceClass"),
        ({"problem_type": "ranking"}, "problem_type 'ranking'", "multi_label_classification"),
    ],
)
def test_unsupported_is_named_with_what_is_supported(
    checkpoint: Path, changes: dict, named: str, supported: str
) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(UnsupportedModelError) as caught:
        load_checkpoint(checkpoint)
    text = str(caught.value)
    assert named in text and supported in text.split("supported:")[1]


ODD_VALUES = (None, True, -1, 0, 1.5, 10**30, "x", [], [1], {}, {"a": 1}, {"0": None}, {"0": []})


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_odd_values_in_configs_raise_nothing_else(checkpoint: Path, file: str) -> None:
    """Every field of the config in turn takes every odd value: an error of ours that can be printed, or a model."""
    original = json.loads((checkpoint / file).read_text())
    refused = 0
    for key in [*original, "id2label", "num_labels", "finetuning_task", "approxrt_inputs", "position_embedding_type"]:
        for value in ODD_VALUES:
            (checkpoint / file).write_text(json.dumps({**original, key: value}))
            try:
                spec = load_checkpoint(checkpoint).spec
            except CheckpointError as error:
                refused += 1
                assert str(error)
            else:
                assert encoder_faults(spec) == []
    # A senseless model_max_length is passed over, as transformers' own 1e30 is.
    assert refused > 100 if file == "config.json" else refused == 0


def test_unsupported_sentence_modules(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", plain=True, pooling="mean", layers=1)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9_CNN", "type": "sentence_transformers.models.CNN"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match="'CNN'"):
        load_checkpoint(folder)


def test_bad_weights_are_all_named(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.weight"][1, 3] = np.nan
    weights["bert.embeddings.LayerNorm.bias"][:2] = np.inf
    del weights["bert.pooler.dense.bias"]
    weights["bert.encoder.layer.0.output.dense.weight"] = np.zeros((64, 95), np.float32)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(checkpoint)
    text = str(caught.value)
    assert "'classifier.weight' has 1 values that are NaN or infinite" in text
    assert "'bert.embeddings.LayerNorm.bias' has 2 values that are NaN or infinite" in text
    assert "'bert.pooler.dense.bias' is missing" in text
    assert "'bert.encoder.layer.0.output.dense.weight' has shape [64, 95]; config.json asks for [64, 96]" in text


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_damaged_files_are_named(checkpoint: Path, name: str, damage: str) -> None:
    path = checkpoint / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.write_bytes(b"\x00\xff garbage")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(checkpoint)


def test_pickled_code_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match="loaded safely"):
        load_checkpoint(checkpoint)
    assert not (tmp_path / "pwned").exists()


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        load_checkpoint("no-such-owner-approxrt/no-such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(tmp_path / "empty")


def test_labels(checkpoint: Path) -> None:
    edit_config(checkpoint, id2label={"0": "no", "1": "yes", "2": "maybe"}, approxrt_inputs="pair")
    spec = load_checkpoint(checkpoint).spec
    assert spec.labels == ("no", "yes", "maybe") and spec.inputs == "pair"
    edit_config(checkpoint, id2label={"0": "no", "1": "no", "2": "maybe"})
    with pytest.raises(CheckpointError, match="same name"):
        load_checkpoint(checkpoint)
    edit_config(checkpoint, id2label={"1": "no", "2": "yes"})
    with pytest.raises(CheckpointError, match="ids of id2label"):
        load_checkpoint(checkpoint)


def test_tokenizer_is_built_from_older_files(checkpoint: Path) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    (checkpoint / "vocab.txt").write_text("\n".join(token for token, _ in vocab) + "\n")
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    from tokenizers import Tokenizer

    built = Tokenizer.from_str(load_checkpoint(checkpoint).tokenizer_json.decode())
    original = Tokenizer.from_str(json.dumps(tokenizer))
    for text in ("a gripping film", "She sold 42 seashells!"):
        assert built.encode(text).ids == original.encode(text).ids


def test_truncation_and_padding_of_the_file_are_removed(checkpoint: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    loaded = Tokenizer.from_str(load_checkpoint(checkpoint).tokenizer_json.decode())
    assert loaded.padding is None and loaded.truncation is None
    assert len(loaded.encode("good").ids) < 10


def test_what_is_missing_for_a_conversion_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer is what transformers makes of its files, so a conversion needs it; the message names the extra."""
    import os
    import subprocess
    import sys

    code = (
        "import sys, approxrt\n"
        "sys.modules['transformers'] = None\n"
        "try:\n"
        f"    approxrt.convert({str(checkpoint)!r}, {str(tmp_path / 'a')!r})\n"
        "except approxrt.errors.MissingDependencyError as error:\n"
        "    print(error)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    assert "approxrt[compress]" in run.stdout and not (tmp_path / "a").exists()


def test_position_table_of_roberta_is_cut(tmp_path: Path) -> None:
    folder = build_checkpoint("roberta", tmp_path / "c", positions=40, layers=1)
    spec = load_checkpoint(folder).spec
    assert is_roberta("roberta") and (spec.max_positions, spec.type_vocab_size, spec.pad_token_id) == (40, 0, 1)


@pytest.mark.parametrize(("key", "value"), [("relative_attention_num_buckets", 64), ("pad_token_id", 0)])
def test_constants_of_mpnet(tmp_path: Path, key: str, value: int) -> None:
    folder = build_checkpoint("mpnet", tmp_path / "c", layers=1)
    edit_config(folder, **{key: value})
    with pytest.raises(UnsupportedModelError, match=f"{key} {value} of an MPNet is not supported.*supported: "):
        load_checkpoint(folder)
