"""Give what goes wrong with a request the status that says so."""

from __future__ import annotations

from approxrt.errors import ApproxrtError


class RequestError(ApproxrtError):
    """A request that is answered with an error.

    status  HTTP's
    kind    a word that programs can match
    code    the same in OpenAI's words, on its routes; by default the kind
    param   the field that is wrong, where there is one
    """

    status = 400
    kind = "Validation"
    code: str | None = None

    def __init__(self, message: str, retry_after: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.retry_after, self.param = retry_after, param


class UnknownField(RequestError):
    """A field that the route does not know and that might change its answer."""

    code = "unknown_parameter"


class ContextOverflow(RequestError):
    """A prompt or a text that is longer than the model's context, on OpenAI's routes."""

    code = "context_length_exceeded"


class TooLarge(RequestError):
    """A body, a text or a list that is over a limit."""

    status = 413


class WrongHost(RequestError):
    """A name in the Host header that this server does not answer to."""

    status = 421


class WrongKind(RequestError):
    """A body that is not said to be JSON."""

    status = 415


class UnknownModel(RequestError):
    """No artifact of that name is served."""

    status = 404
    kind = "NotFound"
    code = "model_not_found"


class Unauthorized(RequestError):
    """The API key is missing or another."""

    status = 401
    kind = "Unauthorized"
    code = "invalid_api_key"


class Overloaded(RequestError):
    """The queue is full."""

    status = 429
    kind = "Overloaded"


class Unavailable(RequestError):
    """The request waited too long, or the server is shutting down."""

    status = 503
    kind = "Unavailable"


class ClientLeft(RequestError):
    """The client has closed its connection: nobody reads this answer."""

    status = 499
    kind = "ClientLeft"
