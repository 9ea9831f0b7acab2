"""The command line of the trainer: check · plan · prepare · train · evaluate · predict · average, and those that live
by themselves in `commands`: audit · align · compare · report · export · push.

Heavy modules are imported by the command that needs them: `check` answers without torch.
"""

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from remote.fence import Superseded
from remote.rundir import EXIT_SAVED, RunDir
from trainer.commands import add_all
from trainer.errors import BadData, BadRecipe, TrainerError
from trainer.launch import count_gpus, is_rank, launch, leave_with_launcher, ranks_of
from trainer.nodes import nodes_in
from trainer.talk import set_up_logging

# what a place that somebody named may answer; that a file is not there is a mistake of ours, and keeps its trace
NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
KINDS = ("nemo", "lhotse", "kaldi", "hf")  # what `prepare from` reads; see trainer/data/foreign.py


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 bad input, 75 saved and resumable."""
    leave_with_launcher()
    args = _parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = int(args.command(args))
        sys.stdout.flush()
        return code
    except TrainerError as e:
        print(e.message, file=sys.stderr)
        if e.hint:
            print(f"→ {e.hint}", file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:  # whoever read has had enough; what was not done yet stays undone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        if e.errno in NOT_OURS and e.filename:
            print(f"{os.fsdecode(e.filename2 or e.filename)!r}: {e.strerror}", file=sys.stderr)
            print("→ name another place, or let this user in there", file=sys.stderr)
            return 2
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"the disk is full: {e.filename or e}", file=sys.stderr)
        print("→ free space there, then run the same command again: it resumes", file=sys.stderr)
        return 1
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError":  # torch's, without importing torch to say so
            raise
        print(f"the GPU's memory is full: {str(e).splitlines()[0]}", file=sys.stderr)
        print("→ halve train.loop.micro_s (it changes no result), then train again: it resumes", file=sys.stderr)
        return 1
    except Superseded as e:
        print(f"{e}: this one leaves", file=sys.stderr)
        return EXIT_SAVED
    except KeyboardInterrupt:
        return 130


def check(args: argparse.Namespace) -> int:
    """Read an experiment's `train:` section and name every mistake in it."""
    from trainer.recipe.load import changes, load_recipe

    found: list[dict[str, str]] = []
    differs: list[str] = []
    exceptions: list[str] = []
    try:
        recipe = load_recipe(args.file, expand=False)
        exceptions = recipe.exceptions()
        if args.against:
            differs = changes(load_recipe(args.against, expand=False), recipe)
    except BadRecipe as e:
        found = [{"where": m.where, "what": m.what} for m in e.mistakes]
    if args.json:
        print(json.dumps({"mistakes": found, "changes": differs, "exceptions": exceptions}))
    else:
        for m in found:
            print(f"{m['where']}: {m['what']}" if m["where"] else m["what"], file=sys.stderr)
        for line in differs:
            print(f"differs: {line}", file=sys.stderr)
        for line in exceptions:
            print(f"exception: {line}", file=sys.stderr)
        if not found and not differs:
            print("ok")
    return 2 if found or differs else 0


def plan(args: argparse.Namespace) -> int:
    """What a training will take: memory, steps, hours. No GPU and no weights are needed."""
    set_up_logging()
    from dataclasses import asdict

    from trainer.planning import lines_of, make_plan
    from trainer.recipe.load import load_recipe

    made = make_plan(load_recipe(args.file))
    print(json.dumps(asdict(made)) if args.json else "\n".join(lines_of(made)))
    return 0


