"""The Open Inference Protocol (KServe v2) over REST, with its binary tensors, as tritonclient speaks it.

Inputs: "text" (BYTES [n] or [n, 1]) and, for pairs, "text_pair". Outputs: "logits" FP32 [n, labels], "label" BYTES [n]
and "score" FP32 [n] of a model with labels; "embedding" FP32 [n, hidden] of one without. Texts over the model's limit
are cut unless the request's parameter "truncate" is false.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from approxrt.runtime.tokenize import Text
from approxrt.serving.disconnect import while_connected
from approxrt.serving.errors import RequestError
from approxrt.serving.registry import Answer, EmbedOptions, Served
from approxrt.serving.routes.body import refuse_other_fields
from approxrt.serving.routes.common import registry_of, reply
from approxrt.serving.routes.health import check_ready
from approxrt.serving.routes.json_body import read_body
from approxrt.version import __version__

router = APIRouter(prefix="/v2", tags=["open-inference-protocol"])

HEADER = "inference-header-content-length"


@router.get("")
async def server() -> Response:
    """The server's name and extensions."""
    extensions = ["binary_tensor_data", "model_repository"]
    return reply({"name": "approxrt", "version": __version__, "extensions": extensions})


@router.get("/health/live")
@router.head("/health/live", include_in_schema=False)
async def live() -> Response:
    return reply({"live": True})


