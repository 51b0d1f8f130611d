"""Small decoders that have learnt a text, so that what they have learnt can be lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from decoders import build_decoder
from families import CORPUS


def text() -> str:
    rng = np.random.default_rng(0)
    return " ".join(CORPUS[i] for i in rng.integers(0, len(CORPUS), 120))


def trained_llama(folder: Path, **sizes: int) -> Path:
    """A Llama of three layers (unless `sizes` say otherwise) that knows `text`."""
    import transformers
    from tokenizers import Tokenizer

    build_decoder("llama", folder, **{"positions": 64, "layers": 3, **sizes}, tie_word_embeddings=True)
    torch.set_num_threads(1)
    ids = torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text()).ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        batch = torch.stack([ids[s : s + 48] for s in rng.integers(0, len(ids) - 48, 8)])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 3.5
    model.save_pretrained(folder)
    return folder
