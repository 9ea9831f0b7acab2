"""`podctl evaluate` and `podctl predict`: a run's model meets other audio, on the machine that it was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podctl.cli.options import AsJson, RunWord, epilogue, meant_run, this_project
from podctl.cli.train import Beside, Detach, Queue, Unguarded, Yes, begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from podctl.apply import Subject, Wanted
    from podctl.inputs import Meant
    from podctl.ui import Ui


def register(app: typer.Typer) -> None:
    app.command(
        epilog=epilogue(
            "evaluate",
            "evaluate whisper noisy.jsonl far.jsonl",
            "evaluate whisper --set eval.decode.beams=5 --set pod.gpu=[4090]",
            "evaluate whisper --dry-run",
            "evaluate whisper test.jsonl -- --no-before",
        )
    )(evaluate)
    app.command(
        epilog=epilogue(
            "predict whisper --input test.jsonl",
            "predict whisper --input test.jsonl --format submission_format.jsonl --to submission.jsonl",
            "predict --input a.wav --input b.flac",
        )
    )(predict)


Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", help="pod.… of its machine; all else of the model's recipe, as eval.decode.beams=5."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; nothing is written.")]
Local = Annotated[bool, typer.Option("--local", help="Only where the run is on this machine, at no cost.")]


def evaluate(
    run: RunWord = "",
    manifests: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MANIFEST...",
            help="In the project, or below the volume's data/; the recipe's test set. After -- options of trainer.",
            show_default=False,
        ),
    ] = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    local: Local = False,
    queue: Queue = False,
    beside: Beside = False,
    unguarded: Unguarded = False,
    yes: Yes = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> int:
    """Score a run's model as it is: word and character errors, by bucket, with intervals. It is a run of its own."""
    from podctl.apply import EVALUATE

    word, names, options = _words(run, manifests)
    return _apply(
        EVALUATE,
        word,
        names,
        options,
        sets=sets,
        dry_run=dry_run,
        local=local,
        queue=queue,
        beside=beside,
        unguarded=unguarded,
        yes=yes,
        detach=detach,
        as_json=as_json,
    )


def predict(
    run: RunWord = "",
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- OPTION...", help="Options of `trainer predict`.", show_default=False),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="PATH", help="A manifest or a sound file; repeatable."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="PATH",
            help="A JSON Lines file whose ids, in its order, are answered.",
            show_default=False,
        ),
    ] = "",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="PATH", help="Where to; RUN.predictions.jsonl here.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that stands there.")] = False,
    sets: Sets = None,
    dry_run: DryRun = False,
    local: Local = False,
    queue: Queue = False,
    beside: Beside = False,
    unguarded: Unguarded = False,
    yes: Yes = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> int:
    """Transcribe manifests or sound files with a run's model, and bring the lines here. It is a run of its own."""
    from podctl.apply import PREDICT
    from podctl.errors import BadInput

    word, more, passed = _words(run, options)
    if more:
        raise BadInput(f"{more[0]!r} is one word too many", "podctl predict RUN --input FILE")
    if not inputs:
        raise BadInput("there is nothing to transcribe", "--input with a manifest (.jsonl) or a sound file")
    return _apply(
        PREDICT,
        word,
        inputs,
        passed,
        format=format,
        to=to,
        overwrite=overwrite,
        sets=sets,
        dry_run=dry_run,
        local=local,
        queue=queue,
        beside=beside,
        unguarded=unguarded,
        yes=yes,
        detach=detach,
        as_json=as_json,
    )


