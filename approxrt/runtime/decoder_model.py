"""The public object of a decoder: `approxrt.load` returns it for an artifact that generates."""

from __future__ import annotations

import asyncio
import dataclasses
import warnings
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from approxrt.artifact.reader import Artifact
from approxrt.errors import InputError, TextTooLongError, TruncationWarning
from approxrt.runtime.chat.template import ChatTokenizer, Conversation, Messages, render
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.failures import panics_as_errors
from approxrt.runtime.generation.sampling import Sampling
from approxrt.runtime.generation.sequences import Request, Sequence, grow, grow_together, step
from approxrt.runtime.generation.streaming import check_stop, hidden_tokens
from approxrt.runtime.long_text import encode_apart
from approxrt.runtime.model import Model
from approxrt.runtime.tokenize import load_tokenizer

Prompt = str | Messages | Conversation


@dataclass(frozen=True)
class Generated:
    """One text. finish_reason: "eos" (the model ended it), "stop" (a stop string), "length" (max_new_tokens)."""

    text: str
    finish_reason: str
    prompt_tokens: int
    new_tokens: int


class DecoderModel(Model):
    """A loaded decoder. Methods may be called from several threads at once.

    A prompt is a str or a conversation, which goes through the artifact's chat template: a list of
    {"role": ..., "content": ...}, or an `approxrt.runtime.chat.template.Conversation`. Its text does not depend on what
    else runs beside it, nor on the number of threads.
    """

    def __init__(
        self, artifact: Artifact, threads: int | None = None, cache_kind: str | None = None, device: str = "cpu"
    ) -> None:
        super().__init__(artifact)
        self.decoder_spec = artifact.decoder_spec
        self._decoder = _engine(artifact, threads, cache_kind, device)
        self._tokenizer = load_tokenizer(artifact)
        self._tokenizer.no_truncation()
        self._hidden = hidden_tokens(self._tokenizer)
        self._chat = ChatTokenizer(self._tokenizer)
        self._decoder.wait()
        self._artifact = artifact.without_weights()

    @property
    def labels(self) -> tuple[str, ...]:
        """None: a decoder has no classes."""
        return ()

    @property
    def _runner(self) -> DecoderEngine:
        return self._decoder

    def _instead(self) -> str:
        return f"a {self.decoder_spec.architecture} decoder; use generate or forward"

    @property
    def engine(self) -> DecoderEngine:
        """Caches and steps, for those who bring their own tokens and loop."""
        return self._decoder

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: plain text with what the tokenizer puts around it, a conversation as its template says.

        Control tokens that plain text spells are control tokens; those that messages spell are text, unless a
        `Conversation` says otherwise.
        """
        if isinstance(prompt, str):
            with panics_as_errors("the prompt"):
                ids: list[int] = encode_apart(self._tokenizer, prompt, add_special_tokens=True).ids
        else:
            rendered = render(self.decoder_spec, prompt, self._chat.control_tokens)
            with panics_as_errors("the conversation"):
                ids = self._chat.encode(rendered)
        if not ids:
            raise InputError(f"the prompt {prompt!r} gives no tokens: give at least one character")
        rows = self.decoder_spec.vocab_size
        if max(ids) >= rows:
            token = self._tokenizer.id_to_token(max(ids))
            raise InputError(
                f"the prompt has the token {token!r} (id {max(ids)}), for which the embedding table of {rows} rows has "
                "none: leave it out"
            )
        return ids

    def longest_token(self) -> int:
        """Return the characters of the longest token: a context of n tokens is at most n times as long."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: ListOf[str] = (),
        seed: int | None = None,
        stream: bool = False,
        *,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        truncate: bool = False,
    ) -> str | Iterator[str]:
        """The text that follows `prompt`, or with `stream` an iterator over its pieces, whole characters each.

        It ends with the model's end token, before a stop string, or after max_new_tokens. `Sampling` has the meaning of
        temperature, top_k, top_p, min_p, repetition_penalty and seed; temperature 0 is greedy.

        A prompt that leaves no room for max_new_tokens in the context raises TextTooLongError; with `truncate` its
        beginning is cut off instead, which a TruncationWarning says. Raises InputError for wrong arguments, at once
        even when streaming.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        sequence = self._sequence(self._request(prompt, max_new_tokens, sampling, stop, truncate))
        pieces = grow(self._decoder, sequence)
        return pieces if stream else "".join(pieces)

    def generate_async(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: ListOf[str] = (),
        seed: int | None = None,
        *,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        truncate: bool = False,
    ) -> AsyncIterator[str]:
        """The same pieces as an asynchronous iterator; the event loop is free while the engine works."""
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        sequence = self._sequence(self._request(prompt, max_new_tokens, sampling, stop, truncate))

        async def pieces() -> AsyncIterator[str]:
            while sequence.finish_reason is None:
                for _, text in await asyncio.to_thread(step, self._decoder, [sequence]):
                    if text:
                        yield text
            if sequence.error is not None:
                raise sequence.error

        return pieces()

    def generate_many(
        self,
        prompts: ListOf[Prompt],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop: ListOf[str] = (),
        truncate: bool = False,
        at_once: int = 8,
    ) -> list[Generated]:
        """One text a prompt, `at_once` of them side by side; each is what `generate` gives for it alone.

        A seed is that of the first prompt; the next ones have the numbers after it.
        """
        if isinstance(prompts, str) or not isinstance(prompts, ListOf) or not prompts:
            raise InputError("prompts must be a list of at least one prompt")
        if type(at_once) is not int or at_once < 1:
            raise InputError(f"at_once is {at_once!r}; it must be an integer of at least 1")
        options = sampling or Sampling()
        requests = []
        for i, prompt in enumerate(prompts):
            own = options if options.seed is None else dataclasses.replace(options, seed=options.seed + i)
            requests.append(self._request(prompt, max_new_tokens, own, stop, truncate))
        begun: list[Sequence] = []

        def begin() -> Iterator[Sequence]:
            for request in requests:
                begun.append(self._sequence(request))
                yield begun[-1]

        texts: dict[int, list[str]] = {}
        for sequence, text in grow_together(self._decoder, begin(), at_once):
            texts.setdefault(id(sequence), []).append(text)
        return [
            Generated("".join(texts[id(s)]), s.finish_reason or "length", len(s.request.prompt), len(s.new))
            for s in begun
        ]

    def request(
        self,
        prompt: Prompt | ListOf[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop: ListOf[str] = (),
        truncate: bool = False,
    ) -> Request:
        """A checked request, for those who step many texts together (`approxrt.runtime.generation.sequences.step`).

        Raises what `generate` raises. A prompt of token ids is taken as it is.
        """
        return self._request(prompt, max_new_tokens, sampling or Sampling(), stop, truncate)

    def begin(self, request: Request) -> Sequence:
        """A text in the making, with a cache of its own."""
        return self._sequence(request)

    def forward(self, input_ids: ListOf[ListOf[int]], type_ids: ListOf[ListOf[int]] | None = None) -> np.ndarray:
        """Return logits float32 [n, vocab] of the token after each sequence, for those who bring their own
        tokenizer."""
        if type_ids is not None:
            raise InputError("type_ids: a decoder has no token types; leave them out")
        if isinstance(input_ids, str | bytes) or not isinstance(input_ids, ListOf | np.ndarray) or not len(input_ids):
            raise InputError("input_ids must be a list of at least one list of integers")
        if isinstance(input_ids[0], int | np.integer):
            raise InputError("input_ids must be a list of lists: for one sequence write [[1, 2, 3]]")
        rows = []
        for i, ids in enumerate(input_ids):
            checked = self._check_ids(ids, f"sequence {i}")
            rows.append(self._decoder.prefill(self._decoder.cache(len(checked)), checked))
        return np.stack(rows)

    def _check_ids(self, ids: Any, what: str) -> list[int]:
        spec = self.decoder_spec
        array = np.asarray(ids)
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise InputError(f"{what} must be a list of at least one integer")
        if array.size > spec.max_positions:
            raise TextTooLongError(f"{what} has {array.size} tokens; the model has positions for {spec.max_positions}")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= spec.vocab_size:
            raise InputError(
                f"{what} has token id {low if low < 0 else high}; the vocabulary has ids 0 to {spec.vocab_size - 1}"
            )
        return [int(token) for token in array]

    def _request(
        self, prompt: Prompt | ListOf[int], max_new_tokens: int, sampling: Sampling, stop: ListOf[str], truncate: bool
    ) -> Request:
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens!r}; it must be an integer of at least 1")
        strings = check_stop(stop)
        given = (
            isinstance(prompt, ListOf) and not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], int)
        )
        ids = self._check_ids(prompt, "the prompt") if given else self.tokenize(prompt)  # type: ignore[arg-type]
        context = self.decoder_spec.max_positions
        # The last new token is not read again.
        room = context - max_new_tokens + 1
        if len(ids) > room:
            limit = (
                f"the prompt has {len(ids)} tokens and max_new_tokens is {max_new_tokens}; "
                f"the model's context has {context}"
            )
            if not truncate:
                raise TextTooLongError(f"{limit}: shorten the prompt, ask for fewer tokens, or call with truncate=True")
            if room < 1:
                raise TextTooLongError(f"{limit}: ask for at most {context} tokens")
            warnings.warn(
                f"{limit}: the first {len(ids) - room} tokens of the prompt were cut off",
                TruncationWarning,
                stacklevel=3,
            )
            ids = ids[-room:]
        return Request(ids, max_new_tokens, sampling, strings, frozenset(self.decoder_spec.eos_token_ids))

    def _sequence(self, request: Request) -> Sequence:
        return Sequence(self._decoder, self._tokenizer, request, self._hidden)


def _engine(artifact: Artifact, threads: int | None, cache_kind: str | None, device: str) -> DecoderEngine:
    """The engine for "cpu" or "cuda", which have the same methods; the CPU's may still be packing weights."""
    if device == "cuda":
        from approxrt.runtime.cuda.decoder_engine import CudaDecoderEngine

        if cache_kind not in (None, "f16"):
            raise InputError(f"cache_kind is {cache_kind!r}; a GPU keeps keys and values in f16: leave it out")
        return cast(DecoderEngine, CudaDecoderEngine(artifact))
    return DecoderEngine(artifact, threads, cache_kind, wait=False)
