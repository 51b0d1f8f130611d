"""The files of an artifact folder, and words for what the system says about them; shared by writer and reader."""

from __future__ import annotations

import errno
import os

from approxrt.artifact.files import UnsuitableFile

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
CARD = "card.json"

REQUIRED = (CONFIG, WEIGHTS, TOKENIZER, CARD)
# Files whose size and SHA-256 config.json records. The card is not among them: measurements are added to it later.
HASHED = (WEIGHTS, TOKENIZER)
# Files that a hub or a person adds beside the model; nothing reads them. Names that start with a dot are ignored too.
IGNORED = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE")


def umask() -> int:
    """The modes that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def explain_os_error(error: OSError) -> str:
    """Return what the system said, and what to do about it."""
    if isinstance(error, UnsuitableFile):
        return str(error)
    mends = {
        errno.ENOSPC: "free some space or choose another disk",
        errno.EDQUOT: "the quota is used up: free some space or choose another disk",
        errno.EFBIG: "the file would exceed the size limit of this process or file system (ulimit -f)",
        errno.EACCES: "no permission: choose a folder that you may use, or change its mode",
        errno.EPERM: "not permitted: choose a folder that you may use",
        errno.EROFS: "the file system is read-only: choose another one",
        errno.ENOENT: "a part of the path does not exist",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EIO: "the disk reports an error",
    }
    text = (error.strerror or str(error)).lower()
    where = f" ({os.fspath(error.filename)!s})" if isinstance(error.filename, str | os.PathLike) else ""
    mend = mends.get(error.errno or 0)
    return f"{text}{where}" + (f"; {mend}" if mend else "")


def unreadable(name: str, error: OSError) -> str:
    """Return a sentence about a file that cannot be read: what is the matter with `name`."""
    between = " " if isinstance(error, UnsuitableFile) else " cannot be read: "
    return f"{name}{between}{explain_os_error(error)}"
