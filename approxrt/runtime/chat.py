"""A conversation as the text that the model was trained on: the artifact's chat template, a Jinja template.

It comes from a stranger, so it is rendered in Jinja's sandbox, which has neither attributes of Python's own nor
anything to write to, and with limits on sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.errors import InputError, MissingDependencyError, UnsupportedTaskError

Messages = Sequence[Mapping[str, str]]


def render_chat(spec: DecoderSpec, messages: Messages) -> str:
    """The prompt for the assistant's next answer to `messages`: [{"role": "user", "content": "..."}, ...].

    Raises UnsupportedTaskError when the artifact has no template, InputError for messages that it does not take.
    """
    checked = _check(messages)
    if not spec.chat_template:
        raise UnsupportedTaskError("the artifact has no chat template: give the prompt as plain text")
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingDependencyError("jinja2", "chat", "a conversation") from None

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        template = environment.from_string(spec.chat_template)
        text: str = template.render(messages=checked, add_generation_prompt=True, **spec.special_tokens)
    except Exception as error:
        # Of jinja2 or, from within an expression, of any kind.
        raise InputError(f"the chat template does not take these messages: {error}") from error
    return text


def _check(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InputError("a conversation is a list of at least one {'role': ..., 'content': ...}")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise InputError(f"message {i} is {message!r:.80}; it must have a str 'role' and a str 'content'")
        checked.append({str(key): value for key, value in message.items()})
    return checked
