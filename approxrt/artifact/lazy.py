"""Tensors that are computed when they are asked for, so that not all of them are held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np


class LazyTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each computed anew whenever it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
