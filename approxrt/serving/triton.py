"""A model repository for NVIDIA Triton Inference Server's Python backend.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/1/model.py       reads texts, answers arrays: what is below as MODEL
    REPOSITORY/NAME/1/artifact/      a copy of the artifact

The server's Python needs approxrt installed (`pip install approxrt`: numpy, tokenizers and safetensors come along).
Inputs and outputs are those of `approxrt serve`'s KServe routes: "text" (and "text_pair") in; "logits", "label" and
"score", or "embedding", out. Triton batches requests before they come here; a pass takes all of a batch at once.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.errors import InputError, UnsupportedTaskError

MAX_BATCH = 256
DELAY_US = 500  # that Triton waits for more requests to share a pass

MODEL = '''"""approxrt in Triton's Python backend. Written by `approxrt export-triton`."""

import os

import numpy as np
import triton_python_backend_utils as pb_utils

import approxrt


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"], "artifact")
        self.model = approxrt.load(folder, device="cpu", threads={threads})

    def execute(self, requests):
        """One pass for the texts of all requests; a request that cannot be answered gets an error of its own."""
        texts, counts, responses = [], [], []
        for request in requests:
            try:
                own = self.texts(request)
                self.model.encode(own)  # what is wrong with a text is its own request's error
                texts += own
                counts.append(len(own))
                responses.append(None)
            except Exception as error:
                counts.append(0)
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
        outputs = self.outputs(texts) if texts else {{}}
        start = 0
        for i, count in enumerate(counts):
            if responses[i] is None:
                part = slice(start, start + count)
                tensors = [pb_utils.Tensor(name, values[part]) for name, values in outputs.items()]
                responses[i] = pb_utils.InferenceResponse(tensors)
                start += count
        return responses

    def finalize(self):
        self.model = None

    def texts(self, request):
        first = self.strings(request, "text")
        second = self.strings(request, "text_pair")
        if first is None or len(first) == 0:
            raise ValueError("input 'text' is empty: give at least one text")
        return first if second is None else list(zip(first, second))

    def strings(self, request, name):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        return [item.decode("utf-8") for item in tensor.as_numpy().reshape(-1)]

    def outputs(self, texts):
        if not self.model.labels:
            return {{"embedding": self.model.embed(texts)}}
        logits = self.model.logits(texts)
        scores = self.model.scores(logits)
        best = scores.argmax(axis=1)
        labels = np.array([[self.model.labels[j].encode()] for j in best], dtype=np.object_)
        score = scores[np.arange(len(best)), best].astype(np.float32)[:, None]
        return {{"logits": logits, "label": labels, "score": score}}
'''


def export(
    artifact: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str | None = None,
    threads: int | None = None,
    instances: int = 1,
) -> Path:
    """Write the model's folder into `repository` and return it.

    name       the model's in Triton; default: the artifact folder's
    threads    of an instance's engine; None: what `approxrt.load` takes
    instances  processes that Triton runs of it

    Raises InputError for a name that Triton would refuse or a folder that is there, ArtifactError, and
    UnsupportedTaskError for a decoder.
    """
    source = Path(artifact)
    read = read_artifact(source)
    spec = read.any_spec
    if not isinstance(spec, ModelSpec):
        raise UnsupportedTaskError(f"{str(source)!r} generates text; only encoders are exported to Triton")
    if spec.per_token:
        raise UnsupportedTaskError(
            f"{str(source)!r} is for {spec.task_type}; only classifiers and embedders are exported to Triton: serve it "
            "with `approxrt serve`"
        )
    name = name or source.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name) or name in (".", ".."):
        raise InputError(f"name is {name[:80]!r}; it may have letters, digits and _ . - only")
    for number, value in (("threads", threads), ("instances", instances)):
        if value is not None and value < 1:
            raise InputError(f"{number} is {value}; it must be at least 1")
    target = Path(repository) / name
    if target.exists():
        raise InputError(f"{str(target)!r} is there already: remove it or give another --name")
    version = target / "1"
    version.mkdir(parents=True)
    shutil.copytree(source, version / "artifact")
    (version / "model.py").write_text(MODEL.format(threads=threads), encoding="utf-8")
    (target / "config.pbtxt").write_text(_config(name, spec, instances), encoding="utf-8")
    return target


def _config(name: str, spec: ModelSpec, instances: int) -> str:
    inputs = [("text", False)] + ([("text_pair", spec.inputs != "pair")] if spec.inputs != "single" else [])
    if spec.labels:
        outputs = [("logits", "TYPE_FP32", len(spec.labels)), ("label", "TYPE_STRING", 1), ("score", "TYPE_FP32", 1)]
    else:
        outputs = [("embedding", "TYPE_FP32", spec.vector_size)]
    lines = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {MAX_BATCH}"]
    for part, optional in inputs:
        more = ", optional: true" if optional else ""
        lines.append(f'input {{ name: "{part}", data_type: TYPE_STRING, dims: [1]{more} }}')
    lines += [f'output {{ name: "{part}", data_type: {kind}, dims: [{width}] }}' for part, kind, width in outputs]
    lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}")
    lines.append(f"instance_group [ {{ count: {instances}, kind: KIND_CPU }} ]")
    return "\n".join(lines) + "\n"
