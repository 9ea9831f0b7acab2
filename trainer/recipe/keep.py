"""Which utterances of a source are good enough to be trained on, by what an audit measured."""

from pydantic import Field, model_validator

from remote.mistakes import did_you_mean
from trainer.recipe.flags import FLAGS
from trainer.recipe.section import Section


class Keep(Section):
    """Limits for the utterances that it is for; an utterance goes by the first rule whose `where` fits it.

    A limit asks for what the audit measured (see `trainer audit`): where that is absent, the run refuses.
    """

    where: dict[str, str | list[str]] = Field(
        default={}, description="for rows whose field has one of the values, as {age_bucket: 3-4}; none: for all"
    )
    max_wer: float | None = Field(
        default=None, ge=0, description="against the first model's transcript, a share: 0.7 is 70 %"
    )
    max_cer: float | None = Field(default=None, ge=0, description="the same by characters")
    either: bool = Field(default=False, description="max_wer or max_cer is enough; by default both have to hold")
    min_align: float | None = Field(
        default=None, le=0, description="how well the transcript fits the sound: mean log-probability a frame"
    )
    min_chars_per_s: float | None = Field(default=None, ge=0, description="characters a second of sound")
    max_chars_per_s: float | None = Field(default=None, gt=0, description="characters a second of sound")
    max_chars: int | None = Field(default=None, gt=0, description="characters of the transcript")
    max_silence: float | None = Field(default=None, ge=0, le=1, description="share of the recording that is quiet")
    max_clipping: float | None = Field(default=None, ge=0, le=1, description="share of samples at full scale")
    min_snr_db: float | None = Field(default=None, description="loud parts over quiet ones, dB")
    drop: list[str] = Field(default=[], description="flags of the audit: duplicate_sound, odd_text, script, …")

    @model_validator(mode="after")
    def _is_of_use(self) -> "Keep":
        if self.either and (self.max_wer is None or self.max_cer is None):
            raise ValueError("either needs both max_wer and max_cer")
        unknown = [
            f"an audit has no flag {flag!r}{did_you_mean(flag, list(FLAGS))}" for flag in self.drop if flag not in FLAGS
        ]
        if unknown:
            raise ValueError("; ".join(unknown))
        return self
