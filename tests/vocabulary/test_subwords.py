"""Which tokens to keep: checked by the tokenizers library on vocabularies far odder than any real one."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from approxrt.vocabulary.prune import prune_vocabulary
from approxrt.vocabulary.subwords import close_bpe, close_wordpiece, greedy_prefix


def prune(tokenizer: Tokenizer, texts: list[str]) -> Tokenizer:
    return Tokenizer.from_str(prune_vocabulary(tokenizer.to_str().encode(), texts).tokenizer_json.decode())


def tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[str]]:
    return [encoding.tokens for encoding in tokenizer.encode_batch(texts)]


@st.composite
def wordpiece_cases(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """A vocabulary in which characters may lack either form, and words. "#" may be mistaken for the prefix."""
    alphabet = draw(st.sampled_from(["ab", "abc", "ab#"]))
    body = st.text(alphabet, min_size=1, max_size=4)
    first = draw(st.sets(body, min_size=1, max_size=8))
    within = draw(st.sets(body, min_size=1, max_size=10))
    words = draw(st.lists(st.text(alphabet, min_size=1, max_size=6), min_size=1, max_size=3))
    return sorted({*first, *(f"##{token}" for token in within)}), words


def wordpiece(vocab: list[str]) -> Tokenizer:
    ids = {token: i for i, token in enumerate(["[UNK]", *vocab])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@given(wordpiece_cases())
@settings(max_examples=120)
def test_wordpiece_loses_no_word_whatever_the_vocabulary(case: tuple[list[str], list[str]]) -> None:
    """All words of up to six characters, checked against the library."""
    vocab, train = case
    full = wordpiece(vocab)
    small = prune(full, train)
    kept = set(small.get_vocab())
    assert tokens(small, train) == tokens(full, train)
    alphabet = sorted(set("".join(vocab)))
    words = ["".join(word) for n in range(1, 7) for word in itertools.product(alphabet, repeat=n)]
    for word, before, after in zip(words, tokens(full, words), tokens(small, words), strict=True):
        if "[UNK]" not in before:
            assert "[UNK]" not in after, word
            if kept.issuperset(before):
                assert after == before


def test_a_gap_needs_more_than_the_pieces_that_cover_it() -> None:
    """`xabc` is `xa ##bc`; without `xa` it would begin with `x ##ab`, and no token begins with c."""
    vocab = ["x", "##a", "##b", "xa", "##ab", "##bc", "##x", "xx"]
    assert tokens(wordpiece(vocab), ["xabc"]) == [["xa", "##bc"]]
    kept = close_wordpiece(vocab, "##", {"##ab"})
    assert kept == {"x", "##x", "##a", "##b", "##bc", "##ab", "xa"}
    assert close_wordpiece(vocab, "##", set()) == kept - {"##ab", "xa"}


def test_the_pieces_kept_for_a_gap_are_reached_themselves() -> None:
    """`zyxabc` is `zy ##xa ##bc`. `##ab` makes `##xa` needed, and `##yx` then `zy`, or `z ##yx ##ab` comes out."""
    vocab = ["z", "##y", "##x", "##a", "##b", "zy", "##xa", "##bc", "##ab", "##yx", "zz"]
    assert tokens(wordpiece(vocab), ["zyxabc"]) == [["zy", "##xa", "##bc"]]
    kept = close_wordpiece(vocab, "##", {"##ab", "##yx"})
    assert tokens(wordpiece(sorted(kept)), ["zyxabc"]) == [["zy", "##xa", "##bc"]]
    assert tokens(wordpiece(sorted(kept - {"zy"})), ["zyxabc"]) == [["[UNK]"]]


def test_a_character_without_a_form_keeps_its_pieces() -> None:
    vocab = ["a", "b", "##a", "ca", "ab", "##ba", "bb", "aa"]
    kept = close_wordpiece(vocab, "##", set())
    assert kept == {"a", "b", "##a", "ca", "ab", "##ba", "bb"}


def test_unknown_words_of_the_texts_stay_unknown() -> None:
    """`ab?` finds `ab` and gives up. Without `ab` it would find `a ##b?`."""
    vocab = ["a", "b", "##a", "##b", "?", "ab", "##b?"]
    full = wordpiece(vocab)
    assert tokens(full, ["ab? ba"]) == [["[UNK]", "b", "##a"]]
    assert greedy_prefix("ab?", vocab, "##") == ["ab"]
    small = prune(full, ["ab? ba"])
    assert tokens(small, ["ab? ba"]) == [["[UNK]", "b", "##a"]]


@st.composite
def bpe_cases(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[str]]:
    """Merges in random order of rank, several of which may make the same token, and texts."""
    alphabet = draw(st.sampled_from(["ab", "abc"]))
    tokens = list(alphabet)
    merges: dict[tuple[str, str], None] = {}
    for _ in range(draw(st.integers(1, 14))):
        pair = draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if len("".join(pair)) <= 6:
            merges[pair] = None
            tokens.append("".join(pair))
    texts = draw(st.lists(st.text(alphabet + " ", min_size=1, max_size=12), min_size=1, max_size=3))
    return draw(st.permutations(list(merges))), texts


def bpe(merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    tokens = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)])
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@given(bpe_cases(), st.booleans())
@settings(max_examples=120)
def test_bpe_keeps_every_segmentation_whatever_the_merges(
    case: tuple[list[tuple[str, str]], list[str]], ignore_merges: bool
) -> None:
    merges, train = case
    full = bpe(merges, ignore_merges=ignore_merges)
    small = prune(full, train)
    assert tokens(small, train) == tokens(full, train)
    kept = set(small.get_vocab())
    words = ["".join(word) for n in range(1, 6) for word in itertools.product("abc", repeat=n)] + ["é\n€"]
    for before, after in zip(tokens(full, words), tokens(small, words), strict=True):
        assert "".join(before) == "".join(after)
        if kept.issuperset(before):
            assert after == before


def test_bpe_keeps_the_parts_of_every_merge_of_a_kept_token() -> None:
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("abc", "d"), ("c", "d")]
    assert close_bpe(merges, {"abc"}) == {"abc", "ab", "bc", "a", "b", "c"}
