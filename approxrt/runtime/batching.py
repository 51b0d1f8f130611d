"""Splitting a call's sequences into forward passes: sorted by length, bounded by tokens.

Nothing is padded, so sorting does not save products; it keeps the sequences of one
pass alike, so that attention's tasks are even, and bounds the scratch memory.
"""

from __future__ import annotations

from collections.abc import Sequence

# Hidden states, queries, keys and values of this many tokens of a 384-wide model are 12 MB: they stay in L3.
TOKEN_BUDGET = 2048


def plan_batches(lengths: Sequence[int], budget: int = TOKEN_BUDGET) -> list[list[int]]:
    """Indices of sequences, grouped into passes of at most `budget` tokens, longest first.

    A sequence longer than the budget is a pass of its own. Every index occurs once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if not batches or lengths[index] > room:
            batches.append([])
            room = budget
        batches[-1].append(index)
        room -= lengths[index]
    return batches
