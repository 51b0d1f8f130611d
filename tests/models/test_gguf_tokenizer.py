"""Tokenizers of .gguf files: llama.cpp's tokens, ends and beginnings, or a refusal by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

from pretokenized import TEXTS, VOCABULARY, write_vocabulary  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402

from approxrt.errors import CheckpointError, UnsupportedModelError  # noqa: E402
from approxrt.models.gguf_eos import end_of_text  # noqa: E402
from approxrt.models.gguf_file import GgufFile, open_gguf  # noqa: E402
from approxrt.models.gguf_pretokenizers import NOT_EXPRESSIBLE, PRE_TOKENIZERS  # noqa: E402
from approxrt.models.gguf_tokenizer import GgufTokenizer, join_by_scores, read_gguf_tokenizer  # noqa: E402

# What llama.cpp (the library, on the file that `write_vocabulary` writes) gives for the three texts, by kind.
LLAMA_CPP: list[tuple[str, str, str, str]] = [
    (
        "a.x-4.0 exaone4 gigachat gpt-2 granite-docling jais jina-de jina-es jina-v2-de jina-v2-es mellum modern-bert "
        "mpt olmo phi-2 trillion",
        "it|'s|ĠI|'|L|L|Ġa|12345|Ġb|Ċ|Ċ|1|Ġ|Ġc",
        "x|!=|Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉ|z|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/|ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "bailingmoe bailingmoe2 deepseek-r1-qwen exaone-moe f2llmv2 grok-2 hunyuan kormo llada-moe megrez qwen2 qwen35 "
        "solar-open stablelm2",
        "it|'s|ĠI|'LL|Ġa|1|2|3|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!=Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉz|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "bloom gpt3-finnish poro-chat",
        "it's|Ġ|I'LL|Ġa1|2|3|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!|=|Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉ|z|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$9|/ab|...|ĠÂ«q|Â|»|ĠĉĊ",
    ),
    (
        "chameleon",
        "it|'|s|ĠI|'|L|L|Ġa|1|2|3|4|5|Ġb|Ċ|Ċ|1|ĠĠ|c",
        "x|!|=|Ċ|Ġ|(|y|)|ĠaB|ĠAb|ĉ|z|Ġ|,|Ã©æ¼¢åŃĹ|Ġ|.|5",
        "č|Ċ|ĠĠ|Ċ|Ġ|$|9|/|ab|.|.|.|Ġ|Â«|q|Â|»|Ġ|ĉ|Ċ",
    ),
    (
        "chatglm-bpe dbrx falcon-h1 falcon3 glm4 jais-2 jina-v5-nano lfm2 llama-bpe llama-v3 llama3 midm-2.0 pixtral "
        "smaug-bpe",
        "it|'s|ĠI|'LL|Ġa|123|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!=Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉz|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "codeshell command-r exaone minerva-7b refact smollm starcoder",
        "it|'s|ĠI|'|L|L|Ġa|1|2|3|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!=|Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉ|z|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/|ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "deepseek-coder",
        "it|'|s|ĠI|'|L|L|Ġa|1|2|3|4|5|Ġb|Ċ|Ċ|1|Ġ|Ġc",
        "x|!|=|Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉz|Ġ,|Ã©|æ¼¢åŃĹ|Ġ.|5",
        "č|Ċ|ĠĠ|Ċ|Ġ$|9|/|ab|...|ĠÂ«|q|Â|»|Ġĉ|Ċ",
    ),
    (
        "deepseek-llm",
        "it|'|s|ĠI|'|L|L|Ġa|12345|Ġb|Ċ|Ċ|1|Ġ|Ġc",
        "x|!=|Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉz|Ġ,|Ã©|æ¼¢åŃĹ|Ġ.|5",
        "č|Ċ|ĠĠ|Ċ|Ġ$|9|/|ab|...|ĠÂ«|q|Â|»|Ġĉ|Ċ",
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm",
        "it|'s|ĠI|'LL|Ġa|123|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!=Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉz|Ġ,|Ã©|æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "default falcon",
        "it|'|s|ĠI|'|L|L|Ġa|123|4|5|Ġb|Ċ|Ċ|1|Ġ|Ġc",
        "x|!=|Ċ|Ġ|(|y|)|ĠaB|ĠAb|ĉ|z|Ġ|,|Ã©æ¼¢åŃĹ|Ġ|.|5",
        "čĊ|ĠĠĊ|Ġ|$|9|/|ab|...|Ġ|Â«|q|Â|»|ĠĉĊ",
    ),
    (
        "gpt-4o kanana2 llama4 minimax-m2",
        "it's|Ġ|I'LL|Ġa|123|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!=Ċ|Ġ(|y|)|Ġa|B|ĠAb|ĉz|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "seed-coder",
        "it|'s|ĠI|'LL|Ġa|1|2|3|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!=|Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉz|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "tekken",
        "it|'s|ĠI|'LL|Ġa|1|2|3|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!=Ċ|Ġ(|y|)|Ġa|B|ĠAb|ĉz|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/ab|...|ĠÂ«|q|Â|»|ĠĉĊ",
    ),
    (
        "viking",
        "it's|Ġ|I'LL|Ġa|1|2|3|4|5|Ġb|ĊĊ|1|Ġ|Ġc",
        "x|!|=|Ċ|Ġ(|y|)|ĠaB|ĠAb|ĉ|z|Ġ,|Ã©æ¼¢åŃĹ|Ġ.|5",
        "čĊ|ĠĠĊ|Ġ$|9|/ab|...|ĠÂ«q|Â|»|ĠĉĊ",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return open_gguf(write_vocabulary(tmp_path_factory.mktemp("v") / "v.gguf", "gpt-2"), ("llama",))


def changed(file: GgufFile, **keys: Any) -> GgufFile:
    """The file with keys of its tokenizer (None: without)."""
    metadata = {**file.metadata, **{f"tokenizer.ggml.{key}": value for key, value in keys.items()}}
    return dataclasses.replace(file, metadata={key: value for key, value in metadata.items() if value is not None})


def built(file: GgufFile, **keys: Any) -> tuple[GgufTokenizer, Tokenizer]:
    found = read_gguf_tokenizer(changed(file, **keys))
    return found, Tokenizer.from_str(found.json.decode())


@pytest.mark.parametrize(("kinds", "first", "second", "third"), LLAMA_CPP)
def test_words_are_llama_cpps(vocabulary: GgufFile, kinds: str, first: str, second: str, third: str) -> None:
    for kind in kinds.split():
        tokenizer = built(vocabulary, pre=kind)[1]
        found = ["|".join(tokenizer.encode(text).tokens) for text in TEXTS]
        assert found == [first, second, third], kind
        for text in TEXTS:
            assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_kind_can_be_built(vocabulary: GgufFile) -> None:
    for kind in PRE_TOKENIZERS:
        tokenizer = built(vocabulary, pre=kind)[1]
        for text in TEXTS:
            assert tokenizer.decode(tokenizer.encode(text).ids) == text, kind
    listed = {kind for kinds, *_ in LLAMA_CPP for kind in kinds.split()}
    assert len(listed) > 55 and listed <= PRE_TOKENIZERS.keys()


def test_smollm_keeps_two_line_ends_together(vocabulary: GgufFile) -> None:
    tokenizer = built(vocabulary, pre="smollm")[1]
    assert tokenizer.encode("\n\n1").tokens == ["ĊĊ", "1"]
    assert tokenizer.encode("12").tokens == ["1", "2"]


@pytest.mark.parametrize("kind", [*NOT_EXPRESSIBLE, "mine"])
def test_other_kinds_are_named(vocabulary: GgufFile, kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"pre '{kind}' is not supported.*supported: .*smollm"):
        built(vocabulary, pre=kind)


def test_whole_words_come_before_merges(vocabulary: GgufFile) -> None:
    """Kinds after Llama 3 look a word up before they merge it."""
    tokens = [*VOCABULARY[0][:-1], "xyz", "<end>"]
    types = np.array([1] * (len(tokens) - 1) + [3])
    ids = {"bos_token_id": len(tokens) - 1, "eos_token_id": len(tokens) - 1}
    for kind, expected in (("gpt-2", ["x", "y", "z"]), ("llama-bpe", ["xyz"])):
        tokenizer = built(vocabulary, pre=kind, tokens=tokens, token_type=types, **ids)[1]
        assert tokenizer.encode("xyz").tokens == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "tokenizer.ggml.model is missing"),
    ({"model": "bert"}, r"'bert' \(WordPiece\); supported"),
    ({"model": "t5"}, "'t5'"),
    ({"pre": None}, "tokenizer.ggml.pre is missing.*add the key"),
    ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
    ({"merges": None}, "tokenizer.ggml.merges is missing"),
    ({"merges": ["a q", "ab"]}, "entry 0 of tokenizer.ggml.merges is 'a q'"),
    ({"token_type": np.ones(3, np.int32)}, "token_type is no list of"),
    ({"tokens": ["a", "b", "a"], "token_type": None}, "there twice: 'a'"),
    ({"eos_token_id": None}, "eos_token_id is missing.*never end"),
    ({"eos_token_id": 100_000}, "eos_token_id is 100000"),
    ({"bos_token_id": None, "add_bos_token": True}, "bos_token_id is missing"),
    ({"add_bos_token": 1}, "add_bos_token is 1; true or false"),
    ({"add_space_prefix": True}, "add_space_prefix=true"),
    ({"add_sep_token": True}, "add_sep_token=true"),
    ({"model": "llama"}, "scores is missing"),
]


@pytest.mark.parametrize(("keys", "named"), BAD)
def test_what_is_wrong_is_named(vocabulary: GgufFile, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        built(vocabulary, **keys)


def test_what_is_put_around_a_prompt(vocabulary: GgufFile) -> None:
    end = len(VOCABULARY[0]) - 1

    def ids(**keys: Any) -> list[int]:
        return built(vocabulary, **keys)[1].encode("5").ids

    five = ids()
    assert len(five) == 1
    assert ids(add_bos_token=True) == [end, *five]
    assert ids(add_eos_token=True) == [*five, end]
    # Without the key, kinds after Llama 3 begin with it, others do not.
    assert ids(add_bos_token=None) == five
    assert ids(add_bos_token=None, pre="llama-bpe") == ids(add_bos_token=None, pre="tekken") == [end, *five]
    assert ids(pre="llama-bpe") == five


def test_ends() -> None:
    ids = {"a": 0, "<|im_end|>": 1, "</s>": 2, "<|end|>": 3, "b": 4}
    assert end_of_text(ids, {}) == (1, 2, 3)
    assert end_of_text(ids, {"eos": 0, "eot": 4}) == (0, 1, 2, 3, 4)
    assert end_of_text(ids, {"bos": 0, "eom": 4, "fim_pad": 0}) == (0, 1, 2, 3, 4)
    assert end_of_text({**ids, "<|return|>": 5, "<|call|>": 6}, {}) == (1, 2, 5, 6)
    assert end_of_text({**ids, "<|tool_response>": 5}, {}) == (1, 3, 5)
    assert end_of_text({"a": 0}, {}) == ()


def test_ends_are_control_tokens_whatever_the_file_says(vocabulary: GgufFile) -> None:
    tokens = [*VOCABULARY[0][:-1], "<|im_end|>", "<end>"]
    types = np.array([1] * (len(tokens) - 1) + [3])
    ids = {"bos_token_id": len(tokens) - 1, "eos_token_id": len(tokens) - 1}
    found, tokenizer = built(vocabulary, tokens=tokens, token_type=types, **ids)
    assert found.eos_token_ids == (len(tokens) - 2, len(tokens) - 1)
    assert tokenizer.encode("a<|im_end|>").ids[-1] == len(tokens) - 2
    assert tokenizer.decode([len(tokens) - 2]) == ""
    assert found.specials == {"bos_token": "<end>", "eos_token": "<end>"}


# -- SentencePiece ---------------------------------------------------------------

PIECES = [
    "<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "c", "e", "l", "o", "H", "n", "x",
    "y", "▁a", "ab", "abc", "bc", "▁one", "▁on", "▁o", "ll", "el", "ello", "lo", "llo", "on", "▁▁", "ne",
]  # fmt: skip
# Better pieces come first, as a trained vocabulary has them.
ORDER = ["▁o", "ab", "bc", "▁on", "ll", "lo", "llo", "el", "ello", "▁one", "abc", "▁a", "on", "▁▁", "ne"]


@pytest.fixture(scope="module")
def pieces(vocabulary: GgufFile) -> GgufFile:
    scores = [-float(ORDER.index(piece)) if piece in ORDER else -100.0 - i for i, piece in enumerate(PIECES)]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259)
    return changed(
        vocabulary, model="llama", pre=None, merges=None, tokens=PIECES, scores=np.array(scores, np.float32),
        token_type=np.array(types, np.int32), bos_token_id=None, eos_token_id=None, add_bos_token=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "text", "tokens"),
    [
        (None, "Hello", ["▁", "H", "ello"]),
        (False, "Hello", ["H", "ello"]),
        (True, " one", ["▁", "▁one"]),
        (None, " one", ["▁", "▁one"]),
        (False, " one", ["▁one"]),
        (None, "x</s>y", ["▁", "x", "</s>", "▁", "y"]),
        (False, "x</s>y", ["x", "</s>", "y"]),
        (None, "abc", ["▁", "abc"]),
        (None, "é", ["▁", "<0xC3>", "<0xA9>"]),
    ],
)
def test_pieces_and_their_spaces(pieces: GgufFile, prefix: bool | None, text: str, tokens: list[str]) -> None:
    found, tokenizer = built(pieces, add_space_prefix=prefix)
    encoded = tokenizer.encode(text)
    assert encoded.tokens == ["<s>", *tokens]
    if "</s>" not in text:
        assert tokenizer.decode(encoded.ids) == text
    assert found.eos_token_ids == (2,) and found.specials["unk_token"] == "<unk>"


def test_joining_is_by_score_and_from_the_left() -> None:
    scores = {"ab": -1.0, "bc": -2.0, "abc": -3.0, "aa": -4.0, "aaa": -5.0}
    assert join_by_scores("abc", scores) == ["abc"]
    assert join_by_scores("aaaa", scores) == ["aa", "aa"]
    assert join_by_scores("bcab", scores) == ["bc", "ab"]
    assert join_by_scores("bcab", {"bc": -2.0, "ab": -1.0, "ca": 0.0}) == ["b", "ca", "b"]


def test_pieces_that_merges_cannot_say_are_refused(pieces: GgufFile) -> None:
    """With equal scores the leftmost pair is joined first; a list of merges has an order of pairs instead."""
    with pytest.raises(CheckpointError, match="tokenised otherwise than the file asks for"):
        built(pieces, scores=np.zeros(len(PIECES), np.float32))


def test_a_vocabulary_without_its_bytes_is_refused(vocabulary: GgufFile) -> None:
    tokens = [token for token in VOCABULARY[0] if token != "x"]
    merges = [merge for merge in VOCABULARY[1] if "x" not in merge]
    last = len(tokens) - 1
    with pytest.raises(CheckpointError, match="tokenised otherwise"):
        built(
            vocabulary, tokens=tokens, merges=merges, token_type=np.array([1] * last + [3]), bos_token_id=last,
            eos_token_id=last,
        )  # fmt: skip


def test_tokens_are_checked_against_the_embedding_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that is built wrongly does not get out: here its merges are dropped."""

    def bare(*_: Any, **options: Any) -> Any:
        return original(vocab={**options["vocab"], "beyond": 10_000}, merges=[])

    original: Callable[..., Any] = models.BPE
    monkeypatch.setattr(models, "BPE", bare)
    with pytest.raises(CheckpointError, match="'beyond'"):
        read_gguf_tokenizer(open_gguf(write_vocabulary(tmp_path / "v.gguf", "gpt-2"), ("llama",)))
