"""Where compress chooses sign-matching attention: break-even, calibration, whole runs on long and on short texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from small_encoder import small_encoder
from tokenizers import Tokenizer

torch = pytest.importorskip("torch", reason="compression trains in torch")
pytest.importorskip("transformers", reason="compression reads data through transformers' tokenizers")

import approxrt  # noqa: E402
from approxrt.artifact.reader import read_artifact  # noqa: E402
from approxrt.artifact.spec.encoder import MAX_SIGN_DIM, LayerSpec  # noqa: E402
from approxrt.artifact.spec.encoder_schema import encoder_faults  # noqa: E402
from approxrt.compression import signs  # noqa: E402
from approxrt.compression.families.encoder import EncoderFamily  # noqa: E402
from approxrt.compression.options import CompressOptions  # noqa: E402
from approxrt.sign_attention import search  # noqa: E402
from approxrt.sign_attention.calibrate import SignKind, calibrate, with_sign_attention  # noqa: E402
from approxrt.sign_attention.search import break_even, saved_ms, time_attention  # noqa: E402
from approxrt.significance import workload  # noqa: E402
from approxrt.tasks.examples import Examples  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict  # noqa: E402


def counted(head_dim: int, longest: int) -> dict[int, dict[int, float]]:
    """Stands in for measured kernels, which on a busy machine would make the choice a matter of luck."""
    grid = (8, 16, 32, 64)
    return {keep: {n: n * (10.0 * keep + 50 if keep else n * 10.0) * 1e-3 for n in grid} for keep in (0, 2, 4)}


def test_break_even_and_what_is_saved() -> None:
    times = {0: {64: 1.0, 128: 3.0, 256: 10.0}, 16: {64: 2.0, 128: 2.0, 256: 4.0}, 64: {64: 3.0, 128: 6.0, 256: 9.5}}
    assert break_even(times[0], times[16], 16) == 128
    assert break_even(times[0], times[64], 64) is None  # not by a tenth
    assert saved_ms(times, 16, 128, [64, 100, 128, 256, 192]) == pytest.approx(1 + 6 + 3.5)
    # Once faster is not enough: from `sign_from` on it must be so at every length.
    times[16][256] = 9.9
    assert break_even(times[0], times[16], 16) is None


def test_kernels_are_timed_up_to_the_longest_text() -> None:
    times = time_attention(32, 200)
    assert set(times) == {0, *search.KEEPS} and all(set(by) == {128, 192, 256} for by in times.values())
    assert all(ms > 0 for by in times.values() for ms in by.values())


def long_examples(count: int = 6, vocab: int = 30) -> Examples:
    rng = np.random.default_rng(4)
    ids = [rng.integers(1, vocab, n).tolist() for n in rng.integers(40, 60, count)]
    return Examples(ids, [[0] * len(row) for row in ids], rng.integers(0, 2, count))


def shifted_encoder() -> TorchEncoder:
    """Keys far from zero, so that their signs say next to nothing."""
    model = small_encoder(max_positions=64, max_length=64)
    with torch.no_grad():
        for i in range(2):
            model.weight(f"layers.{i}.attention.key.bias").add_(3.0 * torch.randn(24, generator=_seeded(i)))
    return model


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_calibration_leaves_exact_attention_as_it_is_and_helps_signs() -> None:
    model, examples = shifted_encoder(), long_examples()
    rows = np.arange(len(examples.ids))
    exact = predict(model, examples.ids, examples.types)
    found = calibrate(model, examples, rows, keep=4)
    np.testing.assert_allclose(predict(model, examples.ids, examples.types), exact, rtol=0, atol=2e-4)
    assert [layer.layer for layer in found] == [0, 1]
    before, after = (np.mean([getattr(layer, side) for layer in found]) for side in ("before", "after"))
    assert after > before + 0.02

    errors = []
    for other in (shifted_encoder(), model):
        with_sign_attention(other, {0: SignKind(4, 8), 1: SignKind(4, 8)}, ())
        errors.append(np.square(predict(other, examples.ids, examples.types) - exact).mean())
    assert errors[1] < errors[0]


def test_layers_are_set_and_unset() -> None:
    model = small_encoder()
    with_sign_attention(model, {1: SignKind(4, 9, False)}, (5, 2))
    assert model.spec.layers[0] == LayerSpec(3, 8, 36)
    assert model.spec.layers[1] == LayerSpec(3, 8, 36, attention_keep=4, sign_from=9)
    assert model.spec.always_kept == (2, 5) and not encoder_faults(model.spec)
    with_sign_attention(model, {}, ())
    assert model.spec.layers == (LayerSpec(3, 8, 36),) * 2


def write_texts(path: Path, words: tuple[int, int]) -> Path:
    rng = np.random.default_rng(0)
    known = [
        "good",
        "great",
        "fine",
        "film",
        "the",
        "a",
        "story",
        "rain",
        "town",
        "price",
        "work",
        "hours",
        "room",
        "bad",
        "awful",
    ]
    lines = [" ".join(rng.choice(known, rng.integers(*words))) for _ in range(120)]
    path.write_text("\n".join(lines) + "\n")
    return path


def small_base(table: Any) -> Any:
    """A measured table beside the times that are given here: little of those, however fast this CPU's kernels are."""

    def found(self: EncoderFamily) -> Any:
        measured = table(self)
        measured = measured.scaled(
            1.0 / measured.model_ms(self.inputs.spec, [len(text) for text in self.inputs.pruned.workload])
        )
        measured.base_ms = 0.1
        return measured

    return found


