"""How fast audio is heard, for whoever has a limit of time."""

from collections.abc import Callable

from remote.clock import duration


class Pace:
    """From its making on; `audio_s` is all that will be heard."""

    def __init__(self, audio_s: float, clock: Callable[[], float]) -> None:
        self.audio_s, self._clock, self._began = audio_s, clock, clock()

    def left(self, done: int, total: int) -> str:
        """Half a sentence; nothing before a second has gone by. The longest come first: it is rather less."""
        took_s = self._clock() - self._began
        if not done or took_s < 1 or done == total:
            return ""
        return f", about {duration((total - done) * took_s / done)} left"

    def line(self, utterances: int) -> str:
        """The real-time factor, inverted: seconds of audio a second."""
        took_s = max(1e-9, self._clock() - self._began)
        return (
            f"{utterances} utterances, {duration(self.audio_s)} of audio in {duration(took_s)}: "
            f"{self.audio_s / took_s:.1f} times real time (RTFx)"
        )
