"""Say how a fine-tuning run trains; torch is not needed to check it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from approxrt.errors import InputError
from approxrt.tasks.format import PLAIN, DataFormat, check_format

PRECISIONS = ("auto", "f32", "bf16")
SPLITS = ("grouped", "random")
# In the folder of the output: an unfinished run's state, a finished one's report.
STATE = "training.pt"
REPORT = "finetune.json"

# Called with (steps done since the last call, what to show).
Advance = Callable[[float, str], None]


@dataclass(frozen=True)
class FinetuneOptions:
    """Say how to train. `limit` caps the training examples (a quick trial); lengths are in tokens."""

    epochs: int = 3
    lr: float = 5e-5
    batch_size: int = 32
    seed: int = 0
    max_length: int = 128
    val_fraction: float = 0.1
    limit: int | None = None
    split: str = "grouped"  # of validation: texts inside one another on the same side; or "random"
    weight_decay: float = 0.01
    warmup: float = 0.1
    save_seconds: float = 120.0
    precision: str = "auto"  # of products in training: f32, bf16, or bf16 where the device multiplies it faster
    qat: int | None = None  # 8: train with int8 weights and activations (Q8BERT)
    data_format: DataFormat = PLAIN  # of the data files
    label_all_pieces: bool = False  # ner: all tokens of a word have its tag; else its first alone
    device: str = "auto"  # cpu, cuda, or a GPU where there is one; a run may go on on another

    def check(self) -> None:
        """Raise InputError for a value that cannot work."""
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr is {self.lr}; it must be a number over 0 (5e-5 is usual)")
        if not 0 < self.val_fraction < 1:
            raise InputError(f"val_fraction is {self.val_fraction}; it must lie between 0 and 1")
        check_format(self.data_format)
        if self.split not in SPLITS:
            raise InputError(f"split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if self.qat not in (None, 8):
            raise InputError(f"qat is {self.qat!r}; it must be 8 (int8 weights and activations)")
        if self.limit is not None and self.limit < 2:
            raise InputError(f"limit is {self.limit}; it must be at least 2 (one example to train, one to validate)")
