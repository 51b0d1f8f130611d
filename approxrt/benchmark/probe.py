"""Measure what one engine costs a fresh process: `python -m approxrt.benchmark.probe FAMILY VARIANT PATH THREADS`.

Prints one JSON document: load_s (import, load and first answer), rss_mb (resident after it).
Run by `measure`, one process an engine, so that no engine inherits another's memory or imports.
"""

from __future__ import annotations

import json
import sys
import time

start = time.perf_counter()


def main(family: str, variant: str, path: str, threads: str) -> None:
    """Open the engine, answer 1 x 16 tokens, report."""
    from pathlib import Path

    import numpy as np

    from approxrt.peers.engines import family_module

    engine = family_module(family).open_engine(variant, Path(path), int(threads))
    opened = time.perf_counter()
    engine.run(np.full((1, 16), 5, np.int64))
    done = time.perf_counter()
    print(json.dumps({"load_s": opened - start, "first_answer_s": done - start, "rss_mb": resident_mb()}))


def resident_mb() -> float:
    """Resident set of this process in MB (10^6 bytes)."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:5])
