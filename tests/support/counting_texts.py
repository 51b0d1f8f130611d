"""Texts of words that count upwards, in which whatever is changed can be seen, and their tokenizer."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, models, pre_tokenizers, processors

START, END = 1, 2
WORDS = range(3, 30)


def counting_tokenizer() -> bytes:
    """Words w3 to w29 with those ids, [S] and [E] around each text."""
    tokenizer = Tokenizer(models.WordLevel({"[S]": START, "[E]": END, **{f"w{i}": i for i in WORDS}, "[U]": 0}, "[U]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[S]", "[E]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        "[S] $A [E]", "[S] $A [E] $B:1 [E]:1", [("[S]", START), ("[E]", END)]
    )
    return tokenizer.to_str().encode()


def ascending(count: int, rng: random.Random) -> list[str]:
    """Texts whose words count upwards: whatever is changed in one can be seen."""
    out = []
    for _ in range(count):
        length = rng.randint(5, 9)
        begin = rng.randint(3, 30 - length)
        out.append(" ".join(f"w{i}" for i in range(begin, begin + length)))
    return out
