"""The benchmark's random checkpoint: the same every time, whole, and convertible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

import approxrt
from approxrt.peers.source import SAMPLE_TEXTS, Source

TINY = ("--layers", "2", "--hidden", "64", "--heads", "4", "--ffn", "96", "--vocab", "900", "--labels", "3")


def write(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "random_checkpoint.py"), str(folder), *options]
    env = {"PYTHONPATH": f"{ROOT}:{':'.join(sys.path)}", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "checkpoint"
    done = write(folder, *TINY)
    assert done.returncode == 0, done.stderr
    return folder


def test_converted_answers_as_torch_does(checkpoint: Path, tmp_path: Path) -> None:
    approxrt.convert(checkpoint, tmp_path / "f32", bits=32)
    model = approxrt.load(tmp_path / "f32", threads=1)
    assert (model.spec.hidden_size, len(model.spec.layers), model.spec.vocab_size) == (64, 2, 900)
    assert len(model.labels) == 3
    source = Source(checkpoint)
    answers = model.forward(source.sample_ids)
    np.testing.assert_allclose(answers, source.reference, atol=1e-4)
    # Random, but not dead: different texts get different answers.
    assert np.ptp(answers, axis=0).min() > 1e-2
    np.testing.assert_array_equal(model.logits(list(SAMPLE_TEXTS)), answers)


def test_its_tokenizer_knows_every_plain_text(checkpoint: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 900
    unknown = tokenizer.token_to_id("[UNK]")
    for text in (*SAMPLE_TEXTS, "qzx ~ 7%[}"):
        assert unknown not in tokenizer.encode(text).ids
    # Words of the sample texts are whole tokens, and a pair has two types.
    assert tokenizer.encode("the plot wanders").tokens == ["[CLS]", "the", "plot", "wanders", "[SEP]"]
    assert tokenizer.encode("a", "b").type_ids == [0, 0, 0, 1, 1]


@pytest.mark.slow
def test_same_arguments_same_files(checkpoint: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "again", *TINY).returncode == 0
    assert write(tmp_path / "other", *TINY, "--seed", "1").returncode == 0
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (checkpoint / name).read_bytes(), name
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "word"), [(("--hidden", "65"), "--heads"), (("--vocab", "20"), "--vocab"), ((), "out")]
)
def test_impossible_sizes_are_refused(tmp_path: Path, options: tuple[str, ...], word: str) -> None:
    done = write(tmp_path / "x", *options) if options else write(Path("--seed"), "1")
    assert done.returncode != 0
    assert word in done.stderr
    assert not (tmp_path / "x").exists()
