"""An encoder in PyTorch, built from an artifact's spec and float32 tensors: what is analysed, pruned and trained.

It speaks the artifact's names, so every family of checkpoints is one kind of model here, and it runs what is
there: a pruned head or FFN channel is not computed, a removed block is its bias and its norm. Tiles that are pruned
inside a linear are zeros, held at zero by `apply_masks`; the engine leaves them out for real.

Embeddings are frozen: rows that a task's training text does not touch must not drift apart from those that it does.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.artifact.storage.bsr import expand_mask
from approxrt.errors import UnsupportedModelError
from approxrt.runtime.reference.encoder import kept_keys, sign_attention
from approxrt.runtime.relative_positions import relative_buckets
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.device import resolve_device

Masks = dict[str, np.ndarray]  # linear -> bool[strips, columns] over its tiles

LONG = 256  # tokens from which the scores of all heads would not stay in the caches

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


@dataclass
class Batch:
    """Padded token ids: ids i64[b, t], types i64[b, t], lengths i64[b]."""

    ids: Tensor
    types: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """bool[b, t]: true where there is a token."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None, :] < self.lengths[:, None]


def make_batch(
    ids: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None = None,
    device: str | torch.device = "cpu",
) -> Batch:
    """Pad lists of token ids to the longest, on `device`."""
    lengths = torch.tensor([len(row) for row in ids])
    shape = (len(ids), int(lengths.max()))
    padded, padded_types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = row
        if types is not None:
            padded_types[i, : len(row)] = types[i]
    device = resolve_device(device)
    return Batch(torch.from_numpy(padded).to(device), torch.from_numpy(padded_types).to(device), lengths.to(device))


@dataclass
class Keys:
    """Say what a batch's queries may attend to.

    bias      f32[b, 1, 1, t]: 0 for tokens, a large negative number for padding; None where nothing is padded
    valid     bool[b, t]: tokens
    always    bool[b, t]: those that sign matching never drops
    """

    bias: Tensor | None
    valid: Tensor
    always: Tensor


@dataclass
class Output:
    """logits f32[b, outputs] (None without a head; f32[b, t, outputs] of one that reads every token), pooled
    f32[b, hidden], and f32[b, t, hidden] after each step.
    """

    logits: Tensor | None
    pooled: Tensor
    hidden: list[Tensor]


# Called with (name, x f32[b, t, k] or [b, k]) before a linear, and what it returns is used: statistics, quantisation.
InputHook = Callable[[str, Tensor], Tensor]
# Called with (name, y f32[b, t, n] or [b, n]) after a linear, and with word rows that are looked up: "embeddings.word".
OutputHook = Callable[[str, Tensor], Tensor]
# Called with (name, weight) -> the weight to use: fake quantisation.
WeightHook = Callable[[str, Tensor], Tensor]


