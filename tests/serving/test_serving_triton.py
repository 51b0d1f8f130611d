"""The model repository in a real NVIDIA Triton Inference Server with its Python backend, which a package carries."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from pathlib import Path

import numpy as np
import pytest
from served import build_models
from typer.testing import CliRunner

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")

import approxrt
from approxrt.cli.main import app
from approxrt.errors import InputError
from approxrt.serving.triton import export

pytestmark = pytest.mark.integration

TEXTS = ["a good film", "two hours that nobody will get back", "rain"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_models(tmp_path_factory.mktemp("models"))


def test_repository(paths: dict[str, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export-triton", str(paths["reranker"]), "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    model = tmp_path / "reranker"
    assert sorted(p.name for p in model.iterdir()) == ["1", "config.pbtxt"]
    config = (model / "config.pbtxt").read_text()
    assert 'name: "reranker"' in config and 'name: "text_pair", data_type: TYPE_STRING, dims: [1], optional' in config
    compile((model / "1" / "model.py").read_text(), "model.py", "exec")
    assert approxrt.load(model / "1" / "artifact").labels == approxrt.load(paths["reranker"]).labels
    with pytest.raises(InputError, match="is there already"):
        export(paths["reranker"], tmp_path)
    with pytest.raises(InputError, match="letters, digits"):
        export(paths["reranker"], tmp_path, name="../x")
    with pytest.raises(InputError, match="threads is 0"):
        export(paths["reranker"], tmp_path, name="b", threads=0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def triton(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a server that runs the three models."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        pytest.skip("no Triton server: nvidia-pytriton is not installed")
    packaged = Path(found.origin).parent / "tritonserver"
    stub = packaged / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"nvidia-pytriton has no stub for Python 3.{sys.version_info.minor}")
    work = tmp_path_factory.mktemp("triton")
    # A copy, whose programs may be made executable, where they look for the libraries beside the package.
    home = work / "pytriton" / "tritonserver"
    shutil.copytree(packaged / "backends", home / "backends")
    shutil.copytree(packaged / "bin", home / "bin")
    shutil.copy(stub, home / "backends" / "python")
    for libraries in packaged.parent.parent.glob("*pytriton.libs"):
        (work / libraries.name).symlink_to(libraries)
    for program in (home / "backends" / "python" / stub.name, home / "bin" / "tritonserver"):
        program.chmod(0o755)
    # The backend takes the environment of the `python3` that it finds. This release was built for the older numpy.
    venv.create(work / "venv")
    (site,) = (work / "venv").glob("lib/python*/site-packages")
    older = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), "numpy<2"]
    if subprocess.run(older, capture_output=True).returncode:
        pytest.skip("numpy before 2, which this Triton's Python backend needs, cannot be installed")
    for name in ("tokenizers", "safetensors", "approxrt"):
        (site / name).symlink_to(Path(importlib.import_module(name).__file__ or "").parent)
    for name, path in paths.items():
        export(path, work / "models", name=name, threads=1)
    port = free_port()
    options = [f"--model-repository={work / 'models'}", f"--backend-directory={home / 'backends'}"]
    options += [
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--allow-grpc=0",
        "--allow-metrics=0",
        "--exit-timeout-secs=20",
    ]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        "PATH": os.pathsep.join([str(work / "venv" / "bin"), os.environ["PATH"]]),
    }
    log = (work / "log").open("w")
    process = subprocess.Popen([str(home / "bin" / "tritonserver"), *options], env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail((work / "log").read_text()[-3000:])
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.mark.slow
def test_a_real_server_answers(triton: str, paths: dict[str, Path]) -> None:
    client_module = pytest.importorskip("tritonclient.http", reason="the client is not installed (extra 'clients')")
    client = client_module.InferenceServerClient(triton)

    def ask(name: str, **columns: list[str]) -> dict[str, np.ndarray]:
        tensors = []
        for part, values in columns.items():
            tensor = client_module.InferInput(part, [len(values), 1], "BYTES")
            tensor.set_data_from_numpy(np.array(values, dtype=np.object_)[:, None])
            tensors.append(tensor)
        answer = client.infer(name, tensors)
        return {part: answer.as_numpy(part) for part in ("logits", "label", "score", "embedding")}

    classifier = approxrt.load(paths["classifier"], threads=1)
    got = ask("classifier", text=TEXTS)
    np.testing.assert_array_equal(got["logits"], classifier.logits(TEXTS))
    assert [x.decode() for x in got["label"][:, 0]] == [answer[0].label for answer in classifier.classify(TEXTS)]
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    np.testing.assert_array_equal(
        ask("reranker", text=TEXTS, text_pair=TEXTS[::-1])["logits"], approxrt.load(paths["reranker"]).logits(pairs)
    )
    vectors = ask("embedder", text=TEXTS)["embedding"]
    np.testing.assert_array_equal(vectors, approxrt.load(paths["embedder"], threads=1).embed(TEXTS))
    with pytest.raises(Exception, match=r"not Unicode|utf-8|UTF-8|decode"):
        broken = client_module.InferInput("text", [1, 1], "BYTES")
        broken.set_data_from_numpy(np.array([[b"\xff\xfe"]], dtype=np.object_))
        client.infer("classifier", [broken])
    client.close()
