"""The arithmetic of a step, counted from shapes, is what torch's own counter sees go by."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.speech import recipe_dict
from torch.utils.flop_counter import FlopCounterMode

from trainer.flops import Attention, Matrix, Work, whisper_work
from trainer.recipe.load import parse_recipe
from trainer.task import make_task
from trainer.tasks.whisper import LORA_TARGETS

SCRATCH = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "heads": 4, "ffn": 256, "mels": 80}
POSITIONS = 100  # two seconds


def whisper(**sections: Any) -> tuple[Any, Any, Any]:
    """Task, model and a batch of three utterances."""
    model = {"from_scratch": SCRATCH, "attention": "eager"}  # sdpa's kernel for a CPU is not in torch's table
    task = make_task(parse_recipe(recipe_dict(Path("/nowhere"), model=model, data={"max_s": 30}, **sections)))
    parts = task.build()
    batch = task.prepare(task.dummy(3, POSITIONS / 50, 40), parts, True)
    return task, parts.module, batch


def counted(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def expected(module: Any, batch: Any) -> Work:
    n, tokens = batch.input_BL.shape
    return whisper_work(module, module.config, n, POSITIONS, tokens, len(batch.label_K))


def test_a_forward_pass_is_counted_to_the_last_operation() -> None:
    task, module, batch = whisper()
    with torch.no_grad():
        assert counted(lambda: task.losses(module, batch)["ce"].sum()) == expected(module, batch).forward_flops


def test_a_training_step_is_counted_but_for_the_gradient_of_the_sound() -> None:
    """Nobody wants the gradient of the log-mel: torch leaves out what the definition counts for the first layer."""
    task, module, batch = whisper()
    seen = counted(lambda: task.losses(module, batch)["ce"].sum().backward())
    said = expected(module, batch).step_flops
    first = 2 * module.model.encoder.conv1.weight.numel() * 2 * POSITIONS * len(batch.ids)
    assert said - seen == first
    assert said == pytest.approx(seen, rel=0.05)


@pytest.mark.parametrize("frozen", ["encoder", "decoder"])
def test_what_is_frozen_passes_its_gradient_on_or_has_none(frozen: str) -> None:
    """Within 8 %: torch also knows that nothing below a frozen decoder's first attention is trained."""
    task, module, batch = whisper()
    getattr(module.model, frozen).requires_grad_(False)
    whole = expected(module, batch)
    seen = counted(lambda: task.losses(module, batch)["ce"].sum().backward())
    assert whole.step_flops == pytest.approx(seen, rel=0.08)
    module.requires_grad_(True)
    assert whole.step_flops < 0.9 * expected(module, batch).step_flops


def test_adapters_cost_little_and_what_they_stand_on_four_in_six() -> None:
    """Within 12 % for two layers: torch leaves out what lies below the first adapter, whose share falls with depth."""
    from peft import LoraConfig, get_peft_model

    task, module, batch = whisper()
    full = expected(module, batch)
    adapted = get_peft_model(module, LoraConfig(r=2, target_modules=LORA_TARGETS["all-linear"]))
    n, tokens = batch.input_BL.shape
    said = whisper_work(adapted, module.config, n, POSITIONS, tokens, len(batch.label_K))
    assert full.forward_flops < said.forward_flops < 1.1 * full.forward_flops
    assert full.step_flops * 2 / 3 < said.step_flops < full.step_flops
    seen = counted(lambda: task.losses(adapted, batch)["ce"].sum().backward())
    assert seen < said.step_flops < 1.12 * seen


def test_six_four_and_two_operations_a_weight_and_vector() -> None:
    def of(**how: bool) -> int:
        return Work((Matrix(10, 7, **how),)).step_flops

    assert of(is_trained=True) == 6 * 70
    assert of(is_trained=False) == 4 * 70
    assert of(is_trained=False, is_passed=False) == 2 * 70
    scores = Work(attentions=(Attention(9, 5),))
    assert (scores.forward_flops, scores.step_flops) == (4 * 45, 12 * 45)
    assert (scores + scores).step_flops == 24 * 45
