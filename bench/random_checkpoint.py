"""Writes a BERT classifier of random weights, a benchmark's subject where a trained one cannot be had.

    python bench/random_checkpoint.py build/bert-base        # bert-base: 12 layers, 768 wide, 12 heads, FFN 3072
    python bench/random_checkpoint.py build/tiny --layers 2 --hidden 64 --heads 4 --ffn 128 --vocab 2000

The folder holds what `save_pretrained` writes (config.json, model.safetensors, tokenizer.json), so `approxrt convert`
and `approxrt bench --checkpoint` take it like any other. The same arguments give the same weights and the same
tokenizer. Speed depends on sizes and not on values; the answers mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.peers.source import SAMPLE_TEXTS

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POSITIONS = 512


def vocabulary(size: int) -> list[str]:
    """`size` word pieces: the specials, every printable character, words of the sample texts, and made-up words.

    Every ASCII text can be written with it. The made-up words are pronounceable, so that the file is as long as a
    trained tokenizer's and its words as easy to look up.
    """
    letters = [c for c in string.printable if c.isprintable() and not c.isspace() and not c.isupper()]
    words = re.findall(r"[a-z]{2,}", " ".join(SAMPLE_TEXTS).lower())
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwz", "aeiou")]
    made = ("".join(parts) for n in (2, 3) for parts in itertools.product(syllables, repeat=n))
    pieces = itertools.chain(SPECIALS, letters, (f"##{c}" for c in letters), sorted(set(words)), made)
    unique = list(itertools.islice(dict.fromkeys(itertools.islice(pieces, size + 1000)), size))
    if size < len(SPECIALS) + 2 * len(letters) or len(unique) < size:
        raise SystemExit(f"--vocab {size}: choose {len(SPECIALS) + 2 * len(letters)} to 700000")
    return unique


def build_tokenizer(size: int) -> Any:
    """A word-piece tokenizer, lower-casing, with BERT's templates for one text and a pair."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = {piece: i for i, piece in enumerate(vocabulary(size))}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIALS))
    ends = [(token, pieces[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def randomize(model: Any, seed: int) -> None:
    """Normal weights that keep the size of what flows through them: 1 / sqrt(inputs); embeddings 0.05, the rest small.

    Drawn by numpy, parameter after parameter, so that neither torch's version nor its threads change them.
    """
    import torch

    rng = np.random.default_rng(seed)
    for name, parameter in sorted(model.named_parameters()):
        value = rng.standard_normal(tuple(parameter.shape), np.float32)
        if "embeddings" in name and parameter.ndim == 2:
            value *= np.float32(0.05)
        elif parameter.ndim == 2:
            value *= np.float32(parameter.shape[1] ** -0.5)
        else:
            value = value * np.float32(0.05) + np.float32("norm" in name.lower() and name.endswith("weight"))
        parameter.data.copy_(torch.from_numpy(value))


def build(folder: Path, layers: int, hidden: int, heads: int, ffn: int, vocab: int, labels: int, seed: int) -> None:
    """Save the checkpoint."""
    import transformers

    tokenizer = build_tokenizer(vocab)
    config = transformers.BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=POSITIONS,
        num_labels=labels,
    )
    model = transformers.BertForSequenceClassification(config)
    randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": POSITIONS, "tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {f"{token.strip('[]').lower()}_token": token for token in SPECIALS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Read the sizes, write the folder."""
    parser = argparse.ArgumentParser(description="a BERT classifier of random weights; bert-base unless told otherwise")
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--ffn", type=int, default=3072, help="width of the feed-forward network")
    parser.add_argument("--vocab", type=int, default=30522)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.hidden % options.heads:
        parser.error(f"--hidden {options.hidden} is no multiple of --heads {options.heads}")
    sizes = (options.layers, options.hidden, options.heads, options.ffn, options.vocab, options.labels)
    build(options.out, *sizes, options.seed)
    print(f"{options.out}: {sum(file.stat().st_size for file in options.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
