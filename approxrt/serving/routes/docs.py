"""/docs: the routes with their fields as one page that loads nothing from anywhere, unlike FastAPI's own."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)

STYLE = """
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #22262c; max-width: 60rem; margin: 2rem auto; }
h2 { margin: 2rem 0 .3rem; font-size: 1.1rem; } code, pre { font: 13px/1.4 Menlo, Consolas, monospace; }
details { border: 1px solid #dfe2e7; border-radius: 4px; margin: .3rem 0; padding: .3rem .7rem; }
summary { cursor: pointer; } summary b { display: inline-block; min-width: 3.5rem; color: #0072b2; }
table { border-collapse: collapse; } td { padding: .15rem .8rem .15rem 0; vertical-align: top; }
pre { background: #f6f7f9; padding: .6rem; overflow-x: auto; }
"""
SECURITY = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "x-frame-options": "DENY"}


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page."""
    return Response(page(request.app.openapi()), media_type="text/html", headers=SECURITY)


def page(schema: dict[str, Any]) -> str:
    """Return HTML of an OpenAPI document; everything that comes from it is escaped."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            tag = (about.get("tags") or ["other"])[0]
            by_tag.setdefault(tag, []).append(_route(schema, method, path, about))
    title = f"{escape(schema['info']['title'])} {escape(schema['info']['version'])}"
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(routes)}" for tag, routes in by_tag.items())
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f'</head><body><h1>{title}</h1><p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>{sections}'
        "</body></html>"
    )


def _route(schema: dict[str, Any], method: str, path: str, about: dict[str, Any]) -> str:
    text = escape(about.get("description") or about.get("summary") or "").replace("\n\n", "<br>")
    body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    fields = "" if body is None else _fields(schema, body)
    return (
        f"<details><summary><b>{escape(method.upper())}</b> <code>{escape(path)}</code></summary><p>{text}</p>{fields}"
        "</details>"
    )


def _fields(schema: dict[str, Any], body: dict[str, Any]) -> str:
    found = body
    while "$ref" in found:
        found = schema["components"]["schemas"][found["$ref"].rsplit("/", 1)[1]]
    required = set(found.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td><code>{escape(_type(about))}</code></td></tr>"
        for name, about in found.get("properties", {}).items()
    )
    text = escape(found.get("description", "")).replace("\n\n", "<br>")
    return f"<p>{text}</p><table>{rows}</table>"


def _type(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return " | ".join(dict.fromkeys(_type(part) for part in about["anyOf"]))
    if "$ref" in about:
        return str(about["$ref"].rsplit("/", 1)[1])
    if about.get("type") == "array":
        return f"[{_type(about.get('items', {}))}]"
    if "enum" in about:
        return " | ".join(json.dumps(value) for value in about["enum"])
    return str(about.get("type", "any"))
