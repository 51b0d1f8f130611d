"""Limit what a template from a stranger may use: steps, seconds, sizes, and the methods whose results have a bound.

A `Meter` counts for one rendering; the `check_` functions look at what an operator, a method or a filter is about to
make before it is made: a string of 5 GB cannot be measured any more. Limits grow with the input's own size.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2.utils import Namespace

MAX_VALUE = 1 << 20  # characters of one value
ENTRY = 4  # characters that an entry of a list counts as
MAX_WORK = 1 << 26  # of all values and outputs together
MAX_TICKS = 1_000_000  # steps: iterations, calls, filters, outputs
MAX_SECONDS = 2.0
MAX_DEPTH = 100  # calls of macros in macros
MAX_BITS = 1 << 12  # of an integer
MAX_COUNT = 10_000  # widths, counts and the like that a filter or a method is given

# Methods whose results are no larger than what they are given; those in _GROWING are checked.
_STR_METHODS = frozenset(
    {
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
        "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
        "isupper", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    }
)  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    list: frozenset({"count", "index", "copy"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
}
_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")
_GROWING = frozenset((*_PADDING, "replace", "join"))
_WIDTH = re.compile(r"%[^a-zA-Z%]*?(?:\*|\d{5,})|\{[^{}]*(?:\{|\d{5,})")


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template asked for more than the limits allow, or for something that has none."""


class Meter:
    """Count what a rendering uses. `size` is its input's, in characters; `marks` are characters that JSON keeps."""

    def __init__(self, size: int, marks: str) -> None:
        self.marks = marks
        self.value = MAX_VALUE + 4 * size
        self._work = MAX_WORK + 32 * size
        self._ticks = MAX_TICKS + size
        self._end = time.monotonic() + MAX_SECONDS + size / 1e6
        self.depth = 0

    def tick(self, characters: int = 0) -> None:
        """Count a step and what it puts out."""
        self._ticks -= 1
        self._work -= characters
        if self._ticks < 0:
            raise TemplateLimitError("it takes too many steps")
        if self._work < 0:
            raise TemplateLimitError("it makes too much text")
        if time.monotonic() > self._end:
            raise TemplateLimitError("it takes too long")

    def allow(self, size: int) -> None:
        """Count a value of so many characters and entries that is about to be made."""
        if size > self.value:
            raise TemplateLimitError(f"it makes a value of about {size} characters; the limit is {self.value}")
        self.tick(size)

    def fresh(self, value: Any) -> Any:
        """`value`, counted."""
        if isinstance(value, str | list | tuple | dict | set):
            self.allow(weigh(value, self.value))
        return value


METER: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered(size: int, marks: str = "") -> Iterator[Meter]:
    """A meter for what is rendered within; see `Meter`."""
    meter = Meter(size, marks)
    token = METER.set(meter)
    try:
        yield meter
    finally:
        METER.reset(token)


def weigh(value: Any, limit: int) -> int:
    """About how many characters `value` has as text; what is over `limit` may be any number over it.

    A list that holds another one twice counts it twice, as printing and comparing it would.
    """
    total, stack = 0, [value]
    while stack and total <= limit:
        one = stack.pop()
        total += ENTRY
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, int):
            total += one.bit_length() // 3
        elif isinstance(one, Mapping):
            total += len(one)
            stack.extend(one.keys())
            stack.extend(one.values())
        elif isinstance(one, list | tuple | set):
            total += len(one)
            stack.extend(one)
        elif isinstance(one, Namespace):
            stack.append(object.__getattribute__(one, "_Namespace__attrs"))
    return total


def counted(meter: Meter, values: Iterable[Any]) -> Iterator[Any]:
    """The values, each a step."""
    for value in values:
        meter.tick()
        yield value


def check_sum(meter: Meter, left: Any, right: Any) -> None:
    """Before left + right."""
    if isinstance(left, str) and isinstance(right, str):
        meter.allow(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        meter.allow(weigh(left, meter.value) + weigh(right, meter.value))


def check_product(meter: Meter, left: Any, right: Any) -> None:
    """Before left * right."""
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
            meter.allow((len(one) if isinstance(one, str | bytes) else weigh(one, meter.value)) * max(times, 0))
            return
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())


def check_bits(bits: int) -> None:
    """Before an integer of so many bits."""
    if bits > MAX_BITS:
        raise TemplateLimitError(f"it computes an integer of {bits} bits; the limit is {MAX_BITS}")


def check_format(meter: Meter, text: Any, values: Any) -> None:
    """Before text % values, and text.format(*values)."""
    shown = text.decode("latin-1") if isinstance(text, bytes) else text
    if _WIDTH.search(shown):
        raise TemplateLimitError("it formats with a width that is computed or over four digits")
    fields = shown.count("%") + shown.count("{")
    meter.allow(len(shown) + fields * weigh(values, meter.value))


def check_method(meter: Meter, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Allow only those methods of built-in types whose results have a bound."""
    owner: Any = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
    if kind is None:
        if isinstance(owner, bytes | bytearray | memoryview):
            raise TemplateLimitError("it works on bytes, which chat templates have no use for")
        return
    if kind is not str or name not in _GROWING:
        if name not in _METHODS[kind]:
            raise TemplateLimitError(f"it calls {kind.__name__}.{name}, which is not allowed in chat templates")
        return
    values = [*args, *kwargs.values()]
    if name in _PADDING:
        width = max((value for value in values if isinstance(value, int)), default=8)
        meter.allow(len(owner) * (max(width, 1) if name == "expandtabs" else 1) + width)
    elif name == "replace" and len(values) >= 2:
        check_replace(meter, owner, values[0], values[1])
    elif name == "join" and values:
        check_join(meter, values[0], owner)


def check_replace(meter: Meter, text: Any, old: Any, new: Any) -> None:
    """Before text.replace(old, new)."""
    if all(isinstance(part, str) for part in (text, old, new)):
        count = text.count(old) if old else len(text) + 1
        meter.allow(len(text) + count * len(new))


def check_join(meter: Meter, values: Any, between: Any) -> None:
    """Before between.join(values)."""
    if isinstance(values, list | tuple | dict | set | str):
        meter.allow(weigh(values, meter.value) + len(values) * len(str(between)))
