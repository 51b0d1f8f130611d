"""Compare what a conversion wrote with the checkpoint that it came from.

Two questions, on built-in sentences. Does the engine compute the checkpoint's function at all? Its float32 answers are
compared with transformers' and must agree to rounding; otherwise something in the checkpoint means what the converter
does not know, and nothing is written. How much does the artifact's approximation change? That is measured and said.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.errors import CheckpointError, CheckpointWarning, InputError, MissingDependencyError
from approxrt.models.checkpoint import Checkpoint
from approxrt.models.classifier import quiet
from approxrt.models.sample_texts import SAMPLE_TEXTS
from approxrt.models.weights import read_weights
from approxrt.runtime.cpu.engine import CpuEngine
from approxrt.runtime.loading import load
from approxrt.runtime.pooling import pool_states
from approxrt.runtime.tokenize import Encoded, Text

SENTENCES = 12
# Of float32 sums in another order: a layer's relative rounding is about 1e-6, and layers add up. What is wrong in a
# checkpoint's reading (an epsilon, a kind of GELU) shows at 1e-3 and above.
TOLERANCE = 2e-4
# Below these something of the model is lost that a user would notice; int8 of a healthy model is at 0.999.
LEAST_COSINE = 0.98
MOST_FLIPS = 0.1


@dataclass(frozen=True)
class Fidelity:
    """Measures how near an artifact is to its checkpoint in float32, over `sentences` built-in sentences.

    cosine   least cosine between the pooled states
    flips    share of sentences with another best label; None without classes. Of a head that reads every token, the
             share of tokens with another label, or of answers that begin or end elsewhere
    """

    sentences: int
    cosine: float
    flips: float | None


@dataclass(frozen=True)
class _InMemory:
    """Hold what an engine takes."""

    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]


def verify_encoder(checkpoint: Checkpoint, artifact: Path) -> dict[str, Any]:
    """Load the artifact that was written, and compare it with the checkpoint; what the card says of it.

    Raises CheckpointError where the engine computes something else than transformers, and warns (CheckpointWarning)
    where the artifact's approximation costs more than a user would want.
    """
    model = load(artifact, device="cpu")
    try:
        encoded = model.encode(_texts(model.spec))
    except InputError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.source['name']!r} cannot read ordinary sentences, so nothing was written: {error}"
        ) from error
    engine = CpuEngine(_InMemory(checkpoint.spec, checkpoint.tensors))
    exact = _answers(checkpoint.spec, engine.forward, engine.token_logits, encoded)
    _check_same(exact, _original(checkpoint, encoded), checkpoint)
    states = engine.forward(encoded.ids, encoded.type_ids, "pooled")
    found = _fidelity(states, model.forward_ids(encoded.ids, encoded.type_ids, "pooled"))
    flips = None
    if len(checkpoint.spec.labels) > 1:
        ours = _answers(checkpoint.spec, model.forward_ids, model.forward_tokens, encoded)
        flips = float((_best(checkpoint.spec, ours, encoded) != _best(checkpoint.spec, exact, encoded)).mean())
    fidelity = Fidelity(len(encoded.ids), round(found, 5), flips)
    if fidelity.cosine < LEAST_COSINE or (flips is not None and flips > MOST_FLIPS):
        said = f"cosine {fidelity.cosine:.3f}" + ("" if flips is None else f", {flips:.0%} other labels")
        warnings.warn(
            f"{checkpoint.source['name']}: the artifact strays from the float32 model on {fidelity.sentences} built-in "
            f"sentences ({said}). Evaluate it on your data (`approxrt eval`) before you use it; --bits 32 loses "
            "nothing, and `approxrt compress` keeps to a limit of loss",
            CheckpointWarning,
            stacklevel=6,
        )
    return {"fidelity": asdict(fidelity)}


def _answers(
    spec: ModelSpec,
    forward: Callable[..., np.ndarray],
    token_logits: Callable[..., list[np.ndarray]],
    encoded: Encoded,
) -> np.ndarray:
    """Logits float32 [n, labels], [tokens of all texts, labels] of a head that reads them, or pooled states."""
    if spec.per_token:
        return np.concatenate(token_logits(encoded.ids, encoded.type_ids))
    return forward(encoded.ids, encoded.type_ids, "logits" if spec.labels else "pooled")


def _best(spec: ModelSpec, answers: np.ndarray, encoded: Encoded) -> np.ndarray:
    """The best labels of texts or tokens, i64[n]; of question answering the best token for each end of an answer."""
    if spec.task_type != "question_answering":
        return answers.argmax(axis=1)
    ends = np.cumsum([len(ids) for ids in encoded.ids])
    return np.concatenate([rows.argmax(axis=0) for rows in np.split(answers, ends[:-1])])


def _texts(spec: ModelSpec) -> list[Text]:
    """Sentences of several lengths, or pairs of them, or both."""
    singles: list[Text] = list(SAMPLE_TEXTS[:SENTENCES])
    pairs: list[Text] = list(zip(SAMPLE_TEXTS[:SENTENCES], SAMPLE_TEXTS[SENTENCES : 2 * SENTENCES], strict=True))
    if spec.inputs == "pair":
        return pairs
    # A model of one token type has no pairs where its tokenizer gives them two.
    return singles if spec.inputs == "single" or not spec.labels else singles[: SENTENCES - 3] + pairs[-3:]


def _original(checkpoint: Checkpoint, encoded: Encoded) -> np.ndarray:
    """transformers' float32 answers, as `_answers`."""
    try:
        import torch
    except ImportError:
        raise MissingDependencyError("torch", "compress", "comparing an artifact with its checkpoint") from None
    spec = checkpoint.spec
    model = _load_original(checkpoint)
    longest = max(map(len, encoded.ids))
    ids = torch.tensor([row + [spec.pad_token_id] * (longest - len(row)) for row in encoded.ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded.ids])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if spec.type_vocab_size:
        inputs["token_type_ids"] = torch.tensor([row + [0] * (longest - len(row)) for row in encoded.type_ids])
    with torch.inference_mode():
        answer = model(**inputs)
        if spec.task_type == "question_answering":
            rows = torch.stack([answer.start_logits, answer.end_logits], dim=-1)[mask.bool()].double()
        elif spec.labels:
            rows = (answer.logits[mask.bool()] if spec.per_token else answer.logits).double()
        else:
            from approxrt.runtime.reference.encoder import projected

            states = answer.last_hidden_state.double().numpy()
            texts = zip(states, encoded.ids, strict=True)
            pooled = np.stack([pool_states(text[: len(ids)], spec.head.poolings) for text, ids in texts])
            own = {
                name: torch.from_numpy(array.astype(np.float64))
                for name, array in checkpoint.tensors.items()
                if name.startswith("head.projections.")
            }
            rows = projected(spec.head, own, torch.from_numpy(pooled))
        found: np.ndarray = rows.numpy()
        return found


