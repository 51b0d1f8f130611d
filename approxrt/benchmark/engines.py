"""The engines that `approxrt bench` knows, and what each of them must offer.

A family is one module, imported only when asked for. It has

  VARIANTS                              e.g. ("f32", "int8")
  PACKAGES                              import names that must be installed
  prepare(variant, source, work) -> Path     export and quantise; what is done once, before deployment
  open_engine(variant, path, threads) -> Engine     what a deployed program does: load, ready to run

`prepare` and `open_engine` are apart so that load time and memory are measured, in
a fresh process, without what only the conversion needs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from approxrt.errors import InputError

if TYPE_CHECKING:
    from approxrt.benchmark.source import Source

FAMILIES = ("torch", "onnxruntime", "openvino")


class Engine(Protocol):
    """A loaded model."""

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """Logits f32[b, labels] (or pooled f32[b, hidden]) of input_ids i64[b, s].

        attention_mask i64[b, s] is 1 on tokens and 0 on padding; None says that every position is a token.
        """
        ...


class Family(Protocol):
    """The shape of an engine module."""

    VARIANTS: tuple[str, ...]
    PACKAGES: tuple[str, ...]

    def prepare(self, variant: str, source: Source, work: Path) -> Path: ...

    def open_engine(self, variant: str, path: Path, threads: int) -> Engine: ...


@dataclass(frozen=True)
class Peer:
    """One contestant: `family` and `variant` of it; `name` is how reports call it."""

    family: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.family}-{self.variant}"


def family_module(family: str) -> Any:
    """The module of a family (or of "approxrt"): imports that engine only when it is used."""
    return importlib.import_module(f"approxrt.benchmark.{family}_engine")


def parse_families(text: str) -> tuple[str, ...]:
    """The families of a comma-separated list such as "torch,openvino"; "all" is every one.

    InputError names what is unknown and lists what is known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return FAMILIES
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise InputError(
            f"unknown engine {', '.join(map(repr, unknown)) or repr(text)}; known engines: {', '.join(FAMILIES)}"
        )
    return tuple(dict.fromkeys(names))


def missing_packages(family: str) -> list[str]:
    """Import names that the family needs and that are not installed."""
    return [name for name in family_module(family).PACKAGES if importlib.util.find_spec(name) is None]


def peers_of(families: Sequence[str]) -> list[Peer]:
    """Every variant of the given families, in their order."""
    return [Peer(family, variant) for family in families for variant in family_module(family).VARIANTS]
