"""Write down what the code makes of fixed inputs: artifacts, plans, reports, answers.

    python tests/golden/golden_cases.py FACTS.json [CASE ...]

`test_golden.py` runs this in a process of its own, with one level of kernels and one of every numerical library, and
compares. While code moves, nothing here may change; a number that must change does so in a commit that says why.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from golden_facts import of_arrays, of_artifact, of_compression, of_json, rounded
from golden_inputs import embedder, gpt2, llama, lm_text, once, pairs, scores, sentences, tuned

# Before any of these libraries is loaded: what they choose by the CPU would change the last bits.
ENVIRONMENT = {
    "APPROXRT_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}

CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Register a case under its name; it gets a folder that all cases share."""
    CASES[function.__name__] = function
    return function


# -- compress, encoders ------------------------------------------------------------------


def encoder(root: Path, name: str, data: Callable[[Path], Path] = sentences, **options: Any) -> Any:
    import approxrt

    out = root / name
    chosen = {
        "epochs": 3.0,
        "lr": 4e-3,
        "budget": 600.0,
        "threads": 1,
        "batch_size": 16,
        "val_fraction": 0.2,
        **options,
    }
    embeds = chosen.pop("embeds", False)
    model = embedder(root) if embeds else tuned(root, data)
    task = "embed" if embeds else "csv"
    source = data(root) / "train.csv" if embeds else data(root)
    objective = str(chosen.pop("objective", "speed"))
    report = approxrt.compress(model, source, out=out, task=task, objective=objective, **chosen)
    return of_compression(out, report)


@case
def speed(root: Path) -> Any:
    return encoder(root, "speed", speedup=6.0)


@case
def speed_in_stages(root: Path) -> Any:
    return encoder(root, "stages", speedup=12.0)


@case
def size(root: Path) -> Any:
    return encoder(root, "size", objective="size", shrink=6.0)


@case
def speed_and_size_of_pairs(root: Path) -> Any:
    return encoder(root, "pairs-out", pairs, objective="speed,size", speedup=6.0, shrink=5.0)


@case
def speed_for_a_gpu(root: Path) -> Any:
    return encoder(root, "gpu", speedup=6.0, target="cuda")


@case
def one_shot(root: Path) -> Any:
    return encoder(root, "one-shot", speedup=6.0, recipe="one-shot")


@case
def one_shot_small(root: Path) -> Any:
    return encoder(root, "one-shot-small", objective="size", shrink=6.0, recipe="one-shot", vocabulary="full")


@case
def one_shot_of_scores(root: Path) -> Any:
    return encoder(root, "one-shot-scores", scores, speedup=6.0, recipe="one-shot")


@case
def magnitude(root: Path) -> Any:
    return encoder(root, "magnitude", speedup=6.0, recipe="one-shot", method="magnitude")


@case
def paper(root: Path) -> Any:
    return encoder(root, "paper", speedup=2.0, recipe="one-shot", method="paper")


@case
def accuracy(root: Path) -> Any:
    return encoder(root, "accuracy", objective="accuracy", epochs=1.0)


@case
def embeddings(root: Path) -> Any:
    return encoder(root, "embed", embeds=True, speedup=6.0)


# -- compress, decoders --------------------------------------------------------------------


def decoder(root: Path, name: str, model: Any, **options: Any) -> Any:
    import approxrt

    out = root / name
    chosen = {"budget": 600.0, "threads": 1, "lr": 1e-3, "epochs": 1.0, **options}
    report = approxrt.compress(model, lm_text(root), out=out, task="lm", **chosen)
    return of_compression(out, report)


@case
def lm_speed(root: Path) -> Any:
    return decoder(root, "lm-speed", llama(root), speedup=6.0)


@case
def lm_within_a_drop(root: Path) -> Any:
    return decoder(root, "lm-drop", llama(root), max_drop=0.05)


@case
def lm_size(root: Path) -> Any:
    return decoder(root, "lm-size", llama(root), objective="size", shrink=5.5, recipe="one-shot")


@case
def lm_layer_norms(root: Path) -> Any:
    return decoder(root, "lm-gpt2", gpt2(root), speedup=5.0)


@case
def lm_own_grids(root: Path) -> Any:
    from grouped_decoders import grouped_checkpoint
    from lm_checkpoints import trained_llama

    sizes = {"hidden": 64, "heads": 2, "num_key_value_heads": 2, "inner": 128}
    folder = once(root / "llama-grouped", lambda f: trained_llama(f, **sizes))
    return with_checkpoint(grouped_checkpoint(folder), lambda: decoder(root, "lm-own", "model.gguf", speedup=7.5))


