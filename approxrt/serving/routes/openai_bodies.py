"""Bodies of /v1/completions and /v1/chat/completions.

A field that is null has its default, as with OpenAI. top_k, min_p and repetition_penalty come on top of OpenAI's
fields. What cannot be done (several choices, log probabilities, tools, penalties of OpenAI's kind) is refused, unless
it asks for what is done anyway.
"""

from __future__ import annotations

import sys
from typing import Annotated, ClassVar

from pydantic import Field

from approxrt.runtime.generation.sampling import Sampling
from approxrt.serving.errors import RequestError
from approxrt.serving.routes.body import Body, Integer, Neutral, Real
from approxrt.serving.routes.common import Strings, TokenIdLists, TokenIds
from approxrt.serving.routes.openai_messages import ChatMessage

RANDOM_SEED = -1  # llama.cpp's word for a new one every time
UNLIMITED = -1  # and for as many tokens as the context has room for

# Fields of OpenAI, llama.cpp and vLLM with the values that change nothing.
NEUTRAL: Neutral = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "dry_multiplier": (0,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({}, []),
    "logprobs": (False,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "n_probs": (0,),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "repeat_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "timings_per_token": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_n_sigma": (-1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}


class StreamOptions(Body):
    include_usage: bool | None = None

    plain: ClassVar[Neutral] = {"include_obfuscation": (True, False), "continuous_usage_stats": (False,)}


class TextBody(Body):
    """The fields that both routes share."""

    model: str | None = None
    max_tokens: Integer | None = None
    max_completion_tokens: Integer | None = None
    temperature: Real | None = None
    top_p: Real | None = None
    stop: str | Strings | None = None
    seed: Integer | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Integer | None = None
    min_p: Real | None = None
    repetition_penalty: Real | None = None

    plain: ClassVar[Neutral] = NEUTRAL

    def refuse_unknown(self, place: str = "") -> None:
        """Refuse unknown fields of the inner object, too."""
        super().refuse_unknown(place)
        if self.stream_options is not None:
            self.stream_options.refuse_unknown(f"{place}stream_options.")

    def sampling(self) -> Sampling:
        """Return the sampling with OpenAI's defaults. Raises InputError for what is out of range."""
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        if top_p == 0:
            # The fewest tokens that have a share of nothing: the likeliest one, as with llama.cpp.
            temperature, top_p = 0.0, 1.0
        return Sampling(
            temperature,
            # -1 keeps every token, as 0 does: so vLLM and llama.cpp.
            max(self.top_k or 0, 0),
            top_p,
            self.min_p or 0.0,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
            self._seed(),
        )

    def _seed(self) -> int | None:
        if self.seed is None or self.seed == RANDOM_SEED:
            return None
        # Any number is a seed.
        return self.seed if self.seed >= 0 else self.seed % (1 << 64)

    def new_tokens(self) -> int | None:
        """The limit on new tokens; None where none is given. Raises RequestError."""
        given = {
            name: value
            for name, value in (("max_tokens", self.max_tokens), ("max_completion_tokens", self.max_completion_tokens))
            if value is not None
        }
        if len(set(given.values())) > 1:
            raise RequestError("max_tokens and max_completion_tokens are two limits: leave one out", param="max_tokens")
        for name, value in given.items():
            if value == UNLIMITED:
                return sys.maxsize
            if value < 1:
                raise RequestError(f"{name} is {value}; it must be at least 1", param=name)
            return value
        return None

    def stops(self) -> tuple[str, ...]:
        """The strings that end a text."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionBody(TextBody):
    prompt: str | Strings | TokenIds | TokenIdLists


class ChatBody(TextBody):
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)]

    def refuse_unknown(self, place: str = "") -> None:
        """Refuse unknown fields of the messages, too."""
        super().refuse_unknown(place)
        for i, message in enumerate(self.messages):
            message.refuse_unknown(f"{place}messages[{i}].")
