"""`podctl doctor`: what is seen, here and there, becomes findings, each with its fix; judging is pure."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.machines import Machine, sshd_machine
from support.podctl_cli import Cli

from podctl import probe
from podctl.asking import BEGIN, Answers, parse
from podctl.findings import BAD, OK, WARN, Finding, Here, Need, judge_here, judge_there, verdict
from podctl.localhost import LocalHost
from podctl.sshkeys import Keys

GOOD = {
    "now": "1000",
    "system": "Linux",
    "user": "me",
    "host": "gpubox",
    "has.bash": "/bin/bash",
    "has.tmux": "/usr/bin/tmux",
    "has.rsync": "/usr/bin/rsync",
    "has.tar": "/bin/tar",
    "has.espeak-ng": "/usr/bin/espeak-ng",
    "has.nvidia-smi": "/usr/bin/nvidia-smi",
    "tmux": "tmux 3.4",
    "rsync": "rsync  version 3.2.7  protocol version 31",
    "python": "/usr/bin/python3",
    "python.version": "3.12.3",
    "candidate./usr/bin/python3": "3.12.3",
    "venv": "yes",
    "volume.path": "/data/podctl",
    "volume.is": "folder",
    "volume.writable": "yes",
    "volume.free_kb": "800000000",
    "disk.path": "/home/me/.cache/podctl",
    "disk.is": "absent",
    "disk.above": "/home/me",
    "disk.writable": "yes",
    "disk.free_kb": "90000000",
    "shm": "yes",
    "gpu.0": "GPU 0: NVIDIA H100 80GB HBM3",
    "cuda": "13.0",
    "driver": "580.65.06",
    "end": "yes",
}
NEED = Need(maybe_local=False)
SEEN = Here(
    python=(3, 12, 1),
    programs={"tmux": "tmux 3.4", "bash": "bash", "git": "git 2", "ssh": "OpenSSH_9.6", "rsync": "rsync version 3.2.7"},
    hints={"espeak-ng": "sudo apt-get install espeak-ng"},
    trainer_python="/venv/bin/python",
    has_torch=True,
    state_dir="/home/me/.local/state/podctl",
    free_kb=90_000_000,
    env_mode=0o600,
    ssh_keys=Keys(Path("/home/me/.ssh"), files=(Path("/home/me/.ssh/id_ed25519"),)),
)


def there(need: Need = NEED, took_s: float = 0.3, skew_s: float = 0.0, chatter: str = "", **changes: str | None):
    values = {**GOOD, **{k.replace("__", "."): v for k, v in changes.items()}}
    answers = Answers({k: v for k, v in values.items() if v is not None}, took_s, skew_s, chatter)
    return list(judge_there(answers, need, "gpubox"))


def unwell(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.level != OK]


def test_a_machine_that_has_all_of_it_is_well():
    assert unwell(there()) == []
    assert verdict(there()) == 0


@pytest.mark.parametrize(
    ("changes", "level", "about", "said", "fix"),
    [
        ({"has__tmux": ""}, BAD, "tmux", "not installed", "apt-get install tmux"),
        ({"has__bash": ""}, BAD, "bash", "not installed", "apt-get install bash"),
        ({"python": "", "candidate.python3.11": "3.11.2"}, BAD, "python", "no python3", "install"),
        ({"python": "", "old.python3": "3.6.9"}, BAD, "python", "python3 is 3.6.9: what", "newer"),
        ({"candidate./usr/bin/python3": "3.8.10"}, BAD, "environment", "3.11 or newer", "pod.ssh.python"),
        ({"venv": ""}, BAD, "environment", "no virtual environment", "python3-venv"),
        ({"rsync": "", "has__rsync": ""}, WARN, "rsync", "by tar", "install rsync"),
        ({"rsync": "", "has__rsync": "", "has__tar": ""}, BAD, "rsync", "neither", "install"),
        ({"rsync": "rsync  version 2.6.9  protocol version 29"}, WARN, "rsync", "is old", "rsync"),
        ({"rsync": "openrsync: protocol version 29"}, WARN, "rsync", "openrsync", "rsync"),
        ({"volume__is": "file"}, BAD, "volume", "is a file", "pod.volume"),
        ({"volume__writable": "sh: 12: cannot create /data/podctl/x: Read-only file system"}, BAD, "volume",
         "/data/podctl can't be written: Read-only file system", "pod.volume"),
        ({"volume__is": "absent", "volume__writable": "/ is not yours to write"}, BAD, "volume",
         "can't be made: / is not yours to write", "sudo install -d -o me /data/podctl"),
        ({"volume__free_kb": "1000"}, BAD, "volume", "1.0 MB free", "free some space"),
        ({"volume__free_kb": "5000000"}, WARN, "volume", "5.1 GB free", "free some space"),
        ({"disk__free_kb": "5000000"}, WARN, "disk", "5.1 GB free", "20.5 GB are needed"),
        ({"shm": ""}, WARN, "shm", "/tmp", "tmpfs"),
        ({"has__nvidia-smi": "", "gpu__0": None}, WARN, "gpu", "on the CPU", "nvidia-smi"),
        ({"gpu__0": "NVIDIA-SMI has failed because it couldn't communicate"}, WARN, "gpu", "couldn't comm", "nvidia"),
        ({"cuda": "12.4"}, WARN, "cuda", "CUDA 12.4", "driver"),
        ({"run__demo-261121-080000-abcd": "alive"}, WARN, "runs", "demo-261121-080000-abcd", "podctl attach demo-2"),
        ({"skew_s": -90000.0}, WARN, "clock", "1 d 1 h behind", "ntp"),
        ({"skew_s": 61.0}, WARN, "clock", "ahead", "ntp"),
        ({"chatter": "Welcome!"}, WARN, "shell", "Welcome!", ".bashrc"),
    ],
)  # fmt: skip
def test_what_is_missing_there_is_said_with_its_fix(changes: dict, level: str, about: str, said: str, fix: str):
    (finding,) = unwell(there(**changes))
    assert (finding.level, finding.about, finding.where) == (level, about, "gpubox")
    assert said in finding.text
    assert fix in finding.fix
    assert verdict([finding]) == (finding.exit_code if level == BAD else 0)


def test_a_volume_that_can_be_made_is_well():
    assert unwell(there(volume__is="absent", volume__above="/data")) == []


def test_a_python_that_was_named_is_looked_at_in_place_of_the_others():
    need = replace(NEED, python="/opt/env/bin/python")
    good = {"given__version": "3.11.9", "given__torch": "yes", "python.version": "3.8.10", "venv": None}
    assert unwell(there(need, **good)) == []
    assert unwell(there(need, **{**good, "cuda": "12.4"})) == [], "its torch is not ours to judge"
    assert "does not run" in unwell(there(need, **{**good, "given__version": ""}))[0].text
    assert "needs 3.11" in unwell(there(need, **{**good, "given__version": "3.10.2"}))[0].text
    assert "torch is not installed" in unwell(there(need, **{**good, "given__torch": "no"}))[0].text


def test_a_command_of_ones_own_needs_no_environment():
    old = {"python.version": "3.8.10", "candidate./usr/bin/python3": "3.8.10"}
    assert unwell(there(replace(NEED, trains=False), **old, venv=None, cuda="12.4")) == []


def test_espeak_is_needed_by_the_demo_alone():
    assert unwell(there(**{"has__espeak-ng": ""})) == []
    (finding,) = unwell(there(replace(NEED, espeak=True), **{"has__espeak-ng": ""}))
    assert finding.level == BAD


def test_a_machine_that_answers_nothing_is_unwell_and_breaks_nothing():
    findings = list(judge_there(Answers(), NEED, "gpubox"))
    assert {f.about for f in findings if f.level == BAD} >= {"tmux", "bash", "python", "environment", "volume"}


@pytest.mark.parametrize(
    ("changes", "need", "level", "about", "said"),
    [
        ({"python": (3, 10, 1)}, Need(), BAD, "python", "3.10.1"),
        ({"programs": {**SEEN.programs, "tmux": ""}, "drop": "tmux"}, Need(), WARN, "tmux", "a run on this machine"),
        ({"drop": "tmux"}, Need(local=True), BAD, "tmux", "a run on this machine"),
        ({"drop": "git"}, Need(), WARN, "git", "no commit"),
        ({"drop": "ssh"}, Need(), WARN, "ssh", "slower"),
        ({"shares": "no socket in /tmp: too long"}, Need(), WARN, "ssh", "no socket in /tmp"),
        ({"drop": "rsync"}, Need(), WARN, "rsync", "tar"),
        ({"programs": {**SEEN.programs, "rsync": "openrsync: protocol version 29"}}, Need(), WARN, "rsync", "macOS"),
        ({"programs": {**SEEN.programs, "rsync": "rsync version 2.6.9"}}, Need(), WARN, "rsync", "is old"),
        ({"has_torch": False}, Need(), WARN, "torch", "not installed beside /venv/bin/python"),
        ({"has_torch": False}, Need(local=True), BAD, "torch", "not installed beside"),
        ({"has_torch": None}, Need(local=True), BAD, "torch", "does not run"),
        ({}, Need(local=True, espeak=True), BAD, "espeak-ng", "corpus"),
        ({"state_trouble": "/x is no folder"}, Need(), BAD, "state", "/x is no folder"),
        ({"free_kb": 1000}, Need(), BAD, "state", "1.0 MB free"),
        ({"free_kb": 2_000_000}, Need(), WARN, "state", "2.0 GB free"),
        ({"ledger_torn": 2, "ledger_runs": 5}, Need(), WARN, "ledger", "2 lines"),
        ({"ledger_trouble": "the ledger can't be read"}, Need(), BAD, "ledger", "can't be read"),
        ({"tracked": "git tracks .runpod.env\ngit rm"}, Need(), BAD, ".runpod.env", "git tracks"),
        ({"env_mode": 0o644}, Need(), WARN, ".runpod.env", "mode 644"),
        ({"slips": {"RUNPOD_APIKEY": "RUNPOD_API_KEY"}}, Need(), WARN, ".runpod.env", "did you mean RUNPOD_API_KEY"),
        ({"ssh_keys": Keys(Path("/h"))}, Need(), WARN, "ssh-key", "no SSH key"),
        ({"ssh_keys": Keys(Path("/h"), (Path("/h/k"),), (Path("/h/k"),))}, Need(), WARN, "ssh-key", "passphrase"),
        ({"ssh_keys": Keys(Path("/h"), (Path("/h/k"),), (Path("/h/k"),))}, Need(key="/h/k"), BAD, "ssh-key", "passph"),
        ({"ssh_keys": None}, Need(), WARN, "ssh-key", "no home"),
    ],
)
def test_what_is_missing_here_is_said_with_its_fix(changes: dict, need: Need, level: str, about: str, said: str):
    changes = dict(changes)
    dropped = changes.pop("drop", None)
    programs = {k: v for k, v in changes.pop("programs", SEEN.programs).items() if k != dropped}
    seen = replace(SEEN, programs=programs, **changes)
    (finding,) = unwell(list(judge_here(seen, need)))
    assert (finding.level, finding.about, finding.where) == (level, about, "here")
    assert said in finding.text


def test_this_machine_is_well_where_all_is_there():
    assert unwell(list(judge_here(SEEN, Need()))) == []


def test_a_run_elsewhere_needs_neither_tmux_nor_torch_here():
    seen = replace(SEEN, programs={k: v for k, v in SEEN.programs.items() if k != "tmux"}, has_torch=None)
    assert unwell(list(judge_here(seen, NEED))) == []


def test_the_code_is_the_one_that_all_troubles_share():
    bad = [Finding(BAD, "here", "a", "a", exit_code=2), Finding(WARN, "here", "b", "b", exit_code=6)]
    assert verdict(bad) == 2
    assert verdict([*bad, Finding(BAD, "here", "c", "c", exit_code=6)]) == 9
    assert verdict([]) == 0


# the script itself, on this machine


def test_the_script_asks_all_that_is_judged(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "fo lder'").mkdir()
    answers = probe.look(LocalHost(), volume=str(tmp_path / "fo lder'"), disk=str(tmp_path / "file" / "x"))
    assert answers["volume.is"] == "folder"
    assert answers["volume.writable"] == "yes"
    assert int(answers["volume.free_kb"]) > 0
    assert answers["disk.is"] == "absent"
    assert "not yours" in answers["disk.writable"]
    assert answers["python.version"].startswith("3.")
    assert Path(answers["python"]).is_absolute()
    assert answers.skew_s == 0
    assert answers.took_s < 30
    assert list((tmp_path / "fo lder'").iterdir()) == [], "it leaves nothing behind"
    names = {f.about for f in judge_there(answers, Need(), "here")}
    assert names >= {"ssh", "tmux", "bash", "python", "environment", "rsync", "volume", "disk", "gpu"}


def test_the_script_needs_next_to_nothing(tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "tr", "uname", "date", "id"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    script = probe.SCRIPT.replace(" /usr", " /no")
    argv = ["sh", "-c", script, "sh", str(tmp_path), "~/x", "/nowhere/python"]
    done = subprocess.run(argv, env={"PATH": str(programs), "HOME": str(tmp_path)}, capture_output=True, text=True)
    answers = parse(done.stdout, 0.1, time.time())
    assert answers["end"] == "yes"
    findings = unwell(list(judge_there(answers, replace(NEED, python="/nowhere/python"), "gpubox")))
    assert {f.about for f in findings if f.level == BAD} == {"tmux", "bash", "python", "environment", "rsync"}


def test_a_gpu_and_its_driver_are_read_from_nvidia_smi(tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(
        "#!/bin/sh\ncase $1 in\n-L) echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA L4 (UUID: GPU-2)' ;;\n"
        "--query*) echo 550.54.15 ;;\n*) echo '| NVIDIA-SMI 550.54.15   CUDA Version: 12.4 |' ;;\nesac\n"
    )
    (programs / "nvidia-smi").chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    argv = ["sh", "-c", probe.SCRIPT, "sh", str(tmp_path), str(tmp_path), ""]
    answers = parse(subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout)
    findings = {f.about: f for f in judge_there(answers, NEED, "gpubox")}
    assert findings["gpu"].text == "GPU 0: NVIDIA L4; GPU 1: NVIDIA L4"
    assert "550.54.15 speaks CUDA 12.4" in findings["cuda"].text


@pytest.mark.parametrize(
    ("now", "wall", "took_s", "skew_s"),
    [
        (1000, 1000.5, 0.3, 0),
        (1000, 999.0, 0.3, 0),
        (1000, 900.0, 5.0, 94),
        (1000, 90000.0, 5.0, -88999),
        (1000, 995.0, 5, 0),
    ],
)
def test_a_clock_is_off_only_by_what_the_asking_does_not_explain(now, wall, took_s, skew_s):
    assert parse(f"\n{BEGIN}\nnow={now}\nend=yes\n", took_s, wall).skew_s == skew_s


def test_what_a_shell_prints_before_the_answers_is_told_apart():
    answers = parse(f"Welcome to gpubox\nnow=1\n\n{BEGIN}\nnow=2\nnot an answer\nend=yes\n")
    assert answers.chatter == "Welcome to gpubox\nnow=1"
    assert answers["now"] == "2"


def test_a_connection_is_shared_only_where_a_socket_can_be_made(cli: Cli, tmp_path: Path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    assert "shares connections" in cli("doctor").stdout
    assert (
        f"! ssh can't share a connection here (no socket in {deep}" in cli("doctor", env={"TMPDIR": str(deep)}).stdout
    )


# the command


def test_a_project_that_has_everything_is_well(cli: Cli):
    done = cli("doctor", "--config", cli.experiment())
    assert done.code == 0, done
    assert all(line[0] in "✓!✗ " for line in done.stdout.splitlines())
    assert "✓ tmux" in done.stdout
    assert not cli.home.exists(), "looking makes nothing"


def test_findings_in_json_end_with_the_verdict(cli: Cli):
    cli.experiment(gpus="x")
    done = cli("doctor", "-c", "x.yaml", "--json")
    assert done.code == 2
    assert done.lines[-1] == {"event": "doctor", "ok": False, "exit_code": 2}
    (bad,) = [f for f in done.lines if f.get("level") == "bad"]
    assert bad["about"] == "experiment"
    assert "did you mean gpu?" in bad["text"]


def test_keys_are_named_and_never_shown(cli: Cli):
    path = cli.project / ".runpod.env"
    path.write_text("RUNPOD_API_KEY=s3cr3t-a\nHF_TOKN=s3cr3t-b\nMY_TOKEN=s3cr3t-c\n")
    path.chmod(0o644)
    done = cli("doctor", env={"LAMBDA_API_KEY": "s3cr3t-d"})
    assert done.code == 0, done
    assert "s3cr3t" not in done.stdout + done.err
    assert "LAMBDA_API_KEY (environment), RUNPOD_API_KEY (.runpod.env), MY_TOKEN (.runpod.env)" in done.stdout
    assert "did you mean HF_TOKEN?" in done.stdout
    assert "chmod 600 .runpod.env" in done.stdout


def test_keys_that_git_tracks_are_unwell(cli: Cli):
    (cli.project / ".runpod.env").write_text("A=1\n")
    cli.git("add", "-f", ".runpod.env")
    done = cli("doctor")
    assert done.code == 2
    assert "✗ git tracks .runpod.env" in done.stdout
    assert "→ git rm --cached" in done.stdout


@pytest.mark.parametrize("home", ["a file", "a ledger that is a folder", "~nobody-of-that-name/x", "too long"])
def test_an_unkind_state_directory_is_a_finding(cli: Cli, tmp_path: Path, home: str):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "ledger.jsonl").mkdir(parents=True)
    places = {"a file": "file", "a ledger that is a folder": "folder", "too long": "a" * 300}
    done = cli("doctor", env={"PODCTL_HOME": str(tmp_path / places[home]) if home in places else home})
    assert done.code == 9, done
    assert "PODCTL_HOME" in done.stdout
    assert "Traceback" not in done.err


def test_a_ledger_with_a_torn_line_is_told(cli: Cli):
    cli("train", "-c", cli.experiment())
    ledger = cli.home / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"t": 1, "event": "inte\n')
    done = cli("doctor")
    ledger.write_bytes(whole)
    assert done.code == 0
    assert "! a line of the ledger can't be read; the others tell of 1 run" in done.stdout


# over a real sshd


@pytest.fixture
def machine(cli: Cli, tmp_path: Path):
    with sshd_machine(tmp_path) as machine:
        cli.env |= machine.env
        yield machine


def test_the_machine_of_an_experiment_is_examined(cli: Cli, machine: Machine):
    path = cli.experiment(provider="ssh", **machine.pod_section)
    done = cli("doctor", "-c", path, "--json")
    assert done.code == 0, done
    there = {f["about"]: f for f in done.lines if f.get("where", "here") != "here"}
    assert {"ssh", "tmux", "python", "environment", "volume", "disk", "gpu"} <= set(there)
    assert there["ssh"]["text"].startswith("answers within")
    assert there["volume"]["level"] == "ok"
    assert there["disk"]["text"].startswith(f"disk {machine.pod_section['ssh']['disk']} will be made")
    assert not Path(machine.pod_section["ssh"]["disk"]).exists(), "looking makes nothing"
    assert "torch" not in {f.get("about") for f in done.lines}, "it is not needed here"


def test_a_living_run_there_is_named(cli: Cli, machine: Machine):
    path = cli.experiment("sleep 60", provider="ssh", **machine.pod_section)
    assert cli("train", "-c", path, "--yes", "--detach").code == 0
    done = cli("doctor", "-c", path, "--json")
    (found,) = [line for line in done.lines if line.get("about") == "runs"]
    named = found["text"].removeprefix("runs there already: ").split(", ")
    assert cli.events()[0]["run"] in named, "beside whatever else runs on this machine"
    assert found["fix"].endswith(f"stop {named[0]}")
    assert cli("stop").code == 0


def test_a_machine_that_does_not_answer_is_a_finding_with_its_own_code(cli: Cli, machine: Machine):
    section = {"host": "127.0.0.1", "port": 1, "host_key": machine.pod_section["ssh"]["host_key"]}
    done = cli("doctor", "-c", cli.experiment(provider="ssh", ssh=section, volume="/data"))
    assert done.code == 6, done
    assert "✗ 127.0.0.1:1: " in done.stdout
    assert "✓ git" in done.stdout


def test_a_host_key_that_nobody_knows_is_a_finding(cli: Cli, machine: Machine):
    section = {k: v for k, v in machine.pod_section["ssh"].items() if k != "host_key"}
    done = cli("doctor", "-c", cli.experiment(provider="ssh", ssh=section, volume="/data"))
    assert done.code == 6, done
    assert "host key of 127.0.0.1 is not known" in done.stdout


def test_init_checks_the_machine_that_it_wrote_down(cli: Cli, machine: Machine):
    ssh = machine.pod_section["ssh"]
    folder = Path(cli.env["HOME"]) / ".ssh"
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{ssh['port']} {ssh['host_key']}\n")
    (folder / "config").write_text(f'Host gpubox\n  HostName 127.0.0.1\n  Port {ssh["port"]}\n  User {ssh["user"]}\n'
                                   f'  IdentityFile "{ssh["key"]}"\n  IdentitiesOnly yes\n'
                                   f'  UserKnownHostsFile "{folder}/known_hosts"\n')  # fmt: skip
    done = cli("init", "--yes", "--ssh", "gpubox", "--volume", machine.pod_section["volume"])
    assert "✓ gpubox: answers within" in done.stdout, done
    assert done.code == 0, done
    assert "ssh: gpubox\n" in (cli.project / "experiment.yaml").read_text()
    again = cli("init", "--yes", "--ssh", "gpubox", "--volume", machine.pod_section["volume"], "--json")
    assert again.lines[0]["changed"] == []
    assert {"init", "finding"} == {line["event"] for line in again.lines}
