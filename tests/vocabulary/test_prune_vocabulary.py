"""Pruned vocabularies: the same tokens for the texts they were made for, no word lost, the same logits bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import CORPUS, FAMILIES, build_tokenizer
from paths import SHARED
from specs import random_tensors, small_spec
from tokenizers import Tokenizer, models

import approxrt
from approxrt.artifact.spec.encoder_schema import encoder_faults
from approxrt.artifact.tensors import tensor_faults
from approxrt.artifact.writer import write_artifact
from approxrt.errors import CheckpointError, InputError, UnsupportedModelError
from approxrt.tasks.readers import read_task
from approxrt.vocabulary.prune import (
    PrunedVocabulary,
    apply_vocabulary,
    compact_tokenizer,
    prune_vocabulary,
    trim_positions,
)

MINILM = SHARED / "models" / "minilm-sst2" / "tokenizer.json"
SST2 = SHARED / "data" / "glue" / "SST-2"

TRAIN = [CORPUS[0], (CORPUS[1], CORPUS[4]), "fine fine [SEP] a film"]
OTHER = [CORPUS[2], (CORPUS[3], CORPUS[5]), "wonderful audiences", "a film"]


def raw(tokenizer: Tokenizer) -> bytes:
    return tokenizer.to_str().encode()


def load(content: bytes) -> Tokenizer:
    return Tokenizer.from_str(content.decode())


def tokens(tokenizer: Tokenizer, texts: list[Any]) -> list[list[str]]:
    return [encoding.tokens for encoding in tokenizer.encode_batch(texts)]


def changed(content: bytes, **changes: Any) -> bytes:
    """The file with other values at its top, or in `model`."""
    data = json.loads(content)
    for key, value in changes.items():
        (data if key in data else data["model"])[key] = value
    return json.dumps(data).encode()


# -- guarantees ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_train_texts_keep_their_pieces_and_ids_are_dense(family: str) -> None:
    full = build_tokenizer(family)
    pruned = prune_vocabulary(raw(full), TRAIN)
    small = load(pruned.tokenizer_json)
    assert tokens(small, TRAIN) == tokens(full, TRAIN)
    kept = pruned.kept
    assert kept.dtype == np.int64 and np.all(np.diff(kept) > 0) and len(kept) < full.get_vocab_size()
    vocab = small.get_vocab()
    assert sorted(vocab.values()) == list(range(len(kept)))
    assert {token: int(kept[i]) for token, i in vocab.items()}.items() <= full.get_vocab().items()
    for before, after in zip(full.encode_batch(TRAIN), small.encode_batch(TRAIN), strict=True):
        assert kept[after.ids].tolist() == before.ids and after.type_ids == before.type_ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("min_count", [1, 2, 10**9])
def test_no_word_is_lost(family: str, min_count: int) -> None:
    full = build_tokenizer(family)
    small = load(prune_vocabulary(raw(full), TRAIN, min_count).tokenizer_json)
    unknown = full.token_to_id("<unk>" if family == "roberta" else "[UNK]")
    before, after = full.encode_batch(OTHER), small.encode_batch(OTHER)
    assert all(unknown not in encoding.ids for encoding in before)
    assert all(small.token_to_id(full.id_to_token(unknown)) not in encoding.ids for encoding in after)
    assert [full.decode(e.ids) for e in before] == [small.decode(e.ids) for e in after]
    assert [joined(e.tokens) for e in before] == [joined(e.tokens) for e in after]
    assert sum(map(len, after)) > sum(map(len, before))


def joined(tokens: list[str]) -> str:
    return "".join(token.removeprefix("##") for token in tokens)


def test_min_count_drops_what_is_rarer() -> None:
    full = raw(build_tokenizer("bert"))
    once, twice = prune_vocabulary(full, TRAIN), prune_vocabulary(full, TRAIN, 2)
    assert set(twice.kept) < set(once.kept)
    gone = {load(full).id_to_token(int(i)) for i in set(once.kept) - set(twice.kept)}
    assert "hours" in gone and "fine" not in gone  # used once, twice


# -- the file ------------------------------------------------------------------


@pytest.mark.parametrize("form", ["template", "bert", "roberta", "sequence", "none"])
def test_every_id_in_the_file_is_renumbered(form: str) -> None:
    """The vocabulary in reverse, so that specials move; two tokens added after it; padding; every post-processor."""
    data = json.loads(raw(build_tokenizer("bert")))
    ids = {token: i for i, token in enumerate(reversed(data["model"]["vocab"]))}
    data["model"]["vocab"] = ids
    plain = {**data["added_tokens"][0], "special": False}
    data["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in reversed(data["added_tokens"])]
    data["added_tokens"] += [{**plain, "id": len(ids) + i, "content": c} for i, c in enumerate(["a film", "unused"])]
    template = data["post_processor"]
    for token, special in template["special_tokens"].items():
        special["ids"] = [ids[token]]
    ends = {"sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    data["post_processor"] = {
        "template": template,
        "bert": {"type": "BertProcessing", **ends},
        "roberta": {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False},
        "sequence": {"type": "Sequence", "processors": [byte_level, template]},
        "none": None,
    }[form]
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
    data["padding"] = {**padding, "pad_id": ids["[PAD]"], "pad_token": "[PAD]"}
    before = load(json.dumps(data).encode())

    pruned = prune_vocabulary(json.dumps(data).encode(), ["the minute a film"])
    after = load(pruned.tokenizer_json)
    assert after.padding["pad_id"] == after.token_to_id("[PAD]") < ids["[PAD]"]
    assert after.token_to_id("unused") == len(pruned.kept) - 1
    texts = ["the minute", ("the [MASK] minute", "a film"), ("a", "the [SEP] minute the")]
    for old, new in zip(before.encode_batch(texts), after.encode_batch(texts), strict=True):
        assert pruned.kept[new.ids].tolist() == old.ids
        assert (new.tokens, new.type_ids, new.attention_mask) == (old.tokens, old.type_ids, old.attention_mask)
    result = json.loads(pruned.tokenizer_json)
    for key in ("version", "truncation", "normalizer", "pre_tokenizer", "decoder"):
        assert result[key] == data[key]


def test_older_files_without_types_and_with_merges_in_strings() -> None:
    for family in ("bert", "roberta"):
        data = json.loads(raw(build_tokenizer(family)))
        pruned = prune_vocabulary(json.dumps(data).encode(), TRAIN)
        del data["model"]["type"]
        if "merges" in data["model"]:
            data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
        older = prune_vocabulary(json.dumps(data).encode(), TRAIN)
        np.testing.assert_array_equal(older.kept, pruned.kept)
        assert "type" not in json.loads(older.tokenizer_json)["model"]
        assert tokens(load(older.tokenizer_json), OTHER) == tokens(load(pruned.tokenizer_json), OTHER)


def test_compact_is_the_same_json() -> None:
    content = json.dumps(json.loads(raw(build_tokenizer("roberta"))), indent=2).encode()
    small = compact_tokenizer(content)
    assert json.loads(small) == json.loads(content) and len(small) < len(content) / 2
    assert compact_tokenizer(small) == small and "é".encode() in compact_tokenizer(b'{"\\u00e9": 1}')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        compact_tokenizer(b"{")
    with pytest.raises(CheckpointError, match="cannot"):
        compact_tokenizer(b'["\\ud800"]')


def test_texts_may_come_one_by_one() -> None:
    full = raw(build_tokenizer("bert"))
    np.testing.assert_array_equal(prune_vocabulary(full, iter(TRAIN)).kept, prune_vocabulary(full, TRAIN).kept)


# -- wrong calls ---------------------------------------------------------------


@pytest.mark.parametrize("min_count", [0, -1, 1.5, True, "2"])
def test_wrong_min_count(min_count: Any) -> None:
    with pytest.raises(InputError, match=r"min_count is .*at least 1"):
        prune_vocabulary(raw(build_tokenizer("bert")), TRAIN, min_count)


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ([], "there are no texts"),
        ("one text", "got str"),
        (7, "got int"),
        (["good", 7], "text 1 must be a str or a pair of str, got int"),
        (["good", ("a", "b", "c")], "text 1 must be"),
        ([("a", None)], "text 0 must be .* got NoneType"),
        (["\ud800"], "cannot be tokenised"),
    ],
)
def test_wrong_texts(texts: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        prune_vocabulary(raw(build_tokenizer("bert")), texts)


def test_other_models_are_refused_by_name() -> None:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    with pytest.raises(UnsupportedModelError, match=r"Unigram tokenizer .* WordPiece and byte-level BPE"):
        prune_vocabulary(raw(unigram), TRAIN)
    with pytest.raises(UnsupportedModelError, match="WordLevel"):
        prune_vocabulary(raw(Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))), TRAIN)
    content = raw(build_tokenizer("roberta"))
    with pytest.raises(UnsupportedModelError, match="without the pre-tokenizer ByteLevel"):
        prune_vocabulary(changed(content, pre_tokenizer={"type": "WhitespaceSplit"}), TRAIN)
    with pytest.raises(UnsupportedModelError, match=r"dropout 0\.1"):
        prune_vocabulary(changed(content, dropout=0.1), TRAIN)
    with pytest.raises(UnsupportedModelError, match="continuing_subword_prefix '########'"):
        prune_vocabulary(changed(content, continuing_subword_prefix="########"), TRAIN)
    within = {"type": "Sequence", "pretokenizers": [json.loads(content)["pre_tokenizer"]]}
    prune_vocabulary(changed(content, pre_tokenizer=within), TRAIN)


def test_damaged_files_are_named() -> None:
    content = raw(build_tokenizer("bert"))
    data = json.loads(content)
    sep = {"id": "[SEP]", "ids": [9999], "tokens": ["[SEP]"]}
    template = {**data["post_processor"], "special_tokens": {**data["post_processor"]["special_tokens"], "[SEP]": sep}}
    moved = [{**token, "id": 3} if token["content"] == "[CLS]" else token for token in data["added_tokens"]]
    cases = {
        "not valid JSON": content[:-1],
        "no object `model`": b"[]",
        "cannot be used|can load": changed(content, vocab=[1, 2]),
        r"ids\[0\] is 9999, which no token has": changed(content, post_processor=template),
        r"'\[CLS\]' has id 3": changed(content, added_tokens=moved),
        "share the id 7": changed(content, vocab={**data["model"]["vocab"], "twice": 7}),
    }
    for match, damaged in cases.items():
        with pytest.raises(CheckpointError, match=match):
            prune_vocabulary(damaged, TRAIN)


# -- the model -----------------------------------------------------------------


def model_of(kind: str, tokenizer: Tokenizer, **changes: Any) -> tuple[Any, dict[str, np.ndarray]]:
    changes = {"vocab_size": tokenizer.get_vocab_size(), "max_positions": 512, "max_length": 512, **changes}
    spec = small_spec(kind, **changes)
    return spec, random_tensors(spec)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("kind", ["f32", "s8", "s4", "bsr_s8"])
def test_logits_of_train_texts_stay_bit_for_bit(tmp_path: Path, family: str, kind: str) -> None:
    tokenizer = build_tokenizer(family)
    pad = tokenizer.token_to_id("<pad>" if family == "roberta" else "[PAD]")
    spec, tensors = model_of(kind, tokenizer, pad_token_id=pad)
    pruned = prune_vocabulary(raw(tokenizer), TRAIN)
    less, less_tensors = apply_vocabulary(spec, tensors, pruned)
    assert not encoder_faults(less) and less.vocab_size == len(pruned.kept) < spec.vocab_size
    assert less.embedding_kind == spec.embedding_kind
    full = approxrt.load(write_artifact(tmp_path / "full", spec, tensors, raw(tokenizer), {}), threads=1)
    small = approxrt.load(write_artifact(tmp_path / "small", less, less_tensors, pruned.tokenizer_json, {}), threads=1)
    np.testing.assert_array_equal(small.logits(TRAIN), full.logits(TRAIN))
    assert np.isfinite(small.logits(OTHER)).all()
    assert small.info["bytes"]["total"] < full.info["bytes"]["total"]


@pytest.mark.parametrize("kind", ["f32", "s8", "s4"])
def test_rows_and_padding_follow(kind: str) -> None:
    spec = small_spec(kind, pad_token_id=4)
    tensors = random_tensors(spec)
    kept = np.array([1, 4, 20, 29])
    small, out = apply_vocabulary(spec, tensors, PrunedVocabulary(b"", kept))
    assert (small.vocab_size, small.pad_token_id) == (4, 1)
    assert not tensor_faults(small, out)
    names = [name for name in tensors if name.startswith("embeddings.word.")]
    assert len(names) == {"f32": 1, "s8": 2, "s4": 3}[kind]
    for name, array in tensors.items():
        if name in names:
            np.testing.assert_array_equal(out[name], array[kept])
        else:
            assert out[name] is array


def test_a_vocabulary_of_another_model() -> None:
    spec = small_spec()
    tensors = random_tensors(spec)
    for kept, match in [([0, 30], r"rows 0 to 30, the embedding table has 30"), ([], "no rows"), ([1, 2], "pad_token")]:
        with pytest.raises(InputError, match=match):
            apply_vocabulary(spec, tensors, PrunedVocabulary(b"", np.array(kept, np.int64)))


def test_trimmed_positions(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("bert")
    spec, tensors = model_of("s8", tokenizer)
    small, out = trim_positions(spec, tensors, 20)
    assert (small.max_positions, small.max_length) == (20, 20)
    assert out["embeddings.position.weight"].shape == (20, 40) and not tensor_faults(small, out)
    assert trim_positions(small_spec(max_length=8), random_tensors(small_spec()), 12)[0].max_length == 8
    full = approxrt.load(write_artifact(tmp_path / "full", spec, tensors, raw(tokenizer), {}), threads=1)
    cut = approxrt.load(write_artifact(tmp_path / "cut", small, out, raw(tokenizer), {}), threads=1)
    texts = ["a film", ("good bad great", "fine terrible")]
    np.testing.assert_array_equal(cut.logits(texts), full.logits(texts))
    with pytest.raises(approxrt.errors.TextTooLongError, match="the limit is 20"):
        cut.classify("good " * 30, truncate=False)


@pytest.mark.parametrize("length", [0, 17, -1, 8.0, True])
def test_wrong_lengths(length: Any) -> None:
    spec = small_spec()
    with pytest.raises(InputError, match=r"max_length is .* between 1 and max_positions of the model, 16"):
        trim_positions(spec, random_tensors(spec), length)


# -- the real thing -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not (MINILM.is_file() and SST2.is_dir()), reason=f"{MINILM} or {SST2} is absent (set APPROXRT_SHARED)"
)
@pytest.mark.parametrize("min_count", [1, 3])
def test_sst2_loses_no_word(min_count: int) -> None:
    """Pruned by the train texts: under half of 30,522 rows, and dev keeps nearly all of its tokens."""
    full = Tokenizer.from_file(str(MINILM))
    train, dev = (read_task("sst2", SST2 / f"{split}.tsv").texts for split in ("train", "dev"))
    pruned = prune_vocabulary(MINILM.read_bytes(), train, min_count)
    small = load(pruned.tokenizer_json)
    before, after = tokens(full, dev), tokens(small, dev)
    for old, new in zip(before, after, strict=True):
        assert "[UNK]" in old or "[UNK]" not in new
        assert joined(old) == joined(new)
    kept = set(small.get_vocab())
    gone = sum(token not in kept for tokens in before for token in tokens) / sum(map(len, before))
    rows = len(pruned.kept)
    assert rows < 14_000 and gone < 0.03, f"{rows} rows of {full.get_vocab_size()} stay; {gone:.1%} of dev's tokens go"
    assert len(pruned.tokenizer_json) < 200_000
    if min_count == 1:
        assert tokens(small, train[:20_000]) == tokens(full, train[:20_000])
