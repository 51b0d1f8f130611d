"""`approxrt serve --mmap` reaches `approxrt.load`; without it, no file stays mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
from families import build_tokenizer
from specs import random_tensors, small_spec

pytest.importorskip("fastapi", reason="fastapi is not installed")

from approxrt.artifact.writer import write_artifact
from approxrt.cli import serve
from approxrt.errors import InputError
from approxrt.serving import registry


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc/self/maps")
@pytest.mark.parametrize("mmap", [False, True])
def test_models_are_mapped_if_asked_for(tmp_path: Path, mmap: bool) -> None:
    tokenizer = build_tokenizer("bert")
    spec = small_spec(vocab_size=tokenizer.get_vocab_size())
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), tokenizer.to_str().encode(), {})
    models = registry.open_models([f"name={path}"], 1, mmap)
    assert [name for name, _ in models] == ["name"]
    assert (str(path / "model.safetensors") in Path("/proc/self/maps").read_text()) == mmap


@pytest.mark.parametrize("options", [[], ["--mmap"]])
def test_the_command_hands_it_on(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    import typer

    taken: list[Any] = []

    def opened(*arguments: Any) -> NoReturn:
        taken.append(arguments)
        raise InputError("enough")

    monkeypatch.setattr(registry, "open_models", opened)
    app = typer.Typer()
    app.command()(serve.command)
    with pytest.raises(InputError, match="enough"):
        typer.main.get_command(app)(["somewhere", "--port", "0", *options], standalone_mode=False)
    assert taken == [(["somewhere"], None, bool(options))]