def prepare(args: argparse.Namespace) -> int:
    """Make the demo's corpus, read an experiment's data once, or make manifests of others' data or of children's."""
    from trainer.prepare import prepare_demo_corpus, prepare_experiment, prepare_from

    if args.what == "from":
        if len(args.source) != 2 or not args.out:
            raise BadRecipe.one(
                "prepare from", f"say which format, from where and --out DIR: one of {', '.join(KINDS)}"
            )
        return prepare_from(args.source[0], args.source[1], Path(args.out), args.set)
    if args.what == "children":
        from trainer.prepare_children import How, prepare_children

        if len(args.source) != 1 or not args.out:
            raise BadRecipe.one("prepare children", "say where the competition's files lie, and --out DIR")
        given = {k: getattr(args, k) for k in vars(How())}
        chosen = How(**{k: v for k, v in given.items() if v is not None})
        return prepare_children(args.source[0], args.out, args.unpack, chosen)
    if args.source:
        raise BadRecipe.one("prepare", f"{args.source[0]!r} is one word too many: only `from` and `children` take more")
    if args.what == "demo":
        dev, test = (200 if n is None else round(n) for n in (args.dev, args.test))
        prepare_demo_corpus(Path(args.out or "demo"), args.train, dev, test, 1 if args.seed is None else args.seed)
        return 0
    return prepare_experiment(Path(args.what))


def train(args: argparse.Namespace) -> int:
    """Train, or go on where the run directory's newest checkpoint is: here, or in a process a GPU."""
    if not is_rank():
        from trainer.recipe.load import load_recipe

        loop = load_recipe(args.file).loop
        code = _launched(args, loop.ranks, loop.device, loop.threads)
        if code is not None:
            return code
    set_up_logging()
    from trainer.train import train as run

    run(args.file, RunDir(args.run_dir.absolute()), debug=args.debug)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Decode manifests with a trained model and score them; or rows that were decoded before."""
    if args.rows:
        from trainer.rescore import rescore

        if args.inputs:
            raise BadRecipe.one("evaluate", f"{args.inputs[0]} is one file too many: rows hold all that is scored")
        for found in rescore(args.rows, args.set, args.out):
            print(found.json_line if args.json else "\n".join(found.lines))
            if found.kept:
                print(f"report: {found.kept}", file=sys.stderr if args.json else sys.stdout)
        return 0
    return _applied(args, "evaluate")


def predict(args: argparse.Namespace) -> int:
    """Transcribe manifests or sound files, or look whether a submission is what its format asks for."""
    if args.check is None:
        return _applied(args, "predict")
    from trainer.submission import mistakes_of, read_format

    if args.format is None:
        raise BadData("a submission is checked against its format", "add --format submission_format.jsonl")
    wrong, told = mistakes_of(args.check, read_format(args.format))
    print(*wrong, *told, sep="\n", end="\n" if wrong or told else "", file=sys.stderr)
    if not wrong:
        print(f"✓ {args.check} is what {args.format.name} asks for")
    return 1 if wrong else 0


def _applied(args: argparse.Namespace, command: str) -> int:
    if not is_rank() and (args.inputs or command == "evaluate"):
        from trainer.apply import recipe_of

        loop = recipe_of(args).loop
        some = all(name.endswith(".jsonl") for name in args.inputs)  # a few sound files are heard sooner by one
        code = _launched(args, args.ranks if some or args.ranks != "auto" else 1, loop.device, loop.threads)
        if code is not None:
            return code
    set_up_logging(sys.stderr if getattr(args, "json", False) else sys.stdout)
    from trainer import apply
    from trainer.together import leave

    result = int(getattr(apply, command)(args))
    leave()
    return result


def average(args: argparse.Namespace) -> int:
    """The mean of several models' weights, adapters merged."""
    set_up_logging()
    from trainer.average import average as run

    return run(args)