@router.get("/health/ready")
@router.head("/health/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    check_ready(request)
    return reply({"ready": True})


@router.post("/repository/index")
async def index(request: Request) -> Response:
    """All models."""
    return reply([{"name": s.name, "version": "1", "state": "READY", "reason": ""} for s in registry_of(request)])


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(request: Request, name: str, version: str = "1") -> Response:
    check_ready(request)
    return reply({"name": _model(request, name, version).name, "ready": True})


@router.get("/models/{name}/config")
@router.get("/models/{name}/versions/{version}/config")
async def config(request: Request, name: str, version: str = "1") -> Response:
    """Return what tritonclient asks of a model before it asks the model."""
    served = _model(request, name, version)
    return reply({"name": served.name, "platform": "approxrt", "backend": "approxrt", "max_batch_size": 0})


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def metadata(request: Request, name: str, version: str = "1") -> Response:
    """Inputs and outputs."""
    served = _model(request, name, version)
    inputs = [{"name": part, "datatype": "BYTES", "shape": [-1]} for part in _inputs(served)]
    outputs = [{"name": part, "datatype": kind, "shape": shape} for part, kind, shape in _outputs(served)]
    about = {"name": served.name, "versions": ["1"], "platform": "approxrt"}
    return reply(about | {"inputs": inputs, "outputs": outputs})


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(request: Request, name: str, version: str = "1") -> Response:
    """One inference; JSON, or JSON followed by binary tensors."""
    served = _model(request, name, version)
    length = request.headers.get(HEADER)
    head, binary = await read_body(request, lambda body: _split(body, length))
    _refuse_unknown(head)
    texts = _texts(served, head, binary)
    truncate = (head.get("parameters") or {}).get("truncate", True)
    if not isinstance(truncate, bool):
        raise RequestError(f"parameters.truncate is {truncate!r}; it must be true or false", param="parameters")
    options = EmbedOptions(truncate=truncate)
    work = served.run(texts, "logits", truncate) if served.labels else served.embed(texts, options)
    answer = await while_connected(request, work, served.crowded)
    return _answer(served, head, answer)


def _model(request: Request, name: str, version: str) -> Served:
    if version != "1":
        raise RequestError(f"model {name!r} has no version {version!r}; every model has version 1 only")
    served = registry_of(request).exactly(name)
    if not isinstance(served, Served):
        raise RequestError(f"model {name!r} generates text: use /v1/completions or /v1/chat/completions")
    served.refuse_per_token()
    return served


def _inputs(served: Served) -> list[str]:
    return ["text", "text_pair"] if served.model.spec.inputs == "pair" else ["text"]


def _outputs(served: Served) -> list[tuple[str, str, list[int]]]:
    if not served.labels:
        return [("embedding", "FP32", [-1, served.model.spec.vector_size])]
    return [("logits", "FP32", [-1, len(served.labels)]), ("label", "BYTES", [-1]), ("score", "FP32", [-1])]


# -- requests -----------------------------------------------------------------


def _refuse_unknown(head: dict[str, Any]) -> None:
    """Raise UnknownField for what might change the answer, wherever it stands in a request."""
    refuse_other_fields(head, frozenset({"id", "inputs", "outputs", "parameters", "model_name", "model_version"}))
    refuse_other_fields(head.get("parameters") or {}, frozenset({"truncate", "binary_data_output"}), "parameters.")
    tensor = {"inputs": ("data", "datatype", "shape"), "outputs": ("datatype", "shape")}
    known = {"inputs": "binary_data_size", "outputs": "binary_data"}
    for part, fields in tensor.items():
        for i, item in enumerate(head.get(part) or []):
            if not isinstance(item, dict):
                continue  # refused where it is read
            refuse_other_fields(item, frozenset({"name", "parameters", *fields}), f"{part}[{i}].")
            if isinstance(item.get("parameters"), dict):
                refuse_other_fields(item["parameters"], frozenset({known[part]}), f"{part}[{i}].parameters.")


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """Return (the JSON, the binary tensors behind it)."""
    if length is not None and not (
        length.isascii() and length.isdigit() and len(length) <= 12 and int(length) <= len(body)
    ):
        raise RequestError(f"{HEADER} is {length[:40]!r}; it must be a number up to the body's {len(body)} bytes")
    size = len(body) if length is None else int(length)
    try:
        head = json.loads(body[:size])
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise RequestError("the body must be an object with a list 'inputs'")
    for name, kind in (("parameters", dict), ("outputs", list)):
        if head.get(name) is not None and not isinstance(head[name], kind):
            raise RequestError(f"'{name}' must be {'an object' if kind is dict else 'a list'}")
    return head, body[size:]


def _texts(served: Served, head: dict[str, Any], binary: bytes) -> list[Text]:
    columns: dict[str, list[str]] = {}
    for tensor in head["inputs"]:
        if not isinstance(tensor, dict) or tensor.get("name") not in ("text", "text_pair"):
            shown = tensor.get("name") if isinstance(tensor, dict) else tensor
            raise RequestError(f"input {str(shown)[:40]!r} is unknown; inputs are text and, for pairs, text_pair")
        name = str(tensor["name"])
        if tensor.get("datatype") != "BYTES":
            raise RequestError(f"input {name!r} has datatype {str(tensor.get('datatype'))[:40]!r}; it must be BYTES")
        count = _count(tensor.get("shape"), name)
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            columns[name] = _json_strings(tensor.get("data"), count, name)
        else:
            if type(size) is not int or not 0 <= size <= len(binary):
                raise RequestError(f"input {name!r}: binary_data_size is {size!r}; {len(binary)} bytes are left")
            columns[name], binary = _binary_strings(binary[:size], count, name), binary[size:]
    if "text" not in columns:
        raise RequestError("input 'text' is missing")
    if "text_pair" not in columns:
        return list(columns["text"])
    if len(columns["text"]) != len(columns["text_pair"]):
        raise RequestError(f"{len(columns['text'])} texts and {len(columns['text_pair'])} text_pairs: give as many")
    return list(zip(columns["text"], columns["text_pair"], strict=True))


def _count(shape: Any, name: str) -> int:
    if not (isinstance(shape, list) and 1 <= len(shape) <= 2 and all(type(n) is int and n >= 0 for n in shape)):
        raise RequestError(f"input {name!r}: shape must be [n] or [n, 1]")
    if len(shape) == 2 and shape[1] != 1:
        raise RequestError(f"input {name!r} has shape {shape}; it must be [n] or [n, 1]")
    return int(shape[0])


def _json_strings(data: Any, count: int, name: str) -> list[str]:
    flat = [x for row in data for x in (row if isinstance(row, list) else [row])] if isinstance(data, list) else None
    if flat is None or len(flat) != count or not all(isinstance(x, str) for x in flat):
        raise RequestError(f"input {name!r}: data must be {count} strings, as its shape says")
    return flat


def _binary_strings(data: bytes, count: int, name: str) -> list[str]:
    """Each string is its length in 4 little-endian bytes and its UTF-8."""
    out, at = [], 0
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            break
        try:
            out.append(data[at : at + size].decode("utf-8"))
        except UnicodeDecodeError:
            raise RequestError(f"input {name!r}: string {len(out)} is not UTF-8") from None
        at += size
    if at != len(data) or len(out) != count:
        raise RequestError(f"input {name!r}: its bytes do not hold {count} strings, as its shape says")
    return out


# -- answers ------------------------------------------------------------------


def _answer(served: Served, head: dict[str, Any], answer: Answer) -> Response:
    arrays: dict[str, tuple[str, np.ndarray | list[str]]] = {}
    if served.labels:
        scores = served.model.scores(answer.rows)
        best = scores.argmax(axis=1)
        arrays["logits"] = ("FP32", answer.rows)
        arrays["label"] = ("BYTES", [served.labels[i] for i in best])
        arrays["score"] = ("FP32", scores[np.arange(len(best)), best].astype(np.float32))
    else:
        arrays["embedding"] = ("FP32", answer.rows)
    asked = head.get("outputs") or [{"name": name} for name in arrays]
    every = bool((head.get("parameters") or {}).get("binary_data_output", False))
    outputs, parts = [], []
    for item in asked:
        name = item.get("name") if isinstance(item, dict) else None
        if name not in arrays:
            raise RequestError(f"output {str(name)[:40]!r} is unknown; model {served.name!r} has {', '.join(arrays)}")
        kind, values = arrays[name]
        shape = [len(values)] if isinstance(values, list) else list(values.shape)
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
        parameters = item.get("parameters")
        if isinstance(parameters, dict) and "binary_data" in parameters:
            binary = bool(parameters["binary_data"])
        else:
            binary = every
        if binary:
            parts.append(_bytes_of(values))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = values if isinstance(values, list) else values.reshape(-1)
        outputs.append(output)
    content = {"model_name": served.name, "model_version": "1", "outputs": outputs}
    if isinstance(head.get("id"), str):
        content["id"] = head["id"]
    response = reply(content)
    if not parts:
        return response
    size = len(response.body)
    return Response(
        bytes(response.body) + b"".join(parts), media_type="application/octet-stream", headers={HEADER: str(size)}
    )


def _bytes_of(values: np.ndarray | list[str]) -> bytes:
    if isinstance(values, list):
        return b"".join(struct.pack("<I", len(raw)) + raw for raw in (value.encode() for value in values))
    return np.ascontiguousarray(values, "<f4").tobytes()
