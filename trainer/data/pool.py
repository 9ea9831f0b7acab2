"""Who decodes audio: threads, or with `data.workers: 0` whoever asks for it."""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def decoders(workers: int, name: str) -> Executor:
    """So many threads of that name, or the caller's own."""
    return ThreadPoolExecutor(workers, name) if workers else OwnThread()


class OwnThread(Executor):
    """Work is done while it is handed in: a debugger and a profiler see it where it belongs, and nothing waits."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:
            future.set_exception(e)
        return future
