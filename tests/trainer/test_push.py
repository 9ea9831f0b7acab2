"""`trainer push` against a Hub on this machine, through the client that everybody uses."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loopback_hub import Account, Fault, Hub, serving
from support.measured import measured_run, whole_model
from support.speech import recipe_dict, write_experiment
from support.trainings import environment
from support.whispers import talkative

from remote.files import write_json
from remote.rundir import RunDir, Status
from trainer.__main__ import main
from trainer.card_file import read_front
from trainer.hub_faults import again, explain, is_passing
from trainer.hub_push import Hub as Client
from trainer.hub_push import decide
from trainer.model_card import make_card
from trainer.parcel import NEEDED
from trainer.push import make_push

TOKEN = "hf_verySecretToken0123456789"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.accounts[TOKEN] = Account("ada", orgs=("analytical",))
        hub.cards["openai/whisper-small"] = {"license": "apache-2.0"}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return measured_run(tmp_path / "runs" / "ears-1")


def push(run: RunDir, *more: str, repo: str = "ada/ears") -> int:
    return main(["push", "--run", str(run.root), "--repo", repo, "--yes", *more])


def puts(hub: Hub) -> list[str]:
    return [a for a in hub.asked if a.startswith("PUT") and not a.endswith("✗")]


def send(run: RunDir, waited: list[float], repo: str = "ada/ears") -> None:
    """As the command does it, but nobody waits."""
    args = argparse.Namespace(run=run.root, model=None, repo=repo, what="export")
    wanted = make_push(args)
    client = Client(repo, sleep=waited.append)
    looked = client.look()
    card = make_card(wanted.facts)
    sending = decide(wanted.parcel, "export", card, looked, repo, is_public=False, keeps_page=False)
    client.send(looked, sending, wanted.message, True)


# ---- what arrives


def test_a_run_arrives_whole_in_one_commit_that_names_it_and_the_repository_is_private(
    hub: Hub, run: RunDir, capsys: pytest.CaptureFixture
) -> None:
    assert push(run) == 0
    repo = hub.repos["ada/ears"]
    assert repo.is_private
    assert [c.title for c in repo.branches["main"]][1:] == [repo.branches["main"][-1].title]
    assert repo.branches["main"][-1].title.startswith("ears-1: test WER ")
    for name in ("model.safetensors", "tokenizer.json"):
        assert hub.read("ada/ears", name) == (run.export / name).read_bytes()
    assert set(repo.files()) == {*(p.name for p in run.export.iterdir()), "README.md"}
    assert "license: apache-2.0" in hub.read("ada/ears", "README.md").decode(), "the base's"
    told = capsys.readouterr()
    assert told.out.strip() == f"{hub.url}/ada/ears"
    assert "7 files" not in told.err
    assert "6 files, " in told.err
    assert "(private, new)" in told.err


def test_a_second_push_is_a_second_commit_and_sends_only_what_changed(hub: Hub, run: RunDir) -> None:
    push(run)
    assert len(puts(hub)) == 1
    (run.export / "tokenizer.json").write_text('{"new": 1}')
    assert push(run) == 0
    assert len(puts(hub)) == 1
    assert len(hub.repos["ada/ears"].branches["main"]) == 3
    assert hub.read("ada/ears", "tokenizer.json") == b'{"new": 1}'


def test_the_same_push_again_makes_no_commit(hub: Hub, run: RunDir, capsys: pytest.CaptureFixture) -> None:
    push(run)
    assert push(run) == 0
    assert len(hub.repos["ada/ears"].branches["main"]) == 2
    assert "nothing differs" in capsys.readouterr().err


def test_weights_of_an_earlier_push_that_are_no_more_go_in_the_same_commit(hub: Hub, run: RunDir) -> None:
    push(run)
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (run.export / "model.safetensors").rename(run.export / "model-00001-of-00001.safetensors")
    (run.export / "model.safetensors.index.json").write_text(json.dumps(index))
    assert push(run) == 0
    assert "model.safetensors" not in hub.repos["ada/ears"].files()
    assert len(hub.repos["ada/ears"].branches["main"]) == 3


def test_a_branch_is_made_where_it_is_not_there(hub: Hub, run: RunDir) -> None:
    push(run)
    (run.export / "tokenizer.json").write_text("[]")
    assert push(run, "--revision", "second try") == 0
    assert hub.read("ada/ears", "tokenizer.json", "second try") == b"[]"
    assert hub.read("ada/ears", "tokenizer.json") == b"{}"


def test_large_files_come_in_parts_where_the_hub_wants_them_so(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(part_bytes=700) as hub:
        hub.accounts[TOKEN] = Account("ada")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert push(run) == 0
        assert len([a for a in hub.asked if a.startswith("PUT /part/")]) == 5
        assert hub.read("ada/ears", "model.safetensors") == (run.export / "model.safetensors").read_bytes()


def test_a_converted_model_and_a_trained_one_do_not_share_a_repository(
    hub: Hub, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    push(run)
    folder = tmp_path / "ct2"
    folder.mkdir()
    for name in ("model.bin", "config.json", "vocabulary.json", "tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    write_json(folder / "decode.json", {"pad_to_samples": 480_000, "transcribe": {}})
    write_json(folder / "parity.json", {"differences": ["what children said"]})
    more = ("--model", str(folder), "--what", "ct2")
    assert push(run, *more) == 2
    assert "--repo ada/ears-ct2" in capsys.readouterr().err
    assert push(run, *more, repo="ada/ears-ct2") == 0
    assert "parity.json" not in hub.repos["ada/ears-ct2"].files(), "other people's words stay"
    assert b"library_name: ctranslate2" in hub.read("ada/ears-ct2", "README.md")
    assert push(run, "--what", "ct2", repo="ada/other") == 2
    assert "trainer export --run" in capsys.readouterr().err


def test_what_the_gate_refused_is_not_sent(
    hub: Hub, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its card would stand in the Hub's index with the WER of the model that it was made of."""
    folder = tmp_path / "ears-ct2.refused"
    folder.mkdir()
    for name in NEEDED["ct2"]:
        (folder / name).write_text("{}")
    write_json(folder / "decode.json", {"pad_to_samples": 480_000, "transcribe": {}})
    parity = {"limit": 0.002, "holds": False, "differing": 9, "utterances": 9, "wer_ours": 0.05, "wer_theirs": 0.9}
    write_json(folder / "provenance.json", {"run": "ears-1", "weights": "step 90", "parity": parity})
    assert push(run, "--model", str(folder), "--what", "ct2") == 2
    told = capsys.readouterr().err
    assert "90.00 %" in told
    assert "trainer export" in told
    assert hub.asked == []


