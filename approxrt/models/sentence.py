"""Read the sentence-transformers files around an encoder: modules, pooling, longest text, prompts, activation.

`modules.json` lists a chain of modules. Transformer, Pooling, then Dense, Normalize and Dropout (which does nothing to
a finished model) in any order are what the engine runs; a chain of a Transformer alone is a CrossEncoder. Anything
else would change the answer and is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from approxrt.artifact.spec.encoder import MAX_DIM, MAX_POOLINGS, POOLINGS, SIMILARITIES, TextSpec
from approxrt.artifact.spec.faults import show
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.base import Pooling
from approxrt.models.sentence_dense import Dense, read_dense
from approxrt.models.weights import read_any_json, read_json, read_json_if_there

MOST_NAME = 255  # bytes of a file's name, at most
MODULES = "modules.json"
CONFIG = "config_sentence_transformers.json"
# The Transformer module's own file; the first that is there counts, as in sentence-transformers.
LENGTH_FILES = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta",
                                                "xlnet")
)  # fmt: skip
_SUPPORTED = f"supported: Transformer, Pooling ({', '.join(POOLINGS)}), Dense, Normalize, Dropout"
# Keys of the Transformer's file that change nothing in an answer.
_HARMLESS = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name",
             "unpad_inputs"}  # fmt: skip
_TASKS = {"feature-extraction": False, "sequence-classification": True}
# In the order in which sentence-transformers 6 asks for them; older versions have a flag for each.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh"}


@dataclass(frozen=True)
class SentenceFolder:
    """Hold what a sentence-transformers folder says of its model.

    encoder      the folder of the encoder's config.json, weights and tokenizer
    pooling      None for a CrossEncoder, which has a classifier's head
    max_length   tokens of the longest text, where the folder says so: it outweighs the tokenizer's own number
    dense        what a pooled vector goes through
    truncate_dim  the first so many elements are given; 0: all
    lower_case   texts are put in lower case first
    activation   of `config_sentence_transformers.json`, for a CrossEncoder; "" where none is named
    """

    encoder: Path
    pooling: Pooling | None
    max_length: int | None = None
    lower_case: bool = False
    text: TextSpec = field(default_factory=TextSpec)
    activation: str = ""
    dense: tuple[Dense, ...] = ()
    truncate_dim: int = 0


def encoder_folder(folder: Path) -> Path:
    """The folder within `folder` that holds the encoder's config.json: itself, or where modules.json says."""
    modules = _modules(folder)
    for module in modules or ():
        if _kind(module) == "Transformer":
            return _inside(folder, module.get("path", ""))
    return folder


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """None when `folder` has no modules.json, which makes a folder one of sentence-transformers."""
    modules = _modules(folder)
    if modules is None:
        return None
    encoder, pooling, normalize = folder, None, False
    dense: list[Dense] = []
    for i, module in enumerate(modules):
        name, path = _kind(module), _inside(folder, module.get("path", ""))
        if name == "Transformer" and i == 0:
            encoder = path
        elif name == "Pooling" and pooling is None and i:
            pooling = _read_pooling(path / "config.json")
        elif name == "Normalize" and pooling is not None:
            _check_normalize(path / "config.json")
            normalize = True
        elif name == "Dense" and pooling is not None:
            dense.append(read_dense(path, normalize))
            normalize = False
        elif name == "Dropout" and pooling is not None:
            continue
        else:
            where = f"sentence-transformers module {name!r} at place {i} of {folder / MODULES}"
            raise UnsupportedModelError(f"{where} is not supported; {_SUPPORTED}")
    config = read_json_if_there(folder / CONFIG)
    kind = config.get("model_type") or "SentenceTransformer"
    if kind not in ("SentenceTransformer", "CrossEncoder"):
        raise UnsupportedModelError(
            f"{folder / CONFIG}: model_type {kind!r} is not supported; supported: SentenceTransformer, CrossEncoder"
        )
    cut = config.get("truncate_dim")
    if cut is not None and (type(cut) is not int or not 1 <= cut <= MAX_DIM):
        raise CheckpointError(f"{folder / CONFIG}: truncate_dim is {show(cut)}; 1 to {MAX_DIM}, or null, is needed")
    length, lower_case, classifies = _transformer_options(encoder)
    if pooling is None:
        if not classifies and kind != "CrossEncoder":
            raise UnsupportedModelError(
                f"{folder / MODULES} has no Pooling module: token embeddings are not supported; {_SUPPORTED}"
            )
        if config.get("default_prompt_name"):
            raise UnsupportedModelError(
                f"{folder / CONFIG}: default_prompt_name {config['default_prompt_name']!r} of a CrossEncoder is not "
                "supported: put the prompt into the texts yourself and set it to null"
            )
        activation = read_activation(config.get("activation_fn"))
        return SentenceFolder(encoder, None, length, lower_case, activation=activation)
    pooled, include_prompt = pooling
    if dense and not include_prompt:
        raise UnsupportedModelError(
            f"{folder / MODULES}: a Pooling with include_prompt false before a Dense is not supported; supported: "
            "include_prompt true"
        )
    text = _read_text(folder / CONFIG, config, include_prompt)
    return SentenceFolder(
        encoder,
        Pooling(pooled, normalize),
        length,
        lower_case,
        text,
        dense=tuple(dense),
        truncate_dim=cut or 0,
    )


