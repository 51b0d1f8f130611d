"""Everything that is computed in torch stays on the device that it was asked for; nothing is left behind on the CPU."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="devices are torch's")

from counting_texts import ascending, counting_tokenizer  # noqa: E402
from decoders import small_decoder_spec  # noqa: E402
from families import build_checkpoint  # noqa: E402
from one_device import MixedDevices, one_device  # noqa: E402
from small_encoder import random_examples, small_encoder  # noqa: E402
from specs import random_tensors  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from approxrt.artifact.spec.decoder import DecoderSpec  # noqa: E402
from approxrt.artifact.spec.encoder import LayerSpec  # noqa: E402
from approxrt.errors import DeviceError, InputError  # noqa: E402
from approxrt.models.classifier import load_classifier  # noqa: E402
from approxrt.pruning.reconstruct import refit  # noqa: E402
from approxrt.pruning.structure import Structure  # noqa: E402
from approxrt.quantization.calibration import Rounding, round_decoder  # noqa: E402
from approxrt.quantization.gptq import dequantized_linear  # noqa: E402
from approxrt.quantization.qat import quantize_module  # noqa: E402
from approxrt.quantization.rotation import rotate  # noqa: E402
from approxrt.quantization.rtn import quantize_linear  # noqa: E402
from approxrt.sign_attention.calibrate import calibrate  # noqa: E402
from approxrt.sign_attention.codes import Kept, fit_codes  # noqa: E402
from approxrt.significance.decoder_removal import HeldOutText  # noqa: E402
from approxrt.significance.decoder_statistics import collect_from_text  # noqa: E402
from approxrt.significance.encoder_removal import HeldOutLoss  # noqa: E402
from approxrt.significance.removal import measure_removals  # noqa: E402
from approxrt.significance.statistics import collect  # noqa: E402
from approxrt.tasks.readers import Dataset  # noqa: E402
from approxrt.torch_models.decoder import TorchDecoder  # noqa: E402
from approxrt.torch_models.device import resolve_device  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict  # noqa: E402
from approxrt.training.classifier import ClassifierTrainer, Encoded  # noqa: E402
from approxrt.training.decoder_distillation import (  # noqa: E402
    DecoderDistillation,
    DecoderDistillationOptions,
    StoredLinears,
    TeacherText,
)
from approxrt.training.distillation import Distillation, DistillationOptions, encoder_linears  # noqa: E402
from approxrt.training.options import FinetuneOptions  # noqa: E402
from approxrt.training.replaced_token import DetectionTexts, ReplacedTokenDetection  # noqa: E402
from approxrt.training.teacher import teach  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_device_of_these_tests_refuses_a_mix() -> None:
    with one_device() as device:
        x = torch.ones(3, device=device)
        assert (x + 1).device == device and float((x * torch.tensor(2.0)).sum()) == 6.0
        assert torch.equal((x + x).cpu(), torch.full((3,), 2.0))
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: x[torch.tensor([0, 1])],
            lambda: torch.stack([x, torch.ones(3)]),
        ):
            with pytest.raises(MixedDevices):
                mixed()
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()


def test_names_of_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cpu:1", "cuda:x", "meta"):
        with pytest.raises(InputError, match="must be one of auto, cpu, cuda"):
            resolve_device(wrong)
    with pytest.raises(DeviceError, match="--device cpu"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_an_encoder_answers() -> None:
    base, examples = small_encoder(), random_examples()
    wanted = predict(base, examples.ids, examples.types)
    with one_device() as device:
        model = TorchEncoder(base.spec, base.tensors(), device=device)
        found = predict(model, examples.ids, examples.types)
        assert all(np.array_equal(a, b) for a, b in zip(model.tensors().values(), base.tensors().values(), strict=True))
    np.testing.assert_array_equal(found, wanted)


def test_statistics() -> None:
    base, examples = small_encoder(), random_examples()
    rows = np.arange(20)
    wanted = collect(base, examples.subset(rows))
    with one_device() as device:
        found = collect(TorchEncoder(base.spec, base.tensors(), device=device), examples.subset(rows))
    for part in ("inputs", "means", "gradients", "heads", "channels"):
        mine, theirs = getattr(found, part), getattr(wanted, part)
        assert all(np.array_equal(mine[key], theirs[key]) for key in theirs), part
    assert np.array_equal(found.rows, wanted.rows) and np.array_equal(found.counts, wanted.counts)


@pytest.mark.parametrize("sort", [{}, {"task_type": "regression", "labels": ("score",)}, {"labels": ()}])
def test_statistics_of_other_tasks(sort: dict) -> None:
    base = small_encoder(**sort)
    with one_device() as device:
        found = collect(TorchEncoder(base.spec, base.tensors(), device=device), random_examples().subset(np.arange(6)))
    assert np.array_equal(found.rows, collect(base, random_examples().subset(np.arange(6))).rows)


@pytest.mark.parametrize("mean", [True, False])
def test_removals(mean: bool) -> None:
    base, examples = small_encoder(), random_examples()
    means = collect(base, examples.subset(np.arange(20)), with_moments=False).means if mean else None
    wanted = measure_removals(HeldOutLoss(base, examples, task="csv"), means)
    with one_device() as device:
        model = TorchEncoder(base.spec, base.tensors(), device=device)
        found = measure_removals(HeldOutLoss(model, examples, task="csv"), means)
    assert found == wanted


def test_sign_matching() -> None:
    base, examples = small_encoder(), random_examples()
    layers = (LayerSpec(3, 8, 36, attention_keep=4, attention_rest=True),) * 2
    base.spec = dataclasses.replace(base.spec, layers=layers)
    wanted = predict(base, examples.ids, examples.types)
    with one_device() as device:
        model = TorchEncoder(base.spec, base.tensors(), device=device)
        assert np.array_equal(predict(model, examples.ids, examples.types), wanted)
        calibrate(model, examples, np.arange(4), 3)
    calibrate(base, examples, np.arange(4), 3)
    assert all(np.array_equal(a, b) for a, b in zip(model.tensors().values(), base.tensors().values(), strict=True))


def trained(device: torch.device | str, quantised: bool) -> tuple[dict[str, np.ndarray], list[float]]:
    """Some steps, a cut, steps on grids, and a state that is saved and restored."""
    teacher, examples = small_encoder(seed=5), random_examples(48)
    resplit = ([[*row, 3] for row in examples.ids], [[0] * (len(row) + 1) for row in examples.ids])
    examples = dataclasses.replace(examples, resplit=resplit, labelled=40)
    models = [TorchEncoder(teacher.spec, teacher.tensors(), device=device) for _ in range(2)]
    taught = teach([models[0]], examples)
    base = small_encoder()
    runs = [
        Distillation(
            TorchEncoder(base.spec, base.tensors(), device=device),
            examples,
            taught,
            20,
            DistillationOptions(batch_size=8),
        )
        for _ in range(2)
    ]
    run, losses = runs[0], []
    losses += [run.advance() for _ in range(3)]
    found = collect(run.model, examples.subset(np.arange(20)))
    run.means = {name: torch.from_numpy(mean).to(run.model.device) for name, mean in found.means.items()}
    run.scores = {name: run.model.weight(f"{name}.weight").detach().abs() for name in encoder_linears(run.model)}
    whole = Structure.of(run.model.spec)
    mask = np.ones((2, 6), bool)
    mask[0, :3] = False
    run.prune(Structure((np.array([0, 2]), whole.heads[1]), whole.channels), {"layers.1.attention.query": mask})
    if quantised:
        names = encoder_linears(run.model)
        run.quantize({name: "s4" if i % 2 else "s8" for i, name in enumerate(names)})
    losses += [run.advance() for _ in range(3)]
    assert all(isinstance(score, np.ndarray) for score in run.element_scores().values())
    other = runs[1]
    other.restore(run.state())
    losses += [other.advance() for _ in range(2)]
    return other.model.tensors(), losses


@pytest.mark.parametrize("quantised", [False, True])
def test_an_encoder_s_distillation(quantised: bool) -> None:
    weights, losses = trained("cpu", quantised)
    with one_device() as device:
        found = trained(device, quantised)
    # Other steps of the optimiser, which is not fused there, and no other difference.
    np.testing.assert_allclose(found[1], losses, rtol=1e-5)
    for name, weight in weights.items():
        np.testing.assert_allclose(found[0][name], weight, rtol=1e-4, atol=1e-5, err_msg=name)


def test_refitting() -> None:
    base, examples = small_encoder(), random_examples()

    def refitted(device: torch.device | str) -> dict[str, np.ndarray]:
        dense, model = (TorchEncoder(base.spec, base.tensors(), device=device) for _ in range(2))
        model.set_masks({"layers.0.ffn.up": np.arange(18).reshape(3, 6) % 2 == 0})
        refit(model, dense, examples.subset(np.arange(20)))
        return model.tensors()

    wanted = refitted("cpu")
    with one_device() as device:
        found = refitted(device)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_telling_what_was_replaced() -> None:
    texts = ascending(24, random.Random(0))

    def practised(device: torch.device | str) -> list[float]:
        base = small_encoder()
        model = TorchEncoder(base.spec, base.tensors(), device=device)
        run = ReplacedTokenDetection(
            model, DetectionTexts(texts, counting_tokenizer(), 12), 4, DistillationOptions(batch_size=8)
        )
        return [run.advance() for _ in range(4)]

    wanted = practised("cpu")
    with one_device() as device:
        found = practised(device)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_fine_tuning(tmp_path: Path) -> None:
    build_checkpoint("bert", tmp_path / "base", plain=True)
    texts = ["a gripping film", "two hours of it", "good and bad", "great or awful"] * 6
    data = Dataset(texts, np.arange(24) % 2, ("no", "yes"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    base = load_classifier(tmp_path / "base", data.label_names)

    def learnt(device: torch.device | str) -> tuple[list[float], np.ndarray]:
        model = copy.deepcopy(base).to(device)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # attention draws other numbers in its other form
        quantize_module(model)
        options = FinetuneOptions(batch_size=8, epochs=1, lr=1e-3, precision="f32")
        trainer = ClassifierTrainer(model, Encoded(data, tokenizer), options)
        losses = [trainer.advance() for _ in range(trainer.steps)]
        return losses, trainer.predict(trainer.train)[0]

    wanted = learnt("cpu")
    # Data of a parameter cannot be replaced by a tensor of another class.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with one_device() as device:
            found = learnt(device)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-3)
    assert found[1].shape == wanted[1].shape


# -- decoders, whose attention torch computes in another form there ---------------------


def decoder(shape: str) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    spec = dataclasses.replace(
        small_decoder_spec("f32", hidden=64),
        layers=tuple(
            dataclasses.replace(layer, head_dim=16, intermediate_size=96)
            for layer in small_decoder_spec("f32", hidden=64).layers
        ),
    )
    return rotate(spec, random_tensors(spec)) if shape == "rotated" else (spec, random_tensors(spec))


def token_ids(count: int = 3, tokens: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 70, (count, tokens)))


@pytest.mark.parametrize("shape", ["plain", "rotated"])
def test_a_decoder_s_statistics_and_removals(shape: str) -> None:
    spec, tensors = decoder(shape)

    def measured(device: torch.device | str) -> tuple:
        decoder_model = TorchDecoder(spec, tensors, device)
        stats = collect_from_text(decoder_model, token_ids()).linears
        means = {name: found.mean for name, found in stats.items()}
        found = measure_removals(HeldOutText(decoder_model, token_ids(2)), means)
        return stats, (found.baseline, found.removals)

    wanted, losses = measured("cpu")
    with one_device() as device:
        found, found_losses = measured(device)
    for name, mine in found.items():
        for part in ("weighted", "moments", "mean", "weight"):
            np.testing.assert_allclose(getattr(mine, part), getattr(wanted[name], part), rtol=1e-4, atol=1e-7)
    assert found_losses[0] == pytest.approx(losses[0], rel=1e-6)
    for mine, theirs in zip(found_losses[1], losses[1], strict=True):
        assert mine.element == theirs.element and mine.loss == pytest.approx(theirs.loss, rel=1e-6)


def test_rounding_a_decoder() -> None:
    spec, tensors = decoder("plain")
    kinds = {name: "g4" if "ffn" in name else "s4" for name, _ in spec.linears()}
    wanted = round_decoder(spec, tensors, Rounding(kinds), token_ids())[1]
    with one_device() as device:
        found = round_decoder(spec, tensors, Rounding(kinds), token_ids().to(device))[1]
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_decoder_s_signs() -> None:
    spec, tensors = decoder("plain")
    texts = [row.tolist() for row in token_ids()]
    wanted = fit_codes(TorchDecoder(spec, tensors), texts, Kept(8, 4))
    with one_device() as device:
        found = fit_codes(TorchDecoder(spec, tensors, device), texts, Kept(8, 4))
    assert all(np.allclose(found[i].rotation, wanted[i].rotation, atol=1e-3) for i in wanted)


@pytest.mark.parametrize("grids", [False, True])
def test_a_decoder_s_distillation(grids: bool) -> None:
    spec, tensors = decoder("rotated")
    widths = {"ffn.up": "s4", "ffn.down": "g4" if grids else "s4", "ffn.gate": "g4", "attention.value": "g4"}
    kinds = {name: widths.get(name.split(".", 2)[-1], "g4" if grids else "s8") for name, _ in spec.linears()}
    masks = {} if grids else {"layers.0.ffn.up": np.random.default_rng(0).random((6, 16)) < 0.6}
    parts, weights = {}, dict(tensors)
    if grids:
        for name, width in kinds.items():
            shape = tensors[f"{name}.weight"].shape
            parts[name] = quantize_linear(tensors[f"{name}.weight"], width)[1]
            weights[f"{name}.weight"] = dequantized_linear(parts[name], *shape)

    def teacher(ids: list[int]) -> np.ndarray:
        return np.random.default_rng(ids[0]).standard_normal((len(ids), spec.vocab_size)).astype(np.float32)

    def learnt(device: torch.device | str) -> tuple[list[float], dict, dict]:
        options = DecoderDistillationOptions(lr=2e-3, trains_head=grids, device=device)
        stored, text = StoredLinears(kinds, masks, parts), TeacherText(token_ids(4), teacher)
        run, other = (DecoderDistillation(spec, weights, stored, text, options) for _ in range(2))
        losses = [run.advance(i / 6) for i in range(4)]
        other.restore(run.state())
        losses += [other.advance(i / 6) for i in (4, 5)]
        return losses, other.weights(), other.grids()

    wanted = learnt("cpu")
    with one_device() as device:
        found = learnt(device)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
    for name, weight in wanted[1].items():
        np.testing.assert_allclose(found[1][name], weight, rtol=1e-3, atol=1e-4)
    assert {name: set(grid) for name, grid in found[2].items()} == {name: set(grid) for name, grid in wanted[2].items()}