def test_a_folder_without_a_run_goes_too_and_its_card_has_no_figures(hub: Hub, tmp_path: Path) -> None:
    folder = whole_model(tmp_path / "m", {"run": "long-ago"})
    assert main(["push", "--model", str(folder), "--repo", "analytical/m", "--yes"]) == 0
    assert b"Nobody measured this model" in hub.read("analytical/m", "README.md")


# ---- the page


def test_words_of_people_on_the_page_stay(hub: Hub, run: RunDir) -> None:
    push(run)
    page = hub.read("ada/ears", "README.md").decode()
    hub.put("ada/ears", {"README.md": (page + "\nThanks to all the children.\n").encode()})
    (run.export / "tokenizer.json").write_text("[]")
    assert push(run) == 0
    assert hub.read("ada/ears", "README.md").decode().endswith("Thanks to all the children.\n")


def test_words_inside_our_part_stop_the_push_before_anything_is_sent(
    hub: Hub, run: RunDir, capsys: pytest.CaptureFixture
) -> None:
    push(run)
    page = hub.read("ada/ears", "README.md").decode().replace("## Limits", "## Limits, as I see them")
    hub.put("ada/ears", {"README.md": page.encode()})
    hub.asked.clear()
    assert push(run) == 2
    assert "--keep-card" in capsys.readouterr().err
    assert not [a for a in hub.asked if not a.startswith(("GET", "HEAD"))]
    assert push(run, "--keep-card") == 0
    assert hub.read("ada/ears", "README.md").decode() == page


