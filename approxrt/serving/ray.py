"""Many machines with Ray: the HTTP server as a Ray Serve application, and artifacts over a Ray dataset.

    serve.run(application(["/models/sst2"], min_replicas=1, max_replicas=8))       # Python
    serve run approxrt.serving.ray:build artifacts=/models/sst2                     # its command line

A replica is the whole application of `approxrt.serving.app`, with its batching, and answers the same routes; Ray
starts and stops replicas by how many requests are under way. Artifacts must be at the same path on every node.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from approxrt.errors import InputError, MissingDependencyError, TruncationWarning
from approxrt.serving.settings import Settings


def application(
    artifacts: Sequence[str],
    threads: int = 1,
    min_replicas: int = 1,
    max_replicas: int = 1,
    target_ongoing_requests: int = 32,
    settings: Settings | None = None,
) -> Any:
    """A `ray.serve.Application` for PATHs or NAME=PATHs.

    threads                  of a replica's engine: as many CPUs as Ray sets aside for it
    min_replicas, max_replicas, target_ongoing_requests   Ray's autoscaling: as many replicas as keep each at this
                             number of requests under way
    settings                 limits of each replica's server
    """
    try:
        from ray import serve
    except ImportError:
        raise MissingDependencyError("ray[serve]", "ray", "a Ray Serve application") from None
    if not artifacts:
        raise InputError("no artifact to serve: give at least one")
    for name, value in (("threads", threads), ("min_replicas", min_replicas), ("target", target_ongoing_requests)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if max_replicas < min_replicas:
        raise InputError(f"max_replicas is {max_replicas}; it must be at least min_replicas, which is {min_replicas}")
    # Names are the proxy's to check: requests reach a replica by whatever name Ray is asked for.
    paths, limits = list(artifacts), settings or Settings(allowed_hosts=("*",))

    # Ray runs this in the replica: models are loaded there, and nothing is pickled but paths and numbers.
    def build_app() -> Any:
        from approxrt.serving.app import create_app
        from approxrt.serving.registry import open_models

        return create_app(open_models(paths, threads), limits)

    deployment = serve.deployment(
        name="approxrt",
        ray_actor_options={"num_cpus": threads},
        # The application has a queue and limits of its own.
        max_ongoing_requests=max(2 * target_ongoing_requests, 100),
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_ongoing_requests,
        },
    )(serve.ingress(build_app)())
    return deployment.bind()


def build(args: dict[str, str]) -> Any:
    """Build the application for `serve run approxrt.serving.ray:build artifacts=A,B threads=2 max_replicas=4`."""
    given = dict(args)
    artifacts = [path for path in given.pop("artifacts", "").split(",") if path]
    known = ("threads", "min_replicas", "max_replicas", "target_ongoing_requests")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(f"unknown arguments {', '.join(unknown)}; known: artifacts, {', '.join(known)}")
    try:
        numbers = {name: int(value) for name, value in given.items()}
    except ValueError as error:
        raise InputError(f"arguments must be integers: {error}") from None
    return application(artifacts, settings=None, **numbers)


class BatchPredictor:
    """Predict in `dataset.map_batches(BatchPredictor, fn_constructor_args=(ARTIFACT,), concurrency=2,
    batch_format="numpy")`.

    A batch's column `text` (and `pair`, if that is given) is read; a classifier adds `label` (str) and `score`
    (float32), a regressor `score`, an embedder `embedding` (float32 [n, hidden]).
    """

    def __init__(
        self, artifact: str, column: str = "text", pair: str | None = None, threads: int = 1, truncate: bool = True
    ) -> None:
        from approxrt.runtime.loading import load

        self.model = load(artifact, device="cpu", threads=threads)
        if self.model.spec.per_token:
            raise InputError(f"{artifact!r} is for {self.model.spec.task_type}; use its tag or answer by yourself")
        self.column, self.pair, self.truncate = column, pair, truncate

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with its answers."""
        for name in (self.column, self.pair):
            if name is not None and name not in batch:
                raise InputError(f"the dataset has no column {name!r}; it has {', '.join(sorted(batch))}")
        texts: list[Any] = [str(text) for text in batch[self.column]]
        if self.pair is not None:
            texts = list(zip(texts, (str(text) for text in batch[self.pair]), strict=True))
        if not self.model.labels:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncationWarning)
                return batch | {"embedding": self.model.embed(texts, truncate=self.truncate)}
        answers = [answer[0] for answer in self.model.classify(texts, truncate=self.truncate)]
        scores = np.array([answer.score for answer in answers], np.float32)
        if self.model.spec.task_type == "regression":
            return batch | {"score": scores}
        return batch | {"label": np.array([answer.label for answer in answers]), "score": scores}