def _launched(args: argparse.Namespace, asked: str | int, device: str, threads: int) -> int | None:
    """The exit code of this command in as many processes as are asked for; None where that is this one alone."""
    ranks = ranks_of(asked, count_gpus(device), nodes_in(os.environ))
    return launch(args.argv, ranks, threads) if ranks.world > 1 else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trainer", description="Fine-tune speech models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("check", help="name every mistake in an experiment file; loads no torch")
    p.add_argument("file", type=Path)
    p.add_argument("--against", type=Path, help="an older experiment: also say what a resume would not allow")
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=check)

    p = commands.add_parser("plan", help="say what a training will take: memory, steps, hours; no GPU needed")
    p.add_argument("file", type=Path)
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=plan)

    p = commands.add_parser(
        "prepare", help="make the demo corpus, check an experiment's data, or make manifests of others' data"
    )
    p.add_argument("what", help="`demo`, an experiment file, `from`, or `children`")
    p.add_argument("source", nargs="*", help=f"from: {', '.join(KINDS)}; then, as for children: where it lies")
    p.add_argument("--out", help="demo: the folder it goes to, under the volume's data/ (demo); others: a folder")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="from: text=COLUMN, audio=COLUMN, …")
    p.add_argument("--train", type=int, default=1000, help="demo: utterances (1000)")
    p.add_argument("--dev", type=float, help="demo: utterances (200); children: share of the utterances (0.05)")
    p.add_argument("--test", type=float, help="the same")
    p.add_argument("--seed", type=int, help="of every draw (demo: 1, children: 0)")
    p.add_argument(
        "--dev-small", type=int, metavar="N", help="children: utterances of dev to watch a training by (500)"
    )
    p.add_argument("--max-s", type=float, metavar="S", help="children: longer recordings go to long.jsonl (30)")
    p.add_argument(
        "--max-bad-share", type=float, metavar="X", help="children: refuse where more of it can't be used (0.05)"
    )
    p.add_argument("--unpack", metavar="DIR", help="children: where archives are unpacked (audio/ in --out)")
    p.add_argument("--workers", type=int, metavar="N", help="children: threads that decode (one a processor)")
    p.set_defaults(command=prepare)

    p = commands.add_parser("train", help="train, or resume what is in the run directory")
    p.add_argument("file", type=Path, help="an experiment file")
    p.add_argument("--run-dir", type=Path, required=True, help="where checkpoints, metrics and reports go")
    p.add_argument("--debug", action="store_true", help="100 utterances, a few steps")
    p.set_defaults(command=train)

    for name, command, text in (
        ("evaluate", evaluate, "decode manifests and score them"),
        ("predict", predict, "transcribe manifests or sound files"),
    ):
        p = commands.add_parser(name, help=text)
        which = p.add_mutually_exclusive_group(required=True)
        which.add_argument("--run", type=Path, help="a run directory: its best checkpoint, its recipe")
        which.add_argument(
            "--model", type=Path, help="an export, or any Whisper, CTC, Parakeet or seq2seq model in the Hub's layout"
        )
        if name == "predict":
            which.add_argument(
                "--check", type=Path, metavar="FILE", help="no model: is this file what --format asks for?"
            )
            p.add_argument(
                "--format",
                type=Path,
                help="the competition's submission_format.jsonl: the same ids, order and fields are written",
            )
        p.add_argument(
            "inputs", nargs="*", help="manifests (.jsonl)" + ("" if name == "evaluate" else " or sound files")
        )
        p.add_argument(
            "--out",
            type=Path,
            help="where rows go; reports of a run by default"
            if name == "evaluate"
            else "a JSON Lines file; standard output by default",
        )
        p.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="eval.decode.beams=5, data.fields=…"
        )
        p.add_argument(
            "--ranks", type=_ranks, default="auto", metavar="N", help="processes; one a GPU by default, or one"
        )
        if name == "evaluate":
            which.add_argument("--rows", type=Path, nargs="+", metavar="FILE", help="score saved rows again; no model")
            p.add_argument("--no-before", action="store_true", help="leave out a run's model before training")
            p.add_argument("--json", action="store_true", help="an object a line on stdout; talk on stderr")
            p.add_argument("--shuffle-audio", action="store_true", help="control: everyone gets another's audio")
        p.set_defaults(command=command)

    p = commands.add_parser("average", help="the mean of several models' weights, adapters merged, as one model")
    p.add_argument(
        "sources", nargs="+", type=Path, help="runs (their best), checkpoints (step-…), exports, models of the Hub"
    )
    p.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    p.set_defaults(command=average)
    add_all(commands)
    return parser


def _ranks(text: str) -> str | int:
    if text == "auto":
        return text
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 nor auto")
    return int(text)


if __name__ == "__main__":
    code = main()
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, signal.SIG_IGN)  # Python's last act is to put the default back: it would make 143 of 75
    sys.exit(code)
