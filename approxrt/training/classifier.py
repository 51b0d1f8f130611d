"""A transformers classifier in training on a task's labels, as fine-tuning trains it.

AdamW (weight decay 0.01, none on biases and norms), linear warm-up over a tenth of the steps and linear decay to zero,
gradients clipped to norm 1 (Devlin et al. 2018; Mosbach et al. 2020, arXiv 2006.04884).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from approxrt.errors import TrainingError
from approxrt.tasks.readers import Dataset
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.device import has_bf16
from approxrt.training.optimizer import decay_groups
from approxrt.training.options import FinetuneOptions
from approxrt.training.trainer import Epochs, Schedule, StepOptions, Trainer

PREDICTED_TEXTS = 64  # a batch, on a CPU


class Encoded:
    """Tokenised texts: ids and token types by example."""

    def __init__(self, data: Dataset, tokenizer: Any) -> None:
        encodings = tokenizer.encode_batch(data.texts)
        self.ids = [encoding.ids for encoding in encodings]
        self.types = [encoding.type_ids for encoding in encodings]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.labels = data.labels


class ClassifierTrainer(Trainer):
    """The trainer of `model`, a module that transformers made, on labels: classes, or floats as scores."""

    def __init__(self, model: Any, train: Encoded, options: FinetuneOptions) -> None:
        device = next(model.parameters()).device
        bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16(device))
        schedule = Schedule(options.warmup)
        super().__init__(device, StepOptions(options.lr, schedule, options.weight_decay, fused=False, bf16=bf16))
        self.model, self.train = model, train
        self.pad = int(getattr(model.config, "pad_token_id", 0) or 0)
        self.typed = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
        self.epochs = Epochs(train.lengths, options.batch_size, options.seed)
        self.steps = options.epochs * self.epochs.steps
        self.start_optimizer(decay_groups(model.parameters(), options.weight_decay))

    @property
    def about(self) -> str:
        return f" of {self.steps}"

    def trained(self) -> Sequence[Tensor]:
        return list(self.model.parameters())

    def rate_share(self) -> float:
        return self.step_options.schedule.at_step(self.step, self.steps)

    def advance(self) -> float:
        """Take one optimiser step and return its loss. Raises TrainingError when it is not a number."""
        self.model.train()
        return self.take_step()

    def next_loss(self) -> Tensor:
        rows = self.epochs.rows(self.step)
        return self._loss(self._forward(self.train, rows).float(), self.train.labels[rows])

    def predict(self, data: Encoded) -> tuple[np.ndarray, float]:
        """Return (logits [n, outputs] in the data's order, mean loss), without dropout."""
        self.model.eval()
        limit = BatchLimit(PREDICTED_TEXTS).on(self.device, int(getattr(self.model.config, "hidden_size", 1024)))
        found, order, total = [], [], 0.0
        with torch.no_grad():
            for rows in batches_by_length(data.lengths, limit):
                logits = self._forward(data, rows)
                total += float(self._loss(logits, data.labels[rows])) * len(rows)
                found.append(logits)
                order.append(rows)
        values = torch.cat(found).cpu().numpy()
        outputs = np.zeros_like(values)
        outputs[np.concatenate(order)] = values
        if not np.isfinite(outputs).all():
            raise TrainingError(f"the model's outputs are not numbers after step {self.step}; use a smaller --lr")
        return outputs, total / len(outputs)

    def _forward(self, data: Encoded, rows: np.ndarray) -> Tensor:
        longest = int(data.lengths[rows].max())
        ids = torch.full((len(rows), longest), self.pad)
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            count = len(data.ids[row])
            ids[i, :count] = torch.tensor(data.ids[row])
            types[i, :count] = torch.tensor(data.types[row])
            mask[i, :count] = 1
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if self.typed else {})
        return self._logits(self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()}))

    def _logits(self, output: Any) -> Tensor:
        logits: Tensor = output.logits
        return logits

    def _loss(self, logits: Tensor, labels: np.ndarray) -> Tensor:
        target = torch.from_numpy(np.ascontiguousarray(labels)).to(logits.device)
        if target.is_floating_point():
            return F.mse_loss(logits[:, 0], target)
        return F.cross_entropy(logits, target)
