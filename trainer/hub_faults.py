"""What a Hub that says no means, in a sentence, with what to type next. Only here its client's errors are known."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from trainer.errors import TrainerError

T = TypeVar("T")
WAITS_S = (1.0, 2.0, 4.0)  # before the second, third and fourth attempt
AGAIN = "run the same command again: what has arrived is not sent twice"


class HubRefused(TrainerError):
    """The Hub, or the way to it, said no."""


@contextmanager
def translated(repo: str, endpoint: str, token: str) -> Iterator[None]:
    """Whatever the client raises becomes HubRefused, and the token is in none of it."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as e:  # huggingface_hub, its HTTP client, its uploads' threads: as many kinds as layers
        message, hint = explain(e, repo, endpoint)
        raise HubRefused(message.replace(token, "…") if token else message, hint) from None


def explain(e: BaseException, repo: str, endpoint: str) -> tuple[str, str]:
    """What is the case, and what to type."""
    status, said = status_of(e), _said(e)
    if status == 401:
        return f"{endpoint} does not know this token", "make one at its settings/tokens, then export HF_TOKEN=…"
    if status == 402:
        return f"{endpoint} wants to be paid first{said}", "look at the account's billing page"
    if status == 403:
        return f"this token may not write to {repo}{said}", "make a token with the right to write, export HF_TOKEN=…"
    if status == 404:
        return f"{repo} is not there, or not for this token's eyes", "check the name, and whose token HF_TOKEN is"
    if status in (409, 412):
        return f"{repo} was changed by somebody else at the same moment{said}", "run the same command again"
    if status == 413:
        return f"{endpoint} takes no file as large as this{said}", "save the model in smaller shards, or ask them"
    if status == 429:
        return f"{endpoint} asks for patience: too many requests", f"wait a few minutes, then {AGAIN}"
    if status is not None and status >= 500:
        return f"{endpoint} is not well: it answers {status}", f"wait a little, then {AGAIN}"
    if status is not None:
        return f"{endpoint} answers {status} for {repo}{said}", "look at its own words; check --repo and --revision"
    if is_passing(e):
        return f"{endpoint} does not answer ({type(_cause(e)).__name__})", f"look at the network, then {AGAIN}"
    text = str(_cause(e)).strip().splitlines() or [type(e).__name__]
    return f"sending to {repo} failed: {' '.join(text[:3])}", AGAIN


def again(call: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """The call's answer, asked for up to four times where the reason may pass; only for what may be repeated."""
    for wait_s in WAITS_S:
        try:
            return call()
        except Exception as e:
            if not is_passing(e):
                raise
            sleep(wait_s)
    return call()


def is_passing(e: BaseException) -> bool:
    """A cut line, a time-out, a server that is not well or wants a pause."""
    status = status_of(e)
    if status is not None:
        return status == 429 or status >= 500
    kinds = {c.__name__ for c in type(_cause(e)).__mro__}
    return bool(kinds & {"TransportError", "ConnectionError", "TimeoutError"})


def status_of(e: BaseException) -> int | None:
    response = getattr(_cause(e), "response", None)
    code = getattr(response, "status_code", None)
    return int(code) if code is not None else None


def _cause(e: BaseException) -> BaseException:
    """The reason itself: uploads wrap what went wrong in a RuntimeError that says which file it was."""
    seen: Any = e
    while getattr(seen, "response", None) is None and seen.__cause__ is not None:
        seen = seen.__cause__
    return seen if getattr(seen, "response", None) is not None or isinstance(e, RuntimeError) else e


def _said(e: BaseException) -> str:
    message = getattr(_cause(e), "server_message", None)
    return f" ({' '.join(str(message).split())[:200]})" if message else ""
