"""What the answers say of how much may still be asked."""


class Quota:
    """What the headers say of how much may still be asked. Nothing is refused by it: for that there is a fault."""

    windows = (("minute", 180, 60), ("hour", 7200, 3600), ("day", 86400, 86400))  # measured by others, 2026-09

    def __init__(self) -> None:
        self._used: dict[str, tuple[int, int]] = {}

    def headers(self, t: float) -> dict[str, str]:
        """Counts this request."""
        left, policy = [], []
        for name, quota, width_s in self.windows:
            window = int(t // width_s)
            before, used = self._used.get(name, (window, 0))
            used = used + 1 if before == window else 1
            self._used[name] = (window, used)
            left.append(f'"{name}";r={max(0, quota - used)};t={int((window + 1) * width_s - t)}')
            policy.append(f'"{name}";q={quota};w={width_s}')
        return {"RateLimit": ", ".join(left), "RateLimit-Policy": ", ".join(policy)}
