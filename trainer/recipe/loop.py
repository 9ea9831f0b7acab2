"""How long, how much at once, how exact, and what is kept."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.recipe.section import Section

AT_ONCE_S = 120.0


class Loop(Section):
    """The step is defined by data (`step_utts` or `step_s`); memory (`micro_s`) only decides how it is cut."""

    steps: int | None = Field(default=None, gt=0, description="optimiser steps, all told; this or epochs")
    epochs: float | None = Field(default=None, gt=0, description="passes over the train set, instead of steps")
    step_utts: int | None = Field(default=None, gt=0, description="utterances a step; this or step_s")
    step_s: float | None = Field(default=None, gt=0, description="seconds of audio a step; this or step_utts")
    micro_s: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        default="auto",
        description="padded seconds of audio that fit into memory at once; changes no result but its rounding. auto: "
        "as much as fits, found before the first step, a length class at a time; 120 where memory is not tried",
    )
    try_memory: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="before the first step, and when a phase opens, the worst micro-batch of each length is tried. "
        "auto: on a GPU",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = Field(
        default="auto", description="of autocast; weights stay float32. auto: bf16 or fp16 on CUDA, else fp32"
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory for about a third more compute")
    compile: bool = Field(
        default=False,
        description="torch.compile of the losses: minutes at the start, and other roundings than without",
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(default="auto", description="auto: CUDA, then MPS, then CPU")
    seed: int = Field(default=1, ge=0, description="of every draw: weights, order, augmentation")
    threads: int = Field(default=2, ge=1, description="CPU threads of torch a rank; another number is another rounding")
    ranks: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto", description="processes on this machine. auto: one a GPU, one where there is none"
    )
    shard: bool = Field(
        default=False,
        description="deal weights, gradients and optimiser to the ranks: for what does not fit one GPU, and slower",
    )
    wait_s: float = Field(
        default=1800.0,
        gt=0,
        description="seconds that a rank waits for the others before it gives up; longer than the longest save",
    )
    save_every_s: float = Field(default=600.0, gt=0, description="a checkpoint at least this often, seconds")
    save_every_steps: int | None = Field(default=None, gt=0, description="and at every such step")
    keep_last: int = Field(default=2, ge=1, description="newest checkpoints kept")
    keep_best: int = Field(default=1, ge=1, description="best checkpoints kept, by eval.metric on dev")

    @property
    def at_once_s(self) -> float:
        """`micro_s` in seconds, before anything was found."""
        return AT_ONCE_S if self.micro_s == "auto" else self.micro_s

    @model_validator(mode="after")
    def _one_length(self) -> "Loop":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, one of them")
        if (self.step_utts is None) == (self.step_s is None):
            raise ValueError("give either step_utts or step_s, one of them")
        if self.shard and self.compile:
            raise ValueError("compile and shard exclude each other")
        return self