def test_a_page_that_is_not_utf8_is_left_to_its_author_and_a_mark_before_it_is_none_of_its_text(
    hub: Hub, run: RunDir, capsys: pytest.CaptureFixture
) -> None:
    push(run)
    page = hub.read("ada/ears", "README.md")
    hub.put("ada/ears", {"README.md": page + b"caf\xe9\n"})
    (run.export / "tokenizer.json").write_text("[]")
    assert push(run) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    assert push(run, "--keep-card") == 0
    assert hub.read("ada/ears", "README.md") == page + b"caf\xe9\n"
    hub.put("ada/ears", {"README.md": b"\xef\xbb\xbf" + page})
    assert push(run) == 0
    assert hub.read("ada/ears", "README.md") == page


# ---- what is refused


def test_a_public_repository_is_asked_for_by_name(hub: Hub, run: RunDir, capsys: pytest.CaptureFixture) -> None:
    assert push(run, "--public") == 0
    assert not hub.repos["ada/ears"].is_private
    assert "PUBLIC" in capsys.readouterr().err
    assert push(run) == 2
    assert "ada/ears is public: everybody would have this model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("account", "repo", "says"),
    [
        (Account("ada", role="read"), "ada/ears", "may only read"),
        (Account("ada"), "babbage/ears", "babbage is somebody else's: this token is of ada"),
        (None, "ada/ears", "does not know this token"),
    ],
)
def test_a_token_that_may_not_is_told_so_before_anything_is_sent(
    hub: Hub, run: RunDir, capsys: pytest.CaptureFixture, account: Account | None, repo: str, says: str
) -> None:
    hub.accounts = {TOKEN: account} if account else {}
    assert push(run, repo=repo) == 1
    told = capsys.readouterr().err
    assert says in told
    assert "→" in told
    assert [a for a in hub.asked if not a.startswith("GET")] == []


@pytest.mark.parametrize("repo", ["ears", "ada/my ears", "a'; rm -rf /", "ada/../x", "ada/ears/x", "", "ada/-", "א/ב"])
def test_a_name_that_can_t_be_one_is_refused_with_one_that_can(
    hub: Hub, run: RunDir, capsys: pytest.CaptureFixture, repo: str
) -> None:
    assert push(run, repo=repo) == 2
    assert "is no name of a repository" in capsys.readouterr().err
    assert hub.asked == []


