"""Where measurements are kept, and that everything works without a place to keep them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from approxrt.cache import cache_file, read_cached, write_cached


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APPROXRT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file("a.json") == tmp_path / "own" / "a.json"
    monkeypatch.delenv("APPROXRT_CACHE")
    assert cache_file("a.json") == tmp_path / "xdg" / "approxrt" / "a.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file("a.json") == tmp_path / ".cache" / "approxrt" / "a.json"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under an arbitrary user id in a container: neither HOME nor an entry among the users."""
    for name in ("APPROXRT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for a user that nobody knows
    assert cache_file("a.json") is None
    write_cached(None, "text")
    assert read_cached(None) is None
    monkeypatch.setenv("APPROXRT_CACHE", "~nobody-of-this-name/cache")
    assert cache_file("a.json") is None


def test_kept_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert read_cached(path) is None
    write_cached(path, "text")
    assert read_cached(path) == "text" and [p.name for p in path.parent.iterdir()] == ["a.json"]
    path.write_bytes(b"\xff\xfe")
    assert read_cached(path) is None


def test_a_place_that_may_not_be_used(tmp_path: Path) -> None:
    """A file where the folder should be: like a folder of another user, for root, too."""
    (tmp_path / "taken").write_text("")
    write_cached(tmp_path / "taken" / "a.json", "text")
    assert read_cached(tmp_path / "taken" / "a.json") is None
