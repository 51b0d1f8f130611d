"""Find the tokens that a smaller subword vocabulary needs, so that no word is lost.

Given the tokens that some texts use, each function adds what the tokenizer's
algorithm needs beside them. The results promise, for the smaller vocabulary:

  same     a word whose tokens are all kept falls into the same tokens as before
  no loss  a word that the full vocabulary can spell, the smaller one can spell

WordPiece (greedy, longest match first). "Same" needs nothing: the longest match
is kept, and there are no new ones to beat it. "No loss" needs a token to match
wherever a token ends, which the single characters grant, in both forms: `x` at
the start of a word, `##x` within. A character without the form that its place
needs is a gap. Tokens that cover a gap are kept, but that is not enough: of
`x ##a ##b xa ##ab ##bc` (a gap: no ##c) without `xa`, the word xabc, once
`xa ##bc`, begins with `x ##ab`, and nothing begins with c. So those tokens are
kept, too, without which the smaller vocabulary could fall out of step before a
gap (`_in_step`). Vocabularies of BERT's have no gaps.

Byte-level BPE (merges in order of rank). "No loss" needs the bytes. "Same" needs
the merges that built a word's tokens: of the merges possible at a step, the
full vocabulary's choice is then among those left and still ranks first. All of
them make parts of the tokens, so a token is kept together with the parts of
every merge that makes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def close_wordpiece(vocab: Collection[str], prefix: str, used: Iterable[str]) -> set[str]:
    """The tokens of `vocab` to keep: `used`, single characters in both forms, and what gaps need.

    `prefix` marks a token that continues a word ("##").
    """
    bodies = {token: token[len(prefix) :] for token in vocab if _continues(token, prefix)}
    first = {token for token in vocab if len(token) == 1}
    within = {body for body in bodies.values() if len(body) == 1}
    keep = set(used)
    # With the length of `body` that the last gap leaves before it.
    gaps: dict[str, int] = {}
    for token in vocab:
        body = bodies.get(token)
        if body is None:
            if len(token) == 1 or token[:1] not in first or not within.issuperset(token[1:]):
                keep.add(token)
        elif len(body) == 1:
            keep.add(token)
        elif not within.issuperset(body):
            keep.add(token)
            gaps[body] = max(i for i, character in enumerate(body) if character not in within)
    return _in_step(vocab, bodies, keep, gaps) if gaps else keep


def _continues(token: str, prefix: str) -> bool:
    return token.startswith(prefix) and len(token) > len(prefix)


def _in_step(vocab: Collection[str], bodies: dict[str, str], keep: set[str], gaps: dict[str, int]) -> set[str]:
    """`keep` and the tokens without which it could fall out of step with `vocab` before a gap.

    Say the full vocabulary splits a word at s, where one of the tokens begins
    that have to be reached in step: at first those that cover a gap. If the
    smaller one does not split at s, a kept token t = y z lies across s, with z the
    beginning of that token. The full one did not split where t begins (it would
    have taken t, or more), so a token of its lies across that place and ends with
    a beginning of y. That token is kept, and has to be reached in step itself.
    The argument moves to the left until it meets the word's beginning, where
    both are in step.
    """
    starts = {body[:i] for body, end in gaps.items() for i in range(1, end + 1)}
    while True:
        heads = {
            body[:i]
            for body in (bodies[token] for token in keep if token in bodies)
            for cut in range(1, len(body))
            if body[cut:] in starts
            for i in range(1, cut + 1)
        }
        across = {token for token in vocab if any(token[i:] in heads for i in range(1, len(token)))}
        more = {bodies[token][:i] for token in across if token in bodies for i in range(1, len(bodies[token]))}
        if across <= keep and more <= starts:
            return keep
        keep = keep | across
        starts |= more


def greedy_prefix(word: str, vocab: Collection[str], prefix: str) -> list[str]:
    """The tokens that WordPiece finds in `word` until it has them all or finds no more."""
    tokens: list[str] = []
    start = 0
    while start < len(word):
        for end in range(len(word), start, -1):
            token = word[start:end] if start == 0 else prefix + word[start:end]
            if token in vocab:
                break
        else:
            return tokens
        tokens.append(token)
        start = end
    return tokens


def close_bpe(merges: Sequence[tuple[str, str]], used: Iterable[str]) -> set[str]:
    """`used` and, of every merge that makes a kept token, the two parts."""
    parts: dict[str, set[str]] = {}
    for left, right in merges:
        parts.setdefault(left + right, set()).update((left, right))
    keep = set(used)
    pending = list(keep)
    while pending:
        new = parts.get(pending.pop(), set()) - keep
        keep |= new
        pending += new
    return keep
