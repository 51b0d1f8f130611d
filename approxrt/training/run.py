"""One training run: steps, validation, and a state on disk from which it goes on exactly.

Recipe: AdamW (weight decay 0.01, none on biases and norms), linear warm-up over a
tenth of the steps and linear decay to zero, gradients clipped to norm 1 (Devlin
et al. 2018; Mosbach et al. 2020, arXiv 2006.04884).

Everything that decides the next step (weights, optimiser, random state, position
in the epoch) is saved now and then, so an interrupted run goes on exactly where
it was: same seed, data and thread count give the same weights, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from approxrt.artifact.layout import explain_os_error, umask
from approxrt.errors import InputError, TrainingError
from approxrt.models.classifier import load_classifier, quiet
from approxrt.models.tokenizer import read_tokenizer
from approxrt.random import epoch_generator
from approxrt.runtime.tokenize import cut_to
from approxrt.tasks.format import PLAIN
from approxrt.tasks.metrics import compute_metrics, primary
from approxrt.tasks.readers import Dataset
from approxrt.tasks.registry import Task
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.device import autocast, has_bf16, random_state, resolve_device, set_random_state
from approxrt.training.optimizer import decay_groups
from approxrt.training.options import REPORT, STATE, FinetuneOptions
from approxrt.version import __version__

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")

# (steps done since the last call, what to show)
Progress = Callable[[int, str], None]


def bucketed_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Rows of each batch of one epoch: random, yet of like length, so that little padding is computed.

    Examples are shuffled, sorted by length within pools of 50 batches, cut, and the
    batches shuffled. Depends on (seed, epoch) alone: a resumed run needs no state for it.
    """
    rng = epoch_generator(seed, epoch)
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    pool_size = 50 * batch_size
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class Encoded:
    """Tokenised texts: ids and token types by example."""

    def __init__(self, data: Dataset, tokenizer: Any) -> None:
        encodings = tokenizer.encode_batch(data.texts)
        self.ids = [encoding.ids for encoding in encodings]
        self.types = [encoding.type_ids for encoding in encodings]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.labels = data.labels