class TorchEncoder(nn.Module):
    """See the module's text. `spec` must be all f32 and `tensors` float32 under the artifact's names.

    device   where weights, and all that is computed of them, are
    copy     False: where they are on the CPU, the arrays themselves are the weights, which nobody else may change; and
             where they lie in a file that is mapped, the model may not be changed, either
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, np.ndarray],
        dropout: float = 0.0,
        device: str | torch.device = "cpu",
        copy: bool = True,
    ) -> None:
        super().__init__()
        if spec.gated or spec.rope_theta:
            raise UnsupportedModelError(
                f"{spec.architecture}: a gated feed-forward and rotary positions are not trained or pruned here; "
                "supported: models without"
            )
        self.spec, self.dropout, self.device = spec, dropout, resolve_device(device)
        self.masks: Masks = {}
        self.input_hook: InputHook | None = None
        self.output_hook: OutputHook | None = None
        self.weight_hook: WeightHook | None = None
        # Factors of heads ("layers.0.attention", [heads]) and channels ("layers.0.ffn", [channels]), for gradients.
        self.gates: dict[str, Tensor] = {}
        # Biases that stand for the parameters of the same names: what a removed part of a block leaves.
        self.biases: dict[str, Tensor] = {}
        self.weights = nn.ParameterDict()
        for name, array in tensors.items():
            frozen = name.startswith("embeddings.") and not name.startswith("embeddings.projection")
            value = _as_tensor(np.array(array, np.float32, copy=copy or None)).to(self.device)
            self.weights[_key(name)] = nn.Parameter(value, requires_grad=not frozen)

    # -- access ---------------------------------------------------------------

    def weight(self, name: str) -> nn.Parameter:
        """The parameter of that artifact name."""
        parameter: nn.Parameter = self.weights[_key(name)]
        return parameter

    def bias(self, name: str) -> Tensor:
        """The bias of that linear, or what stands for it."""
        other = self.biases.get(f"{name}.bias")
        return self.weight(f"{name}.bias") if other is None else other

    def names(self) -> Iterator[str]:
        """Artifact names of all parameters."""
        return (key.replace("__", ".") for key in self.weights)

    def tensors(self) -> dict[str, np.ndarray]:
        """All parameters as float32 arrays under the artifact's names (copies)."""
        return {name: self.weight(name).detach().to("cpu", torch.float32).numpy().copy() for name in self.names()}

    def twin(self) -> TorchEncoder:
        """Return a model with the same parameters and no masks, hooks or gates, which takes no memory.

        It stays what it is while the other's parameters are replaced (as pruning does), not changed in place.
        """
        other = TorchEncoder(self.spec, {}, self.dropout, self.device)
        other.weights = self.weights
        return other

    def apply_masks(self) -> None:
        """Set the weights of pruned tiles to zero."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.weight(f"{name}.weight").mul_(self._expanded(name, mask))

    def set_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        """Take new masks of tiles and apply them. Linears that are not named keep theirs."""
        self.masks |= {name: mask.copy() for name, mask in masks.items()}
        self._elements: dict[str, Tensor] = {}
        self.apply_masks()

    def _expanded(self, name: str, mask: np.ndarray) -> Tensor:
        cache = self.__dict__.setdefault("_elements", {})
        if name not in cache:
            n, k = self.weight(f"{name}.weight").shape
            cache[name] = torch.from_numpy(np.ascontiguousarray(expand_mask(mask, n, k), bool)).to(self.device)
        element: Tensor = cache[name]
        return element

    # -- forward --------------------------------------------------------------

    def embed(self, batch: Batch) -> Tensor:
        """f32[b, t, hidden]: what the first layer reads."""
        spec = self.spec
        x = F.embedding(batch.ids, self.weight("embeddings.word.weight"))
        if self.output_hook is not None:
            x = self.output_hook("embeddings.word", x)
        x = x + self.weight("embeddings.position.weight")[: batch.ids.shape[1]]
        if spec.type_vocab_size:
            x = x + F.embedding(batch.types, self.weight("embeddings.token_type.weight"))
        x = self._drop(self._norm("embeddings.norm", x, spec.embedding_size))
        return self.linear("embeddings.projection", x) if spec.has_projection else x

    def forward(self, batch: Batch) -> Output:
        x, hidden = self.embed(batch), []
        keys = self.keys(batch)
        for i in self.spec.steps:
            x = self.layer(i, x, keys)
            hidden.append(x)
        pooled = self.pool(x, batch)
        read = x if self.spec.per_token else pooled
        return Output(self.head(read) if self.spec.labels else None, pooled, hidden)

    def keys(self, batch: Batch) -> Keys:
        """Return what `layer` and `attention_block` need to know of the batch."""
        valid = batch.mask
        kept = torch.tensor(self.spec.always_kept, dtype=batch.ids.dtype).to(batch.ids.device)
        always = torch.isin(batch.ids, kept) & valid
        always[:, 0] = True
        bias = None
        if not bool(valid.all()):
            bias = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -1e9)[:, None, None, :]
        return Keys(bias, valid, always)

    def layer(self, i: int, x: Tensor, keys: Keys) -> Tensor:
        """One layer; `keys` are those of the batch."""
        return self.ffn_block(i, self.attention_block(i, x, keys))

    def attention_block(self, i: int, x: Tensor, keys: Keys) -> Tensor:
        """norm(x + attention(x)); [b, t, hidden]."""
        at = f"layers.{i}.attention.output"
        y = self._drop(self.linear(at, self.context(i, x, keys))) if self.spec.layers[i].num_heads else self.bias(at)
        return self.end_block(i, "attention", x, y)

    def end_block(self, i: int, kind: str, x: Tensor, y: Tensor) -> Tensor:
        """norm(x + y) with what layer `i`'s block of `kind`, "attention" or "ffn", puts out."""
        return self._norm(f"layers.{i}.{kind}.norm", x + y, self.spec.hidden_size)

    def context(self, i: int, x: Tensor, keys: Keys, queries: int | None = None) -> Tensor:
        """[b, t, heads * head_dim]: what the output projection of layer `i` reads.

        queries   only of so many first tokens; None: of all. A layer that matches signs has it for all alone.
        """
        at, layer = f"layers.{i}.attention", self.spec.layers[i]
        q, k, v = (
            self.linear(f"{at}.{part}", rows).view(len(x), -1, layer.num_heads, layer.head_dim).transpose(1, 2)
            for part, rows in (("query", x if queries is None else x[:, :queries]), ("key", x), ("value", x))
        )
        kept = _kept(q, k, layer, keys)
        if kept is None:
            context = _attention(q, k, v, self._score_bias(i, q.shape[2], k.shape[2], keys))
        else:
            scale = 1 / math.sqrt(layer.head_dim)
            context = sign_attention(q, k, v, scale, kept, layer.attention_rest, keys.valid).to(v.dtype)
        if at in self.gates:
            context = context * self.gates[at][:, None, None]
        return context.transpose(1, 2).flatten(2)

    def _score_bias(self, i: int, queries: int, count: int, keys: Keys) -> Tensor | None:
        """f32[b or 1, heads or 1, queries or 1, count]: what is added to the scores of layer `i`; None: nothing."""
        if not self.spec.relative_buckets:
            return keys.bias
        distances = np.arange(count)[None, :] - np.arange(queries)[:, None]
        buckets = relative_buckets(distances, self.spec.relative_buckets, self.spec.relative_distance)
        relative = self.weight(f"layers.{i}.attention.relative_bias")[:, torch.from_numpy(buckets).to(self.device)]
        return relative[None] if keys.bias is None else relative[None] + keys.bias

    def ffn_block(self, i: int, x: Tensor) -> Tensor:
        """norm(x + ffn(x)); [b, t, hidden]."""
        at = f"layers.{i}.ffn.down"
        y = self._drop(self.linear(at, self.channels(i, x))) if self.spec.layers[i].intermediate_size else self.bias(at)
        return self.end_block(i, "ffn", x, y)

    def channels(self, i: int, x: Tensor) -> Tensor:
        """[b, t, intermediate_size]: what `down` of layer `i` reads."""
        at = f"layers.{i}.ffn"
        inner = ACTIVATIONS[self.spec.activation](self.linear(f"{at}.up", x))
        return inner * self.gates[at] if at in self.gates else inner

    def pool(self, x: Tensor, batch: Batch) -> Tensor:
        """[b, hidden]: the first token's state, or the mean over tokens."""
        if self.spec.head.pooling not in ("cls", "mean") or self.spec.head.projections:
            raise UnsupportedModelError(
                f"pooling {self.spec.head.pooling} with {len(self.spec.head.projections)} linears behind it cannot be "
                "trained or pruned; supported: cls or mean without"
            )
        if self.spec.head.pooling == "cls":
            return x[:, 0]
        mask = batch.mask[:, :, None].to(x.dtype)
        return (x * mask).sum(1) / mask.sum(1)

    def features(self, pooled: Tensor) -> Tensor:
        """f32[..., k]: what the head's last linear reads of pooled states, or of tokens' own."""
        x = self._drop(pooled)
        if self.spec.head.dense_features is not None:
            x = self._drop(ACTIVATIONS[self.spec.head.dense_activation](self.linear("head.dense", x)))
        return x

    def head(self, pooled: Tensor) -> Tensor:
        """[..., outputs] of pooled states, or of tokens' own."""
        return self.linear("head.out", self.features(pooled)).float()

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x W^T + b of the named linear, through the hooks."""
        weight, bias = self.weight(f"{name}.weight"), self.bias(name)
        if self.input_hook is not None:
            x = self.input_hook(name, x)
        if self.weight_hook is not None:
            weight = self.weight_hook(name, weight)
        y = F.linear(x, weight, bias)
        return y if self.output_hook is None else self.output_hook(name, y)

    def _norm(self, name: str, x: Tensor, size: int) -> Tensor:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return F.layer_norm(x, (size,), weight, bias, self.spec.layer_norm_eps)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def _as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor, also where it is read-only, of which torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; all [b, heads, t, d]."""
    if k.shape[2] > LONG:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    # On CPUs the fused operator's backward pass is slow: forward and backward of 32 x 56 tokens, 12 heads of 32, in
    # bfloat16 on two cores: 19 ms this way, 89 ms fused.
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(torch.softmax(scores, -1).to(v.dtype), v)