def read_activation(path: Any) -> str:
    """The activation of a dotted path such as torch.nn.modules.linear.Identity; "" for none.

    A path outside torch is code of the checkpoint's author, which sentence-transformers does not run unless it is told
    to: it takes its default, and so does "".
    """
    if path is None or (isinstance(path, str) and not path.startswith("torch.")):
        return ""
    name = str(path).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation {path!r} of a CrossEncoder is not supported; supported: torch.nn's {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def classifier_activation(config: dict[str, Any]) -> str:
    """The activation that a CrossEncoder's config.json names, in either of its two places; "" for none."""
    own = config.get("sentence_transformers")
    if isinstance(own, dict) and "activation_fn" in own:
        return read_activation(own["activation_fn"])
    return read_activation(config.get("sbert_ce_default_activation_function"))


def _modules(folder: Path) -> list[dict[str, Any]] | None:
    path = folder / MODULES
    if not path.exists():
        return None
    modules = read_any_json(path)
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} is not a list of modules")
    return modules


def _kind(module: dict[str, Any]) -> str:
    """The class of a module of sentence-transformers itself, else its whole path, which nothing here is called."""
    path = str(module.get("type", ""))
    return path.rsplit(".", 1)[-1] if path.startswith("sentence_transformers.") else path


def _inside(folder: Path, name: Any) -> Path:
    """A module's folder. Links are followed, as hubs' caches consist of them; a path that climbs out is not."""
    if not isinstance(name, str) or len(name.encode("utf-8", "replace")) > MOST_NAME:
        raise CheckpointError(f"{folder / MODULES}: module path {show(name)} is no name of a folder")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(f"{folder / MODULES}: module path {name!r} lies outside the checkpoint's folder")
    return folder / path


def _read_pooling(path: Path) -> tuple[str, bool]:
    """Return (modes joined by "+", whether the prompt's tokens are pooled)."""
    config = read_json(path)
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [given] if isinstance(given, str) else given
    if (
        not isinstance(modes, list)
        or not 1 <= len(modes) <= MAX_POOLINGS
        or not all(mode in POOLINGS for mode in modes)
    ):
        shown = " + ".join(map(str, modes)) if isinstance(modes, list) and modes else repr(given)
        raise UnsupportedModelError(f"{path}: pooling {shown} is not supported; {_SUPPORTED}")
    include = config.get("include_prompt", True)
    if type(include) is not bool:
        raise CheckpointError(f"{path}: include_prompt is {include!r}; true or false is needed")
    return "+".join(modes), include


def _check_normalize(path: Path) -> None:
    config = read_json_if_there(path)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedModelError(
                f"{path}: Normalize with {key} {config[key]!r} is not supported; supported: sentence_embedding"
            )


def _transformer_options(folder: Path) -> tuple[int | None, bool, bool]:
    """Return (longest text, do_lower_case, whether it classifies) of the first of `LENGTH_FILES` that says
    something."""
    for name in LENGTH_FILES:
        path = folder / name
        config = read_json_if_there(path)
        if not config:
            continue
        length = config.get("max_seq_length")
        for key in ("tokenizer_args", "processor_kwargs"):
            options = config.get(key)
            if isinstance(options, dict) and set(options) <= {"model_max_length"}:
                length = options.get("model_max_length", length)
                config = {k: v for k, v in config.items() if k != key}
        other = sorted(key for key, value in config.items() if key not in _HARMLESS and value not in (None, {}, []))
        if other:
            raise UnsupportedModelError(
                f"{path}: {', '.join(other)} change how texts are read, which is not supported; supported: "
                "max_seq_length, do_lower_case"
            )
        if length is not None and (type(length) is not int or length < 1):
            raise CheckpointError(f"{path}: max_seq_length is {length!r}; a number of at least 1 is needed")
        task = config.get("transformer_task", "feature-extraction")
        if task not in _TASKS:
            raise UnsupportedModelError(
                f"{path}: transformer_task {task!r} is not supported; supported: {', '.join(_TASKS)}"
            )
        return length, bool(config.get("do_lower_case")), _TASKS[task]
    return None, False, False


def _read_text(path: Path, config: dict[str, Any], include_prompt: bool) -> TextSpec:
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(value, str | None) for value in prompts.values()):
        raise CheckpointError(f"{path}: prompts is no object of strings")
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{path}: default_prompt_name {default!r} is none of its prompts: {', '.join(prompts)}")
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise UnsupportedModelError(
            f"{path}: similarity_fn_name {similarity!r} is not supported; supported: {', '.join(SIMILARITIES)}"
        )
    return TextSpec({name: value or "" for name, value in prompts.items()}, default or "", include_prompt, similarity)
