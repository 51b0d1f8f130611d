"""Jinja for templates from strangers: transformers' dialect in its sandbox, with limits of time and size.

The sandbox keeps a template from Python's own attributes; it does not keep it from looping for ever or from making a
string of 5 GB. So what a template does is metered (`template_limits`), without threads or processes:

- its syntax tree is rewritten before it is compiled: a meter is ticked in each loop's body and before each output, and
  lists, slices and joined strings go through a check;
- operators, calls and filters go through checks of what they are about to make;
- of the methods and filters only those are there whose result is known to be bounded.

Where a limit is passed, `TemplateLimitError` ends the template.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from approxrt.runtime.chat.limits import (
    MAX_BITS,
    MAX_COUNT,
    MAX_DEPTH,
    METER,
    TemplateLimitError,
    check_bits,
    check_format,
    check_join,
    check_method,
    check_product,
    check_replace,
    check_sum,
    counted,
    weigh,
)

MAX_NODES = 20_000  # of the syntax tree
_FILTERS = frozenset(
    {
        "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first",
        "float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map",
        "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
        "slice", "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount",
    }
)  # fmt: skip


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
        meter = METER.get()
        if operator == "+":
            check_sum(meter, left, right)
        elif operator == "*":
            check_product(meter, left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
                check_bits(left.bit_length() * max(right, 1))
        elif isinstance(left, str | bytes):
            check_format(meter, left, right)
        meter.tick()
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call, unless it would be too large or the method is none of those that are known."""
        meter = METER.get()
        meter.tick()
        if args and getattr(__obj, "__name__", "") == "join" and isinstance(getattr(__obj, "__self__", None), str):
            args = (list(counted(meter, args[0])), *args[1:])
        check_method(meter, __obj, args, kwargs)
        if meter.depth >= MAX_DEPTH:
            raise TemplateLimitError(f"its macros call each other over {MAX_DEPTH} deep")
        meter.depth += 1
        try:
            return meter.fresh(super().call(__context, __obj, *args, **kwargs))
        finally:
            meter.depth -= 1

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format within the sandbox, unless the result would be too large."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def formatted(*args: Any, **kwargs: Any) -> str:
            check_format(METER.get(), text, [*args, *kwargs.values()])
            result: str = wrapped(*args, **kwargs)
            return result

        return formatted


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


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts as a step, and whose arguments and result are checked."""
    passes = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.tick()
        value, *rest = args[passes:]
        options = [*rest, *kwargs.values()]
        for option in options:
            if isinstance(option, int) and abs(option) > MAX_COUNT:
                raise TemplateLimitError(f"the filter {name!r} is given {option}; the limit is {MAX_COUNT}")
        if name == "sum" and any(not isinstance(option, int | float | str) for option in options):
            raise TemplateLimitError("the filter 'sum' adds numbers only in chat templates")
        if name == "replace" and len(options) >= 2:
            check_replace(meter, str(value), options[0], options[1])
        elif name == "join":
            value = list(counted(meter, value))
            check_join(meter, value, options[0] if options else "")
            args = (*args[:passes], value, *rest)
        elif name == "format":
            check_format(meter, str(value), options)
        elif name == "indent":
            width = max((len(o) if isinstance(o, str) else int(o) for o in options), default=4)
            meter.allow(len(str(value)) + (str(value).count("\n") + 1) * width)
        elif name in ("int", "float", "string", "e", "escape", "safe"):
            size = weigh(value, meter.value)
            meter.allow(size)
            if name == "int" and isinstance(value, str) and size > MAX_BITS:
                raise TemplateLimitError(f"the filter 'int' is given a text of {size} characters")
        result = function(*args, **kwargs)
        return counted(meter, result) if isinstance(result, Iterator) else meter.fresh(result)

    return filtered


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does: as it is, no HTML escapes."""
    meter = METER.get()
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
    meter = METER.get()
    meter.allow(weigh(values, meter.value))
    return "".join(map(str, values))


def _meter_tick(characters: int) -> None:
    METER.get().tick(characters)


def _meter_fresh(value: Any) -> Any:
    return METER.get().fresh(value)


@pass_context
def _put_out(context: Any, value: Any) -> Any:
    """Count what an expression puts out. It takes the context so that nothing is put out while compiling."""
    meter = METER.get()
    meter.allow(weigh(value, meter.value))
    return value


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 200 or re.search(r"\d{3,}", format):
        raise TemplateLimitError("strftime_now is given a long format, or one with a width")
    return datetime.now().strftime(format)