def _kept(q: Tensor, k: Tensor, layer: LayerSpec, keys: Keys) -> Tensor | None:
    """bool[b, heads, t, t]: what is left of the keys where the layer matches signs; None if it does so nowhere."""
    long = keys.valid.sum(1) >= layer.sign_from
    if not layer.attention_keep or not bool(long.any()):
        return None
    kept = kept_keys(q.detach(), k.detach(), layer.attention_keep, keys.always, valid=keys.valid)
    return kept | (~long[:, None] & keys.valid)[:, None, None, :]


def predict(
    model: TorchEncoder, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, size: int = 64
) -> Any:
    """Logits f32[n, outputs] (pooled states without a head) in the order given; batches of like length, eval mode."""
    training, limit = model.training, BatchLimit(size).on(model.device, model.spec.hidden_size)
    model.eval()
    order, found = [], []
    with torch.inference_mode():
        for rows in batches_by_length(np.array([len(row) for row in ids]), limit):
            some = None if types is None else [types[i] for i in rows]
            out = model(make_batch([ids[i] for i in rows], some, model.device))
            order.append(rows)
            found.append((out.pooled if out.logits is None else out.logits).float())
    model.train(training)
    values = torch.cat(found).cpu().numpy()
    result = np.zeros_like(values)
    result[np.concatenate(order)] = values
    return result


