"""The real thing: MiniLM-L6 fine-tuned on SST-2, converted and run on real sentences.

Needs shared/models/minilm-sst2 and shared/data/glue beside the checkout (or APPROXRT_SHARED); skips without.
"""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS
from paths import SHARED

import approxrt
from approxrt.tasks.metrics import accuracy, flip_rate
from approxrt.tasks.readers import Dataset, read_task

CHECKPOINT = SHARED / "models" / "minilm-sst2"
DEV = SHARED / "data" / "glue" / "SST-2" / "dev.tsv"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHECKPOINT.is_dir() and DEV.is_file()), reason=f"{CHECKPOINT} or {DEV} is absent (set APPROXRT_SHARED)"
    ),
]


@pytest.fixture(scope="module")
def dev() -> Dataset:
    return read_task("sst2", DEV)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, approxrt.Model]:
    folder = tmp_path_factory.mktemp("minilm")
    options = {"f32": {"bits": 32}, "int8": {"bits": 8}, "int4": {"bits": 4}, "sparse": {"bits": 8, "density": 0.25}}
    return {name: approxrt.load(approxrt.convert(CHECKPOINT, folder / name, **o)) for name, o in options.items()}


@pytest.fixture(scope="module")
def logits(models: dict[str, approxrt.Model], dev: Dataset) -> dict[str, np.ndarray]:
    return {name: models[name].logits(dev.texts) for name in ("f32", "int8", "int4")}


def test_f32_logits_equal_transformers(models: dict[str, approxrt.Model], dev: Dataset) -> None:
    torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    ids = models["f32"]._text.encode(dev.texts[:40]).ids
    ids += [(ids[0] * 60)[:512], [101]]
    ours = models["f32"].forward(ids)
    outputs = {}
    for dtype in (torch.float64, torch.float32):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(CHECKPOINT, dtype=dtype).eval()
        with torch.no_grad():
            outputs[dtype] = np.stack([model(input_ids=torch.tensor([s])).logits[0].numpy() for s in ids])
    truth = outputs[torch.float64]
    # as well conditioned as torch's own float32 shows; see test_encoder
    own_error = np.abs(outputs[torch.float32] - truth).max()
    np.testing.assert_allclose(ours, truth, rtol=0, atol=8 * max(own_error, 8 * EPS * np.abs(truth).max()))


def test_int8_keeps_the_accuracy(logits: dict[str, np.ndarray], dev: Dataset) -> None:
    """Within 0.3 points of f32 on all 872 sentences, and fewer than one answer in a hundred flips."""
    scores = {name: accuracy(values.argmax(1), dev.labels) for name, values in logits.items()}
    assert scores["f32"] > 0.88
    assert scores["int8"] >= scores["f32"] - 0.003
    assert flip_rate(logits["int8"], logits["f32"]) < 0.01


def test_int4_costs_little_accuracy(logits: dict[str, np.ndarray], dev: Dataset) -> None:
    """Within a point of f32, which is one standard error of 872 sentences, with no data and no training."""
    scores = {name: accuracy(values.argmax(1), dev.labels) for name, values in logits.items()}
    assert scores["int4"] >= scores["f32"] - 0.01
    assert flip_rate(logits["int4"], logits["f32"]) < 0.05


def test_answers_do_not_depend_on_batch_or_threads(
    models: dict[str, approxrt.Model], logits: dict[str, np.ndarray], dev: Dataset
) -> None:
    single = approxrt.load(models["int8"].path, threads=1)
    rows = np.random.default_rng(0).permutation(len(dev.texts))[:60]
    np.testing.assert_array_equal(single.logits([dev.texts[i] for i in rows]), logits["int8"][rows])
    for i in rows[:10]:
        np.testing.assert_array_equal(models["int8"].logits(dev.texts[i])[0], logits["int8"][i])


def test_sizes(models: dict[str, approxrt.Model]) -> None:
    sizes = {name: model.info["bytes"]["total"] for name, model in models.items()}
    assert sizes["f32"] > 3.5 * sizes["int8"]
    assert sizes["f32"] > 6 * sizes["int4"]
    assert sizes["int8"] - sizes["sparse"] > 7.5e6  # three quarters of 10.6 MB of encoder weights, less the indices
    assert models["sparse"].info["density"] == pytest.approx(0.25, abs=0.01)


def test_long_text_and_pairs(models: dict[str, approxrt.Model]) -> None:
    model = models["int8"]
    answer = model.classify("a gripping film " * 300)
    assert answer[0].truncated
    assert answer[0].label == "positive"
    with pytest.raises(approxrt.errors.TextTooLongError, match="the limit is 512"):
        model.classify("a gripping film " * 300, truncate=False)
