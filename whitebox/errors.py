"""One family of errors.

Every error that a user may see is a `WhiteboxError`: its text names the thing that is wrong and
the next step, and its class carries the HTTP status and the process exit code that go with it.
"""

from __future__ import annotations


class WhiteboxError(Exception):
    """Base of all errors raised on purpose. `str(error)` is one line for a person."""

    http_status = 500
    grpc_status = "INTERNAL"
    exit_code = 1


class InvalidModel(WhiteboxError):
    """A model file that cannot be read or breaks the ONNX specification."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 65  # EX_DATAERR


class UnsupportedOperator(InvalidModel):
    """A node whose operator has neither a kernel, a function body nor a host implementation."""

    http_status = 422
    grpc_status = "UNIMPLEMENTED"


class InvalidPipeline(InvalidModel):
    """A pipeline that is not written as one, or whose steps do not fit together."""


class InvalidInput(WhiteboxError):
    """Feeds that do not fit the model's signature, or a malformed request."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 65


class InvalidName(WhiteboxError):
    """A model name or version that is not allowed."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 64  # EX_USAGE


class ModelNotFound(WhiteboxError):
    """No model of that name (or version) is registered."""

    http_status = 404
    grpc_status = "NOT_FOUND"
    exit_code = 66  # EX_NOINPUT


class AlreadyExists(WhiteboxError):
    """The thing to create is there already, with other content."""

    http_status = 409
    grpc_status = "ALREADY_EXISTS"
    exit_code = 73  # EX_CANTCREAT


class RequestTooLarge(WhiteboxError):
    """A request body or tensor over the configured limit."""

    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class Overloaded(WhiteboxError):
    """The server cannot take the request now; try again later."""

    http_status = 503
    grpc_status = "UNAVAILABLE"
    exit_code = 75  # EX_TEMPFAIL

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s  # when it is foreseen to fit; None: nobody knows


class CompileError(WhiteboxError):
    """A kernel could not be compiled. Names the kernel, and keeps the compiler's own words."""


class NoSuchVariant(CompileError):
    """A kernel has fewer schedules than the one asked for. Ends a search; no user sees it."""


class VerifyError(WhiteboxError):
    """A pass produced a graph that breaks an invariant. Names the pass and the node."""


class StorageError(WhiteboxError):
    """The home directory cannot be read or written."""

    exit_code = 74  # EX_IOERR