def _apply(
    does: str,
    word: str,
    names: "Sequence[str]",
    options: "Sequence[str]",
    *,
    format: str = "",
    to: Path | None = None,
    overwrite: bool = False,
    sets: "Sequence[str] | None",
    dry_run: bool,
    local: bool,
    queue: bool,
    beside: bool,
    unguarded: bool,
    yes: bool,
    detach: bool,
    as_json: bool,
) -> int:
    """What was asked, as an experiment of its own, then all ten steps."""
    import tempfile

    from podctl.apply import PREDICT, Wanted, experiment_for, find_subject, purpose, refuse_odd_inputs
    from podctl.cli import program
    from podctl.errors import BadInput
    from podctl.prepare import Order
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    found, _ = meant_run(word, training=True)
    ui = Ui(as_json=as_json)
    if local and found.provider != "local":
        raise BadInput(
            f"{found.id} lies at {found.provider}, not on this machine",
            f"leave --local out; or podctl pull {found.id} --checkpoints, and trainer {does} --run",
        )
    refuse_odd_inputs(does, names)
    target = _target(to or Path(f"{found.id}.predictions.jsonl"), overwrite=overwrite) if does == PREDICT else None
    now = clock_from_env().now()
    subject = find_subject(found, this_project(), now, program())
    meant, shape = _meant(subject, names, format)
    wanted = Wanted(does, [m.name for m in meant], options, tuple(sets or ()), "".join(m.name for m in shape))
    _say_what(ui, subject, wanted, [*meant, *shape])
    with tempfile.TemporaryDirectory(prefix="podctl-") as tmp:
        path = Path(tmp, "experiment.yaml")
        path.write_text(experiment_for(subject, wanted, Path(tmp)), encoding="utf-8")
        order = Order(
            path,
            wanted.pod_sets,
            queue=queue,
            beside=beside,
            unguarded=unguarded,
            podctl=program(),
            purpose=purpose(subject, wanted, target, overwrite=overwrite, asked_at=now),
            on_pod=subject.on_pod,
        )
        return begin(order, ui, dry_run=dry_run, yes=yes, detach=detach)


def _words(run: str, rest: "Sequence[str] | None") -> tuple[str, list[str], list[str]]:
    """The run's word, the names after it, and what stands behind `--`. A manifest alone is of the newest run."""
    typed = [run, *(rest or ())] if run else list(rest or ())
    at = typed.index("--") if "--" in typed else len(typed)
    named, options = typed[:at], typed[at + 1 :]
    word = named.pop(0) if named and not named[0].endswith(".jsonl") else ""
    return word, named, options


def _target(to: Path, *, overwrite: bool) -> Path:
    """Where predictions go; refused now, and not when they are paid for."""
    from podctl.errors import BadInput
    from podctl.ui import shown

    target = to.absolute()
    if target.is_dir():
        raise BadInput(f"{shown(to)} is a folder", f"--to {shown(to / 'predictions.jsonl')}")
    if not target.parent.is_dir():
        raise BadInput(f"there is no folder {shown(target.parent)}", "make it, or name another with --to")
    if target.exists() and not overwrite:
        raise BadInput(f"{shown(target)} is there already", "--to another file, or --overwrite")
    return target


def _meant(subject: "Subject", names: "Sequence[str]", format: str) -> "tuple[list[Meant], list[Meant]]":
    """The inputs and the format file, as the job over there has to be told; all that is not to be had, at once."""
    from podctl import source
    from podctl.cli import program
    from podctl.inputs import Around, resolve
    from podctl.project import working_dir
    from podctl.settings import state_dir

    project, run = this_project(), subject.run
    around = Around(
        root=project.root,
        sent=frozenset(source.snapshot(project, exclude=state_dir()).files),
        here=working_dir(),
        look=subject.look if subject.host is not None else None,
        same_machine=run.provider == "local",
    )
    words = [*names, *([format] if format else [])]
    by_word = dict(zip(dict.fromkeys(words), resolve(words, around, program(), run.id), strict=True))
    return [by_word[n] for n in dict.fromkeys(names)], [by_word[format]] if format else []


def _say_what(ui: "Ui", subject: "Subject", wanted: "Wanted", meant: "Sequence[Meant]") -> None:
    """What a person should know before the plan is shown."""
    from podctl.apply import tells_of_a_model
    from podctl.inputs import notes_of

    run = subject.run
    what = ", ".join(wanted.inputs) or "its recipe's test set"
    ui.note(f"{wanted.does}s {run.id} ({subject.state}) on {what}")
    if subject.is_going:
        ui.warn(f"{run.id} is still going: its best model so far is used")
        if run.is_rented:
            ui.note("its own pod goes on; this takes another on the same volume")
    if not tells_of_a_model(subject):
        ui.warn(f"nothing that came home of {run.id} tells of a checkpoint: there may be no model")
    for note in notes_of(meant):
        ui.warn(note)
