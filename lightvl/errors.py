"""Errors that cross module boundaries; each knows how a user is told."""

from typing import Literal

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
]


class LightvlError(Exception):
    """Base of every error this package raises on purpose."""


class StartupError(LightvlError):
    """The server can't start; one line for the user.

    Args:
        message: What is wrong and what is allowed.
        exit_code: 2 for a bad flag, model directory or missing device, 1 for anything else.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestError(LightvlError):
    """A request can't be served; becomes the error body of the HTTP answer.

    Args:
        message: Names the field or image index and what is allowed; no addresses or file paths.
        status: HTTP status code.
        param: The field at fault, as the client spelled it.
        code: Short machine-readable word, such as `context_length_exceeded`.
        type: The OpenAI error type; derived from the status when absent.
        retry_after_s: Seconds for the `Retry-After` header, for status 429 and 503.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        type: ErrorType | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.type: ErrorType = type or _TYPE_OF_STATUS.get(status, "invalid_request_error")
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """Returns the JSON error body, the same on every route."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error, "message": self.message}


class EngineLostError(RequestError):
    """The engine process is gone or the server is shutting down: 503."""

    def __init__(self, message: str = "the server is shutting down") -> None:
        super().__init__(message, 503, code="unavailable")


_TYPE_OF_STATUS: dict[int, ErrorType] = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
