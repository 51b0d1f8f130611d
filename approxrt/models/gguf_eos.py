"""Find the tokens that end a text, by the rules of llama.cpp: ids that a .gguf file names, and tokens called so."""
# ruff: noqa: RUF001 (tokens are called so)

from __future__ import annotations

from collections.abc import Mapping

# Tokens that end a text wherever they are in a vocabulary.
END_TEXTS = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    }
)  # fmt: skip
# Of fill-in-the-middle, these end a text too; in llama.cpp's order of looking.
_MIDDLE_TEXTS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_ENDS = ("eos", "eot", "eom")


def is_control_text(token: str) -> bool:
    """Return whether a token of this text is a control token, whatever the file says of it."""
    return token in END_TEXTS or any(token in texts for texts in _MIDDLE_TEXTS.values())


def end_of_text(ids: Mapping[str, int], special: Mapping[str, int]) -> tuple[int, ...]:
    """Ids that end a text, in order; `special` are the file's own by name ("eos", "eot", ...)."""
    found = {special[name] for name in (*_ENDS, *_MIDDLE_TEXTS) if name in special}
    found |= {ids[text] for text in END_TEXTS if text in ids}
    for name, texts in _MIDDLE_TEXTS.items():
        if name not in special:
            found |= {ids[text] for text in texts if text in ids}
    # Two formats of conversation have ends that are none there (harmony and solar; gemma 4).
    calls = "<|call|>" in ids or "<|calls|>" in ids
    if calls and ("<|return|>" in ids or "<|flush|>" in ids):
        found.discard(ids.get("<|end|>", -1))
    if "<|tool_response>" in ids:
        found.discard(ids.get("</s>", -1))
    return tuple(sorted(found))