def with_checkpoint(checkpoint: Any, run: Callable[[], Any]) -> Any:
    """`run` with a checkpoint in memory in the place of any that a decoder's compression reads."""
    from approxrt.models.decoder import load_any_decoder

    places = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.startswith("approxrt.")
        for name, value in list(vars(module).items())
        if value is load_any_decoder
    ]
    try:
        for module, name in places:
            setattr(module, name, lambda *args, **options: checkpoint)
        return run()
    finally:
        for module, name in places:
            setattr(module, name, load_any_decoder)


# -- everything else -------------------------------------------------------------------------


@case
def finetuned(root: Path) -> Any:
    from approxrt.models.checkpoint import load_checkpoint

    folder = tuned(root)
    report = json.loads((folder / "finetune.json").read_text())
    return {
        "weights": of_arrays(dict(load_checkpoint(folder).tensors)),
        "epochs": rounded(report["epochs"]),
        "dev": rounded(report["dev"]),
    }


@case
def analysis(root: Path) -> Any:
    from approxrt.significance.analyze import analyze

    document = analyze(tuned(root), "csv", sentences(root), samples=30, threads=1, val_fraction=0.2)
    return {key: of_json(rounded(value)) for key, value in document.items() if key != "seconds"}


@case
def decoder_analysis(root: Path) -> Any:
    from approxrt.significance.analyze import analyze

    document = analyze(llama(root), "lm", lm_text(root), samples=120, threads=1)
    return {key: of_json(rounded(value)) for key, value in document.items() if key != "seconds"}


@case
def converted(root: Path) -> Any:
    """Bytes of `convert` by family and kind, and the engine's answers from them."""
    from decoders import build_decoder
    from families import build_checkpoint

    from approxrt.conversion import convert

    kinds: dict[str, dict[str, Any]] = {
        "int8": {},
        "int4": {"bits": 4},
        "f32": {"bits": 32},
        "int8-half": {"density": 0.5},
        "int4-half": {"density": 0.5, "bits": 4},
    }
    grouped = {"g4": {"bits": 5}, "g4-6": {"bits": 5, "table_bits": 6}}
    out = {}
    encoders = ("bert", "distilbert", "roberta", "electra", "camembert", "xlm-roberta")
    for family in (*encoders, "llama", "gpt2", "qwen2"):
        is_decoder = family in ("llama", "gpt2", "qwen2")
        sizes: dict[str, Any] = {} if is_decoder else {"embedding": 24}
        build = build_decoder if is_decoder else build_checkpoint
        folder = once(root / f"random-{family}", lambda f, b=build, n=family, s=sizes: b(n, f, **s))
        wanted = kinds if family == "bert" else kinds | grouped if family == "llama" else {"int8": {}}
        for name, options in wanted.items():
            artifact = convert(folder, root / f"{family}-{name}", **options)
            out[f"{family} {name}"] = of_artifact(artifact) | {"answers": answers(artifact)}
    return out


def answers(artifact: Path) -> str:
    """Hash of the engine's numbers for fixed texts."""
    import approxrt

    texts = ["a gripping film", "two hours that nobody will get back", "good bad great awful"]
    model: Any = approxrt.load(artifact, threads=1)
    if model.info["architecture"] in ("llama", "gpt2", "qwen2"):
        return of_json([model.generate(text, max_new_tokens=8) for text in texts])
    return of_arrays({"logits": model.logits(texts)})


@case
def kernels(root: Path) -> Any:
    from approxrt import _C

    rows = sorted(f"{row['family']} {row['isa']}" for row in _C.kernel_list())
    return {"count": len(rows), "names": of_json(rows)}


def numerics() -> str:
    """A hash of what the numerical libraries make of fixed numbers: with another one hashes of weights mean nothing."""
    import numpy as np
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 48, generator=generator, requires_grad=True)
    w = torch.randn(48, 48, generator=generator)
    y = functional.layer_norm(functional.gelu(x @ w), (48,)).softmax(-1)
    y.square().sum().backward()
    square = (w @ w.T + 48 * torch.eye(48)).double()
    factor = torch.linalg.cholesky(square)
    a = w.numpy()
    parts = {
        "y": y.detach().numpy(),
        "gradient": x.grad.numpy(),
        "inverse": torch.cholesky_inverse(factor).numpy(),
        "product": a @ a.T,
        "einsum": np.einsum("ij,ij->i", a, a),
        "solved": np.linalg.solve(a.astype(np.float64), np.eye(48)),
        "exp": np.exp(a),
    }
    return of_arrays(parts)


def main(path: Path, names: list[str]) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import torch

    torch.set_num_threads(1)
    before = numerics()
    import golden_stubs

    golden_stubs.install()
    facts: dict[str, Any] = {"numerics": before, "cases": {}}
    with tempfile.TemporaryDirectory(prefix="approxrt-golden-") as folder:
        for name in names or CASES:
            torch.manual_seed(0)
            facts["cases"][name] = CASES[name](Path(folder))
            path.write_text(json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n")


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    main(Path(sys.argv[1]), sys.argv[2:])
