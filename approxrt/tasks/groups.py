"""Find examples that belong together: texts that are parts of one another.

A data set of phrases (SST-2's are the constituents of its sentences) that is split at random has its validation
sentences in train, in pieces. A model is then measured on texts that it has all but learnt, which tells nothing of new
ones; whole groups must go to one side (see e.g. Kaufman et al. 2012, "Leakage in data mining", doi
10.1145/2382577.2382579).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from approxrt.tasks.readers import Dataset

PREFIX = 4  # words by which texts are looked up
ATTEMPTS = 20  # draws of groups, until one has every class on both sides


def containment_groups(texts: Sequence[str]) -> np.ndarray:
    """i64[n]: the group of each text, named by its first member; a text goes with the longest one that has it inside.

    Words are compared, in order and without case. Time grows with the number of words, not with pairs of texts.
    """
    words = [tuple(text.lower().split()) for text in texts]
    starts: dict[tuple[str, ...], list[int]] = {}
    for i, own in enumerate(words):
        if own:
            starts.setdefault(own[:PREFIX], []).append(i)
    group = np.full(len(texts), -1, np.int64)
    for i in sorted(range(len(texts)), key=lambda i: -len(words[i])):
        if group[i] < 0:
            group[i] = i
        own = words[i]
        for begin in range(len(own)):
            for size in range(1, min(PREFIX, len(own) - begin) + 1):
                key = own[begin : begin + size]
                inside = [j for j in starts.get(key, ()) if own[begin : begin + len(words[j])] == words[j]]
                for j in inside:
                    if group[j] < 0:
                        group[j] = group[i]
                if inside:
                    # Longest texts come first: what has found its group is not looked for again.
                    starts[key] = [j for j in starts[key] if group[j] < 0]
    return group


def held_out(groups: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Rows, ascending, of whole groups drawn at random: `count` of them, or fewer where no other group fits.

    At least one group is left. No rows where all groups are larger than `count`.
    """
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen: list[int] = []
    left = count
    for name in np.random.default_rng(seed).permutation(len(names)):
        if sizes[name] <= left and len(chosen) < len(names) - 1:
            chosen.append(name)
            left -= sizes[name]
    return np.flatnonzero(np.isin(inverse, chosen))


def held_out_groups(data: Dataset, count: int, seed: Sequence[int]) -> np.ndarray | None:
    """`held_out` of a data set's texts, with all of its classes on both sides.

    None where groups make no difference or no such split: texts that are pairs or not inside one another, a group that
    has most of the data, a class that some draws have not given to both sides.
    """
    if data.is_pair:
        return None
    groups = containment_groups([text for text in data.texts if isinstance(text, str)])
    if len(np.unique(groups)) in (1, len(data)):
        return None
    for attempt in range(ATTEMPTS):
        held = held_out(groups, count, [*seed, attempt])
        rest = np.setdiff1d(np.arange(len(data)), held)
        parts = [np.unique(data.labels[rows]) for rows in (held, rest)]
        whole = data.label_names is None or all(len(part) == len(np.unique(data.labels)) for part in parts)
        if 2 * len(held) > count and whole:
            return held
    return None