def test_an_export_that_is_not_whole_a_run_that_is_none_and_one_that_still_goes(
    hub: Hub, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (run.export / "model.safetensors").unlink()
    assert push(run) == 2
    assert "is incomplete: model.safetensors is not there" in capsys.readouterr().err
    assert push(RunDir(tmp_path / "none")) == 2
    assert "is not there" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert push(RunDir(tmp_path / "empty")) == 2
    assert "has measured nothing yet" in capsys.readouterr().err
    going = Status("ears-1", 1, "b", "running", "train", 1, time.time(), time.time())
    write_json(run.status, dataclasses.asdict(going))
    assert push(run) == 2
    assert "is still going" in capsys.readouterr().err
    assert push(run, "--what", "adapters") == 2
    assert main(["push", "--repo", "ada/x"]) == 2
    assert hub.asked == []


def test_without_a_terminal_nobody_is_asked_and_nothing_sent(
    hub: Hub, run: RunDir, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    assert main(["push", "--run", str(run.root), "--repo", "ada/ears"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert "ada/ears" not in hub.repos


def test_a_dry_run_prints_the_card_and_asks_nobody(hub: Hub, run: RunDir, capsys: pytest.CaptureFixture) -> None:
    assert push(run, "--dry-run") == 0
    told = capsys.readouterr()
    assert "## Word error rate" in told.out
    assert "model.safetensors" in told.err
    assert hub.asked == []


# ---- a Hub that is not well

WHERE = {
    "look": "GET /api/models",
    "create": "POST /api/repos/create",
    "preupload": "preupload",
    "batch": "lfs/objects/batch",
    "upload": "PUT /lfs",
    "verify": "POST /verify",
    "commit": "/commit/main",
}
SAYS = {
    401: ("does not know this token", "is not there, or not for this token's eyes"),
    403: ("this token may not write to ada/ears",),
    409: ("was changed by somebody else",),
    413: ("takes no file as large as this",),
}


@pytest.mark.parametrize(
    ("phase", "status"),
    [*(("commit", status) for status in SAYS), *((phase, 403) for phase in WHERE if phase != "commit"), ("look", 401)],
)
def test_refused_in_any_phase_it_is_one_sentence_and_the_next_push_ends_it(
    hub: Hub, run: RunDir, phase: str, status: int, capsys: pytest.CaptureFixture
) -> None:
    hub.faults = [Fault(WHERE[phase], status=status, headers={"X-Error-Message": f"no, says {TOKEN}"})]
    assert push(run) == 1
    told = capsys.readouterr()
    line = told.err.splitlines()[-2]
    assert any(s in line for s in SAYS[status]), told.err
    assert told.err.splitlines()[-1].startswith("→ ")
    assert TOKEN not in told.err + told.out
    assert push(run) == 0
    assert hub.read("ada/ears", "model.safetensors") == (run.export / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 429}, {"cut": True}, {"lost": True}])
@pytest.mark.parametrize("phase", ["whoami", "look", "create", "commit"])
def test_what_passes_is_waited_for(hub: Hub, run: RunDir, phase: str, how: dict) -> None:
    where = {**WHERE, "whoami": "whoami"}[phase]
    waited: list[float] = []
    if phase == "look":
        send(run, [])
    hub.faults = [Fault(where, times=2, **how)]
    send(run, waited)
    assert 0 < len(waited) <= 2, "a lost answer may turn out to be no loss"
    assert waited == [1.0, 2.0][: len(waited)]
    assert len(hub.repos["ada/ears"].branches["main"]) == 2, "one commit, though its answer was lost"


@pytest.mark.parametrize(("how", "says"), [({"status": 503}, "answers 503"), ({"cut": True}, "does not answer")])
def test_what_does_not_pass_is_said_and_what_arrived_is_not_sent_twice(
    hub: Hub, run: RunDir, how: dict, says: str
) -> None:
    hub.faults = [Fault("/commit/main", times=4, **how)]
    waited: list[float] = []
    with pytest.raises(Exception, match=says) as e:
        send(run, waited)
    assert "not sent twice" in e.value.hint
    assert waited == [1.0, 2.0, 4.0]
    assert len(puts(hub)) == 1
    send(run, waited)
    assert len(puts(hub)) == 1
    assert len(hub.repos["ada/ears"].branches["main"]) == 2


def test_an_upload_that_is_cut_in_the_middle_is_begun_anew_and_only_that_one(hub: Hub, run: RunDir) -> None:
    """The client itself waits a second here."""
    hub.faults = [Fault("PUT /lfs", cut=True)]
    assert push(run) == 0
    assert hub.read("ada/ears", "model.safetensors") == (run.export / "model.safetensors").read_bytes()


def test_shards_that_arrived_before_a_cut_stay(hub: Hub, run: RunDir) -> None:
    (run.export / "model.safetensors").unlink()
    shards = [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    for k, name in enumerate(shards):
        (run.export / name).write_bytes(bytes([k]) * 2000)
    (run.export / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: n for n in shards}}))
    hub.faults = [Fault("PUT /lfs", status=403, skip=2)]
    assert push(run) == 1
    assert len(hub.blobs) == 2
    hub.asked.clear()
    assert push(run) == 0
    assert len(puts(hub)) == 1


def test_a_hub_that_takes_its_time_is_waited_for(hub: Hub, run: RunDir) -> None:
    hub.faults = [Fault("/commit/main", delay_s=0.3)]
    assert push(run) == 0


def test_somebody_else_s_commit_in_the_meantime_is_not_written_over(hub: Hub, run: RunDir) -> None:
    push(run)
    (run.export / "tokenizer.json").write_text("[]")
    client = Client("ada/ears")
    looked = client.look()
    hub.put("ada/ears", {"README.md": b"mine"})
    wanted = make_push(argparse.Namespace(run=run.root, model=None, repo="ada/ears", what="export"))
    card = make_card(wanted.facts)
    sending = decide(wanted.parcel, "export", card, looked, "ada/ears", is_public=False, keeps_page=False)
    with pytest.raises(Exception, match="changed by somebody else"):
        client.send(looked, sending, "x", True)
    assert hub.read("ada/ears", "README.md") == b"mine"


