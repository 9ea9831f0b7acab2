"""Which utterances are trained, chosen and tested on, and where their audio lies."""

from pydantic import Field, model_validator

from trainer.recipe.section import Section
from trainer.recipe.source import Named, Source, as_source


class Data(Section):
    """Manifests (JSON Lines, a row an utterance) and folders; relative paths lie under the volume's `data/`."""

    train: list[Named] = Field(
        min_length=1, description="manifests that are trained on, or mappings of manifest, weight, limit, filters"
    )
    dev: list[str] = Field(default=[], description="manifests that choose the best model and every setting")
    dev_from_train: int = Field(
        default=0,
        ge=0,
        description="utterances taken out of the first train manifest for dev, by a hash of seed and id",
    )
    test: list[str] = Field(default=[], description="manifests used once, with the best model, at the very end")
    audio_dirs: list[str] = Field(
        default=[],
        description="folders that audio paths are tried in: the whole path, without its first part, the file "
        "name alone; a manifest's own folder where none is given",
    )
    fields: dict[str, str] = Field(default={}, description="our name of a manifest field → the manifest's name")
    min_s: float = Field(default=0.1, ge=0, description="shorter utterances are quarantined, seconds")
    max_s: float = Field(
        default=30.0,
        gt=0,
        description="longer utterances are not trained on, seconds; what is only decoded: eval.decode.long",
    )
    max_bad_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of a manifest that may be quarantined before the run refuses",
    )
    edge_s: float = Field(
        default=0.5,
        gt=0,
        description="an utterance is padded up to a multiple of this, seconds, whatever its neighbours",
    )
    limit_train: int | None = Field(default=None, gt=0, description="use only so many utterances of train")
    limit_dev: int | None = Field(default=None, gt=0, description="use only so many utterances of dev")
    limit_test: int | None = Field(default=None, gt=0, description="use only so many utterances of test")
    workers: int = Field(
        default=2,
        ge=0,
        le=64,
        description="threads that decode audio ahead of the step; 0: none, the loop's own thread does, for debuggers",
    )
    cache_gb: float = Field(
        default=20.0,
        ge=0,
        description="GB of decoded audio kept on the local disk, at most (an hour is 0.12 GB); changes no result",
    )
    cache_dir: str | None = Field(
        default=None,
        description="the folder they are kept in; by default the local disk's, `$PODCTL_DISK/cache/audio`",
    )
    shuffle_groups: int = Field(
        default=16,
        ge=1,
        description="where sound lies in Parquet files: so many row groups are shuffled among each other, and held",
    )
    frozen_gb: float = Field(
        default=0.0,
        ge=0,
        description="GB of a frozen encoder's outputs kept on disk too, at most: it runs once an utterance then, not "
        "once an epoch. No augmentation then, and adapters on the decoder alone, or optim.rates {encoder: 0}",
    )
    shuffle_audio: bool = Field(
        default=False,
        description="control: gives every utterance another's audio; a model that learns is fooling you",
    )

    @property
    def sources(self) -> list[Source]:
        """What is trained on, each with its share."""
        return [as_source(t) for t in self.train]

    @property
    def is_mixed(self) -> bool:
        """Whether some source has more to say than its manifest."""
        return any(isinstance(t, Source) for t in self.train)

    @model_validator(mode="after")
    def _one_dev(self) -> "Data":
        if bool(self.dev) == bool(self.dev_from_train):
            raise ValueError("give either dev (manifests) or dev_from_train (how many utterances), one of them")
        if self.min_s >= self.max_s:
            raise ValueError(f"min_s ({self.min_s}) must be below max_s ({self.max_s})")
        return self
