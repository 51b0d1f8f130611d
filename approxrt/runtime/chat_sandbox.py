"""Jinja for templates from strangers: transformers' dialect in its sandbox, with limits of time and size.

The sandbox keeps a template from Python's own attributes; it does not keep it from looping for ever or from making a
string of 5 GB. So what a template does is metered, without threads or processes:

- its syntax tree is rewritten before it is compiled: a meter is ticked in each loop's body and before each output, and
  lists, slices and joined strings go through a check;
- operators, calls and filters go through checks of what they are about to make;
- of the methods and filters only those are there whose result is known to be bounded.

Where a limit is passed, `TemplateLimitError` ends the template. Limits grow with the conversation's own size.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

MAX_VALUE = 1 << 20  # characters and entries of one value
MAX_WORK = 1 << 26  # of all values and outputs together
MAX_TICKS = 1_000_000  # steps: iterations, calls, filters, outputs
MAX_SECONDS = 2.0
MAX_DEPTH = 100  # calls of macros in macros
MAX_BITS = 1 << 12  # of an integer
MAX_COUNT = 10_000  # widths, counts and the like that a filter or a method is given
MAX_NODES = 20_000  # of the syntax tree

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
_FILTERS = frozenset(
    {
        "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first",
        "float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map",
        "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
        "slice", "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount",
    }
)  # fmt: skip
_WIDTH = re.compile(r"%[^a-zA-Z%]*?(?:\*|\d{5,})|\{[^{}]*(?:\{|\d{5,})")


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template asked for more than the limits allow, or for something that has none."""


class Meter:
    """What a rendering has used. `size` is that of its input, in characters; `marks` are characters that JSON keeps."""

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
            raise TemplateLimitError(f"it makes a value of {size} characters or entries; the limit is {self.value}")
        self.tick(size)

    def fresh(self, value: Any) -> Any:
        """`value`, counted."""
        if isinstance(value, str | list | tuple | dict | set):
            self.allow(weigh(value, self.value))
        return value


_METER: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered(size: int, marks: str = "") -> Iterator[Meter]:
    """A meter for what is rendered within; see `Meter`."""
    meter = Meter(size, marks)
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


def weigh(value: Any, limit: int) -> int:
    """About how many characters `value` has as text; what is over `limit` may be any number over it.

    A list that holds another one twice counts it twice, as printing and comparing it would.
    """
    total, stack = 0, [value]
    while stack and total <= limit:
        one = stack.pop()
        total += 1
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


