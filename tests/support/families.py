"""Randomly initialised checkpoints of every supported family, as transformers saves them.

The tokenizers are real (WordPiece, byte-level BPE or unigrams over the words of a few
sentences). Weights are drawn wide enough that attention is far from uniform and
layer norms are no identity: transformers' own initialisation (0.02) would hide
most mistakes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

FAMILIES = ("bert", "distilbert", "roberta", "electra", "mpnet")
# NomicBERT is apart: its angles are float32 in transformers, whatever the rest is.
ALL_TYPES = (*FAMILIES, "camembert", "xlm-roberta", "albert")

CORPUS = [
    "a gripping film that holds its audience from the first minute to the last",
    "two hours that nobody in the room will ever get back",
    "the quick brown fox jumps over the lazy dog while the rain falls on the plain",
    "She sold seashells; he bought 42 of them, and paid 3.50 for each!",
    "An honest account of work, weather and the price of bread in a small town.",
    "good bad great awful fine terrible excellent poor wonderful dreadful",
]


def is_roberta(family: str) -> bool:
    return family in ("roberta", "camembert", "xlm-roberta")


def counts_after_padding(family: str) -> bool:
    """Tell whether positions begin after the padding token's id, which is 1."""
    return is_roberta(family) or family == "mpnet"


def has_unigrams(family: str) -> bool:
    return family in ("camembert", "xlm-roberta", "albert")


def build_tokenizer(family: str) -> Tokenizer:
    """The corpus's words in the family's kind of tokenizer, with its templates for one text and a pair.

    The vocabulary is written down, not trained: the trainers of `tokenizers`
    break ties differently from process to process. Words of the last sentence
    and every other word are whole tokens; the rest falls to pieces.
    """
    names = "<s> <pad> </s> <unk> <mask>" if is_roberta(family) else "[PAD] [UNK] [CLS] [SEP] [MASK]"
    if family == "mpnet":
        names = "<s> <pad> </s> [UNK] <mask>"
    if family == "albert":
        names = "<pad> <unk> [CLS] [SEP] [MASK]"
    specials = names.split()
    if has_unigrams(family):
        lower = family == "albert"  # which puts texts in lower case
        words = [f"\u2581{word}" for word in _words(lower)]
        letters = sorted({letter for line in CORPUS for letter in line if letter != " "} | {"\u2581"})
        pieces = [(name, 0.0) for name in specials] + [(word, -3.0) for word in words]
        pieces += [(letter, -8.0) for letter in letters if letter not in words]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=specials.index("<unk>"), byte_fallback=False))
        scheme = {"replacement": "\u2581", "prepend_scheme": "always"}
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**scheme)]
        )
        tokenizer.decoder = decoders.Metaspace(**scheme)
        single, pair, ends = "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>")
        if lower:
            tokenizer.normalizer = normalizers.Lowercase()
            single, pair, ends = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]")
    elif is_roberta(family):
        merges, vocab = _merges(), [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        vocab += [left + right for left, right in merges]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        single, pair, ends = "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>")
    else:
        letters = sorted(set("".join(CORPUS).lower()) - {" "})
        vocab = [*specials, *letters, *(f"##{letter}" for letter in letters)]
        vocab += [word for word in _words(lower=True) if len(word) > 1]
        tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        single, pair, ends = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]")
        if family == "mpnet":
            single, pair, ends = "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>")
    tokenizer.add_special_tokens(specials)
    ids = [(token, tokenizer.token_to_id(token)) for token in ends]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return tokenizer


def _words(lower: bool) -> list[str]:
    text = " ".join(CORPUS)
    words = sorted(set(re.findall(r"\w+", text.lower() if lower else text)))
    last = set(CORPUS[-1].split())
    return [word for i, word in enumerate(words) if word in last or i % 2]


