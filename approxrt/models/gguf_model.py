"""A .gguf file as a decoder in the artifact's terms: every key of the architecture and every tensor is read by name.

llama.cpp names of a layer's tensors are `blk.i.attn_q.weight` and so on. It interleaves the rows of a Llama model's
query and key heads for its own rotary positions; they are put back. GPT-2's query, key and value are one matrix there.

A key or tensor that is missing, left over or of another size is a fault, and all faults are raised together. Weights
are turned to floats one by one, when they are asked for (`LazyTensors`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.artifact.lazy import LazyTensors
from approxrt.artifact.spec.decoder import DecoderLayerSpec, DecoderSpec, RopeSpec
from approxrt.artifact.spec.decoder_schema import MAX_CONTEXT
from approxrt.artifact.spec.encoder import MAX_DIM, MAX_LAYERS, MAX_VOCAB
from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.gguf_file import GgufFile, GgufTensor

ARCHITECTURES = ("gpt2", "llama", "qwen2")
_SHOWN = 10
# Keys that say nothing about what is computed.
_INFORMATION = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
# Keys that change what is computed unless they have this value, with what they would ask for.
_USUAL: dict[str, tuple[Any, str]] = {
    "attention.scale": (0, "another scale of attention"),
    "attention.causal": (True, "attention to later tokens"),
    "attention.clamp_kqv": (0, "clamped queries, keys and values"),
    "attention.max_alibi_bias": (0, "ALiBi positions"),
    "pooling_type": (0, "an embedding, not the next token"),
    "rope.scaling.attn_factor": (1, "attention that is scaled with the context"),
    "logit_scale": (0, "scaled logits"),
    "residual_scale": (0, "a scaled residual stream"),
    "embedding_scale": (0, "scaled embeddings"),
    "use_parallel_residual": (False, "parallel residuals"),
    "expert_used_count": (0, "experts"),
}
_ATTENTION = {"attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "output"}
_FFN = {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}


def build_gguf(file: GgufFile, tokens: int) -> tuple[DecoderSpec, LazyTensors]:
    """Return (all-f32 spec, tensors) of a file whose vocabulary has so many `tokens`.

    Raises UnsupportedModelError naming the key or tensor for what is not implemented (experts, another attention),
    CheckpointError listing keys and tensors that are missing, left over or of a wrong size.
    """
    _refuse_experts(file)
    keys = _Keys(file)
    tensors = _Tensors(file)
    spec = (_gpt2 if file.architecture == "gpt2" else _llama)(keys, tensors, tokens)
    left = [name for name in file.tensors if name not in tensors.taken]
    if left:
        tensors.faults.append(f"tensors that a {file.architecture} model does not have: {_some(left)}")
    if tensors.faults:
        raise CheckpointError(f"{str(file.path)!r} does not hold the model it describes: {'; '.join(tensors.faults)}")
    return spec, LazyTensors(tensors.makers)


def _refuse_experts(file: GgufFile) -> None:
    count = file.metadata.get(f"{file.architecture}.expert_count", 0)
    names = [name for name in file.tensors if ".ffn_gate_inp" in name or "_exps" in name or "_shexp" in name]
    if count or names:
        what = f"expert_count is {count}" if count else f"tensors {_some(names)}"
        raise UnsupportedModelError(
            f"{str(file.path)!r} is a mixture of experts ({what}); supported: one feed-forward network a layer"
        )
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(f"{str(file.path)!r}: general.type is {kind!r}; supported: 'model'")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


class _Keys:
    """The architecture's keys, each read once; `finish` raises for all that are missing, wrong or left over."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.prefix = f"{file.architecture}."
        self.read: set[str] = set()
        self.faults: list[str] = []

    def raw(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.file.metadata.get(self.prefix + key, default)

    def size(self, key: str, most: int, default: int | None = None) -> int:
        """An integer from 1 to `most`; without a default the key is required."""
        return self._checked(key, self.raw(key, default), most)

    def _checked(self, key: str, value: Any, most: int) -> int:
        if type(value) is int and 1 <= value <= most:
            return value
        what = "is missing" if value is None else f"is {value!r:.40}; 1 to {most} are possible"
        self.faults.append(f"{self.prefix}{key} {what}")
        return 1

    def sizes(self, key: str, layers: int, most: int, default: list[int] | None = None) -> list[int]:
        """One integer a layer: the file has one for all, or a list."""
        value = self.raw(key, default)
        if isinstance(value, np.ndarray | list):
            values = list(value) if isinstance(value, list) else value.tolist()
            if len(values) != layers:
                self.faults.append(f"{self.prefix}{key} has {len(values)} entries for {layers} layers")
                return [1] * layers
            return [self._checked(key, each, most) for each in values]
        return [self._checked(key, value, most)] * layers

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number over 0."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            what = "is missing" if value is None else f"is {value!r:.40}; a number over 0 is needed"
            self.faults.append(f"{self.prefix}{key} {what}")
            return 1.0
        return float(value)

    def finish(self) -> None:
        for key, (usual, meaning) in _USUAL.items():
            value = self.raw(key, usual)
            if value != usual:
                raise UnsupportedModelError(
                    f"{str(self.file.path)!r}: {self.prefix}{key} is {value!r}, which asks for {meaning}; "
                    "that is not supported"
                )
        known = {self.prefix + key for key in (*self.read, *_INFORMATION)}
        unknown = [key for key in self.file.metadata if key.startswith(self.prefix) and key not in known]
        if self.faults:
            raise CheckpointError(f"{str(self.file.path)!r}: {'; '.join(self.faults)}")
        if unknown:
            raise UnsupportedModelError(
                f"{str(self.file.path)!r} has keys whose meaning is not implemented: {_some(unknown)}"
            )


class _Tensors:
    """The file's tensors, taken by name under the artifact's names."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.taken: set[str] = set()
        self.faults: list[str] = []
        self.makers: dict[str, Callable[[], np.ndarray]] = {}

    def find(self, name: str, shape: tuple[int, ...], optional: bool = False) -> GgufTensor | None:
        tensor = self.file.tensors.get(name)
        self.taken.add(name)
        if tensor is None:
            if not optional:
                self.faults.append(f"tensor {name} is missing")
        elif tensor.shape != shape:
            self.faults.append(f"tensor {name} has shape {list(tensor.shape)}; the keys ask for {list(shape)}")
        else:
            return tensor
        return None

    def take(self, target: str, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.find(name, shape)
        if tensor is not None:
            self.makers[target] = tensor.floats

    def linear(self, target: str, name: str, shape: tuple[int, int], bias: bool | None, heads: int = 0) -> None:
        """A matrix with its bias: required (True), not allowed (False) or as the file has it (None); of `heads` whose
        rows are interleaved."""
        parts = [("weight", shape, False)]
        if bias is not False:
            parts.append(("bias", shape[:1], bias is None))  # type: ignore[arg-type]
        for part, size, optional in parts:
            tensor = self.find(f"{name}.{part}", size, optional)
            if tensor is not None:
                self.makers[f"{target}.{part}"] = _straightened(tensor, heads) if heads else tensor.floats
        if f"{target}.bias" not in self.makers:
            self.makers[f"{target}.bias"] = _zeros(shape[0])

    def slices(self, targets: tuple[str, ...], name: str, shape: tuple[int, int]) -> None:
        """One matrix, with its bias, that holds those of `targets` one below the other; `shape` is that of each."""
        whole = len(targets) * shape[0]
        for part, size in (("weight", (whole, shape[1])), ("bias", (whole,))):
            tensor = self.find(f"{name}.{part}", size)
            if tensor is not None:
                for i, target in enumerate(targets):
                    self.makers[f"{target}.{part}"] = _slice(tensor, i * shape[0], shape[0])

    def head(self, vocab: int, hidden: int, bias: bool) -> bool:
        """Take the head's matrix; whether there is none, which means that the embedding table is it."""
        if "output.weight" not in self.file.tensors:
            return True
        self.linear("head.out", "output", (vocab, hidden), None if bias else False)
        return False


@dataclass(frozen=True)
class _Straightened:
    """A tensor whose rows go from neighbours that turn together to halves that do."""

    tensor: GgufTensor
    heads: int

    def __call__(self) -> np.ndarray:
        return to_halves(self.tensor.floats(), self.heads)


def _straightened(tensor: GgufTensor, heads: int) -> Callable[[], np.ndarray]:
    return _Straightened(tensor, heads)


def _slice(tensor: GgufTensor, start: int, count: int) -> Callable[[], np.ndarray]:
    return lambda: np.ascontiguousarray(tensor.floats()[start : start + count])


def _zeros(n: int) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(n, np.float32)


def to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads * dim, ...] in which rows 2 i and 2 i + 1 of a head turn together -> those where i and i + dim / 2 do."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _llama(keys: _Keys, tensors: _Tensors, vocab: int) -> DecoderSpec:
    qwen2 = keys.file.architecture == "qwen2"
    hidden, layers = keys.size("embedding_length", MAX_DIM), keys.size("block_count", MAX_LAYERS)
    context = keys.size("context_length", MAX_CONTEXT)
    inner = keys.sizes("feed_forward_length", layers, MAX_DIM)
    heads = keys.sizes("attention.head_count", layers, MAX_DIM)
    kv_heads = keys.sizes("attention.head_count_kv", layers, MAX_DIM, heads)
    dim = keys.size("attention.key_length", MAX_DIM, max(1, hidden // max(1, heads[0])))
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.size(key, MAX_DIM, dim) != dim and not keys.faults:
            raise UnsupportedModelError(
                f"{str(keys.file.path)!r}: {keys.prefix}{key} is {keys.raw(key)} and heads are {dim} wide; "
                "supported: heads that turn as a whole, with values as wide as keys"
            )
    eps = keys.number("attention.layer_norm_rms_epsilon")
    window = keys.raw("attention.sliding_window")
    if type(window) is int and 0 < window < context:
        raise UnsupportedModelError(
            f"{str(keys.file.path)!r}: {keys.prefix}attention.sliding_window is {window}; "
            "supported: attention over all tokens"
        )
    for i, (all_heads, some) in enumerate(zip(heads, kv_heads, strict=True)):
        if all_heads % some:
            keys.faults.append(f"{all_heads} attention heads of layer {i} are no multiple of {some} key-value heads")
    if dim % 2 and not keys.faults:
        keys.faults.append(f"heads are {dim} wide, which is odd: rotary positions turn pairs")
    rope, context = _rope(keys, tensors, dim, context)
    keys.finish()
    tensors.take("embeddings.word.weight", "token_embd.weight", (vocab, hidden))
    for i in range(layers):
        at, there = f"layers.{i}", f"blk.{i}"
        tensors.take(f"{at}.attention.norm.weight", f"{there}.attn_norm.weight", (hidden,))
        tensors.take(f"{at}.ffn.norm.weight", f"{there}.ffn_norm.weight", (hidden,))
        wide, narrow = heads[i] * dim, kv_heads[i] * dim
        shapes = {"attn_q": (wide, hidden), "attn_k": (narrow, hidden), "attn_v": (narrow, hidden)}
        turned = {} if qwen2 else {"attn_q": heads[i], "attn_k": kv_heads[i]}
        for name, part in _ATTENTION.items():
            shape = shapes.get(name, (hidden, wide))
            bias = True if qwen2 and name != "attn_output" else False if qwen2 else None
            tensors.linear(f"{at}.attention.{part}", f"{there}.{name}", shape, bias, turned.get(name, 0))
        for name, part in _FFN.items():
            shape = (hidden, inner[i]) if part == "down" else (inner[i], hidden)
            tensors.linear(f"{at}.ffn.{part}", f"{there}.{name}", shape, False if qwen2 else None)
    tensors.take("head.norm.weight", "output_norm.weight", (hidden,))
    tied = tensors.head(vocab, hidden, bias=qwen2)
    return DecoderSpec(
        architecture=keys.file.architecture,
        vocab_size=min(vocab, MAX_VOCAB),
        hidden_size=hidden,
        max_positions=context,
        norm="rms",
        norm_eps=eps,
        activation="silu",
        gated=True,
        positions="rope",
        rope=rope,
        layers=tuple(DecoderLayerSpec(heads[i], kv_heads[i], dim, inner[i]) for i in range(layers)),
        tied_embeddings=tied,
    )


def _rope(keys: _Keys, tensors: _Tensors, dim: int, context: int) -> tuple[RopeSpec, int]:
    """Return (rotary positions, context). A factor without a type is linear, as in llama.cpp.

    A linear factor is of a context that is given as it was before the scaling, unless the file says what that was.
    """
    theta = keys.number("rope.freq_base", 10000.0)
    kind = keys.raw("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{str(keys.file.path)!r}: {keys.prefix}rope.scaling.type is {kind!r}; supported: none, linear, and "
            "rope_freqs.weight (Llama 3)"
        )
    factors = [keys.raw(key) for key in ("rope.scaling.factor", "rope.scale_linear")]
    given = next((factor for factor in factors if factor is not None), 0)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
        keys.faults.append(f"{keys.prefix}rope.scaling.factor is {given!r:.40}; a number over 0 is needed")
        given = 1
    factor = float(given) if kind == "linear" and given else 1.0
    original = keys.raw("rope.scaling.original_context_length")
    if factor > 1 and original is None:
        context = min(MAX_CONTEXT, int(context * factor))
    freqs: tuple[float, ...] = ()
    if keys.file.architecture == "llama":
        stored = tensors.find("rope_freqs.weight", (dim // 2,), optional=True)
        freqs = () if stored is None else tuple(stored.floats().tolist())
    return RopeSpec(theta, "none" if factor == 1 else "linear", factor, frequency_factors=freqs), context


def _gpt2(keys: _Keys, tensors: _Tensors, vocab: int) -> DecoderSpec:
    hidden, layers = keys.size("embedding_length", MAX_DIM), keys.size("block_count", MAX_LAYERS)
    context, inner = keys.size("context_length", MAX_VOCAB), keys.size("feed_forward_length", MAX_DIM)
    heads = keys.size("attention.head_count", MAX_DIM)
    eps = keys.number("attention.layer_norm_epsilon")
    if keys.size("attention.head_count_kv", MAX_DIM, heads) != heads:
        raise UnsupportedModelError(f"{str(keys.file.path)!r}: GPT-2 with grouped queries is not supported")
    if hidden % heads:
        keys.faults.append(f"{keys.prefix}embedding_length {hidden} is no multiple of {heads} heads")
    keys.finish()

    def norm(target: str, name: str) -> None:
        for part in ("weight", "bias"):
            tensors.take(f"{target}.{part}", f"{name}.{part}", (hidden,))

    tensors.take("embeddings.word.weight", "token_embd.weight", (vocab, hidden))
    tensors.take("embeddings.position.weight", "position_embd.weight", (context, hidden))
    for i in range(layers):
        at, there = f"layers.{i}", f"blk.{i}"
        norm(f"{at}.attention.norm", f"{there}.attn_norm")
        norm(f"{at}.ffn.norm", f"{there}.ffn_norm")
        names = tuple(f"{at}.attention.{part}" for part in ("query", "key", "value"))
        tensors.slices(names, f"{there}.attn_qkv", (hidden, hidden))
        tensors.linear(f"{at}.attention.output", f"{there}.attn_output", (hidden, hidden), True)
        tensors.linear(f"{at}.ffn.up", f"{there}.ffn_up", (inner, hidden), True)
        tensors.linear(f"{at}.ffn.down", f"{there}.ffn_down", (hidden, inner), True)
    norm("head.norm", "output_norm")
    tied = tensors.head(vocab, hidden, bias=False)
    return DecoderSpec(
        architecture="gpt2",
        vocab_size=min(vocab, MAX_VOCAB),
        hidden_size=hidden,
        max_positions=context,
        norm="layer",
        norm_eps=eps,
        activation="gelu_tanh",
        gated=False,
        positions="learned",
        layers=tuple(DecoderLayerSpec(heads, heads, hidden // heads, inner) for _ in range(layers)),
        tied_embeddings=tied,
    )
