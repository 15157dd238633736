"""A reply: the future of an answer that another future, made later, will bring."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class Reply(Future[Result]):
    """What `read` makes of the results of the future that it follows.

    To cancel it cancels that one, which only succeeds before it has started.
    """

    def __init__(self, read: Callable[[list[Any]], Result]) -> None:
        super().__init__()
        self._read = read
        self._source: Future[list[Any]] | None = None

    def follow(self, source: Future[list[Any]]) -> None:
        """Take the answer from this future."""
        self._source = source
        if self.cancelled():  # while it was made
            source.cancel()
        source.add_done_callback(self._finish)

    def fail(self, error: BaseException) -> None:
        """There will be no answer."""
        if self.set_running_or_notify_cancel():
            self.set_exception(error)

    def cancel(self) -> bool:
        source = self._source
        if source is not None and not source.cancel():
            return False
        return super().cancel()

    def _finish(self, source: Future[list[Any]]) -> None:
        self._source = None
        if source.cancelled():
            return
        error = source.exception()
        if error is not None:
            self.fail(error)
        elif self.set_running_or_notify_cancel():
            self.set_result(self._read(source.result()))
