"""Vocabularies that share rows: texts in the same tokens, the nearest row, the same answers, through the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_edits import seal
from families import CORPUS, build_tokenizer
from tokenizers import Tokenizer

torch = pytest.importorskip("torch", reason="the model that compares tokens runs in torch")

from small_encoder import small_encoder  # noqa: E402

import approxrt  # noqa: E402
from approxrt.artifact.spec.encoder import ModelSpec  # noqa: E402
from approxrt.artifact.writer import write_artifact  # noqa: E402
from approxrt.errors import ArtifactError, InputError, UnsupportedModelError  # noqa: E402
from approxrt.models.checkpoint import Checkpoint  # noqa: E402
from approxrt.tasks.readers import Dataset  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, make_batch, predict  # noqa: E402
from approxrt.vocabulary import selection as words  # noqa: E402
from approxrt.vocabulary.prune import PrunedVocabulary, apply_vocabulary  # noqa: E402
from approxrt.vocabulary.row_sharing import share_rows, shares_rows, token_states  # noqa: E402

TRAIN = [CORPUS[0], (CORPUS[1], CORPUS[4]), "fine fine [SEP] a film"]
TOKENIZER = build_tokenizer("bert")
RAW = TOKENIZER.to_str().encode()
VOCAB = TOKENIZER.get_vocab()


def unit(rows: int = len(VOCAB), width: int = 12, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def parts() -> tuple[ModelSpec, dict[str, np.ndarray]]:
    model = small_encoder(layers=3, vocab_size=len(VOCAB), pad_token_id=VOCAB["[PAD]"], max_positions=64, max_length=64)
    return model.spec, model.tensors()


def row_of(vocabulary: PrunedVocabulary) -> dict[str, int]:
    """By token: the old id of the row that it reads."""
    ids = Tokenizer.from_str(vocabulary.tokenizer_json.decode()).get_vocab()
    return {token: int(vocabulary.kept[i]) for token, i in ids.items()}


@pytest.mark.parametrize("min_count", [1, 2])
def test_a_piece_without_a_row_reads_the_nearest(min_count: int) -> None:
    features = unit()
    vocabulary = share_rows(RAW, TRAIN, features, min_count)
    texts = [part for text in TRAIN for part in ((text,) if isinstance(text, str) else text)]
    counts: dict[str, int] = {}
    for encoding in TOKENIZER.encode_batch(texts, add_special_tokens=False):
        for token in encoding.tokens:
            counts[token] = counts.get(token, 0) + 1
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} & VOCAB.keys()
    used = sorted(VOCAB[t] for t, n in counts.items() if n >= min_count and t not in special)
    assert vocabulary.kept.tolist() == sorted({*used, *(VOCAB[t] for t in special)})
    for token, row in row_of(vocabulary).items():
        own = VOCAB[token]
        assert row == (own if own in vocabulary.kept else used[int(np.argmax(features[used] @ features[own]))]), token


@pytest.mark.parametrize("common", [1, 7, 10_000])
def test_common_words_that_the_texts_lack_keep_rows(common: int) -> None:
    features = unit()
    own = share_rows(RAW, TRAIN, features).kept
    vocabulary = share_rows(RAW, TRAIN, features, common=common)
    # Neither single characters nor placeholders: their place in a vocabulary says nothing.
    words = [i for token, i in VOCAB.items() if len(token.removeprefix("##")) > 1 and not token.startswith("[")]
    expected = sorted(set(words) - set(own.tolist()))[:common]
    assert vocabulary.kept.tolist() == sorted({*own.tolist(), *expected})
    assert len(expected) == common or common > len(VOCAB)
    marks = {VOCAB[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in VOCAB}
    rows = np.array(sorted(set(vocabulary.kept.tolist()) - marks))
    for token, row in row_of(vocabulary).items():
        if VOCAB[token] not in vocabulary.kept:
            assert row == rows[int(np.argmax(features[rows] @ features[VOCAB[token]]))], token


def test_texts_are_cut_as_ever_and_no_word_is_lost() -> None:
    vocabulary = share_rows(RAW, TRAIN, unit())
    shared = Tokenizer.from_str(vocabulary.tokenizer_json.decode())
    assert len(vocabulary.kept) < len(VOCAB)
    rows = row_of(vocabulary)
    texts = [*CORPUS, "wonderful audiences", ("a film", "hours of it"), "snowman \u2603"]
    for before, after in zip(TOKENIZER.encode_batch(texts), shared.encode_batch(texts), strict=True):
        assert before.tokens == after.tokens and before.type_ids == after.type_ids
        assert [rows[token] for token in before.tokens] == vocabulary.kept[after.ids].tolist()
        # What is unknown stays so; nothing else becomes so, or a mark of the model's.
        marks = set(vocabulary.kept) & {VOCAB[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")}
        assert [i for i in before.ids if i in marks] == [i for i in vocabulary.kept[after.ids] if i in marks]


def test_states_are_those_of_pieces_read_alone() -> None:
    spec, tensors = parts()
    model = TorchEncoder(spec, tensors)
    states = token_states(model, RAW)
    layer = max(0, round(2 / 3 * len(spec.layers)) - 1)
    model.eval()
    alone = []
    with torch.inference_mode():
        for i in range(len(VOCAB)):
            out = model(make_batch([[VOCAB["[CLS]"], i, VOCAB["[SEP]"]]]))
            alone.append(out.hidden[layer][0, 1].numpy())
    expected = np.array(alone) - np.mean(alone, axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(states, expected, atol=2e-5)


def test_the_engine_reads_shared_rows(tmp_path: Path) -> None:
    """An artifact answers a text with rare words as it answers the text with their synonyms in place of them."""
    spec, tensors = parts()
    vocabulary = share_rows(RAW, TRAIN, token_states(TorchEncoder(spec, tensors), RAW))
    small, rows = apply_vocabulary(spec, tensors, vocabulary)
    write_artifact(tmp_path / "a", small, rows, vocabulary.tokenizer_json, {})
    artifact = approxrt.load(tmp_path / "a", threads=1)
    texts = [text for text in CORPUS if text.isascii()]
    read = row_of(vocabulary)
    replaced = [[read[token] for token in encoding.tokens] for encoding in TOKENIZER.encode_batch(texts)]
    assert any(row != e.ids for row, e in zip(replaced, TOKENIZER.encode_batch(texts), strict=True))
    expected = predict(TorchEncoder(spec, tensors), replaced, [[0] * len(row) for row in replaced])
    np.testing.assert_allclose(artifact.logits(texts), expected, atol=1e-4)


def test_ids_past_the_table_are_refused(tmp_path: Path) -> None:
    spec, tensors = parts()
    vocabulary = share_rows(RAW, TRAIN, unit())
    small, rows = apply_vocabulary(spec, tensors, vocabulary)
    data = json.loads(vocabulary.tokenizer_json)
    token = next(t for t in data["model"]["vocab"] if t not in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    data["model"]["vocab"][token] = len(vocabulary.kept)
    past = rf"tokenizer.json has ids up to {len(vocabulary.kept)}, the embedding table {len(vocabulary.kept)} rows"
    with pytest.raises(ArtifactError, match=past):
        write_artifact(tmp_path / "b", small, rows, json.dumps(data).encode(), {})
    write_artifact(tmp_path / "a", small, rows, vocabulary.tokenizer_json, {})
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(data))
    seal(tmp_path / "a", "tokenizer.json")
    with pytest.raises(ArtifactError, match=past):
        approxrt.load(tmp_path / "a")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match=r"features have shape \(3, 12\); the tokenizer needs a row for each of"):
        share_rows(RAW, TRAIN, unit(3))
    with pytest.raises(InputError, match="min_count is 0"):
        share_rows(RAW, TRAIN, unit(), 0)
    with pytest.raises(InputError, match="use no token 1000 times"):
        share_rows(RAW, TRAIN, unit(), 1000)
    with pytest.raises(InputError, match="there are no texts"):
        share_rows(RAW, [], unit())
    bpe = build_tokenizer("roberta").to_str().encode()
    assert shares_rows(RAW) and not shares_rows(bpe)
    with pytest.raises(UnsupportedModelError, match="the tokens of a BPE tokenizer cannot share rows"):
        share_rows(bpe, TRAIN, unit(2000))


# -- which vocabulary ----------------------------------------------------------


def chosen(monkeypatch: pytest.MonkeyPatch, states: Any, **options: Any) -> words.TaskVocabulary:
    """Of a model whose answers are moved by words that the training texts do not have."""
    spec, tensors = parts()
    checkpoint = Checkpoint(spec, tensors, RAW, {})
    monkeypatch.setattr(words, "token_states", lambda model, source: states)
    train = Dataset(TRAIN[:1], np.zeros(1, np.int64), ("a", "b"))
    validation = Dataset(list(CORPUS), np.zeros(len(CORPUS), np.int64), ("a", "b"))
    return words.task_vocabulary(
        checkpoint, train, validation, words.VocabularyOptions(**{"length": 32, "allowed": None, **options})
    )


def test_what_strays_less_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synonyms by the table itself, where tokens that the training texts lack are copies of ones that they have."""
    spec, tensors = parts()
    kept = share_rows(RAW, TRAIN[:1], unit()).kept
    table = tensors["embeddings.word.weight"]
    own = [i for i in kept if i >= 5]
    copies = table.copy()
    for place, i in enumerate(sorted(set(range(len(table))) - set(kept.tolist()))):
        copies[i] = table[own[place % len(own)]]
    monkeypatch.setattr("test_row_sharing.parts", lambda: (spec, tensors | {"embeddings.word.weight": copies}))
    alike = copies / np.linalg.norm(copies, axis=1, keepdims=True)
    found = chosen(monkeypatch, alike)
    assert found.shared and found.vocabulary.kept.tolist() == kept.tolist() and not found.tight
    again = chosen(monkeypatch, alike, shared=True)
    assert again.vocabulary.tokenizer_json == found.vocabulary.tokenizer_json
    spelled = chosen(monkeypatch, alike, shared=False)
    assert not spelled.shared and len(spelled.vocabulary.kept) > len(kept)