def _load_original(checkpoint: Checkpoint) -> Any:
    import torch
    import transformers

    loader: Any = transformers.AutoModelForSequenceClassification if checkpoint.spec.labels else transformers.AutoModel
    if checkpoint.spec.task_type == "token_classification":
        loader = transformers.AutoModelForTokenClassification
    elif checkpoint.spec.task_type == "question_answering":
        loader = transformers.AutoModelForQuestionAnswering
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    folder = str(checkpoint.folder)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not checkpoint.wrapper:
                return loader.from_pretrained(folder, local_files_only=True, **options).eval()
            # transformers does not know the framework's prefix and would draw all weights at random.
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            model = loader.from_config(config, **options).eval()
            model.load_state_dict(_state(checkpoint, model), strict=False)
            return model
    except Exception as error:  # of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"transformers cannot load {folder!r} to compare the artifact with: {reason}") from error


def _state(checkpoint: Checkpoint, model: Any) -> dict[str, Any]:
    """The weights under the names that `model` has them by, without the training framework's prefix."""
    import torch

    own, base = set(model.state_dict()), f"{model.base_model_prefix}."
    state = {}
    for name, tensor in read_weights(checkpoint.folder).items():
        plain = name.removeprefix(checkpoint.wrapper)
        for candidate in (plain, plain.removeprefix(base), base + plain):
            if candidate in own:
                state[candidate] = torch.from_numpy(tensor.to_float32().copy())
                break
    return state


def _check_same(ours: np.ndarray, theirs: np.ndarray, checkpoint: Checkpoint) -> None:
    difference = np.abs(ours - theirs).max(axis=1)
    scale = np.abs(theirs).max(axis=1) + 1.0
    worst = int(np.argmax(np.where(np.isfinite(difference), difference / scale, np.inf)))
    if not difference[worst] <= TOLERANCE * scale[worst]:
        raise CheckpointError(
            f"checkpoint {checkpoint.source['name']!r}: in float32 the engine's answers differ from transformers' by "
            f"{difference[worst]:.3g} (values up to {scale[worst] - 1:.3g}). Something in its files means what "
            "approxrt does not know, so nothing was written; please report it with the checkpoint's config.json"
        )


def _fidelity(exact: np.ndarray, ours: np.ndarray) -> float:
    """Least cosine over rows; nan counts as -1."""
    a, b = exact.astype(np.float64), ours.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
    return float(np.nan_to_num(cosines, nan=-1.0).min())