def predict_tokens(
    model: TorchEncoder, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None, size: int = 64
) -> list[np.ndarray]:
    """Logits f32[tokens, outputs] of each sequence, of a model whose head reads every token; as `predict`."""
    training, limit = model.training, BatchLimit(size).on(model.device, model.spec.hidden_size)
    model.eval()
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(ids)
    with torch.inference_mode():
        for rows in batches_by_length(np.array([len(row) for row in ids]), limit):
            some = None if types is None else [types[i] for i in rows]
            out = model(make_batch([ids[i] for i in rows], some, model.device))
            assert out.logits is not None
            logits = out.logits.float().cpu().numpy()
            for k, i in enumerate(rows):
                found[i] = logits[k, : len(ids[i])].copy()
    model.train(training)
    return found


def dequantized(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """The same model with words and positions as float32 rows of the values that their stored form stands for."""
    from approxrt.artifact.storage.int4 import row_integers
    from approxrt.artifact.storage.mixed_rows import dequantize_mixed

    out = {name: array for name, array in tensors.items() if not name.startswith("embeddings.word.")}
    if spec.embedding_kind == "s8":
        words = tensors["embeddings.word.q"].astype(np.float32) * tensors["embeddings.word.scale"][:, None]
    elif spec.embedding_kind == "s4":
        q4, m, scale = (tensors[f"embeddings.word.{part}"] for part in ("q4", "group_scale", "scale"))
        words = row_integers(q4, m, spec.embedding_size).astype(np.float32) * scale[:, None]
    elif spec.embedding_kind == "s2":
        words = dequantize_mixed(tensors, spec.embedding_size)
    else:
        words = tensors["embeddings.word.weight"]
    out["embeddings.word.weight"] = words
    if spec.position_kind == "s8":
        q, rows = out.pop("embeddings.position.q"), out.pop("embeddings.position.scale")
        out["embeddings.position.weight"] = q.astype(np.float32) * rows[:, None]
    return dataclasses.replace(spec, embedding_kind="f32", wide_words=0, position_kind="f32"), out


def sample_losses(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Loss of each sample: cross entropy of logits [n, classes], squared error of scores [n, 1]."""
    if labels.dtype.kind == "f":
        return np.square(outputs[:, 0] - labels)
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    log_z = np.log(np.exp(shifted).sum(axis=1))
    return log_z - shifted[np.arange(len(labels)), labels]


def _key(name: str) -> str:
    assert "__" not in name
    return name.replace(".", "__")
