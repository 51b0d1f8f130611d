"""A vocabulary in which everything joins that may: where its tokens end shows where a .gguf file's words end."""

from __future__ import annotations

from pathlib import Path

import gguf
from tokenizers import pre_tokenizers

TEXTS = ("it's I'LL a12345 b\n\n1  c", "x!=\n (y) aB Ab\tz ,é漢字 .5", "\r\n  \n $9/ab... «q» \t\n")
# Texts whose characters are joined from the left, as long as they are in one word.
_CHAINS = (
    "it's", "I'LL", "'s", "'LL", " a", " a1", " I", "12345", "12", " b", "\n\n1", "\n\n", "  ", "  c", " c",
    "x!=\n", "!=", "!=\n", " (", " (y", "(y", "y)", " aB", "aB", " Ab", "\tz", " ,", " ,é", ",é", "é漢字", "漢字",
    " .", " .5", ".5", "\r\n", "\r\n  ", "  \n", " \n", " $", "$9", " $9", "9/", "/ab", "...", "ab...", " «",
    " «q", "«q", "q»", " \t", "\t\n", " \t\n",
)  # fmt: skip


def _build() -> tuple[list[str], list[str]]:
    """(tokens, merges) in GPT-2's characters for bytes."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    merges: dict[str, None] = {}
    for chain in _CHAINS:
        shown = level.pre_tokenize_str(chain)[0][0]
        for end in range(2, len(shown) + 1):
            tokens[shown[:end]] = None
            merges[f"{shown[: end - 1]} {shown[end - 1]}"] = None
    return [*tokens, "<end>"], list(merges)


VOCABULARY = _build()


def write_vocabulary(path: Path, pre: str) -> Path:
    """A .gguf file that has this vocabulary and no tensors."""
    tokens, merges = VOCABULARY
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(merges)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id):
        add(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
