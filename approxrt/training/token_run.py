"""Fine-tune a head that reads every token: the run of a classifier (`approxrt.training.run`) with other targets.

The loss is over tokens that have a target: cross entropy of their labels, or the mean cross entropy of an answer's
first and last token among the tokens of a window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from approxrt.errors import TrainingError
from approxrt.models.classifier import load_token_model
from approxrt.tasks.tokens import QuestionData, TaggedData
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.training.classifier import PREDICTED_TEXTS, ClassifierTrainer
from approxrt.training.options import Advance, FinetuneOptions
from approxrt.training.run import Job, Run
from approxrt.training.token_data import IGNORED, QuestionWindows, TaggedWindows, TokenWindows, label_names


class TokenTrainer(ClassifierTrainer):
    """The trainer of a model whose head reads every token."""

    def __init__(self, model: Any, train: Any, options: FinetuneOptions) -> None:
        super().__init__(model, train, options)
        self.answers = isinstance(train, QuestionWindows)

    def next_loss(self) -> Tensor:
        rows = self.epochs.rows(self.step)
        return self._loss_of(self.train, rows, self._forward(self.train, rows).float())

    def predict(self, data: Any) -> Any:
        """Return (logits [tokens, outputs] of each window, mean loss of windows), without dropout."""
        self.model.eval()
        limit = BatchLimit(PREDICTED_TEXTS).on(self.device, int(getattr(self.model.config, "hidden_size", 1024)))
        found: list[np.ndarray] = [np.empty(0)] * len(data.ids)
        total = 0.0
        with torch.no_grad():
            for rows in batches_by_length(data.lengths, limit):
                logits = self._forward(data, rows).float()
                total += float(self._loss_of(data, rows, logits)) * len(rows)
                for i, values in zip(rows, logits.cpu().numpy(), strict=True):
                    found[i] = values[: data.lengths[i]]
        if not all(np.isfinite(values).all() for values in found):
            raise TrainingError(f"the model's outputs are not numbers after step {self.step}; use a smaller --lr")
        return found, total / len(found)

    def _logits(self, output: Any) -> Tensor:
        if not self.answers:
            return super()._logits(output)
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def _loss_of(self, data: Any, rows: np.ndarray, logits: Tensor) -> Tensor:
        device = logits.device
        if self.answers:
            lengths = torch.from_numpy(data.lengths[rows]).to(device)
            padding = torch.arange(logits.shape[1], device=device)[None, :] >= lengths[:, None]
            target = torch.from_numpy(np.stack([data.labels[i] for i in rows])).to(device)
            # [b, tokens, 2]: tokens are the classes
            return F.cross_entropy(logits.masked_fill(padding[:, :, None], -1e4), target)
        padded = torch.full(logits.shape[:2], IGNORED)
        for k, i in enumerate(rows):
            padded[k, : len(data.labels[i])] = torch.from_numpy(data.labels[i])
        return F.cross_entropy(logits.flatten(0, 1), padded.to(device).flatten(), ignore_index=IGNORED)


class TokenRun(Run):
    """See the module's text; the job's data are `TaggedData` or `QuestionData`."""

    names: tuple[str, ...] = ()

    def __init__(self, job: Job, options: FinetuneOptions, progress: Advance) -> None:
        super().__init__(job, options, progress)
        # Who shows the progress counts a window an example (`total_steps`), and there may be more.
        expected = options.epochs * -(-self.count(job.train) // options.batch_size)
        share = expected / self.trainer.steps
        self.progress = lambda steps, text: progress(steps * share, text)

    @property
    def inputs(self) -> str:
        return "single" if isinstance(self.job.train, TaggedData) else "pair"

    def count(self, data: Any) -> int:
        return len(data.examples)

    def load_model(self) -> Any:
        train = self.job.train
        if isinstance(train, QuestionData):
            return load_token_model(self.job.folder, None)
        # A checkpoint that knows the same tags keeps their order, and so its head.
        model = load_token_model(self.job.folder, lambda known: label_names(train, known))
        self.names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
        return model

    def encode(self, data: Any) -> TokenWindows:
        if isinstance(data, QuestionData):
            return QuestionWindows(data, self.tokenizer, self.max_length)
        return TaggedWindows(data, self.names, self.tokenizer, self.max_length, self.options.label_all_pieces)

    def trainer_of(self, train: Any) -> ClassifierTrainer:
        return TokenTrainer(self.model, train, self.options)

    def metrics(self, outputs: Any, encoded: Any) -> dict[str, float]:
        found: dict[str, float] = encoded.metrics(outputs)
        return found
