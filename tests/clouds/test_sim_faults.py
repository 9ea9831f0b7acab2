"""Every fault of the emulated cloud: what a client sees of it, and what it costs."""

import http.client

import pytest
from support.cloud import GPU, Api, wish

from podctl.errors import BadInput
from podctl.sim.cloud import HOST_FULL, NO_BALANCE, SOLD_OUT
from podctl.sim.faults import FAULTS, Fault
from podctl.sim.sim import Sim

NO_ANSWER = (ConnectionError, http.client.HTTPException)


def fail_once(sim: Sim, name: str, **details) -> None:
    sim.faults.add(Fault(name, times=1, **details))


@pytest.mark.parametrize(
    ("fault", "status", "detail"),
    [("sold-out", 400, SOLD_OUT), ("sold-out-late", 400, SOLD_OUT), ("spend-limit", 400, SOLD_OUT),
     ("no-balance", 402, NO_BALANCE), ("error-before-create", 500, "Something went wrong")],
)  # fmt: skip
def test_a_create_that_is_refused_makes_nothing_and_costs_nothing(sim, api, fault, status, detail):
    fail_once(sim, fault)
    reply = api.post("/pods", wish())
    assert (reply.status, detail in reply.detail) == (status, True)
    sim.advance(3600)
    assert sim.bill() == 0
    assert api.post("/pods", wish()).status == 201
    assert sim.faults.fired == [fault]


def test_what_is_sold_out_is_listed_as_none_and_what_is_sold_out_late_as_plenty(sim, api):
    def stock() -> str:
        return api.get(f"/catalog/gpus/{GPU}?include=AVAILABILITY&product=POD").json["availability"]

    sim.faults.add(Fault("sold-out", gpu=GPU))
    assert stock() == "NONE"
    sim.faults.clear()
    sim.faults.add(Fault("sold-out-late", gpu=GPU))
    assert stock() == "HIGH"
    assert api.post("/pods", wish(gpu="NVIDIA L40S")).status == 201
    assert api.post("/pods", wish()).status == 400


@pytest.mark.parametrize("fault", ["error-after-create", "hang-after-create", "cut-after-create", "cloudflare-after"])
def test_an_answer_that_is_lost_leaves_a_pod_that_is_billed_and_found_by_its_name(sim, api, fault):
    fail_once(sim, fault, seconds=0.1, path="/pods")
    try:
        assert api.post("/pods", wish(name="pc-lost")).status >= 500
    except NO_ANSWER:
        assert fault in ("hang-after-create", "cut-after-create")
    sim.advance(3600)
    assert sim.bill() > 0.4
    assert [p["name"] for p in api.get("/pods").json["pods"]] == ["pc-lost"]


def test_a_new_pod_may_be_nowhere_for_some_reads(sim, api):
    fail_once(sim, "hidden-pod", reads=3)
    id = api.create()
    assert [api.get(f"/pods/{id}").status for _ in range(2)] == [404, 404]
    assert api.get("/pods").json["pods"] == []
    assert api.get(f"/pods/{id}").status == 200


def test_a_list_may_be_as_old_as_half_a_minute(sim, api):
    sim.faults.add(Fault("stale-list"))
    id = api.create()
    assert api.get("/pods").json["pods"] == []
    sim.advance(31)
    assert [p["id"] for p in api.get("/pods").json["pods"]] == [id]
    api.delete(f"/pods/{id}")
    assert [p["id"] for p in api.get("/pods").json["pods"]] == [id]
    sim.advance(31)
    assert api.get("/pods").json["pods"] == []


def test_a_status_may_be_as_old_as_half_a_minute(sim, api):
    id = api.create_running()
    sim.advance(60)
    sim.faults.add(Fault("stale-status"))
    api.act(id, "stop")
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"
    sim.advance(31)
    assert api.get(f"/pods/{id}").json["status"] == "EXITED"


def test_after_a_start_the_old_port_may_be_told_for_some_reads(sim, api):
    id = api.create_running()
    old = api.get(f"/pods/{id}").json["ssh"]["direct"]["port"]
    api.act(id, "stop")
    fail_once(sim, "stale-port", reads=4)
    api.act(id, "start")
    told = [api.get(f"/pods/{id}").json["ssh"]["direct"]["port"] for _ in range(4)]
    assert told == [old] * 4
    assert api.wait_for_address(id)["ssh"]["direct"]["port"] != old