def timer(self: EncoderFamily, model: TorchEncoder, bits: Any) -> float:
    """Milliseconds that are too many with exact attention and few enough without."""
    return 3.5 if any(layer.attention_keep for layer in model.spec.layers) else 5.0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["train", "one-shot"])
def test_long_texts_choose_it_and_the_artifact_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(workload.peer_runs, "__defaults__", (("torch-eager",),))
    monkeypatch.setattr(workload.take_turns, "__defaults__", (0.1, 3))
    original = EncoderFamily.baseline
    monkeypatch.setattr(EncoderFamily, "baseline", lambda self: dataclasses.replace(original(self), ms=4.0))
    monkeypatch.setattr(EncoderFamily, "latency_table", small_base(EncoderFamily.latency_table))
    monkeypatch.setattr(EncoderFamily, "timer", timer)
    monkeypatch.setattr(signs, "time_attention", counted)
    monkeypatch.setattr(signs, "KEEPS", (2, 4))
    monkeypatch.setattr(signs, "LENGTHS", (8, 16, 32, 64))
    monkeypatch.setattr(signs, "ALLOWED", 0.5)
    base = build_checkpoint("bert", tmp_path / "c", hidden=64, heads=4, layers=2, ffn=128, pooling="mean", plain=True)
    wanted = CompressOptions(speedup=1.0, max_drop=0.9, budget=60.0, threads=1, recipe=recipe, epochs=1.0, batch_size=8)
    texts = write_texts(tmp_path / "train.txt", (10, 40))
    report = approxrt.compress(base, texts, out=tmp_path / "a", task="embed", options=wanted)
    chosen = report.chosen["about"]["attention"]
    assert chosen["layers"] and chosen["keep"] in (2, 4) and chosen["sign_from"] in (8, 16)
    assert chosen["change"] <= (signs.ALLOWED_BEFORE_TRAINING if recipe == "train" else signs.ALLOWED)
    spec = read_artifact(tmp_path / "a").spec
    left = [i for i in chosen["layers"] if spec.layers[i].num_heads]  # one-shot cuts what costs least in any case
    assert [i for i, layer in enumerate(spec.layers) if layer.attention_keep] == left != []
    tokenizer = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    assert {tokenizer.id_to_token(i) for i in spec.always_kept} == {"[CLS]", "[SEP]"}
    assert np.isfinite(approxrt.load(tmp_path / "a").embed(["a fine film " * 12, "rain"])).all()


@pytest.mark.slow
def test_short_texts_leave_attention_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(workload.peer_runs, "__defaults__", (("torch-eager",),))
    monkeypatch.setattr(workload.take_turns, "__defaults__", (0.1, 3))
    base = build_checkpoint("bert", tmp_path / "c", hidden=64, heads=4, layers=1, ffn=64, pooling="mean", plain=True)
    wanted = CompressOptions(("size",), shrink=1.0, max_drop=0.9, budget=60.0, threads=1, recipe="one-shot")
    texts = write_texts(tmp_path / "train.txt", (3, 20))
    report = approxrt.compress(base, texts, out=tmp_path / "a", task="embed", options=wanted)
    about = report.chosen["about"]["attention"]
    assert about["layers"] == [] and "exact attention is faster" in about["why"]
    assert all(layer.attention_keep == 0 for layer in read_artifact(tmp_path / "a").spec.layers)


def test_removed_blocks_and_wide_heads_are_left_alone() -> None:
    spec = small_encoder().spec
    layers = (LayerSpec(0, 8, 36), LayerSpec(3, 8, 36), LayerSpec(2, MAX_SIGN_DIM + 8, 36))
    assert search.signable(dataclasses.replace(spec, layers=layers)) == {1: 3}