class _Generation(Extension):
    """{% generation %}: what the assistant says, marked for training. Rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (a set, as Jinja documents it)

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Metering(NodeTransformer):
    """Puts the meter into a syntax tree."""

    def visit_Output(self, node: nodes.Output) -> Any:
        self.generic_visit(node)
        static = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        return [_tick(static, node.lineno), node]

    def visit_For(self, node: nodes.For) -> Any:
        self.generic_visit(node)
        node.body.insert(0, _tick(0, node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> Any:
        self.generic_visit(node)
        return _checked(nodes.List(node.nodes, lineno=node.lineno), "limit:concat")

    def _fresh(self, node: Any) -> Any:
        self.generic_visit(node)
        loads = getattr(node, "ctx", "load") == "load"
        return _checked(node, "limit:fresh") if loads and not isinstance(node, nodes.Const) else node

    visit_List = visit_Tuple = visit_Dict = _fresh

    def visit_Getitem(self, node: nodes.Getitem) -> Any:
        self.generic_visit(node)
        return _checked(node, "limit:fresh") if isinstance(node.arg, nodes.Slice) else node


def _tick(characters: int, line: int) -> nodes.Node:
    value = nodes.Const(characters, lineno=line)
    return nodes.ExprStmt(_checked(value, "limit:tick"), lineno=line)


def _checked(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment of chat templates; it renders within `metered` only."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,  # nothing is computed while compiling
            finalize=_put_out,
        )
        self.filters: dict[str, Any] = {
            name: _guarded(name, function) for name, function in self.filters.items() if name in _FILTERS
        } | {"tojson": _to_json, "limit:tick": _meter_tick, "limit:fresh": _meter_fresh, "limit:concat": _concat}
        self.globals.pop("lipsum")
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _SafeNamespace,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        count, stack = 0, [tree]
        while stack:
            count += 1
            stack.extend(stack.pop().iter_child_nodes())
            if count > MAX_NODES:
                raise TemplateLimitError(f"it has over {MAX_NODES} expressions and statements")
        rewritten: nodes.Template = _Metering().visit(tree)
        return rewritten

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Jinja would print nothing; a template that tries this is not used at all."""
        raise jinja2.exceptions.SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} is unsafe")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator, unless it would be too large."""
        meter = _METER.get()
        if operator == "+":
            _check_sum(meter, left, right)
        elif operator == "*":
            _check_product(meter, left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
                _check_bits(left.bit_length() * max(right, 1))
        elif isinstance(left, str | bytes):
            _check_format(meter, left, right)
        meter.tick()
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call, unless it would be too large or the method is none of those that are known."""
        meter = _METER.get()
        meter.tick()
        _check_method(meter, __obj, args, kwargs)
        if meter.depth >= MAX_DEPTH:
            raise TemplateLimitError(f"its macros call each other over {MAX_DEPTH} deep")
        meter.depth += 1
        try:
            return meter.fresh(super().call(__context, __obj, *args, **kwargs))
        finally:
            meter.depth -= 1

    def format_string(self, s: str, args: Any, kwargs: Any, format_func: Any = None) -> str:
        """str.format within the sandbox, unless the result would be too large."""
        _check_format(_METER.get(), s, [*args, *dict(kwargs).values()])
        text: str = super().format_string(s, args, kwargs, format_func)
        return text


class _SafeNamespace(Namespace):
    """Jinja's, without names that begin with an underscore: so is transformers'."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _check_sum(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        meter.allow(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        meter.allow(weigh(left, meter.value) + weigh(right, meter.value))


def _check_product(meter: Meter, left: Any, right: Any) -> None:
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
            meter.allow(weigh(one, meter.value) * max(times, 0))
            return
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateLimitError(f"it computes an integer of {bits} bits; the limit is {MAX_BITS}")


def _check_format(meter: Meter, text: Any, values: Any) -> None:
    shown = text.decode("latin-1") if isinstance(text, bytes) else text
    if _WIDTH.search(shown):
        raise TemplateLimitError("it formats with a width that is computed or over four digits")
    fields = shown.count("%") + shown.count("{")
    meter.allow(len(shown) + fields * weigh(values, meter.value))


def _check_method(meter: Meter, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Of the methods of built-in types only those whose results have a bound."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
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
        _check_replace(meter, owner, values[0], values[1])
    elif name == "join" and values:
        _check_join(meter, values[0], owner)


def _check_replace(meter: Meter, text: Any, old: Any, new: Any) -> None:
    if all(isinstance(part, str) for part in (text, old, new)):
        count = text.count(old) if old else len(text) + 1
        meter.allow(len(text) + count * len(new))


def _check_join(meter: Meter, values: Any, between: Any) -> None:
    if isinstance(values, list | tuple | dict | set | str):
        meter.allow(weigh(values, meter.value) + len(values) * len(str(between)))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts as a step, and whose arguments and result are checked."""
    passes = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.tick()
        value, *rest = args[passes:]
        options = [*rest, *kwargs.values()]
        for option in options:
            if isinstance(option, int) and abs(option) > MAX_COUNT:
                raise TemplateLimitError(f"the filter {name!r} is given {option}; the limit is {MAX_COUNT}")
        if name == "sum" and any(not isinstance(option, int | float | str) for option in options):
            raise TemplateLimitError("the filter 'sum' adds numbers only in chat templates")
        if name == "replace" and len(options) >= 2:
            _check_replace(meter, str(value), options[0], options[1])
        elif name == "join":
            value = list(_counted(meter, value))
            _check_join(meter, value, options[0] if options else "")
            args = (*args[:passes], value, *rest)
        elif name == "format":
            _check_format(meter, str(value), options)
        elif name == "indent":
            width = max((len(o) if isinstance(o, str) else int(o) for o in options), default=4)
            meter.allow(len(str(value)) + (str(value).count("\n") + 1) * width)
        elif name in ("int", "float", "string", "e", "escape", "safe"):
            size = weigh(value, meter.value)
            meter.allow(size)
            if name == "int" and isinstance(value, str) and size > MAX_BITS:
                raise TemplateLimitError(f"the filter 'int' is given a text of {size} characters")
        result = function(*args, **kwargs)
        return _counted(meter, result) if isinstance(result, Iterator) else meter.fresh(result)

    return filtered


def _counted(meter: Meter, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        meter.tick()
        yield value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers': JSON as it is, no HTML escapes."""
    meter = _METER.get()
    size = weigh(value, meter.value)
    width = len(indent) if isinstance(indent, str) else int(indent or 0)
    if width > MAX_COUNT:
        raise TemplateLimitError(f"the filter 'tojson' is given an indent of {width}; the limit is {MAX_COUNT}")
    # Entries are at most as deep as there are entries, but what is deeper than this is no conversation.
    meter.allow(size * (1 + 16 * width))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    for mark in meter.marks if ensure_ascii else "":
        text = text.replace(json.dumps(mark)[1:-1], mark)
    return text


def _concat(values: list[Any]) -> str:
    meter = _METER.get()
    meter.allow(weigh(values, meter.value))
    return "".join(map(str, values))


def _meter_tick(characters: int) -> None:
    _METER.get().tick(characters)


def _meter_fresh(value: Any) -> Any:
    return _METER.get().fresh(value)


@pass_context
def _put_out(context: Any, value: Any) -> Any:
    """Count what an expression puts out. It takes the context so that nothing is put out while compiling."""
    meter = _METER.get()
    meter.allow(weigh(value, meter.value))
    return value


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 200 or re.search(r"\d{3,}", format):
        raise TemplateLimitError("strftime_now is given a long format, or one with a width")
    return datetime.now().strftime(format)