def test_only_what_may_pass_is_asked_for_again() -> None:
    waited: list[float] = []

    def refuse() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        again(refuse, waited.append)
    assert waited == []
    assert is_passing(ConnectionResetError())
    assert not is_passing(FileNotFoundError())
    assert explain(FileNotFoundError(2, "gone"), "a/b", "http://x")[1]


# ---- the program, and its secret


def program(tmp_path: Path, hub_url: str, run: RunDir, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "hf"), **env}
    whole = {k: v for k, v in environment(tmp_path).items() if not k.startswith("HF_")} | home
    argv = [sys.executable, "-P", "-m", "trainer", "push", "--run", str(run.root), "--repo", "ada/ears", *more]
    return subprocess.run(argv, env=whole, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def test_the_token_is_in_no_output_no_file_and_nothing_that_is_sent_but_its_header(
    hub: Hub, run: RunDir, tmp_path: Path
) -> None:
    done = program(tmp_path, hub.url, run, "--yes", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/ada/ears"
    assert TOKEN not in done.stdout + done.stderr
    assert not any(TOKEN in heard for heard in hub.heard)
    assert not any(TOKEN.encode() in blob for blob in hub.blobs.values())
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(TOKEN.encode() in p.read_bytes() for p in files)
    assert "\r" not in done.stderr, "no progress bars in a log"


def test_a_password_in_the_hub_s_address_is_used_and_never_shown(hub: Hub, run: RunDir, tmp_path: Path) -> None:
    address = hub.url.replace("http://", "http://me:s3cret@")
    for more in ((), ("--yes",)):
        done = program(tmp_path, address, run, *more, HF_TOKEN=TOKEN)
        assert hub.url.removeprefix("http://") in done.stderr
        assert "s3cret" not in done.stdout + done.stderr


def test_without_a_token_it_says_what_to_type(hub: Hub, run: RunDir, tmp_path: Path) -> None:
    done = program(tmp_path, hub.url, run, "--yes")
    assert done.returncode == 1
    assert "nobody is logged in" in done.stderr
    assert "export HF_TOKEN=" in done.stderr
    assert hub.asked == []


def test_a_login_of_the_client_s_own_is_taken(hub: Hub, run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    assert program(tmp_path, hub.url, run, "--yes").returncode == 0


# ---- a run that was really trained


def test_of_a_real_run_the_card_says_what_its_report_says_and_the_adapters_go_by_themselves(
    hub: Hub, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    talkative(tmp_path / "base", recipe_dict(corpus))
    train = recipe_dict(corpus, model={"from_scratch": None, "name": str(tmp_path / "base")})
    train |= {"adapters": {"kind": "lora", "r": 2, "alpha": 4, "targets": "attention"}}
    experiment = write_experiment(tmp_path / "e.yaml", train)
    run = RunDir(tmp_path / "real")
    assert main(["train", str(experiment), "--run-dir", str(run.root)]) == 0
    assert push(run) == 0
    page = hub.read("ada/ears", "README.md").decode()
    told = json.loads((run.reports / "test.jsonl").read_text().splitlines()[1])
    metrics = {m["type"]: m["value"] for m in read_front(page)["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {k: round(100 * told["metrics"][k], 2) for k in ("wer", "cer")}
    for line in told["table"]:
        assert f"| {100 * line['wer']:.2f} % |" in page
    assert "20 utterances" in page
    assert str(tmp_path) not in page
    assert push(run, "--what", "adapters", repo="ada/ears-lora") == 0
    files = hub.repos["ada/ears-lora"].files()
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.json"} <= files.keys()
    assert "model.safetensors" not in files
    assert json.loads(hub.read("ada/ears-lora", "adapter_config.json"))["base_model_name_or_path"] == "base"
    sent = b"".join(hub.read("ada/ears-lora", name) for name in files)
    assert str(tmp_path).encode() not in sent
