"""Cut a text into words before merging, as the byte-level vocabularies of .gguf files do: `tokenizer.ggml.pre` by name.

A kind is a list of regular expressions. Each cuts what the one before it has left into its matches and what lies
between them. The names are llama.cpp's; the expressions are those of the models' own tokenizer.json files where these
can be had exactly (`tokenizers` knows all Unicode categories and flags, llama.cpp writes some of them around), and
llama.cpp's otherwise. Kinds that are no list of expressions over bytes are in `NOT_EXPRESSIBLE`, to be refused by name.
"""
# ruff: noqa: RUF001 (characters that look like others are meant)

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WHITE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(digits: str, contractions: str = _CONTRACTIONS + "|") -> str:
    """The expression of GPT-4 and after: contractions, words, digits, punctuation, line ends, white space."""
    return rf"{contractions}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_WHITE}"


def _cased(digits: str, after: str, marks: str = r"\p{M}") -> str:
    """The expression of GPT-4o: words end where lower case turns to upper case."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}{marks}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}{marks}]"
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{after}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{after}"
    return rf"{word}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_WHITE}"


_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")
_GPT4O = _cased(r"\p{N}{1,3}", _CONTRACTIONS + "?")
_HAN = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _WHITE
)
_SPARK = _DEEPSEEK3.replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]")
# Letters with case, as DeepSeek's first tokenizer.json spells them out; those that editors normalise are escaped.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌ"
    "ῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_SENTENCES = " ?[^(\\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class PreTokenizer:
    """`patterns` cut a text; `whole_words` are looked up before they are merged; `bos` is put before a prompt unless
    the file says otherwise."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False


def _table() -> dict[str, PreTokenizer]:
    kinds: dict[str, PreTokenizer] = {}

    def add(names: str, *patterns: str, whole_words: bool = False, bos: bool = False) -> None:
        kinds.update(dict.fromkeys(names.split(), PreTokenizer(patterns, whole_words, bos)))

    add("default", r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
    add(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _LLAMA3,
        whole_words=True,
        bos=True,
    )
    add("dbrx smaug-bpe glm4 chatglm-bpe", _LLAMA3)
    cascade = "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    add("jais-2", _LLAMA3.replace(r"\s+(?!\S)|\s+", cascade + r"|\s{1}"))
    add("minicpm5", r"\p{N}{1,3}", _words(r"\p{N}+"), whole_words=True)
    add(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert exaone4 mpt olmo jais "
        "trillion granite-docling",
        _GPT2,
    )
    add("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", r"\p{N}", _GPT2)
    add("qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan grok-2 solar-open", _QWEN2)
    add(
        "qwen35",
        _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"),
    )
    add("ufakzeka", _words(r"\p{N}", contractions=""))
    add(
        "deepseek-llm",
        r"[\r\n]",
        rf"\s?[{_CASED_LETTERS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        _CJK,
        r"\p{N}+",
    )
    add("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
    add("deepseek-v3 hunyuan-dense joyai-llm hy_v4", r"\p{N}{1,3}", _HAN, _DEEPSEEK3)
    add("spark2_5", r"\p{N}{1,3}", _HAN, _SPARK, r"\p{N}")
    add(
        "youtu",
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + _HAN,
        _cased(r"\p{N}", _CONTRACTIONS + "?"),
        whole_words=True,
    )
    add("falcon", r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
    add("bloom poro-chat gpt3-finnish", _SENTENCES)
    add("viking", _SENTENCES, r"\p{N}")
    add("tekken", _cased(r"\p{N}", ""), whole_words=True, bos=True)
    add("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O)
    add("granite-embed-multi-97m", _GPT4O, whole_words=True)
    add("tiny_aya cohere2moe", r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)
    add(
        "bailingmoe bailingmoe2 llada-moe",
        _words(r"\p{N}", r"'(?i:[sdmt]|ll|ve|re)|").replace(r"\s*[\r\n]+", r"\s*[\r\n]"),
    )
    add("seed-coder", _QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+"))
    add("laguna", r"[^\n]+|[\n]+", _QWEN2)
    add(
        "exaone-moe",
        _QWEN2.replace(r"?\p{L}+", r"?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+")
        .replace(r"+[\r\n]*|", r"+[\r\n/]?|")
        .replace(r"\s*[\r\n]+", r"\s*[\r\n]"),
    )
    add(
        "chameleon",
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
        bos=True,
    )
    return kinds


PRE_TOKENIZERS = _table()
NOT_EXPRESSIBLE = {
    "kimi-k2": "its words are found by code",
    "afmoe": "its digits are grouped by code",
    "superbpe": "its digits are grouped by code",
    "gemma4": "it merges characters, not bytes",
    "granite-embed-multi-311m": "it merges characters, not bytes",
    "sarvam-moe": "it merges characters, not bytes",
    "whitespace": "it merges characters, not bytes",
    "jina-v1-en": "it puts a separator after the text",
    "jina-v2-code": "it puts a separator after the text",
    "roberta-bpe": "it puts a separator after the text",
}
