"""What is done to training audio; every draw is a function of seed, epoch and utterance."""

from pydantic import Field, model_validator

from trainer.recipe.section import Section


class SpecAugment(Section):
    """Masks over the log-mel (Park et al., 2019)."""

    p: float = Field(default=0.5, ge=0, le=1, description="share of utterances that are masked at all")
    freq_masks: int = Field(default=1, ge=0, description="masks over frequency, an utterance")
    freq_width: int = Field(default=15, ge=0, description="mel bins, at most; channels where the wave is heard")
    time_masks: int = Field(default=1, ge=0, description="masks over time, an utterance")
    time_share: float = Field(default=0.05, ge=0, le=1, description="of the utterance, at most")


class Augment(Section):
    """What is done to training audio, drawn anew each epoch; dev and test are never touched."""

    spec: SpecAugment | None = None
    speed: list[float] = Field(
        default=[],
        description="factors one of which is drawn, evenly: 1.1 is faster and higher",
        max_length=16,
    )
    gain_db: float = Field(default=0.0, ge=0, le=40, description="loudness drawn within ± this, dB")
    noise_snr_db: tuple[float, float] | None = Field(
        default=None, description="noise, its signal-to-noise ratio drawn between these, dB"
    )
    noise_dir: str | None = Field(
        default=None,
        description="a folder of recordings of noise, with all folders in it; white noise where none is given",
    )
    noise_p: float = Field(default=0.5, ge=0, le=1, description="share of utterances that get noise")
    join_p: float = Field(
        default=0.0, ge=0, le=1, description="chance that another utterance of the same speaker is appended"
    )
    join_max: int = Field(default=1, ge=1, le=16, description="how often that chance is taken, one after the other")
    join_gap_s: tuple[float, float] = Field(
        default=(0.05, 0.25), description="quiet between joined utterances drawn between these, seconds"
    )

    @model_validator(mode="after")
    def _noise_has_a_level(self) -> "Augment":
        if self.noise_dir is not None and self.noise_snr_db is None:
            raise ValueError("noise_dir needs noise_snr_db, say [5, 20]")
        if self.noise_snr_db is not None and self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise ValueError("noise_snr_db is a range: its first number is the lower one")
        return self
