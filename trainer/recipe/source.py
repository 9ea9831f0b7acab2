"""One source of training data among several: how often it is heard, and what of it."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from trainer.recipe.augment import Augment
from trainer.recipe.keep import Keep
from trainer.recipe.section import Section


class Source(Section):
    """A manifest with its share, its limits and its own augmentation."""

    manifest: str | None = Field(default=None, description="a JSON Lines file, a row an utterance; this or hub")
    hub: str | None = Field(
        default=None, description="a data set of the Hub, or a folder in its layout, streamed from its Parquet files"
    )
    config: str | None = Field(default=None, description="hub: which of the set's configurations")
    split: str = Field(default="train", description="hub: which split")
    revision: str | None = Field(default=None, description="hub: a commit, tag or branch")
    columns: dict[str, str] = Field(
        default={}, description="hub: our field (audio, text, duration_s, speaker, …) → the set's column"
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="how often an epoch holds it: 0.5 is one half in this epoch and the other in the next; 3 is thrice",
    )
    limit: int | None = Field(default=None, gt=0, description="use only so many of its utterances, the same always")
    min_s: float | None = Field(default=None, ge=0, description="leave out what is shorter, seconds")
    max_s: float | None = Field(default=None, gt=0, description="leave out what is longer, seconds")
    where: dict[str, str | list[str]] = Field(
        default={},
        description="keep rows whose field (speaker, language, source, or one of meta) has one of the values",
    )
    audit: str | None = Field(
        default=None, description="what `trainer audit` wrote about this manifest, which `keep` goes by"
    )
    keep: list[Keep] = Field(default=[], description="which of its utterances are good enough, by their audit")
    augment: Augment | None = Field(default=None, description="instead of train.augment, for this source")

    @model_validator(mode="after")
    def _is_one_thing(self) -> "Source":
        if (self.manifest is None) == (self.hub is None):
            raise ValueError("give either manifest (a JSON Lines file) or hub (a data set of the Hub), one of them")
        if self.min_s is not None and self.max_s is not None and self.min_s >= self.max_s:
            raise ValueError(f"min_s ({self.min_s}) must be below max_s ({self.max_s})")
        if self.keep and self.audit is None:
            raise ValueError("keep goes by an audit: name its file (trainer audit writes it)")
        if self.audit is not None and self.hub is not None:
            raise ValueError("audit is about a manifest: make one of the set with trainer prepare from hf")
        return self


def source_name(source: Source) -> str:
    """As a sentence calls it."""
    return source.manifest or f"{source.hub} ({source.split})"


def _kind(value: Any) -> str:
    return "source" if isinstance(value, dict | Source) else "name"


Named = Annotated[Annotated[str, Tag("name")] | Annotated[Source, Tag("source")], Discriminator(_kind)]


def as_source(named: str | Source) -> Source:
    """A manifest's name by itself is the whole of it, once an epoch."""
    return Source(manifest=named) if isinstance(named, str) else named
