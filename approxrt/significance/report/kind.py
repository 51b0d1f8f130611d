"""Define what the reports of encoders and of decoders say differently: words, facts and sections of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]


@dataclass(frozen=True)
class PartWords:
    """Parts of blocks of one sort in a report.

    key     where the document has them
    what    a part's name, and `plural` that of several
    title   the section's
    cells   the sentence on what a cell of the figure is, without its full stop
    """

    key: str
    what: str
    plural: str
    title: str
    cells: str


@dataclass(frozen=True)
class ReportKind:
    """One kind of report.

    title     with {name} and {task}
    lead      the first paragraph
    judge     what does or does not need a block: "task"
    samples   what losses are measured on: "texts"
    parts     in the order of their sections
    facts     HTML of the list at the top, by its terms
    findings  sentences that follow those on blocks and parts; not escaped
    before    sections before that on blocks, and `after` those on parts, of HTML
    method    the paragraph on how it was measured
    """

    title: str
    lead: str
    judge: str
    samples: str
    parts: tuple[PartWords, ...]
    facts: Callable[[Document], dict[str, str]]
    findings: Callable[[Document], list[str]]
    before: tuple[Callable[[Document], str], ...]
    after: tuple[Callable[[Document], str], ...]
    method: str
