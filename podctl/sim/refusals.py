"""How the cloud says no."""

SOLD_OUT = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
SPOT_NONE = "There are no longer any instances available with the request specifications. Please try again later."
HOST_FULL = ("There are not enough free GPUs on the host machine to start this pod.", "Failed to resume pod.")
NO_BALANCE = "Your account balance is insufficient to create this pod. Please add credits and try again."


class Refused(Exception):
    """The cloud will not: an HTTP status, and what it says."""

    def __init__(self, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors or []
