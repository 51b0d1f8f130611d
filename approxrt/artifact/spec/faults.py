"""Read JSON from a stranger into dataclasses without ever raising; a fault names the field, its value and the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

MAX_NAME = 1000


def object_fields(data: Any, cls: type, where: str, faults: list[str]) -> dict[str, Any] | None:
    """The object's fields, or None when it is no object; missing and unknown names go to `faults`."""
    if not isinstance(data, Mapping):
        faults.append(f"{where} is {show(data)}; an object is needed")
        return None
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(show(name) for name in data if name not in known)
    if unknown:
        # A field that is not understood may change what the weights mean, so it is not skipped.
        faults.append(f"{where} has unknown fields: {_some(unknown)}")
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            faults.append(f"{where}.{name} is missing")
    return {name: data[name] for name in known if name in data}


def build_object(data: Any, cls: Callable[..., Any], where: str, faults: list[str]) -> Any:
    before = len(faults)
    fields = object_fields(data, cls, where, faults)  # type: ignore[arg-type]
    return cls(**fields) if fields is not None and len(faults) == before else None


def is_text(value: Any) -> bool:
    """A string that can be printed: lone surrogates from JSON escapes would fail later, far from here."""
    if type(value) is not str:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def show(value: Any) -> str:
    """A value in a message: short whatever it is, and safe to print."""
    if isinstance(value, str | int | float | bool | type(None)):
        try:
            text = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
        except ValueError:  # an int of more digits than Python prints
            text = "a huge integer"
    else:
        names: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list"}
        text = names.get(type(value), type(value).__name__)
    return text if len(text) <= 80 else text[:77] + "..."


def _some(items: list[str], limit: int = 8) -> str:
    """The first few of a list, and how many more there are."""
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")
