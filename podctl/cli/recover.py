"""`podctl recover`."""

from pathlib import Path
from typing import Annotated

import typer

from podctl.cli.options import AsJson, epilogue, this_project


def register(app: typer.Typer) -> None:
    app.command(epilog=epilogue("recover --config whisper.yaml"))(recover)


def recover(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The experiment file.", show_default=False)
    ],
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Find an experiment's runs on its volume: a ledger was lost, or another laptop began them."""
    from podctl.experiment import bad_file, read_experiment
    from podctl.providers.base import provider_named
    from podctl.recover import pod_with_volume
    from podctl.recover import recover as recover_runs
    from podctl.runs import open_ledger
    from podctl.ui import Ui
    from remote.clock import clock_from_env

    ui = Ui(as_json=as_json)
    experiment, _, mistakes = read_experiment(config, sets=tuple(sets or ()))
    if experiment is None:
        raise bad_file(config, mistakes)
    provider = provider_named(experiment.pod.provider)
    pod = pod_with_volume(provider, experiment.spec, str(config))
    found = recover_runs(pod, experiment.name, this_project(), open_ledger(), clock_from_env().now())
    for run_id in found:
        ui.emit({"event": "recovered", "run": run_id}) if as_json else ui.data(run_id)
    if not found:
        ui.note(f"no run of {experiment.name} there that is not known here")
    return 0
