"""What ended a pod before, and what a watchdog's word is worth."""

import json
from pathlib import Path

from podctl.arm import Route, Verdict, parse_verdict
from podctl.ledger import Event, Ledger
from podctl.localhost import LocalHost
from podctl.proofs import ended_by, note_endings, proofs_of
from remote.rundir import RunDir

TRIED = [{"route": "v2", "answer": "terminate: 403", "accepted": False}, {"route": "graphql", "accepted": True}]


def test_the_way_that_was_accepted_is_noted_once_and_for_its_provider(tmp_path: Path):
    where, ledger = RunDir(tmp_path / "run"), Ledger(tmp_path / "ledger.jsonl")
    for boot, tried in (("aa", TRIED), ("bb", []), ("cc", None)):
        (where.guard / boot).mkdir(parents=True)
        text = json.dumps({"boot": boot, "at": 5.0, "tried": tried}) if tried is not None else "{torn"
        (where.guard / boot / "ending.json").write_text(text)

    def record(event: str, pod: object, **detail: object) -> None:
        ledger.append(Event(9.0, event, "demo-700101-000000-beef", "p", "fake", "demo", detail=detail))

    for _ in range(2):
        note_endings(LocalHost(), where, ledger, "fake", record)
    assert [e.detail["route"] for e in ledger.events()] == ["graphql"]
    assert proofs_of(ledger, "fake") == {"graphql": 5.0}
    assert proofs_of(ledger, "other") == {}


def test_what_is_no_ending_proves_nothing():
    for text in ("", "{", "[]", "3", '{"tried": [{}]}', '{"tried": [3]}'):
        assert ended_by(text)[0] == ""


def test_a_drilled_way_is_one_that_is_allowed_and_was_seen_to_work():
    verdict = Verdict((Route("v2", "allowed"), Route("graphql", "read"), Route("runpodctl", "none", "absent")))
    drilled = verdict.drilled({"v2": 1.0, "graphql": 1.0})
    assert [r.level for r in drilled.routes] == ["drilled", "read", "none"]
    assert drilled.is_enough
    assert str(drilled) == "may end it by v2 (drilled)"


def test_a_word_that_this_version_does_not_know_is_no_right():
    told = {"routes": [{"name": "v2", "level": "certain"}, {"name": "graphql", "level": "read", "detail": "HTTP 403"}]}
    verdict = parse_verdict(told)
    assert not verdict.is_enough
    assert str(verdict) == "can't end it: HTTP 403"
    assert not parse_verdict({}).is_enough