@pytest.mark.parametrize("text", [0, 1])
def test_a_machine_may_be_full_when_its_pod_comes_back(sim, api, text):
    id = api.create_running()
    api.act(id, "stop")
    fail_once(sim, "host-full", text=text)
    reply = api.act(id, "start")
    assert (reply.status, reply.detail) == (400, HOST_FULL[text])
    assert api.act(id, "start").status == 200


def test_somebody_else_may_take_the_gpus_of_a_stopped_pod(sim, api):
    id = api.create_running()
    api.act(id, "stop")
    sim.fill_host(id)
    assert api.act(id, "start").status == 400


def test_a_stop_that_is_ignored_says_exited_and_goes_on_costing(sim, api):
    id = api.create_running()
    fail_once(sim, "stop-ignored")
    assert api.act(id, "stop").json["status"] == "EXITED"
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"
    before = sim.bill()
    sim.advance(3600)
    assert sim.bill() - before > 0.4
    assert api.act(id, "stop").json["status"] == "EXITED"
    after = sim.bill()
    sim.advance(3600)
    assert sim.bill() == after


def test_a_delete_that_deletes_nothing_says_204_and_goes_on_costing(sim, api):
    id = api.create_running()
    sim.faults.add(Fault("delete-ignored", times=2))
    assert api.delete(f"/pods/{id}").status == 204
    assert api.act(id, "terminate").status == 204
    before = sim.bill()
    sim.advance(3600)
    assert api.get(f"/pods/{id}").status == 200
    assert sim.bill() > before
    assert api.delete(f"/pods/{id}").status == 204
    assert api.get(f"/pods/{id}").status == 404


def test_a_pods_key_may_read_and_not_stop_on_both_ways(sim, api):
    id = api.create_running()
    own = Api(sim, sim.cloud.pods[id].key)
    sim.faults.add(Fault("key-cannot-stop"))
    assert own.get(f"/pods/{id}").status == 200
    assert own.act(id, "stop").status == 403
    assert own.delete(f"/pods/{id}").status == 403
    told = own.graphql(f'mutation {{ podStop(input: {{podId: "{id}"}}) {{ id }} }}')
    assert told["errors"][0]["message"] == "Unauthorized"
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"


def test_a_slow_boot_is_billed_while_it_lasts(sim, api):
    fail_once(sim, "slow-boot", seconds=900)
    id = api.create()
    sim.advance(800)
    assert api.get(f"/pods/{id}").json["status"] == "STARTING"
    sim.advance(200)
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"
    assert sim.bill() > 0.44 * 1000 / 3600


@pytest.mark.parametrize(("fault", "status"), [("no-machine", "PROVISIONING"), ("pod-error", "ERROR")])
def test_a_pod_that_never_runs_costs_until_it_is_given_back(sim, api, fault, status):
    fail_once(sim, fault)
    id = api.create()
    sim.advance(3600)
    pod = api.get(f"/pods/{id}").json
    assert (pod["status"], pod["ssh"]["direct"], pod["runtime"]) == (status, None, None)
    assert sim.bill() > 0.4
    assert api.delete(f"/pods/{id}").status == 204
    after = sim.bill()
    sim.advance(3600)
    assert sim.bill() == after


def test_too_many_requests_say_how_long_to_wait(sim, api):
    fail_once(sim, "rate-limited", seconds=7, method="POST")
    assert api.get("/pods").status == 200
    reply = api.post("/pods", wish())
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert "minute window" in reply.detail
    assert api.post("/pods", wish()).status == 201


@pytest.mark.parametrize("status", [502, 520])
def test_cloudflare_answers_with_a_page_in_place_of_doing_anything(sim, api, status):
    id = api.create_running()
    fail_once(sim, "cloudflare", status=status)
    reply = api.act(id, "stop")
    assert (reply.status, reply.headers["content-type"].partition(";")[0]) == (status, "text/html")
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"
    fail_once(sim, "cloudflare-after", status=status, path="/action")
    assert api.act(id, "stop").status == status
    assert api.get(f"/pods/{id}").json["status"] == "EXITED"


def test_a_balance_that_is_gone_ends_pods_by_what_they_stand_on(sim, api):
    kept = api.create(volume=sim.create_volume().id)
    lost = api.create(name="pc-b", mounts={"persistent": {"size": 20, "path": "/w"}})
    sim.faults.add(Fault("balance-gone", times=1, seconds=120))
    sim.advance(10)
    sim.faults.clear()
    sim.faults.add(Fault("balance-gone", times=1, seconds=120, pod="pc-c"))
    assert api.create(name="pc-c")
    sim.advance(200)
    assert {p.wish.name: p.status for p in sim.pods(gone=True)} == {
        "pc-me-demo": "EXITED", "pc-b": "TERMINATED", "pc-c": "TERMINATED"
    }  # fmt: skip
    assert api.get(f"/pods/{lost}").status == 404
    assert api.act(kept, "start").status == 402
    assert api.graphql("{ myself { clientBalance } }")["data"]["myself"]["clientBalance"] <= 0


