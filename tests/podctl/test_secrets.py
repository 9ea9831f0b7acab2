"""Secrets reach the job and nothing else: no file, no argv, no log, no repr."""

import subprocess
from pathlib import Path, PurePosixPath

from support.podctl_cli import Cli, wait_for

from podctl.host import write
from podctl.localhost import LocalHost

VALUE = "s3cr3t-v4lue-9f2"


def test_a_secret_reaches_the_job_and_no_file_no_argv_and_no_output(cli: Cli):
    script = 'test "${#MY_TOKEN}" = 16 || exit 9; echo begun; while ! test -e $PODCTL_RUN_DIR/go; do sleep 0.05; done'
    (cli.project / ".runpod.env").write_text(f"MY_TOKEN={VALUE}\n")
    (cli.project / ".env").write_text(f"MY_TOKEN={VALUE}\n")
    path = cli.experiment(script, secrets=["MY_TOKEN"])
    launched = cli("train", "-c", path, "--local", "--detach", "--json")
    assert launched.code == 0, launched
    wait_for(lambda: b"begun" in (cli.run_dir() / "log").read_bytes() if (cli.run_dir() / "log").exists() else False)
    argvs = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
    assert VALUE.encode() not in argvs
    (cli.run_dir() / "go").touch()
    done = cli("attach")
    assert done.code == 0, done
    assert VALUE not in launched.stdout + launched.err + done.stdout + done.err
    for root in (cli.home, cli.project / ".podctl"):
        for file in root.rglob("*"):
            assert not file.is_file() or VALUE.encode() not in file.read_bytes(), file
    (ready,) = [e for e in cli.events() if e["event"] == "ready"]
    assert not Path(ready["detail"]["secrets_file"]).exists()


def test_a_secret_lies_in_memory_for_its_owner_alone_and_only_until_it_is_read(cli: Cli, tmp_path: Path):
    path = cli.experiment("echo begun; exec sleep 60", secrets=["MY_TOKEN"])
    cli("train", "-c", path, "--local", "--detach", env={"MY_TOKEN": VALUE})
    (ready,) = [e for e in cli.events() if e["event"] == "ready"]
    file = Path(ready["detail"]["secrets_file"])
    assert file.parent.stat().st_mode & 0o777 == 0o700
    wait_for(lambda: b"begun" in (cli.run_dir() / "log").read_bytes() if (cli.run_dir() / "log").exists() else False)
    assert not file.exists(), "nobody is attached, and still it is gone"
    cli("stop")
    write(LocalHost(), PurePosixPath(tmp_path / "secret"), VALUE, mode="600")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_account_keys_are_not_in_the_jobs_environment(cli: Cli):
    keys = {"RUNPOD_API_KEY": "rp-" + VALUE, "LAMBDA_API_KEY": "la-" + VALUE}
    done = cli("train", "-c", cli.experiment("env; tmux show-environment -g || true"), "--local", env=keys)
    assert done.code == 0, done
    assert VALUE not in done.stdout
    assert "PODCTL_RUN_DIR=" in done.stdout
