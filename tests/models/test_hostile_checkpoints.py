"""Checkpoints, .gguf files and data that make a reader wait, read for ever, or ask for more memory than there is."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from bounded import assert_refused, run_bounded
from families import build_tokenizer

from approxrt.models.checkpoint import HUB_FILES

GIANT = 200_000_000_000
WEIGHTS = "model.safetensors"
BERT = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 100, "hidden_size": 32,
    "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64, "max_position_embeddings": 64,
    "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 32,
    "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64, "rms_norm_eps": 1e-6,
}  # fmt: skip


def folder_with(config: dict[str, object]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        build_tokenizer("bert").save(str(folder / "tokenizer.json"))
        (folder / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}")
        return folder

    return build


def fifo(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def giant(name: str, start: bytes = b"") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(start)
        os.truncate(folder / name, GIANT)

    return change


def giant_tensor(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [GIANT // 4], "data_offsets": [0, GIANT]}
    header = json.dumps({"bert.embeddings.word_embeddings.weight": entry}).encode()
    giant(WEIGHTS, len(header).to_bytes(8, "little") + header)(folder)
    os.truncate(folder / WEIGHTS, 8 + len(header) + GIANT)


def changed(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def header_of_100_mb(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((100_000_000).to_bytes(8, "little"))
    os.truncate(folder / WEIGHTS, 100_000_008)


# What approxrt and transformers open by themselves, whether the sound folder has it or not.
NAMES = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt",
         "special_tokens_map.json", "modules.json", "sentence_bert_config.json", "generation_config.json",
         "chat_template.jinja", "model.safetensors.index.json", "pytorch_model.bin")  # fmt: skip
SHARED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} is a FIFO": (fifo(name), f"{name} is a FIFO") for name in NAMES},
    **{f"{name} is sparse": (giant(name), f"{name} is sparse") for name in NAMES},
    "sparse weights with a header": (giant_tensor, f"{WEIGHTS} is sparse"),
    "a header of 100 MB": (header_of_100_mb, "its header has 100000000 bytes; the limit is"),
    "a vocabulary of 4000 digits": (changed(vocab_size=int(4000 * "9")), "vocab_size is 9999"),
}
ENCODERS = SHARED | {
    "an epsilon of 401 digits": (changed(layer_norm_eps=10**400), "layer_norm_eps is 1000"),
    "an activation that is a list": (changed(hidden_act=[[]]), "activation a list"),
    "a problem that is a list": (changed(problem_type=[[]]), "problem_type a list"),
    "2^31 layers": (changed(num_hidden_layers=2**31), "num_hidden_layers is 2147483648"),
}
DECODERS = SHARED | {
    "an epsilon of 401 digits": (changed(rms_norm_eps=10**400), "rms_norm_eps is 1000"),
    "a type of positions that is a list": (changed(rope_scaling={"rope_type": [[]]}), "RoPE scaling [[]]"),
    "biases of 2^44 weights": (
        changed(num_attention_heads=1 << 22, num_key_value_heads=1 << 22, head_dim=1 << 22), "is missing"
    ),
}  # fmt: skip


def build_cases(
    root: Path, sound: Callable[[Path], Path], cases: dict[str, tuple[Callable[[Path], object], str]]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return (folder, part of the message) by case."""
    folders, first = {}, sound(root / "sound")
    for i, (name, (change, _)) in enumerate(cases.items()):
        folders[name] = shutil.copytree(first, root / str(i))
        change(folders[name])
    return folders, {name: part for name, (_, part) in cases.items()}


def test_encoders_are_refused_at_once(tmp_path: Path) -> None:
    folders, parts = build_cases(tmp_path, folder_with(BERT), ENCODERS)
    outcomes = run_bounded("load_checkpoint", folders)
    unsupported = {"an activation that is a list", "a problem that is a list"}
    assert_refused({n: o for n, o in outcomes.items() if n not in unsupported}, "CheckpointError", parts)
    assert_refused({n: outcomes[n] for n in unsupported}, "UnsupportedModelError", parts)