def _merges() -> list[tuple[str, str]]:
    """BPE merges that build each word, after a space (byte-level: \u0120), from left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in _words(lower=False):
        left = "\u0120"
        for letter in word:
            merges[left, letter] = None
            left += letter
    return list(merges)


def build_config(family: str, vocab: int, **options: Any) -> Any:
    """A transformers config; see `build_checkpoint` for the options."""
    import transformers

    hidden, heads, layers = options["hidden"], options["heads"], options["layers"]
    ffn, positions = options["ffn"], options["positions"]
    common = {
        "vocab_size": vocab,
        "num_labels": options["num_labels"],
        "problem_type": options["problem_type"],
        "pad_token_id": 1 if counts_after_padding(family) else 0,
    }
    if family == "distilbert":
        return transformers.DistilBertConfig(
            **common,
            dim=hidden,
            n_heads=heads,
            n_layers=layers,
            hidden_dim=ffn,
            max_position_embeddings=positions,
            activation=options["activation"],
        )
    common |= {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "hidden_act": options["activation"],
    }
    if is_roberta(family):
        cls = {
            "roberta": transformers.RobertaConfig,
            "camembert": transformers.CamembertConfig,
            "xlm-roberta": transformers.XLMRobertaConfig,
        }[family]
        return cls(**common, max_position_embeddings=positions + 2, type_vocab_size=1, layer_norm_eps=1e-5)
    if family == "nomic_bert":
        activation = {"gelu": "silu"}.get(options["activation"], options["activation"])
        return transformers.NomicBertConfig(**common | {"hidden_act": activation}, max_position_embeddings=positions)
    if family == "albert":
        groups, inner = options["sharing"]
        embedding = options["embedding"] or hidden // 2
        return transformers.AlbertConfig(
            **common,
            max_position_embeddings=positions,
            embedding_size=embedding,
            num_hidden_groups=groups,
            inner_group_num=inner,
        )
    if family == "mpnet":
        return transformers.MPNetConfig(**common, max_position_embeddings=positions + 2, layer_norm_eps=1e-5)
    if family == "electra":
        embedding = options["embedding"] or hidden
        return transformers.ElectraConfig(**common, max_position_embeddings=positions, embedding_size=embedding)
    return transformers.BertConfig(**common, max_position_embeddings=positions)


def randomize(model: Any, seed: int) -> None:
    """Weights of a trained model's magnitude. RoBERTa's positions and types are drawn from a grid of
    2^-10, so that their sum, which the converter folds into one table, is exact in float32."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "position_embeddings" in name or "token_type" in name:
            value = torch.round(value * 0.5 * 1024) / 1024
        elif "relative_attention_bias" in name:
            value *= 1.5
        elif "embeddings" in name and parameter.ndim == 2:
            value *= 0.5
        elif "norm" in name.lower() and name.endswith("weight"):
            value = 1 + 0.2 * value
        elif parameter.ndim == 2:
            value *= 1.5 / parameter.shape[1] ** 0.5
        else:
            value *= 0.2
        parameter.data.copy_(value)


def build_checkpoint(
    family: str,
    folder: Path,
    *,
    hidden: int = 64,
    heads: int = 2,
    layers: int = 2,
    ffn: int = 96,
    positions: int = 512,
    embedding: int | None = None,
    sharing: tuple[int, int] = (1, 1),
    num_labels: int = 3,
    problem_type: str | None = None,
    activation: str = "gelu",
    plain: bool = False,
    head: str = "SequenceClassification",
    auto: str | None = None,
    pooling: str | None = None,
    normalize: bool = True,
    max_seq_length: int | None = None,
    dtype: str = "float32",
    safetensors: bool = True,
    shard_size: str | None = None,
    seed: int = 0,
) -> Path:
    """Save a random checkpoint with its tokenizer and return `folder`.

    `plain` saves the encoder without a head, `head` is what AutoModelFor... is for, `auto` the class of that name
    (AutoModelForMaskedLM); `pooling` ("cls" or "mean") adds sentence-transformers' files. `embedding` is ELECTRA's and
    ALBERT's embedding size, `sharing` ALBERT's (groups, layers of a group).
    """
    import torch
    import transformers

    tokenizer = build_tokenizer(family)
    config = build_config(
        family,
        tokenizer.get_vocab_size(),
        hidden=hidden,
        heads=heads,
        layers=layers,
        ffn=ffn,
        positions=positions,
        embedding=embedding,
        sharing=sharing,
        num_labels=num_labels,
        problem_type=problem_type,
        activation=activation,
    )
    name = auto or ("AutoModel" if plain else f"AutoModelFor{head}")
    factory = getattr(transformers, name)
    model = factory.from_config(config)
    randomize(model, seed)
    model.to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    if not safetensors:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    extra = {"additional_special_tokens": []} if family == "camembert" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": positions, **extra}))
    if pooling is not None:
        _add_sentence_files(folder, hidden, pooling, normalize, max_seq_length)
    return folder


def _add_sentence_files(folder: Path, hidden: int, pooling: str, normalize: bool, length: int | None) -> None:
    base = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    entries = [{"idx": i, "name": str(i), "path": p, "type": base + kind} for i, (p, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    chosen = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}[pooling]
    modes = {f"pooling_mode_{m}": m == chosen for m in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": hidden, **modes}))
    if length:
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": length, "do_lower_case": False})
        )
