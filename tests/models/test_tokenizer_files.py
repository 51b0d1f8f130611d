"""Whatever a checkpoint's tokenizer files say, texts are read as transformers reads them, or the conversion refuses."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, build_checkpoint, build_tokenizer
from originals import assert_close, converted, edit_json, transformers_logits

pytest.importorskip("transformers", reason="the original is transformers")

import approxrt
from approxrt.errors import CheckpointError, CheckpointWarning, InputError, TruncationWarning
from approxrt.models.checkpoint import load_checkpoint
from approxrt.models.hard_strings import HARD_PAIRS, HARD_TEXTS
from approxrt.models.tokenizer import load_tokenizer

LONG = " ".join(f"film {i} good bad" for i in range(60))
TEXTS = ["Hello World, CafÉ!", "a film", "naïve [SEP] 你好 [MASK] good", LONG]
PAIRS = [("a gripping film", "about Bread"), (LONG, "short"), ("short", LONG), (LONG, "bad " + LONG)]


def logits(folder: Path, items: list, **options: Any) -> np.ndarray:
    """Ours, of texts that may be over the limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return converted(folder, **options).logits(items)


BERT = {"tokenizer_class": "BertTokenizer", "model_max_length": 64}


@pytest.mark.parametrize(
    ("config", "lower"),
    [
        ({}, True),
        ({"do_lower_case": False}, True),
        ({"do_lower_case": True}, False),
        ({"strip_accents": False}, True),
        ({"strip_accents": True, "do_lower_case": False}, False),
        ({"tokenize_chinese_chars": False}, True),
        ({"truncation_side": "left"}, True),
        ({"truncation_side": "left", "model_max_length": 33}, True),
        ({"model_max_length": 33}, True),
        ({"model_input_names": ["input_ids", "attention_mask"]}, True),
        ({"sep_token": "[MASK]"}, True),
        ({"padding_side": "left"}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ({"tokenizer_class": "DistilBertTokenizer"}, True),
    ],
)
def test_tokenizer_config_wins_where_it_does_in_transformers(tmp_path: Path, config: dict, lower: bool) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", positions=64)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = lower
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_json(folder / "tokenizer_config.json", **{**BERT, "do_lower_case": lower, **config})
    items = [*TEXTS, *PAIRS]
    assert_close(logits(folder, items), transformers_logits(folder, items))


def test_a_map_of_special_tokens_counts(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", positions=64)
    edit_json(folder / "tokenizer_config.json", **BERT)
    names = {"cls_token": "[CLS]", "sep_token": "[MASK]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    edit_json(folder / "special_tokens_map.json", **names)
    assert_close(logits(folder, TEXTS), transformers_logits(folder, TEXTS))


@pytest.mark.parametrize("lower", [True, False])
def test_older_files_without_tokenizer_json(tmp_path: Path, lower: bool) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", positions=64)
    vocabulary = build_tokenizer("bert").get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", **BERT, do_lower_case=lower)
    assert_close(logits(folder, TEXTS), transformers_logits(folder, TEXTS))


def test_a_template_that_the_file_lacks_is_the_class_s(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", positions=64)
    edit_json(folder / "tokenizer.json", post_processor=None)
    edit_json(folder / "tokenizer_config.json", **BERT)
    assert_close(logits(folder, TEXTS + PAIRS), transformers_logits(folder, TEXTS + PAIRS))


@pytest.mark.parametrize("config", [{}, {"add_prefix_space": True}, {"truncation_side": "left"}])
def test_byte_level_tokenizers(tmp_path: Path, config: dict) -> None:
    folder = build_checkpoint("roberta", tmp_path / "c", positions=64)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="RobertaTokenizer", **config)
    assert_close(logits(folder, TEXTS + PAIRS), transformers_logits(folder, TEXTS + PAIRS))


def test_a_model_without_token_types_takes_pairs(tmp_path: Path) -> None:
    """DistilBERT's tokenizer gives the second text type 1, which transformers drops."""
    folder = build_checkpoint("distilbert", tmp_path / "c", positions=64)
    assert_close(logits(folder, PAIRS), transformers_logits(folder, PAIRS))


def test_pairs_of_a_type_that_the_model_has_not_are_refused(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", positions=64)
    edit_json(folder / "config.json", type_vocab_size=1)
    _cut_rows(folder, "bert.embeddings.token_type_embeddings.weight", 1)
    model = converted(folder)
    assert_close(model.logits(["a film"]), transformers_logits(folder, ["a film"]))
    with pytest.raises(InputError, match="this model takes single texts"):
        model.logits([("a", "b")])
    edit_json(folder / "config.json", approxrt_inputs="pair")
    with pytest.raises(CheckpointError, match="token types up to 1, and the model has 1"):
        load_checkpoint(folder)


def test_an_added_token_without_a_row(tmp_path: Path) -> None:
    """transformers runs such a checkpoint until a text has the token."""
    folder = build_checkpoint("bert", tmp_path / "c", positions=64)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit_json(folder / "tokenizer_config.json", **BERT, additional_special_tokens=["[NEW]"])
    with pytest.warns(CheckpointWarning, match=rf"added tokens '\[NEW\]' \(id {rows}\): texts with them"):
        out = approxrt.convert(folder, tmp_path / "a", bits=32)
    model = approxrt.load(out)
    assert_close(model.logits(["a film"]), transformers_logits(folder, ["a film"]))
    with pytest.raises(InputError, match=rf"text 1 has the token '\[NEW\]' \(id {rows}\)"):
        model.logits(["a film", "a [NEW] film"])


def test_words_without_a_row_are_refused(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", positions=64)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    _cut_rows(folder, "bert.embeddings.word_embeddings.weight", rows - 3)
    edit_json(folder / "config.json", vocab_size=rows - 3)
    with pytest.raises(
        CheckpointError, match=f"3 tokens beyond the embedding table's {rows - 3} rows: .*id {rows - 3}"
    ):
        load_checkpoint(folder)


def test_what_no_file_can_say_is_refused(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c")
    edit_json(folder / "tokenizer_config.json", **BERT, split_special_tokens=True)
    with pytest.raises(CheckpointError, match="split_special_tokens=true"):
        load_checkpoint(folder)


def test_other_ids_are_found(tmp_path: Path) -> None:
    """The comparison itself, with a tokenizer that was tampered with after it was read."""
    folder = build_checkpoint("bert", tmp_path / "c")
    read = load_tokenizer(folder)
    read.check_ids()
    read.original.backend_tokenizer.normalizer.lowercase = False
    with pytest.raises(
        CheckpointError, match=r"other ids than transformers' \w+ for \d+ of \d+ test strings, 'Hello World'"
    ):
        read.check_ids()


@pytest.mark.parametrize("family", [*FAMILIES, "camembert", "xlm-roberta"])
def test_every_family_s_tokenizer_on_hard_strings(tmp_path: Path, family: str) -> None:
    """`load_tokenizer` compares ids by itself; here the artifact's own encoder is compared, cut to its limit."""
    import transformers

    folder = build_checkpoint(family, tmp_path / "c", positions=32, layers=1)
    original = transformers.AutoTokenizer.from_pretrained(folder)
    model = converted(folder)
    items = [item for item in (*HARD_TEXTS, *HARD_PAIRS) if "<pad>" not in item]
    ours = model.encode(items)
    for item, ids in zip(items, ours.ids, strict=True):
        parts = (item,) if isinstance(item, str) else item
        assert ids == original(*parts, truncation=True, max_length=32)["input_ids"]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_padding_inside_a_text(tmp_path: Path, family: str) -> None:
    """These models count positions without padding tokens, wherever they stand; the engine has no such positions."""
    model = converted(build_checkpoint(family, tmp_path / "c", positions=32, layers=1))
    with pytest.raises(InputError, match="text 1 has the padding token '<pad>' inside"):
        model.logits(["a film", "a <pad> film"])
    with pytest.raises(InputError, match=r"sequence 0 has the padding token \(id 1\) inside"):
        model.forward([[0, 5, 1, 2]])
    bert = converted(build_checkpoint("bert", tmp_path / "b", layers=1))
    assert_close(bert.logits(["a [PAD] film"]), transformers_logits(tmp_path / "b", ["a [PAD] film"]))


def test_training_cuts_at_the_same_side(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    from approxrt.runtime.tokenize import cut_to

    folder = build_checkpoint("bert", tmp_path / "c")
    edit_json(folder / "tokenizer_config.json", **BERT, truncation_side="left")
    tokenizer = Tokenizer.from_str(load_checkpoint(folder).tokenizer_json.decode())
    cut_to(tokenizer, 5)
    assert tokenizer.encode("good bad great awful fine").tokens == ["[CLS]", "great", "awful", "fine", "[SEP]"]


def _cut_rows(folder: Path, name: str, rows: int) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name] = np.ascontiguousarray(weights[name][:rows])
    temporary = folder / "cut.safetensors"
    save_file(weights, temporary, {"format": "pt"})
    shutil.move(temporary, folder / "model.safetensors")