def test_decoders_are_refused_at_once(tmp_path: Path) -> None:
    folders, parts = build_cases(tmp_path, folder_with(LLAMA), DECODERS)
    outcomes = run_bounded("load_any_decoder", folders)
    kind = outcomes.pop("a type of positions that is a list")
    assert_refused(outcomes, "CheckpointError", parts)
    assert kind.error == "UnsupportedModelError"


def test_every_file_that_is_downloaded_is_looked_at() -> None:
    from fnmatch import fnmatch

    assert [name for name in NAMES if not any(fnmatch(name, pattern) for pattern in HUB_FILES)] == []


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


ARCHITECTURE = key(b"general.architecture", 8, string(b"llama"))


def header(*keys: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    """The start of a .gguf file."""
    count = len(keys) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + b"".join(keys)


def strings(count: int, content: bytes) -> bytes:
    return key(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, count) + content)


GGUF: dict[str, tuple[bytes, str]] = {
    "2^40 keys": (header(ARCHITECTURE, count=1 << 40), "its header says 1099511627776 keys; the limit is"),
    "2^40 tensors": (header(ARCHITECTURE, tensors=1 << 40), "its header says 1099511627776 tensors; the limit is"),
    "2^40 strings": (header(strings(1 << 40, bytes(80))), "its header says 1099511627776 strings; the limit is"),
    "3 million empty strings": (header(strings(3_000_000, bytes(24_000_000))), "3000000 strings; the limit is"),
    "a million strings of two arrays": (
        header(strings(600_000, bytes(4_800_000)), key(b"b", 9, struct.pack("<IQ", 8, 600_000) + bytes(4_800_000))),
        "1200000 strings; the limit is",
    ),
    "a string of 40 MB": (header(key(b"a", 8, string(bytes(40_000_000)))), "its header goes on after"),
    "an array of 40 MB": (
        header(key(b"a", 9, struct.pack("<IQ", 4, 10_000_000) + bytes(40_000_000))), "its header goes on after"
    ),
    "an array of strings of 40 MB": (header(strings(1, string(bytes(40_000_000)))), "its header goes on after"),
    "a key of 1 MB": (header(key(bytes(1 << 20), 0, b"a")), "a key has 1048576 characters; the limit is"),
    "a key of 2^63 bytes": (header(struct.pack("<Q", 1 << 63) + b"a", count=1), "is truncated or damaged"),
}  # fmt: skip


def test_gguf_files_are_refused_at_once(tmp_path: Path) -> None:
    cases = {}
    for i, (name, (data, _)) in enumerate(GGUF.items()):
        cases[name] = tmp_path / f"{i}.gguf"
        cases[name].write_bytes(data)
    parts = {name: part for name, (_, part) in GGUF.items()}
    for name, start in (("sparse", b""), ("sparse with a header", header(ARCHITECTURE))):
        cases[name], parts[name] = tmp_path / f"{name}.gguf", "is sparse"
        giant(cases[name].name, start)(tmp_path)
    cases["a FIFO"], parts["a FIFO"] = tmp_path / "fifo.gguf", "is a FIFO"
    os.mkfifo(cases["a FIFO"])
    assert_refused(run_bounded("load_any_decoder", cases), "CheckpointError", parts)


def test_a_fifo_is_no_gguf_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file")
    outcomes = run_bounded("is_gguf", {"a FIFO": tmp_path / "file"})
    assert outcomes["a FIFO"].error == ""


def test_data_files_are_refused_at_once(tmp_path: Path) -> None:
    cases = {"a FIFO": tmp_path / "fifo.txt", "sparse": tmp_path / "sparse.txt", "a folder": tmp_path / "folder.txt"}
    os.mkfifo(cases["a FIFO"])
    giant("sparse.txt")(tmp_path)
    cases["a folder"].mkdir()
    parts = {"a FIFO": "is a FIFO", "sparse": "is sparse", "a folder": "is a folder"}
    assert_refused(run_bounded("read_texts", cases), "DataError", parts)
