"""One fine-tuning run: steps, validation, and a state on disk from which it goes on exactly.

Everything that decides the next step (weights, optimiser, random state, position
in the epoch) is saved now and then, so an interrupted run goes on exactly where
it was: same seed, data, device and thread count give the same weights, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from approxrt.artifact.layout import explain_os_error, umask
from approxrt.errors import InputError, TrainingError
from approxrt.models.classifier import load_classifier, quiet
from approxrt.models.tokenizer import read_tokenizer
from approxrt.runtime.tokenize import cut_to
from approxrt.tasks.format import PLAIN
from approxrt.tasks.metrics import compute_metrics, primary
from approxrt.tasks.registry import Task
from approxrt.torch_models.device import random_state, resolve_device, set_random_state
from approxrt.training.classifier import ClassifierTrainer, Encoded
from approxrt.training.options import REPORT, STATE, Advance, FinetuneOptions
from approxrt.version import __version__

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")
RECENT = 20  # steps whose mean loss is shown


@dataclass(frozen=True)
class Job:
    """Say what is fine-tuned: the checkpoint in `folder`, on data of `task`, into the folder `out`."""

    folder: Path
    task: Task
    train: Any  # Dataset, or what `TokenRun` takes
    validation: Any
    out: Path


class Run:
    """A training with its history, the best weights so far, and its files."""

    def __init__(self, job: Job, options: FinetuneOptions, progress: Advance) -> None:
        self.job, self.options, self.progress = job, options, progress
        torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
        torch.manual_seed(options.seed)
        device = resolve_device(options.device)
        self.model = self.load_model().to(device)
        if options.qat is not None:
            from approxrt.quantization.qat import quantize_module

            quantize_module(self.model)
        self.tokenizer_json = read_tokenizer(job.folder)
        self.tokenizer = self._tokenizer()
        self.train, self.validation = (self.encode(data) for data in (job.train, job.validation))
        self.trainer = self.trainer_of(self.train)
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"epoch": -1, "value": -math.inf, "loss": math.inf, "weights": None}
        self.seconds = 0.0

    # -- what a task of another kind does otherwise (`approxrt.training.token_run`) ----

    @property
    def inputs(self) -> str:
        """What the model takes: "single" or "pair"."""
        return "pair" if self.job.train.is_pair else "single"

    def count(self, data: Any) -> int:
        """How many examples the data has."""
        return len(data)

    def load_model(self) -> Any:
        """The checkpoint with a head for the job's labels."""
        return load_classifier(self.job.folder, self.job.train.label_names)

    def encode(self, data: Any) -> Any:
        """The data in tokens."""
        return Encoded(data, self.tokenizer)

    def trainer_of(self, train: Any) -> ClassifierTrainer:
        """The trainer on encoded data."""
        return ClassifierTrainer(self.model, train, self.options)

    def metrics(self, outputs: Any, encoded: Any) -> dict[str, float]:
        """The task's metrics of what the trainer predicts."""
        return compute_metrics(self.job.task, outputs, encoded.labels)

    # -- training -------------------------------------------------------------

    def train_and_save(self, dev: Any) -> dict[str, Any]:
        """Take the steps that are left, write the checkpoint of the best epoch, and return the report."""
        started = saved = time.monotonic()
        before, trainer = self.seconds, self.trainer
        while trainer.step < trainer.steps:
            self._step()
            now = time.monotonic()
            self.seconds = before + now - started
            if now - saved >= self.options.save_seconds and trainer.step < trainer.steps:
                self.save_state()
                saved = time.monotonic()
        self.model.load_state_dict(self.best["weights"])
        dev_metrics = None
        if dev is not None:
            self.progress(0, "evaluating dev")
            encoded = self.encode(dev)
            dev_metrics = self.metrics(trainer.predict(encoded)[0], encoded)
        self.seconds = before + time.monotonic() - started
        report = self._report(dev_metrics, self.count(dev) if dev is not None else 0)
        self._write(report)
        return report

    def _step(self) -> None:
        """Take one optimiser step; after an epoch's last, validate."""
        trainer = self.trainer
        epoch = trainer.step // trainer.epochs.steps
        loss = trainer.advance()
        self.losses.append(loss)
        if trainer.step % trainer.epochs.steps == 0:
            self._end_epoch(epoch)
        recent = float(np.mean(self.losses[-RECENT:])) if self.losses else loss
        self.progress(1, f"epoch {epoch + 1}/{self.options.epochs}, loss {recent:.3f}")

    def _end_epoch(self, epoch: int) -> None:
        outputs, loss = self.trainer.predict(self.validation)
        metrics = self.metrics(outputs, self.validation)
        self.history.append(
            {"epoch": epoch, "train_loss": float(np.mean(self.losses)), "val_loss": loss, "validation": metrics}
        )
        self.losses = []
        # Of equal metrics (few validation examples make ties) the lower loss is better.
        if (primary(metrics), -loss) > (self.best["value"], -self.best["loss"]):
            weights = {n: tensor.detach().to("cpu", copy=True) for n, tensor in self.model.state_dict().items()}
            self.best = {"epoch": epoch, "value": primary(metrics), "loss": loss, "weights": weights}

    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json.decode("utf-8"))
        config = self.model.config
        limit = int(config.max_position_embeddings)
        if config.model_type in ("roberta", "camembert", "xlm-roberta", "mpnet"):
            limit -= int(config.pad_token_id) + 1
        self.max_length = min(self.options.max_length, limit)
        cut_to(tokenizer, self.max_length)
        return tokenizer

    # -- what is kept on disk -------------------------------------------------

    def save_state(self) -> None:
        """Write all that decides the next step, atomically."""
        state = {
            "identity": self._identity(),
            "step": self.trainer.step,
            "losses": self.losses,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "rng": random_state(self.trainer.device),
        }
        temporary = self.job.out / f".{STATE}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.job.out / STATE)
        except (OSError, RuntimeError) as error:
            # torch reports a write that the system refused as a RuntimeError about its own buffers
            raise _unwritable(self.job.out / STATE, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self) -> None:
        """Continue from the saved state. Raises InputError when it belongs to another run."""
        try:
            state = torch.load(self.job.out / STATE, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return  # interrupted before the first save: the run starts anew, which is the same thing
        except Exception as error:
            raise TrainingError(f"{self.job.out / STATE} cannot be read ({error}); delete it to start anew") from error
        mine = self._identity()
        theirs = state["identity"]
        changed = [f"{k}: {theirs.get(k)!r} -> {mine.get(k)!r}" for k in mine | theirs if theirs.get(k) != mine.get(k)]
        if changed:
            raise InputError(
                f"{str(self.job.out)!r} holds another run; resume it with its own options ({'; '.join(changed)})"
            )
        self.model.load_state_dict(state["model"])
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["rng"], self.trainer.device)
        step = self.trainer.step = state["step"]
        self.losses, self.history = state["losses"], state["history"]
        self.best, self.seconds = state["best"], state["seconds"]
        self.progress(step, f"resumed at step {step}")

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a resumed run to be the same run."""
        options = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in ("save_seconds", "device")}
        if self.options.data_format == PLAIN:
            options.pop("data_format")  # runs from before there was a choice go on
        if not self.options.label_all_pieces:
            options.pop("label_all_pieces")
        examples = [len(self.train.ids), len(self.validation.ids)]
        return {
            **options,
            "task": self.job.task.name,
            "checkpoint": self.job.folder.resolve().name,
            "examples": examples,
        }

    def _write(self, report: dict[str, Any]) -> None:
        """The Hugging Face checkpoint. finetune.json comes last: it marks the run as finished."""
        config = self.model.config
        config.finetuning_task = self.job.task.name
        config.approxrt_inputs = self.inputs
        if self.options.qat is not None:
            from approxrt.quantization.qat import round_weights

            round_weights(self.model)
        try:
            with quiet():
                self.model.save_pretrained(self.job.out)
        except (OSError, SafetensorError) as error:
            raise _unwritable(self.job.out, error) from error
        for path in self.job.out.glob("*.safetensors"):
            os.chmod(path, 0o666 & ~umask())  # safetensors writes files that nobody else may read
        (self.job.out / "tokenizer.json").write_bytes(self.tokenizer_json)
        for name in TOKENIZER_FILES:
            if (self.job.folder / name).is_file():
                shutil.copyfile(self.job.folder / name, self.job.out / name)
        (self.job.out / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        (self.job.out / STATE).unlink(missing_ok=True)

    def _report(self, dev: dict[str, float] | None, dev_examples: int) -> dict[str, Any]:
        import transformers

        return {
            "task": self.job.task.name,
            "checkpoint": self.job.folder.resolve().name,
            "out": self.job.out.name,
            "options": dataclasses.asdict(self.options),
            "examples": {
                "train": self.count(self.job.train),
                "validation": self.count(self.job.validation),
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
