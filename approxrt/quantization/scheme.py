"""Say how a linear is stored: in which format, and with what share of its 16x4 tiles."""

from __future__ import annotations

from dataclasses import dataclass

from approxrt.artifact.spec.formats import FORMATS, GROUP_WEIGHTS, TILE_K, TILE_N, TILED, LinearKind
from approxrt.artifact.storage.bsr import grid


@dataclass(frozen=True)
class Scheme:
    """`format`: one of `FORMATS`; `density`: the share of tiles that stay, and below 1 it is stored by tiles."""

    format: LinearKind
    density: float = 1.0

    @property
    def stored(self) -> LinearKind:
        """The artifact's name for it."""
        return TILED[self.format] if self.sparse else self.format

    @property
    def name(self) -> str:
        """Return the name that reports have: "int8", "g4", "int4@50%"."""
        form = FORMATS[self.format]
        return (form.kind if form.grouped else f"int{form.bits}") + (
            "" if self.density >= 1 else f"@{100 * self.density:g}%"
        )

    @property
    def grouped(self) -> bool:
        """Tell whether 32 weights share a float16 scale."""
        return FORMATS[self.format].grouped

    @property
    def sparse(self) -> bool:
        return self.density < 1

    def bytes(self, n: int, k: int) -> int:
        """Return those of a linear with n outputs and k inputs in the artifact."""
        groups = -(-k // GROUP_WEIGHTS)
        if self.grouped:
            weights = {"g4": -(-k // 2) + 2 * groups, "g6": -(-k // 2) + -(-k // 4), "g8": k}[self.format]
            return n * (weights + 2 * groups) + 4 * n
        if not self.sparse:
            weights = n * k if self.format == "s8" else n * (-(-k // 2) + groups)
            return weights + 8 * n
        strips, columns = grid(n, k)
        return round(strips * columns * self.density * tile_bytes(self.format, self.density)) + 8 * n


def tile_bytes(format: LinearKind, density: float) -> float:
    """Return the bytes of one 16x4 tile: its weights, its place where tiles are missing, its share of group scales."""
    bits = FORMATS[format].bits
    return TILE_N * TILE_K * bits / 8 + (0 if density >= 1 else 2) + (TILE_N / 8 if bits == 4 else 0)


# Every scheme that a plan may choose from.
SCHEMES = (
    Scheme("s8"),
    Scheme("g4"),
    Scheme("s4"),
    Scheme("s8", 0.75),
    Scheme("s8", 0.5),
    Scheme("s4", 0.75),
    Scheme("s4", 0.5),
    Scheme("g6"),
    Scheme("g8"),
)


def scheme_named(name: str) -> Scheme:
    """Return the scheme that reports call so. Raises KeyError."""
    return {scheme.name: scheme for scheme in SCHEMES}[name]
