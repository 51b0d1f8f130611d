"""The examples of docs/serving.md, run in the order in which they stand, with small models of the names there."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from decoders import build_decoder
from families import build_checkpoint
from paths import ROOT

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

import approxrt
from approxrt.serving.routes.body import IGNORED

TEXT = (ROOT / "docs" / "serving.md").read_text()
ADDRESS = "127.0.0.1:8080"
# Ray and Triton's server have tests of their own.
ELSEWHERE = "## Many machines"
# Always installed where these tests run.
AT_LEAST = ("huggingface_hub", "approxrt.serving.sentence_transformers", "approxrt.serving.pipeline")


def blocks() -> list[tuple[str, str]]:
    """(language, code) of every block of the document but those that are run elsewhere."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", TEXT.split(ELSEWHERE)[0], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of the names in the document."""
    out = tmp_path_factory.mktemp("documented")
    sources = {
        "model.int8": build_checkpoint("bert", out / "a", positions=64, num_labels=2),
        "reranker.int8": build_checkpoint("bert", out / "b", positions=64, num_labels=1, problem_type="regression"),
        "minilm.int8": build_checkpoint("bert", out / "c", positions=64, plain=True, pooling="mean"),
        "smollm2": build_decoder("llama", out / "d"),
    }
    for name, checkpoint in sources.items():
        approxrt.convert(checkpoint, out / name)
    return out


@contextmanager
def serving(arguments: list[str], folder: Path) -> Iterator[str]:
    """The address of a real server that is started as the document says, but for its port."""
    command = [sys.executable, "-m", "approxrt.cli.main", *arguments, "--port", "0", "--json", "--log-level", "warning"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = ""
        while not lines.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, f"{shlex.join(arguments)} ended: {lines}"
            lines += line
        yield json.loads(lines)["url"].removeprefix("http://")
    finally:
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)  # uvicorn ends by the signal that ended it
        process.stdout.close()


def curl(line: str, address: str) -> bytes:
    """Return what a line of the document asks, and no option that this does not know."""
    words = shlex.split(line.replace(ADDRESS, address))[1:]
    url, headers, data = "", {}, None
    while words:
        word = words.pop(0)
        if word == "-H":
            name, value = words.pop(0).split(": ")
            headers[name] = value
        elif word == "-d":
            data = words.pop(0).encode()
        else:
            assert not word.startswith("-") and not url, f"{word} in {line}"
            url = word
    with urllib.request.urlopen(urllib.request.Request(f"http://{url}", data, headers), timeout=30) as answer:
        return answer.read()


def imports_of(code: str) -> list[str]:
    """Modules that a block imports."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module.split(".")[0]) is not None


def test_the_examples_in_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # conftest.py has forbidden the hub
    commands = [line for language, code in blocks() if language == "sh" for line in code.splitlines()]
    servers = [shlex.split(line, comments=True)[1:] for line in commands if line.startswith("approxrt serve")]
    assert len(servers) == 2
    with serving(servers[0], folder) as address:
        assert json.loads(urllib.request.urlopen(f"http://{address}/info").read())["models"] == ["model.int8"]
    ran, curls = [], 0
    with serving(servers[1], folder) as address:
        for language, code in blocks():
            if language == "sh":
                for line in code.replace("\\\n", " ").splitlines():
                    if line.startswith("curl"):
                        assert json.loads(curl(line, address)), line
                        curls += 1
                    else:
                        assert line.startswith(("approxrt serve", "pip install")), line
                continue
            modules = imports_of(code)
            if all(is_installed(module) for module in modules):
                exec(compile(code.replace(ADDRESS, address), "docs/serving.md", "exec"), {})
                ran += modules
    assert curls >= 6 and set(AT_LEAST) <= set(ran)


def test_the_fields_that_are_ignored_are_listed() -> None:
    listed = re.search(r"which are ignored: (.*?)\. Errors", TEXT, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == IGNORED
