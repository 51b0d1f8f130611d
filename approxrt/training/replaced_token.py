"""Replaced-token detection: an encoder learns from a task's texts, without labels, to tell what was changed in them.

A fine-tuned encoder may have lost, or (made for sentence vectors) never had, the feeling for words and their order
that a task asks for; a few thousand labels are too few to teach it, while the texts themselves say much more. So some
of their words are replaced, swapped with near ones, left out or put in, and the model tells for every token whether it
was changed (replaced-token detection: Clark et al. 2020, arXiv 2003.10555; on the task's own texts: Gururangan et al.
2020, arXiv 2004.10964). One answer for the whole text says whether anything in it was changed or, of a pair, whether
the two texts belong together. Both heads are thrown away; labels come afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from approxrt.errors import TrainingError
from approxrt.runtime.tokenize import cut_to
from approxrt.torch_models.encoder import TorchEncoder, make_batch
from approxrt.training.distillation import DistillationOptions
from approxrt.training.optimizer import decay_groups
from approxrt.training.trainer import Trainer, bucketed_batches

CHANGED_TEXTS = 0.6
STRANGE_PAIRS = 0.5
CHANGES = 0.15  # of a text's tokens, at least one
# What a change is, and how often: another word of the task, a swap with a near one, one left out, one put in.
REPLACED, SWAPPED, LEFT_OUT, PUT_IN = 0.5, 0.3, 0.1, 0.1
NEAR = 3
TOKEN_WEIGHT = 5.0  # few tokens are changed: the mean over all of them is small


@dataclass
class MarkedText:
    """A text that may be changed: ids, types and, by token, whether it is not what was (or came next) there."""

    ids: list[int]
    types: list[int]
    special: list[bool]
    changed: list[bool]


def change(marked: MarkedText, words: Sequence[int], most: int, rng: random.Random) -> MarkedText:
    """`marked` with some of its tokens changed; special ones stay, and there are at most `most` tokens.

    words     token ids from which new ones are drawn, each as often as it is there
    """
    out = MarkedText(*(list(getattr(marked, field.name)) for field in fields(MarkedText)))
    for _ in range(max(1, round(CHANGES * (len(out.ids) - sum(out.special))))):
        places = [i for i, special in enumerate(out.special) if not special]
        if not places:
            break
        i, sort = rng.choice(places), rng.random()
        if sort < REPLACED:
            new = rng.choice(words)
            out.changed[i] |= new != out.ids[i]
            out.ids[i] = new
        elif sort < REPLACED + SWAPPED:
            near = [j for j in range(max(1, i - NEAR), min(len(out.ids), i + NEAR + 1)) if _same_text(out, i, j)]
            if near:
                j = rng.choice(near)
                out.ids[i], out.ids[j] = out.ids[j], out.ids[i]
                out.changed[i] = out.changed[j] = True
        elif sort < REPLACED + SWAPPED + LEFT_OUT:
            if len(places) > 1:
                for part in (out.ids, out.types, out.special, out.changed):
                    del part[i]
                out.changed[min(i, len(out.ids) - 1)] = True
        elif len(out.ids) < most:
            for part, value in ((out.ids, rng.choice(words)), (out.types, out.types[i])):
                part.insert(i, value)
            out.special.insert(i, False)
            out.changed.insert(i, True)
    return out


def _same_text(text: MarkedText, i: int, j: int) -> bool:
    """Tokens i and j are different words of the same text, with no separator between them."""
    return text.ids[i] != text.ids[j] and not any(text.special[min(i, j) : max(i, j) + 1])


@dataclass(frozen=True)
class DetectionTexts:
    """Texts (strings, or pairs of them) with the tokenizer that splits them, and the tokens that each is cut to."""

    texts: Sequence[Any]
    tokenizer_json: bytes
    max_length: int


class ReplacedTokenDetection(Trainer):
    """A model that learns to find replaced tokens; see the module's text. Steps are taken one at a time.

    steps       may be set anew before the first tenth of them is over: the learning rate falls to zero at the last
    """

    def __init__(self, model: TorchEncoder, data: DetectionTexts, steps: int, options: DistillationOptions) -> None:
        from tokenizers import Tokenizer

        super().__init__(model.device, options.step_options())
        self.model, self.texts, self.max_length = model, list(data.texts), data.max_length
        self.steps, self.options = steps, options
        self.pairs = not isinstance(self.texts[0], str)
        self.tokenizer = Tokenizer.from_str(data.tokenizer_json.decode("utf-8"))
        self.tokenizer.no_padding()
        cut_to(self.tokenizer, data.max_length)
        self.steps_per_epoch = max(1, -(-len(self.texts) // options.batch_size))
        self.rng = random.Random(options.seed)
        torch.manual_seed(options.seed)
        model.dropout = options.dropout
        hidden = model.spec.hidden_size
        self.token_head = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.text_head = nn.Linear(model.spec.head.dense_features or hidden, 1)
        # Drawn on the CPU: the same start on every device.
        self.token_head.to(model.device)
        self.text_head.to(model.device)
        self.epoch = -1
        self._start_epoch()
        trained = [p for p in model.weights.values() if p.requires_grad]
        trained += [*self.token_head.parameters(), *self.text_head.parameters()]
        self._trained = trained
        self.start_optimizer(decay_groups(trained, options.weight_decay))

    def _start_epoch(self) -> None:
        """Texts anew; of pairs, some seconds come from another one."""
        self.epoch += 1
        texts, self.strange = self.texts, [False] * len(self.texts)
        if self.pairs:
            texts = []
            for i, (first, second) in enumerate(self.texts):
                if self.rng.random() < STRANGE_PAIRS:
                    other = self.rng.choice(self.texts)[1]
                    self.strange[i] = other != second
                    second = other
                texts.append((first, second))
        encodings = self.tokenizer.encode_batch(texts)
        self.marked_texts = [
            MarkedText(e.ids, e.type_ids, [bool(s) for s in e.special_tokens_mask], [False] * len(e.ids))
            for e in encodings
        ]
        if self.epoch == 0:
            self.words = [
                i for e in self.marked_texts for i, special in zip(e.ids, e.special, strict=True) if not special
            ]
            if not self.words:
                raise TrainingError("the training texts have no words to practise with")
        lengths = np.array([len(e.ids) for e in self.marked_texts])
        self.batches = bucketed_batches(lengths, self.options.batch_size, self.options.seed, self.epoch)

    def advance(self) -> float:
        """Take one optimiser step and return its loss. Raises TrainingError when it is not a number."""
        if self.step >= (self.epoch + 1) * self.steps_per_epoch:
            self._start_epoch()
        self.model.train()
        return self.take_step()

    @property
    def about(self) -> str:
        return f" of {self.steps} of replaced-token detection"

    def trained(self) -> list[nn.Parameter]:
        return self._trained

    def rate_share(self) -> float:
        warmup = self.options.warmup
        share = (self.step + 1) / max(1, round(warmup * self.steps))
        left = (self.steps - self.step) / max(1.0, (1 - warmup) * self.steps)
        return min(1.0, share, max(0.0, left))

    def next_loss(self) -> Tensor:
        return self._loss(self.batches[self.step - self.epoch * self.steps_per_epoch])

    def _loss(self, rows: np.ndarray) -> Tensor:
        marked_texts, whole = [], []
        for i in rows:
            marked = self.marked_texts[i]
            if self.rng.random() < CHANGED_TEXTS:
                marked = change(marked, self.words, self.max_length, self.rng)
            marked_texts.append(marked)
            whole.append(self.strange[i] if self.pairs else any(marked.changed))
        device = self.model.device
        batch = make_batch([e.ids for e in marked_texts], [e.types for e in marked_texts], device)
        out = self.model(batch)
        changed = np.zeros(tuple(batch.ids.shape), np.float32)
        for row, marked in zip(changed, marked_texts, strict=True):
            row[: len(marked.changed)] = marked.changed
        tokens = self.token_head(out.hidden[-1])[:, :, 0].float()[batch.mask]
        answers = self.text_head(self.model.features(out.pooled))[:, 0].float()
        loss = F.binary_cross_entropy_with_logits(tokens, torch.from_numpy(changed).to(device)[batch.mask])
        return TOKEN_WEIGHT * loss + F.binary_cross_entropy_with_logits(answers, torch.tensor(whole).float().to(device))
