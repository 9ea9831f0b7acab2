"""Training on one GPU: utterances and seconds of audio a second, peak memory, and the share of the device's peak.

python benchmarks/gpu.py                          whisper-small, -large-v3 and Qwen3-ASR-1.7B, LoRA and full, bf16
python benchmarks/gpu.py whisper-small --mode lora --clip-s 5 --batch 32
python benchmarks/gpu.py --device cpu --tiny      a smoke test of seconds; its figures mean nothing

Weights are random and sound is generated: nothing is downloaded. Whisper runs in the trainer's own loop, from files to
the optimiser; Qwen3-ASR is driven directly, from features that lie on the device. Each case has a process of its own.
MFU: trainer/flops.py's operations of a step, by its seconds, by the peak of trainer/peaks.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.models import Shape, make_whisper
from lib.timing import ROOT, own_place, spread, where

WHISPERS = {
    "whisper-small": Shape(768, 12, 12, 51_865),
    "whisper-large-v3": Shape(1280, 32, 20, 51_866, mels=128),
}
MODELS = [*WHISPERS, "qwen3-asr-1.7b"]
TINY = Shape(32, 1, 2, 0, mels=16)
LORA = {"r": 16, "alpha": 32.0, "base_dtype": "bf16"}
TEXT_TOKENS_A_SECOND = 4  # of Qwen's: three words a second


def main(argv: Sequence[str]) -> None:
    args = _arguments(argv)
    if args.case:
        print(json.dumps(_case(args)))
        return
    print(f"{where(args.threads, precision='bf16')}; {_device(args.device)}", flush=True)
    print(f"{args.batch} clips of {args.clip_s} s a step, {args.rounds} rounds of {args.steps} steps", flush=True)
    print(f"{'':32} {'utterances/s':>24} {'audio-s/s':>10} {'peak GB':>8} {'TFLOP/step':>11} {'MFU':>7}", flush=True)
    for model in args.model or MODELS:
        for mode in [args.mode] if args.mode else ["lora", "full"]:
            _say(f"{model}, {mode}", _in_its_own_process(model, mode, argv))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--mode", choices=["lora", "full"], help="both by default")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch", type=int, default=16, help="clips a step, all at once; 16")
    parser.add_argument("--clip-s", type=int, default=10, help="whole seconds; 10")
    parser.add_argument("--steps", type=int, default=20, help="a round; 20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--workers", type=int, default=8, help="threads that decode sound")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing; its work is not counted")
    parser.add_argument(
        "--tiny", action="store_true", help="the same with very small models, in two rounds of two steps"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = [m for m in args.model if m not in MODELS]
    if unknown:
        parser.error(f"no model {', '.join(unknown)}: known are {', '.join(MODELS)}")
    if args.tiny:
        args.batch, args.clip_s, args.steps, args.rounds = 2, 2, 2, 2
    return args


# ---- what is printed


def _in_its_own_process(model: str, mode: str, argv: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        env = {**os.environ, **own_place(Path(place)), "PYTHONPATH": str(ROOT)}
        case = [sys.executable, __file__, *argv, "--case", f"{model} {mode} {place}"]
        done = subprocess.run(case, env=env, capture_output=True, text=True)
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _say(name: str, found: dict[str, Any]) -> None:
    if "reason" in found:
        print(f"{name:32} {found['reason']}", flush=True)
        return
    clips = [found["clips"] / s for s in found["step_s"]]
    speed, audio = spread(clips, 2), found["clip_s"] * statistics.median(clips)
    share = [found["flops"] / s / found["peak_flops"] for s in found["step_s"]] if found["peak_flops"] else []
    mfu = f"{statistics.median(share):7.1%}" if share else "      –"
    peak_gb = f"{found['peak_gb']:8.1f}" if found["peak_gb"] else "       –"
    print(f"{name:32} {speed:>24} {audio:10.1f} {peak_gb} {found['flops'] / 1e12:11.3g} {mfu}", flush=True)


def _device(name: str) -> str:
    """In a process of its own: what asks CUDA holds memory on it."""
    code = (
        "import torch; p = torch.cuda.get_device_properties(0); "
        "print(f'{p.name}, {p.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}')"
    )
    if name == "cpu":
        return "no GPU"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit("there is no CUDA device here → --device cpu --tiny tries the program without one")
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(ask, capture_output=True, text=True).stdout.split()
    except OSError:
        driver = []
    return f"{done.stdout.strip()}, driver {driver[0] if driver else 'unknown'}"


# ---- a case, in its own process


@dataclass(frozen=True)
class Ready:
    """A case that can be run: `run` does so many steps; `flops` are one step's, known once it ran."""

    run: Callable[[int], None]
    flops: Callable[[], float]


