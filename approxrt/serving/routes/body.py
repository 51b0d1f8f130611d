"""The base of all JSON bodies: a field that a route does not know is refused unless it cannot change the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from approxrt.serving.errors import UnknownField

# Who asks, what for, and how other servers store, bill and schedule it: no answer depends on them.
IGNORED = frozenset(
    {
        "cache_control",
        "cache_prompt",
        "metadata",
        "priority",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "timeout",
        "user",
    }
)

# Fields by name, with the values that ask for what is done anyway.
Neutral = Mapping[str, tuple[Any, ...]]


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


# Numbers; pydantic alone would read true as 1.
Integer = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]


class Body(BaseModel):
    """A request's JSON.

    A field that is null asks for nothing. Beside its own fields a body may have those of `IGNORED`, and those of
    `plain` with a value that asks for what is done anyway; any other is refused by name.
    """

    # Kept and looked at, rather than forbidden by pydantic, for an error of our own.
    model_config = ConfigDict(extra="allow", strict=False, json_schema_extra={"additionalProperties": False})

    plain: ClassVar[Neutral] = {}

    def refuse_unknown(self, place: str = "") -> None:
        """Raise UnknownField for a field that might change the answer; `place` comes before its name."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in IGNORED:
                continue
            if any(_same(value, other) for other in self.plain.get(name, ())):
                continue
            raise UnknownField(
                f"{place}{name[:80]}={_shown(value)} is not supported here and might change the answer: leave it out",
                param=f"{place}{name[:80]}",
            )


def refuse_other_fields(given: Mapping[str, Any], known: frozenset[str], place: str = "") -> None:
    """The same for a plain object. Raises UnknownField."""
    for name, value in given.items():
        if value is not None and name not in known and name not in IGNORED:
            raise UnknownField(
                f"{place}{name[:80]}={_shown(value)} is not supported here and might change the answer: leave it out",
                param=f"{place}{name[:80]}",
            )


def _same(value: Any, other: Any) -> bool:
    """Equal, and not a number that equals a truth value."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