class Run:
    """State of a training run: model, optimiser, position, best weights so far."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        train: Dataset,
        validation: Dataset,
        options: FinetuneOptions,
        out: Path,
        progress: Progress,
    ) -> None:
        self.task, self.options, self.out, self.folder, self.progress = task, options, out, folder, progress
        self.names, self.is_pair = train.label_names, train.is_pair
        torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
        torch.manual_seed(options.seed)
        self.device = resolve_device(options.device)
        self.model = load_classifier(folder, train.label_names).to(self.device)
        self.bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16(self.device))
        if options.qat is not None:
            from approxrt.quantization.qat import quantize_module

            quantize_module(self.model)
        self.tokenizer_json = read_tokenizer(folder)
        self.tokenizer = self._tokenizer()
        self.train, self.validation = Encoded(train, self.tokenizer), Encoded(validation, self.tokenizer)
        self.pad = int(getattr(self.model.config, "pad_token_id", 0) or 0)
        self.typed = int(getattr(self.model.config, "type_vocab_size", 0) or 0) > 1
        self.optimizer = self._optimizer()
        self.steps_per_epoch = -(-len(train) // options.batch_size)
        self.steps = options.epochs * self.steps_per_epoch
        self.step = 0
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"epoch": -1, "value": -math.inf, "loss": math.inf, "weights": None}
        self.seconds = 0.0

    def train_and_save(self, dev: Dataset | None) -> dict[str, Any]:
        started = saved = time.monotonic()
        before = self.seconds
        for _ in self._remaining_steps():
            now = time.monotonic()
            self.seconds = before + now - started
            if now - saved >= self.options.save_seconds and self.step < self.steps:
                self.save_state()
                saved = time.monotonic()
        self.model.load_state_dict(self.best["weights"])
        dev_metrics = None
        if dev is not None:
            self.progress(0, "evaluating dev")
            encoded = Encoded(dev, self.tokenizer)
            dev_metrics = compute_metrics(self.task, self.predict(encoded)[0], encoded.labels)
        self.seconds = before + time.monotonic() - started
        report = self._report(dev_metrics, len(dev) if dev is not None else 0)
        self._write(report)
        return report

    def _remaining_steps(self) -> Iterator[None]:
        """Take one optimiser step after another; after an epoch's last, validate. Yields after each step."""
        while self.step < self.steps:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            batches = bucketed_batches(self.train.lengths, self.options.batch_size, self.options.seed, epoch)
            for rows in batches[position:]:
                loss = self._train_step(rows)
                self.losses.append(loss)
                self.step += 1
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch(epoch)
                recent = float(np.mean(self.losses[-20:])) if self.losses else loss
                self.progress(1, f"epoch {epoch + 1}/{self.options.epochs}, loss {recent:.3f}")
                yield

    def _train_step(self, rows: np.ndarray) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * self._schedule()
        with autocast(self.device, self.bf16):
            logits = self._forward(self.train, rows)
        loss = self._loss(logits.float(), self.train.labels[rows])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step + 1} of {self.steps} with lr {self.options.lr}: "
                "training has diverged; use a smaller --lr (5e-5 is usual)"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return value

    def _schedule(self) -> float:
        """Factor of the learning rate at this step: up over the warm-up, then down to zero."""
        warm = max(1, round(self.options.warmup * self.steps))
        if self.step < warm:
            return (self.step + 1) / warm
        return (self.steps - self.step) / max(1, self.steps - warm)

    def _end_epoch(self, epoch: int) -> None:
        outputs, loss = self.predict(self.validation)
        metrics = compute_metrics(self.task, outputs, self.validation.labels)
        self.history.append(
            {"epoch": epoch, "train_loss": float(np.mean(self.losses)), "val_loss": loss, "validation": metrics}
        )
        self.losses = []
        # Of equal metrics (few validation examples make ties) the lower loss is better.
        if (primary(metrics), -loss) > (self.best["value"], -self.best["loss"]):
            weights = {n: tensor.detach().to("cpu", copy=True) for n, tensor in self.model.state_dict().items()}
            self.best = {"epoch": epoch, "value": primary(metrics), "loss": loss, "weights": weights}

    def predict(self, data: Encoded) -> tuple[np.ndarray, float]:
        """(logits [n, outputs] in the data's order, mean loss); batches of like length, no dropout."""
        self.model.eval()
        limit = BatchLimit(64).on(self.device, int(getattr(self.model.config, "hidden_size", 1024)))
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

    def _forward(self, data: Encoded, rows: np.ndarray) -> Any:
        longest = int(data.lengths[rows].max())
        ids = torch.full((len(rows), longest), self.pad)
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            count = len(data.ids[row])
            ids[i, :count] = torch.tensor(data.ids[row])
            types[i, :count] = torch.tensor(data.types[row])
            mask[i, :count] = 1
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if self.typed else {})
        return self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()}).logits

    def _loss(self, logits: Any, labels: np.ndarray) -> Any:
        target = torch.from_numpy(np.ascontiguousarray(labels)).to(logits.device)
        if self.names is None:
            return torch.nn.functional.mse_loss(logits[:, 0], target)
        return torch.nn.functional.cross_entropy(logits, target)

    def _optimizer(self) -> Any:
        groups = decay_groups(self.model.parameters(), self.options.weight_decay)
        return torch.optim.AdamW(groups, lr=self.options.lr)

    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json.decode("utf-8"))
        config = self.model.config
        limit = int(config.max_position_embeddings)
        if config.model_type in ("roberta", "camembert", "xlm-roberta"):
            limit -= int(config.pad_token_id) + 1
        cut_to(tokenizer, min(self.options.max_length, limit))
        return tokenizer

    # -- what is kept on disk -------------------------------------------------

    def save_state(self) -> None:
        """Write all that decides the next step, atomically."""
        state = {
            "identity": self._identity(),
            "step": self.step,
            "losses": self.losses,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": random_state(self.device),
        }
        temporary = self.out / f".{STATE}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.out / STATE)
        except (OSError, RuntimeError) as error:
            # torch reports a write that the system refused as a RuntimeError about its own buffers
            raise _unwritable(self.out / STATE, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self) -> None:
        """Continue from the saved state. Raises InputError when it belongs to another run."""
        try:
            state = torch.load(self.out / STATE, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return  # interrupted before the first save: the run starts anew, which is the same thing
        except Exception as error:
            raise TrainingError(f"{self.out / STATE} cannot be read ({error}); delete it to start anew") from error
        mine = self._identity()
        theirs = state["identity"]
        changed = [f"{k}: {theirs.get(k)!r} -> {mine.get(k)!r}" for k in mine | theirs if theirs.get(k) != mine.get(k)]
        if changed:
            raise InputError(
                f"{str(self.out)!r} holds another run; resume it with its own options ({'; '.join(changed)})"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["rng"], self.device)
        self.step, self.losses, self.history = state["step"], state["losses"], state["history"]
        self.best, self.seconds = state["best"], state["seconds"]
        self.progress(self.step, f"resumed at step {self.step}")

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        options = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in ("save_seconds", "device")}
        if self.options.data_format == PLAIN:
            options.pop("data_format")  # runs from before there was a choice go on
        examples = [len(self.train.ids), len(self.validation.ids)]
        return {**options, "task": self.task.name, "checkpoint": self.folder.resolve().name, "examples": examples}

    def _write(self, report: dict[str, Any]) -> None:
        """The Hugging Face checkpoint. finetune.json comes last: it marks the run as finished."""
        config = self.model.config
        config.finetuning_task = self.task.name
        config.approxrt_inputs = "pair" if self.is_pair else "single"
        if self.options.qat is not None:
            from approxrt.quantization.qat import round_weights

            round_weights(self.model)
        try:
            with quiet():
                self.model.save_pretrained(self.out)
        except (OSError, SafetensorError) as error:
            raise _unwritable(self.out, error) from error
        for path in self.out.glob("*.safetensors"):
            os.chmod(path, 0o666 & ~umask())  # safetensors writes files that nobody else may read
        (self.out / "tokenizer.json").write_bytes(self.tokenizer_json)
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, self.out / name)
        (self.out / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        (self.out / STATE).unlink(missing_ok=True)

    def _report(self, dev: dict[str, float] | None, dev_examples: int) -> dict[str, Any]:
        import transformers

        return {
            "task": self.task.name,
            "checkpoint": self.folder.resolve().name,
            "out": self.out.name,
            "options": dataclasses.asdict(self.options),
            "examples": {
                "train": len(self.train.ids),
                "validation": len(self.validation.ids),
                "dev": dev_examples,
            },
            "epochs": self.history,
            "best_epoch": self.best["epoch"],
            "validation": self.history[self.best["epoch"]]["validation"],
            "dev": dev,
            "seconds": round(self.seconds, 1),
            "versions": {
                "approxrt": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }


def _unwritable(path: Path, error: Exception) -> TrainingError:
    reason = explain_os_error(error) if isinstance(error, OSError) else (str(error).splitlines() or [""])[0]
    return TrainingError(
        f"{path} cannot be written: {reason}. Is the disk full? Free some space, then go on with --resume"
    )