def test_scarce_bytes_take_rows_from_rare_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "TIGHT_COUNT", 2)
    wide = chosen(monkeypatch, unit(), shared=True, allowed=1e9)
    narrow = chosen(monkeypatch, unit(), shared=True, allowed=1000.0)
    assert not wide.tight and narrow.tight and set(narrow.vocabulary.kept) < set(wide.vocabulary.kept)
    monkeypatch.setattr(words, "TIGHT_COUNT", 1000)
    few = chosen(monkeypatch, unit(), shared=True, allowed=1000.0)
    assert few.tight and few.vocabulary.kept.tolist() == wide.vocabulary.kept.tolist()


@pytest.mark.parametrize("allowed", [1e5, 1e9])
def test_common_words_take_what_rare_ones_give(monkeypatch: pytest.MonkeyPatch, allowed: float) -> None:
    """Rows of two bits for the texts' rarest words pay for others, up to the bytes of four for the texts' words."""
    monkeypatch.setattr(words, "TIGHT_SHARE", 1.0)
    own = chosen(monkeypatch, unit(), shared=True, allowed=allowed)
    more = chosen(monkeypatch, unit(), shared=True, allowed=allowed, bits=4)
    assert own.common == 0 and own.wide_share is None and more.wide_share == words.COMMON_WIDE_SHARE
    used, kept = own.vocabulary.kept, more.vocabulary.kept
    assert set(used) < set(kept) and more.common == len(kept) - len(used)
    table = np.random.default_rng(0).standard_normal((len(VOCAB), 24)).astype(np.float32)

    def size(rows: np.ndarray, source: bytes, share: float | None) -> int:
        tokenizer = Tokenizer.from_str(source.decode())
        ids = [tokenizer.encode(*(t if isinstance(t, tuple) else (t,))).ids for t in TRAIN[:1]]
        _, parts = words.stored_embeddings(table[rows], 4, ids, share)
        return sum(part.nbytes for name, part in parts.items() if not name.endswith(".wide"))

    limit = max(size(used, own.vocabulary.tokenizer_json, None), words.WORDS_SHARE * allowed)
    assert size(kept, more.vocabulary.tokenizer_json, more.wide_share) <= limit


def test_without_marks_around_a_text_pieces_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says how the model reads a token by itself."""
    bare = json.loads(RAW)
    bare["post_processor"] = None
    monkeypatch.setattr("test_row_sharing.RAW", json.dumps(bare).encode())
    assert not shares_rows(RAW) and not chosen(monkeypatch, unit()).shared


def test_an_unknown_token_that_is_not_in_the_vocabulary() -> None:
    data = json.loads(RAW)
    data["model"]["unk_token"] = "<none>"
    vocabulary = share_rows(json.dumps(data).encode(), ["fine fine a film"], unit())
    assert len(vocabulary.kept) < len(VOCAB)


def test_divergence_is_kullback_and_leiblers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 3)).astype(np.float32)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (a, b))
    assert words.divergence(a, b, classes=True) == pytest.approx(float((p * np.log(p / q)).sum(1).mean()), rel=1e-5)
    assert words.divergence(a, a, classes=True) == pytest.approx(0, abs=1e-7)
    assert words.divergence(a, b, classes=False) == pytest.approx(float(((a - b) ** 2).sum(1).mean()), rel=1e-5)
