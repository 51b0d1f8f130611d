"""The Ray Serve application and batch inference with Ray Data, on a local Ray of this machine."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import build_models

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
ray = pytest.importorskip("ray", reason="ray is not installed (extra 'ray')")

import approxrt  # noqa: E402
from approxrt.errors import InputError  # noqa: E402
from approxrt.serving.ray import BatchPredictor, application, build  # noqa: E402
from approxrt.serving.server import bind  # noqa: E402

pytestmark = pytest.mark.integration

TEXTS = ["a good film", "two hours that nobody will get back", "rain"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def ask(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.mark.slow
def test_serve_application(local_ray: None, paths: dict[str, Path]) -> None:
    from ray import serve

    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        artifacts = [f"mine={paths['classifier']}", f"vectors={paths['embedder']}"]
        serve.run(application(artifacts, max_replicas=2, target_ongoing_requests=4), name="approxrt")
        url = f"http://127.0.0.1:{port}"
        want = approxrt.load(paths["classifier"], threads=1).classify(TEXTS)
        got = ask(f"{url}/predict", {"inputs": [[text] for text in TEXTS]})
        assert [row[0]["label"] for row in got] == [answer[0].label for answer in want]
        vectors = ask(f"{url}/embed", {"inputs": TEXTS, "model": "vectors"})
        np.testing.assert_array_equal(np.float32(vectors), approxrt.load(paths["embedder"], threads=1).embed(TEXTS))
        with pytest.raises(urllib.error.HTTPError, match="422"):
            ask(f"{url}/predict", {"inputs": 5})
        end = time.monotonic() + 20
        while (status := serve.status().applications["approxrt"].status) != "RUNNING":
            assert time.monotonic() < end, status
            time.sleep(0.2)
    finally:
        serve.shutdown()


@pytest.mark.slow
def test_dataset(local_ray: None, paths: dict[str, Path]) -> None:
    pytest.importorskip("pyarrow", reason="Ray Data needs pyarrow (extra 'ray')")
    texts = TEXTS * 10
    data = ray.data.from_items([{"text": text, "place": i} for i, text in enumerate(texts)])
    found = data.map_batches(
        BatchPredictor, fn_constructor_args=(str(paths["classifier"]),), concurrency=1, batch_size=8
    ).take_all()
    want = approxrt.load(paths["classifier"], threads=1).classify(texts)
    for row in found:
        answer = want[row["place"]][0]
        assert (row["label"], row["score"]) == (answer.label, np.float32(answer.score))


def test_predictor_by_kind(paths: dict[str, Path]) -> None:
    batch = {"text": np.array(TEXTS), "other": np.array(TEXTS[::-1])}
    rows = BatchPredictor(str(paths["embedder"]))(batch)["embedding"]
    np.testing.assert_array_equal(rows, approxrt.load(paths["embedder"], threads=1).embed(TEXTS))
    scores = BatchPredictor(str(paths["reranker"]), pair="other")(batch)
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    np.testing.assert_array_equal(scores["score"], approxrt.load(paths["reranker"]).logits(pairs)[:, 0])
    assert "label" not in scores
    with pytest.raises(InputError, match="no column 'review'; it has other, text"):
        BatchPredictor(str(paths["embedder"]), column="review")(batch)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "no artifact to serve"),
        ({"artifacts": "a", "threads": "0"}, "threads is 0"),
        ({"artifacts": "a", "threads": "two"}, "must be integers"),
        ({"artifacts": "a", "min_replicas": "3", "max_replicas": "2"}, "max_replicas is 2"),
        ({"artifacts": "a", "gpus": "1"}, "unknown arguments gpus"),
    ],
)
def test_senseless_arguments(args: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(args)
