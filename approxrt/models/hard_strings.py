# ruff: noqa: RUF001 - what looks like other characters is here to look like them
"""Texts on which tokenizers that seem alike differ: case, accents, scripts, white space, control and special tokens."""

from __future__ import annotations

HARD_TEXTS = (
    "Hello World",
    "an ordinary sentence, in lower case; with punctuation - and numbers: 3.14, 1,000 & 50%!",
    "CafÉ naïve Ångström ŒUVRE Straße İstanbul ΣΊΣΥΦΟΣ ﬁne ½ ²",
    "e\u0301 a\u0308 n\u0303 \u1e9b\u0323",  # accents apart from their letters
    "你好，世界。今天天气很好 東京 서울 ไทย हिन्दी עברית العربية",
    "Emoji 😀👩‍👩‍👧 🇫🇷 ❤️ and \U0001f9d1\U0001f3fd",
    "tab\tline\nline\r\nnbsp\u00a0thin\u2009zero\u200bwidth \ufeff mark",
    "control \x00 \x01 \x7f \x85 \ufffd end",
    "  leading, trailing and   inner   spaces  ",
    "don't won't I'm they'll we've o'clock 'quoted' \"double\" “curly” ‘single’ …",
    "snake_case CamelCase kebab-case http://example.org/a?b=c#d user@example.org C++ #tag @name",
    "x" * 120 + " " + "antidisestablishmentarianism" * 3,
    "[CLS] [SEP] [PAD] [MASK] [UNK] inside a text",
    "<s> </s> <unk> <mask> <|endoftext|> inside a text",
    "[cls]<S>[NEW]<extra_id_0>▁under▁score Ġword ##piece @@",
    "a[SEP]b</s>c<mask>d",
    " ".join(f"word{i} and more" for i in range(60)),
    "1234567890 12 345 6789 ٣٤٥ Ⅷ ① x² H₂O",
    "MiXeD cAsE ÀÉÎÕÜ àéîõü ÇçŞşĞğ Łódź Ørsted þorn ÐðÆæ",
    "",
)

HARD_PAIRS = (
    ("a question?", "its answer."),
    ("Upper CASE Ünïcode", "lower 世界 😀"),
    ("short", " ".join(f"long{i} text" for i in range(40))),
    (" ".join(f"first{i} text" for i in range(40)), "short"),
    (" ".join(f"a{i}" for i in range(40)), " ".join(f"b{i}" for i in range(40))),
    ("with [SEP] inside </s>", "and <mask> [MASK]"),
)