def test_lists_come_in_pages_that_hold_everything_once(sim, api):
    sim.faults.add(Fault("paged", limit=2))
    made = [api.create(name=f"pc-{n}") for n in range(5)]
    found, cursor = [], ""
    while True:
        page = api.get(f"/pods?cursor={cursor}").json
        found += [p["id"] for p in page["pods"]]
        assert page["pagination"]["hasNextPage"] == (page["pagination"]["nextCursor"] is not None)
        if not page["pagination"]["hasNextPage"]:
            break
        cursor = page["pagination"]["nextCursor"]
    assert found == made[::-1]  # the newest first
    assert api.get("/pods?limit=0").status == 422
    assert api.get("/pods?cursor=x").status == 422


def test_unknown_keys_and_an_unknown_status_are_sent_by_switch(sim, api):
    sim.faults.add(Fault("unknown-keys"), Fault("unknown-status"))
    id = api.create()
    sim.advance(0.3)
    pod = api.get(f"/pods/{id}").json
    assert pod["status"] == "INITIALIZING"
    assert "sustainability" in pod
    assert "sustainability" in api.get("/pods").json


def test_old_apis_are_gone_v1_always_and_graphql_by_switch(sim, api):
    assert api.ask("GET", "/v1/pods").status == 410
    assert api.ask("POST", "/graphql", {"query": "{ myself { id } }"}).status == 200
    sim.faults.add(Fault("graphql-gone"))
    assert api.ask("POST", "/graphql", {"query": "{ myself { id } }"}).status == 410


def test_a_fault_has_its_times_its_turn_and_those_it_is_meant_for(sim, api):
    sim.faults.add(Fault("sold-out-late", skip=1, times=2, pod="pc-b"))
    names = ["pc-a", "pc-b", "pc-b", "pc-a", "pc-b", "pc-b"]
    assert [api.post("/pods", wish(name=n)).status for n in names] == [201, 201, 400, 201, 400, 201]
    sim.faults.add(Fault("server-error", at=1000, path="/catalog"))
    assert api.get("/catalog/gpus").status == 200
    sim.advance(1001)
    assert api.get("/catalog/gpus").status == 500
    assert api.get("/pods").status == 200


def test_faults_are_read_from_words_and_unknown_ones_are_named():
    assert Fault.parse("sold-out,gpu=NVIDIA L40S,times=2") == Fault("sold-out", gpu="NVIDIA L40S", times=2)
    assert Fault.parse("slow-boot,seconds=90").seconds == 90
    for words, said in (("sold", "sold-out"), ("sold-out,x=1", "seconds"), ("sold-out,times=a", "not a number")):
        with pytest.raises(BadInput) as e:
            Fault.parse(words)
        assert said in f"{e.value.message} {e.value.hint}"


def test_a_person_changes_faults_and_looks_at_the_bill_while_it_runs(sim, api):
    assert api.ask("POST", "/sim/faults", {"fault": "sold-out,times=1"}).status == 201
    assert api.post("/pods", wish()).status == 400
    assert api.ask("POST", "/sim/faults", {"fault": "nonsense"}).status == 400
    assert api.ask("GET", "/sim/faults").json["fired"] == ["sold-out"]
    id = api.create_running()
    told = api.ask("GET", "/sim/pods").json
    assert [p["id"] for p in told["pods"]] == [id]
    assert api.ask("POST", "/sim/kill-host", {"pod": id}).status == 204
    assert api.ask("POST", "/sim/kill-host", {"pod": "none"}).status == 400
    sim.advance(31)
    assert api.get(f"/pods/{id}").json["status"] == "ERROR"
    assert api.ask("DELETE", "/sim/faults").status == 204
    assert api.ask("GET", "/sim/nonsense").status == 404


def test_every_fault_is_tried_somewhere():
    """A fault without a test would be a claim."""
    from pathlib import Path

    here = Path(__file__).parent
    tried = "".join((here / f"test_sim_{n}.py").read_text() for n in ("faults", "rest", "pods", "graphql", "cloud"))
    assert not [name for name in FAULTS if f'"{name}"' not in tried]
