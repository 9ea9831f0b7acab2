"""Everything podctl tells a person when it can't go on.

PodctlError                  1   the run failed, or nothing better is known
├── BadInput                 2   an experiment file, a flag, a setting
│   └── OfferRefused          2   the provider says no to one offer, and not that it is sold out: the next one may do
├── NoRights                 3   a key, rights or balance
├── NoCapacity               4   nobody rents out such a machine now
├── ProviderUnclear          5   the provider gave no clear answer; a machine may have been made
│   └── NothingSent          5   the request never left: nothing was made
├── Unreachable              6   the pod does not answer
│   ├── Untrusted            6   another answers, or it lets none of our keys in: trying again is no use
│   └── PodGone              6   its provider has it no more, has stopped it, or calls it broken
├── LimitReached             7   a limit of the experiment ended the run
├── Busy                     8   the run is going already
├── MissingHere              9   something is missing on this machine
│   └── MissingThere         9   something is missing on the machine that should train
├── Saved                   75   stopped, saved, resumable
└── Cancelled              130   by the person, before anything was rented

Each carries what is the case, and what to type next.
"""


class PodctlError(Exception):
    """What is the case, in one sentence; `hint`: what to type next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(PodctlError):
    """One or more mistakes in what a person wrote, all of them at once."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", mistakes: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.mistakes = mistakes


class OfferRefused(BadInput):
    """Try the next offer. Where every offer is refused, the request itself is at fault: `detail` says it best."""

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message, hint)
        self.detail = detail


class NoRights(PodctlError):
    exit_code = 3


class NoCapacity(PodctlError):
    exit_code = 4


class ProviderUnclear(PodctlError):
    exit_code = 5


class NothingSent(ProviderUnclear):
    """No connection: what was asked for was not asked."""


class Unreachable(PodctlError):
    exit_code = 6


class Untrusted(Unreachable):
    """Not for a moment: the host key is another than the announced one, or no key of ours is accepted."""


class PodGone(Unreachable):
    """Not for a moment: there is no such machine any more, it is switched off, or broken (`state`)."""

    def __init__(self, message: str, hint: str = "", state: str = "gone") -> None:
        super().__init__(message, hint)
        self.state = state


class LimitReached(PodctlError):
    exit_code = 7


class Busy(PodctlError):
    exit_code = 8


class MissingHere(PodctlError):
    exit_code = 9


class MissingThere(MissingHere):
    """The hint says what to type there."""


class Saved(PodctlError):
    exit_code = 75


class Cancelled(PodctlError):
    exit_code = 130
