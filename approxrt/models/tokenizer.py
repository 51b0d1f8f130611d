"""The checkpoint's tokenizer as the content of a `tokenizers` file."""

from __future__ import annotations

import json
from pathlib import Path

from approxrt.artifact.tensorfile import parse_json
from approxrt.errors import CheckpointError, MissingDependencyError

TOKENIZER = "tokenizer.json"
# What a tokenizer can be built from. Without any of them transformers builds an empty vocabulary and says nothing.
OLDER_FILES = ("vocab.txt", "vocab.json", "*.model", "*.bpe.codes")


def read_tokenizer(folder: Path) -> bytes:
    """tokenizer.json, or what transformers makes of the older files (vocab.txt, merges.txt, ...).

    Truncation and padding that a file carries are removed: they belong to whoever
    calls the tokenizer (MiniLM's file pads every text to 128 tokens).
    """
    path = folder / TOKENIZER
    raw = path.read_bytes() if path.exists() else _build(folder).encode("utf-8")
    try:
        data = parse_json(raw)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CheckpointError(f"{path} is not a tokenizers file: it has no object `model`")
    if data.get("truncation") is not None or data.get("padding") is not None:
        data["truncation"] = data["padding"] = None
        raw = json.dumps(data, ensure_ascii=False).encode("utf-8")
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(raw.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"{path} is not a tokenizer that `tokenizers` can load: {error}") from error
    return raw


def _build(folder: Path) -> str:
    if not any(any(folder.glob(pattern)) for pattern in OLDER_FILES):
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has no tokenizer: {TOKENIZER} or one of {', '.join(OLDER_FILES)} is needed"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingDependencyError(
            "transformers", "compress", f"a checkpoint without {TOKENIZER} ({str(folder)!r})"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True, local_files_only=True)
        return tokenizer.backend_tokenizer.to_str()
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has no {TOKENIZER}, and transformers cannot build a fast tokenizer "
            f"from its files: {(str(error).splitlines() or [''])[0]}"
        ) from error
