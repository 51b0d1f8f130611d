"""Where the repository lies, and real models and data beside it, which tests skip without."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("APPROXRT_SHARED", ROOT.parent / "shared"))
