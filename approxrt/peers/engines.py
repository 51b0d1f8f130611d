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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from approxrt.errors import InputError

if TYPE_CHECKING:
    from approxrt.peers.source import Source

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
    return importlib.import_module(f"approxrt.peers.{family}_engine")


def all_peers() -> list[Peer]:
    """Every variant of every family."""
    return [Peer(family, variant) for family in FAMILIES for variant in family_module(family).VARIANTS]


def parse_peers(text: str) -> list[Peer]:
    """The peers of a comma-separated list of families and single variants: "torch-eager,openvino"; "all" is every one.

    InputError names what is unknown and lists what is known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    peers = all_peers()
    known = {"all", *FAMILIES, *(peer.name for peer in peers)}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(
            f"unknown engine {', '.join(map(repr, unknown)) or repr(text)}; known engines: {', '.join(FAMILIES)}, "
            f"one variant of them ({', '.join(peer.name for peer in peers)}), or all"
        )
    return [peer for peer in peers if {"all", peer.family, peer.name} & set(names)]


def missing_packages(family: str) -> list[str]:
    """Import names that the family needs and that are not installed."""
    return [name for name in family_module(family).PACKAGES if importlib.util.find_spec(name) is None]
