"""bench/gpu without a GPU: it says so, its parts cannot take one another down, and its scripts run on tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

HERE = ROOT / "bench/gpu"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    import run

    return run


def part(driver: ModuleType, name: str, code: str, seconds: float = 20):
    return driver.Part(name, ("{python}", "-c", code, "{out}"), seconds)


WRITE = "import json, sys; json.dump([{'what': 'a'}], open(sys.argv[1], 'w'));"


def test_parts_fail_alone(driver: ModuleType, tmp_path: Path) -> None:
    """One dies after a row, one hangs with a child of its own, one cannot start; the others run."""
    hang = (
        WRITE
        + "import subprocess, time; subprocess.Popen(['sleep', '60']); print('asleep', flush=True); time.sleep(60)"
    )
    todo = [
        part(driver, "good", WRITE),
        part(driver, "dies", WRITE + "print('the reason'); sys.exit(7)"),
        part(driver, "killed", WRITE + "import os; os.kill(os.getpid(), 9)"),
        part(driver, "hangs", hang, 2),
        driver.Part("absent", ("/nowhere/at/all",), 5),
        part(driver, "garbage", "import sys; open(sys.argv[1], 'w').write('[1, ')"),
        part(driver, "last", WRITE),
    ]
    out = tmp_path / "sub" / "report.json"
    begin = time.monotonic()
    assert not driver.run_all(todo, out, tmp_path, {"gpu": {"name": "x"}}, 60)
    assert time.monotonic() - begin < 30
    parts = json.loads(out.read_text())["parts"]
    assert {name: p["ok"] for name, p in parts.items()} == {
        "good": True, "dies": False, "killed": False, "hangs": False, "absent": False, "garbage": True, "last": True,
    }  # fmt: skip
    assert parts["dies"]["exit"] == 7 and "the reason" in parts["dies"]["log"]
    assert parts["killed"]["exit"] == -9
    assert parts["hangs"]["timed_out"] and "asleep" in parts["hangs"]["log"]
    assert all(parts[name]["rows"] == [{"what": "a"}] for name in ("good", "dies", "killed", "hangs", "last"))
    assert parts["garbage"]["rows"] == []


def test_the_report_is_whole_after_every_part_and_time_runs_out(driver: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    look = f"import json, time; assert list(json.load(open({str(out)!r}))['parts']) == ['first']; time.sleep(3)"
    todo = [part(driver, "first", WRITE), part(driver, "second", look), part(driver, "late", WRITE, 1000)]
    assert not driver.run_all(todo, out, tmp_path, {}, 12)
    parts = json.loads(out.read_text())["parts"]
    assert parts["second"]["ok"], parts["second"]["log"]
    assert "not started" in parts["late"]["error"]


def test_parts_fit_nine_minutes(driver: ModuleType) -> None:
    """Each script is there, and no part takes time from those behind it."""
    todo = driver.parts(Path("site"))
    assert sum(part.seconds for part in todo) <= driver.TOTAL_SECONDS < 540
    assert todo[0].name == "build" and todo[-1].name == "tests"
    scripts = {Path(word).name for p in todo for word in p.command if word.endswith(".py")} - {"setup.py"}
    assert scripts == {p.name for p in HERE.glob("*.py")} - {"run.py", "common.py", "operands.py", "subjects.py"}


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    out = tmp_path / "report.json"
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([HERE / "run.sh", out], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 3, done.stderr
    assert "there is no GPU here" in done.stderr and "Nothing was measured" in done.stderr
    report = json.loads(out.read_text())
    assert report["gpu"] is None and report["parts"] == {} and report["packages"]["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["check", "tune", "bench_kernels", "bench_encoder", "bench_decoder"])
def test_scripts_run_on_tiny_sizes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    out, env = tmp_path / "rows.json", {**os.environ, "APPROXRT_CACHE": str(tmp_path)}
    command = [sys.executable, HERE / f"{name}.py", "--smoke", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = json.loads(out.read_text())
    assert rows and not [row for row in rows if "error" in row or row.get("errors")]


def test_scripts_measure_nothing_without_a_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, HERE / "bench_kernels.py", "--out", tmp_path / "rows.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "there is no GPU here" in done.stderr and not (tmp_path / "rows.json").exists()
