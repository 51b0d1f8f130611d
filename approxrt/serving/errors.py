"""What goes wrong with a request, with the status that says so."""

from __future__ import annotations

from approxrt.errors import ApproxrtError


class RequestError(ApproxrtError):
    """A request that is answered with an error; `status` is HTTP's, `kind` a word that programs can match."""

    status = 400
    kind = "Validation"

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLarge(RequestError):
    """A body, a text or a list that is over a limit."""

    status = 413


class UnknownModel(RequestError):
    """No artifact of that name is served."""

    status = 404
    kind = "NotFound"


class Unauthorized(RequestError):
    """The API key is missing or another."""

    status = 401
    kind = "Unauthorized"


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