def _case(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from trainer.peaks import peak_of

    torch.set_num_threads(args.threads)
    model, mode, place = args.case.split(" ", 2)
    is_cuda = args.device == "cuda"
    ready = _whisper(model, mode, Path(place), args) if model in WHISPERS else _qwen(mode, args)
    taken: list[float] = []
    ready.run(2)
    if is_cuda:
        torch.cuda.synchronize()
    for _ in range(args.rounds):
        began = time.perf_counter()
        ready.run(args.steps)
        if is_cuda:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / args.steps)
    peak = peak_of(torch.cuda.get_device_name()) if is_cuda else None
    return {
        "step_s": taken,
        "clips": args.batch,
        "clip_s": args.clip_s,
        "flops": ready.flops(),
        "peak_flops": peak.half if peak else 0.0,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if is_cuda else 0.0,
    }


def _whisper(name: str, mode: str, place: Path, args: argparse.Namespace) -> Ready:
    """The trainer's loop, whole: each run goes on with the same weights, from fresh files."""
    from lib.corpus import clips_of_one_length
    from lib.ours import Ours, recipe_of

    from trainer.flops import Work, whisper_work
    from trainer.tasks.hub import plain

    make_whisper(place / "model", TINY if args.tiny else WHISPERS[name])
    train = clips_of_one_length(place, args.batch * args.steps, args.clip_s)
    clips_of_one_length(place, 1, args.clip_s, seed=1, name="dev")
    sections: dict[str, Any] = {"adapters": LORA} if mode == "lora" else {}
    loop = {"steps": args.steps, "step_utts": args.batch, "micro_s": 1e6, "precision": "bf16", "device": args.device}
    loop |= {"threads": args.threads, "gradient_checkpointing": args.checkpointing}
    data = {"workers": args.workers, "cache_gb": 1}
    window = {"full_window_share": 0.0}
    ours = Ours(recipe_of(place / "model", train, loop=loop, data=data, model=window, **sections))
    training = ours.set_up()
    done = Work()
    losses = training.task.losses

    def watched(module: Any, batch: Any) -> Any:
        nonlocal done
        n, tokens = batch.input_BL.shape
        positions = batch.wave_BT.shape[1] // 320
        done = whisper_work(module, plain(module).config, n, positions, tokens, len(batch.label_K))
        return losses(module, batch)

    training.task.losses = watched  # type: ignore[method-assign]

    def run(steps: int) -> None:
        training.state.step = args.steps - steps
        training.state.stopped_early = False
        training.run()

    return Ready(run, lambda: done.step_flops)


def _qwen(mode: str, args: argparse.Namespace) -> Ready:
    """Its own forward in bf16, cross-entropy at labelled positions, AdamW: what a task of ours will do at least."""
    import torch
    from lib.qwen import batch_of, loss_of, make_qwen, qwen_work

    model: Any = make_qwen(args.tiny)
    config = model.config
    if mode == "lora":
        from peft import LoraConfig, get_peft_model

        layers = r".*\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"
        how = LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules=layers)
        model = get_peft_model(model.to(torch.bfloat16), how)
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad else p.data
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.to(args.device).train()
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    n_text = TEXT_TOKENS_A_SECOND * args.clip_s
    dtype = torch.bfloat16
    batches = [batch_of(model, args.batch, args.clip_s, n_text, seed) for seed in range(4)]
    batches = [{k: v.to(args.device, dtype if k == "input_features" else None) for k, v in b.items()} for b in batches]

    def run(steps: int) -> None:
        for n in range(steps):
            with torch.autocast(args.device, dtype=dtype):
                loss = loss_of(model, batches[n % len(batches)])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)

    return Ready(run, lambda: qwen_work(model, config, args.batch, args.clip_s, n_text).step_flops)


if __name__ == "__main__":
    main(sys.argv[1:])
