"""The checkpoint that every engine is made from, as a torch module with one plain signature.

All peers are exported from, and compared with, the same f32 module, so that a
difference in speed is never a difference in what was computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.errors import CheckpointError
from approxrt.models.sample_texts import SAMPLE_TEXTS


@dataclass
class Source:
    """A Hugging Face checkpoint folder and texts that are typical of its task.

    Needs torch and transformers (the extra `bench`).
    """

    checkpoint: Path
    texts: tuple[str, ...] = SAMPLE_TEXTS

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.checkpoint, local_files_only=True)

    def module(self, attention: str = "sdpa", additive_mask: bool = True) -> Any:
        """The f32 module in eval mode: forward(input_ids i64[b, s], attention_mask i64[b, s] | None) -> f32[b, n].

        Logits of every token, where the head reads them, are averaged over a text, as hidden states are without a head.
        `additive_mask` hands the model (1 - mask) * -10000 in place of the 0/1 mask that it would expand itself.
        """
        return build_module(self.checkpoint, attention, additive_mask)

    @cached_property
    def sample_ids(self) -> list[list[int]]:
        """Token ids of `texts`, each cut to 128 tokens and to the model's limit."""
        from tokenizers import Tokenizer

        path = self.checkpoint / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: peers are calibrated with texts, which need the tokenizer")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        limit = min(128, int(getattr(self.config, "max_position_embeddings", 512)))
        tokenizer.enable_truncation(max_length=limit)
        return [encoding.ids for encoding in tokenizer.encode_batch(list(self.texts))]

    @cached_property
    def reference(self) -> list[np.ndarray]:
        """torch's f32 answer to each of `sample_ids`."""
        import torch

        module = self.module()
        with torch.inference_mode():
            return [module(torch.tensor([ids]), None).numpy()[0] for ids in self.sample_ids]


def build_module(checkpoint: Path, attention: str = "sdpa", additive_mask: bool = True) -> Any:
    """See `Source.module`."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    name = next(iter(config.architectures or ()), "")
    heads = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    head = next((head for head in heads if name.endswith(head)), None)
    classifies = head == "ForSequenceClassification"
    loader = transformers.AutoModel if head is None else getattr(transformers, f"AutoModel{head}")
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32}
    try:
        model = loader.from_pretrained(checkpoint, attn_implementation=attention, **options).eval()
    except ValueError:
        if attention == "eager":
            raise
        # transformers has no fused attention for MPNet, whose scores have a bias.
        model = loader.from_pretrained(checkpoint, attn_implementation="eager", **options).eval()

    class Plain(torch.nn.Module):
        """Ids and mask in, one array out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            mask = attention_mask
            if mask is not None and additive_mask:
                # The classic form, which every exporter knows.
                mask = (1.0 - mask[:, None, None, :].to(torch.float32)) * -10000.0
            out = self.model(input_ids=input_ids, attention_mask=mask)
            if classifies:
                return out.logits
            if head is None:
                hidden = out.last_hidden_state
            elif head == "ForTokenClassification":
                hidden = out.logits
            else:
                hidden = torch.stack([out.start_logits, out.end_logits], dim=-1)
            if attention_mask is None:
                return hidden.mean(1)
            weight = attention_mask[:, :, None].to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1)

    return Plain().eval()


def pad(batch: list[list[int]], pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (input_ids, attention_mask), both i64[b, longest]."""
    longest = max(map(len, batch))
    ids = np.full((len(batch), longest), pad_id, np.int64)
    mask = np.zeros((len(batch), longest), np.int64)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask
