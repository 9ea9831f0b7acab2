"""REST v2 of the emulated cloud: what it takes, what it refuses, and that a client meets the official description."""

import json
import random
import re
import socket
import struct
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from support.cloud import GPU, Api, wish
from support.pod import wait_until

import podctl.sim
from podctl.sim import bodies
from podctl.sim.faults import Fault
from podctl.sim.keys import PodRights
from podctl.sim.records import Timing
from podctl.sim.sim import Sim

DEVIATIONS = yaml.safe_load((Path(podctl.sim.__file__).parent / "deviations.yaml").read_text(encoding="utf-8"))


def problem(reply) -> dict:
    assert reply.headers["content-type"] == "application/problem+json"
    told = reply.json
    assert told["status"] == reply.status
    assert {"title", "status", "detail"} <= set(told)
    return told


def test_without_a_key_and_with_a_wrong_one_nothing_is_told(sim):
    for key, said in (("", "missing bearer token"), ("rpa_wrong", "invalid bearer token")):
        reply = Api(sim, key).get("/pods")
        assert (reply.status, problem(reply)["detail"]) == (401, said)


def test_every_answer_has_a_request_id_and_says_what_may_still_be_asked(api):
    first, second = api.get("/pods"), api.get("/pods")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    left = [int(re.search(r'"hour";r=(\d+)', r.headers["ratelimit"])[1]) for r in (first, second)]
    assert left[0] - left[1] == 1
    assert '"minute";q=180;w=60' in first.headers["ratelimit-policy"]


def test_the_name_of_pythons_own_client_is_refused_before_anything_else(sim):
    reply = Api(sim, agent="Python-urllib/3.11").get("/pods")
    assert (reply.status, reply.body) == (403, b"error code: 1010")
    assert Api(sim, agent="curl/8").get("/pods").status == 200


def test_an_unknown_path_a_wrong_method_and_a_large_body_are_refused_each_in_its_way(api):
    assert problem(api.get("/networkvolumes"))["detail"] == "resource not found"
    reply = api.ask("PUT", "/v2/pods", {})
    assert problem(reply)["status"] == 405
    assert reply.headers["allow"] == "GET, POST"
    assert problem(api.post("/pods", wish(env={"A": "x" * 102400})))["status"] == 413


def test_an_unknown_question_is_ignored(api):
    id = api.create()
    assert [p["id"] for p in api.get("/pods?desiredStatus=EXITED").json["pods"]] == [id]


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({}, ["$: missing property 'name'", "$: missing property 'image'"]),
        ([], ["$: got array, want object"]),
        (b"{", ["$: invalid JSON"]),
        (wish(gpuTypeIds=[GPU], x=1), ["$: additional properties 'gpuTypeIds', 'x' not allowed"]),
        (wish(disk=0), ["$.disk: minimum: got 0, want 1"]),
        (wish(disk=True), ["$.disk: got boolean, want integer"]),
        (wish(env={"A": 1}), ["$.env.A: got integer, want string"]),
        (wish(name=""), ["$.name: minLength: got 0, want 1"]),
        (wish(cloud="ALL"), ["$.cloud: value must be one of 'SECURE', 'COMMUNITY'"]),
        (wish(mounts={"network": [{"volumeId": "v"}]}), ["$.mounts.network[0]: missing property 'path'"]),
        (wish(mounts={"persistent": {"size": 5, "path": "/w"}}), ["$.mounts.persistent.size: minimum: got 5, want 10"]),
    ],
)
def test_a_body_that_breaks_the_description_is_422_and_says_where(api, spec, body, errors):
    reply = api.post("/pods", body)
    assert reply.status == 422
    assert problem(reply)["errors"] == errors
    assert spec.request_faults("POST", "/v2/pods", "", body if isinstance(body, bytes) else json.dumps(body))
    assert not api.sim.pods()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": "NVIDIA H900"}, "Unknown GPU type: NVIDIA H900"),
        ({"cpu": {"id": "cpu3c"}}, "exactly one of gpu or cpu"),
        ({"dataCenterIds": ["us-ks-2"]}, "Unknown data center: us-ks-2"),
        ({"count": 99}, "at most 8"),
        ({"image": ""}, "image is required"),
        ({"cloud": "COMMUNITY", "dataCenterIds": ["US-KS-2"]}, "no longer any instances"),
        ({"mounts": {"persistent": {"size": 20, "path": "/w"}, "network": [{"volumeId": "v", "path": "/w"}]}}, "exclu"),
    ],
)  # fmt: skip
def test_a_body_that_breaks_a_rule_between_fields_is_400_like_want_of_capacity(api, change, said):
    reply = api.post("/pods", wish(**change))
    assert reply.status == 400
    assert said in problem(reply)["detail"]


def test_account_keys_are_replaced_whole_and_reach_pods_that_bring_none(api):
    keys = ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]
    assert api.ask("PUT", "/v2/account/ssh-keys", {"keys": ["not a key"]}).status == 422
    assert api.ask("PUT", "/v2/account/ssh-keys", {"keys": keys}).json == {"keys": keys}
    with_account = api.create(startSsh=True)
    with_own = api.create(startSsh=True, env={"PUBLIC_KEY": "ssh-ed25519 CCCC"})
    without = api.create()
    env = {id: api.get(f"/pods/{id}").json["env"] for id in (with_account, with_own, without)}
    assert env[with_account]["PUBLIC_KEY"] == "\n".join(keys)
    assert env[with_own]["PUBLIC_KEY"] == "ssh-ed25519 CCCC"
    assert "PUBLIC_KEY" not in env[without]


def test_a_volume_grows_and_never_shrinks_and_stays_where_it_is(api):
    made = api.post("/network-volumes", {"name": "v", "size": 50, "dataCenter": "US-KS-2"})
    assert made.status == 201
    path = f"/network-volumes/{made.json['id']}"
    assert api.patch(path, {"size": 40}).status == 400
    assert api.patch(path, {"size": 60}).json["size"] == 60
    assert api.patch(path, {}).status == 422
    assert api.patch(path, {"dataCenter": "EU-RO-1"}).status == 422
    assert api.get(path).json["dataCenter"] == "US-KS-2"
    assert [v["size"] for v in api.get("/network-volumes").json["networkVolumes"]] == [60]
    assert api.delete(path).status == 204
    assert api.get(path).status == 404


def test_a_data_center_without_volumes_names_those_that_have(api):
    reply = api.post("/network-volumes", {"name": "v", "size": 50, "dataCenter": "CA-MTL-3"})
    assert reply.status == 400
    assert "US-KS-2" in reply.detail


def test_stock_is_told_for_a_product_only(api):
    assert api.get("/catalog/gpus?include=AVAILABILITY").status == 400
    assert api.get("/catalog/gpus?product=POD").status == 400
    plain = api.get(f"/catalog/gpus/{GPU}").json
    assert "availability" not in plain
    asked = api.get(f"/catalog/gpus/{GPU}?include=AVAILABILITY&product=POD").json
    assert asked["availability"] == "HIGH"
    assert {d["id"] for d in asked["dataCenters"]} == {"US-KS-2", "EU-RO-1", "EUR-IS-1"}
    assert api.get("/catalog/gpus/none").status == 404


def test_a_pod_shows_its_address_only_once_it_runs(api):
    id = api.create()
    before = api.get(f"/pods/{id}").json
    assert (before["ssh"], before["runtime"]) == ({"proxy": None, "direct": None}, None)
    running = api.wait_for_address(id)
    assert running["runtime"]["ports"][0]["public"] == running["ssh"]["direct"]["port"]
    stopped = api.act(id, "stop").json
    assert (stopped["status"], stopped["ssh"]["direct"], stopped["runtime"], stopped["cost"]) == (
        "EXITED",
        None,
        None,
        0,
    )
    assert stopped["actions"] == ["start", "terminate"]


def test_every_start_has_another_port(api):
    id = api.create_running()
    ports = {api.wait_for_address(id)["ssh"]["direct"]["port"]}
    for action in ("stop", "start", "restart"):
        assert api.act(id, action).status == 200
        if action != "stop":
            ports.add(api.wait_for_address(id)["ssh"]["direct"]["port"])
    assert len(ports) == 3


def test_without_port_22_there_is_no_direct_way(api):
    id = api.create(ports=["8888/http"])
    for _ in range(5):
        api.sim.advance(1)
    pod = api.get(f"/pods/{id}").json
    assert pod["status"] == "RUNNING"
    assert pod["ssh"]["direct"] is None
    assert pod["ssh"]["proxy"]["username"].startswith(id)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"mounts": {"network": []}}, 400),
        ({"mounts": {"persistent": {"size": 20, "path": "/w"}}}, 400),
        ({"mounts": {"network": [{"volumeId": "other", "path": "/w"}]}}, 400),
        ({"mounts": {"network": [{"volumeId": "v"}]}}, 422),
        ({"gpu": {"id": GPU}}, 422),
        ({"templateId": "t"}, 404),
        ({"mounts": {}}, 200),
        ({"name": "pc-other", "locked": True}, 200),
    ],
)
def test_what_of_a_pod_can_be_changed(api, change, status):
    volume = api.sim.create_volume()
    id = api.create(volume=volume.id)
    assert api.patch(f"/pods/{id}", change).status == status


def test_a_locked_pod_is_not_stopped(api):
    id = api.create_running()
    api.patch(f"/pods/{id}", {"locked": True})
    assert api.act(id, "stop").status == 409
    assert api.act(id, "reset").status == 422
    assert api.get(f"/pods/{id}").json["status"] == "RUNNING"


def test_the_bill_in_buckets_is_the_bill(api):
    first, second = api.create(), api.create(name="pc-b")
    for _ in range(5):
        api.sim.advance(7 * 3600)
    for size in ("hour", "day", "week", "month", "year"):
        told = api.get(f"/billing/pods?bucketSize={size}").json
        by_pod = {id: sum(r["totalAmount"] for r in told["records"] if r["podId"] == id) for id in (first, second)}
        assert told["metadata"]["totals"]["totalAmount"] == pytest.approx(sum(by_pod.values()))
        for id, usd in by_pod.items():
            assert usd == pytest.approx(api.sim.bill(id), rel=1e-4)
    one = api.get(f"/billing/pods?podId={first}&bucketSize=hour&lastN=2").json
    assert {r["podId"] for r in one["records"]} == {first}
    assert one["metadata"]["recordCount"] == 2
    assert api.get("/billing/pods?lastN=1&startTime=2026-01-01T00:00:00Z").status == 400
    assert api.get("/billing/pods?startTime=yesterday").status == 422


@pytest.mark.parametrize(
    ("right", "read", "start", "stop"), [("none", 403, 403, 403), ("read", 200, 403, 403), ("stop", 200, 409, 200)]
)
def test_a_pods_own_key_may_what_it_was_given_and_to_that_pod_alone(tmp_path, right, read, start, stop):
    with Sim(tmp_path, backend="none", rights=PodRights(v2=right)) as sim:
        id, other = Api(sim).create_running(), Api(sim).create(name="pc-other")
        own = Api(sim, sim.cloud.pods[id].key)
        assert own.get(f"/pods/{id}").status == read
        assert own.act(id, "start").status == start  # not legal now: shows what it may, and changes nothing
        for path in ("/pods", f"/pods/{other}", "/network-volumes", "/account/ssh-keys"):
            assert own.get(path).status == 403
        assert own.act(other, "stop").status == 403
        assert own.ask("GET", "/v1/pods").status == 403
        assert own.act(id, "stop").status == stop
        Api(sim).delete(f"/pods/{id}")
        assert own.get(f"/pods/{id}").status == 401


def test_a_client_that_leaves_in_the_middle_of_an_answer_is_no_word_worth(sim, api, capfd):
    id = api.create()
    for _ in range(5):
        with socket.create_connection(urlsplit(sim.url).netloc.split(":")) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a close that says so at once
            head = f"GET /v2/pods/{id}/logs HTTP/1.1\r\nHost: x\r\nUser-Agent: t\r\nAuthorization: Bearer {api.key}"
            s.sendall(f"{head}\r\n\r\n".encode())
            s.recv(10)
        sim.cloud.container_said(id, "a line")  # which is what it would have been sent
    wait_until(lambda: not [t for t in threading.enumerate() if "process_request_thread" in t.name], "all have left")
    assert capfd.readouterr().err == ""


def test_keys_are_in_no_record(sim):
    api = Api(sim)
    id = api.create()
    Api(sim, sim.cloud.pods[id].key).get(f"/pods/{id}")
    Api(sim, "").get("/pods")
    assert [e.key for e in sim.requests] == ["account", f"pod:{id}", "none"]
    assert sim.account_key not in repr(sim.requests)
    assert sim.requests[0].sent["name"] == "pc-me-demo"
    assert sim.requests[0].got["id"] == id


def mutated(value, chance: random.Random):
    """The same with something of it changed, somewhere."""
    junk = [None, True, 0, 1, 3.5, 20.0, -1, "", "x", "12.8", "SECURE", [], ["x"], {}, {"x": "y"}, 10**6]
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        what = chance.random()
        if what < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.25:
            return value | {chance.choice(["bogus", "locked", "name", "size", "minCudaVersion"]): chance.choice(junk)}
        return value | {key: mutated(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        return chance.choice([[mutated(value[0], chance), *value[1:]], value + value])
    return chance.choice(junk)


FULL = wish(
    volume="v", args="a", registry=None, cloud="SECURE", dataCenterIds=["US-KS-2"], startSsh=True, env={"A": "b"}
) | {"gpu": {"id": GPU, "count": 1, "minCudaVersion": "12.8", "allowedCudaVersions": ["12.8"]}}
BODIES = {
    "CreatePodRequest": (bodies.CREATE_POD, FULL),
    "UpdatePodRequest": (bodies.UPDATE_POD, {"name": "n", "locked": True, "mounts": FULL["mounts"], "env": {"A": "b"}}),
    "PodActionRequest": (bodies.ACTION, {"action": "stop"}),
    "CreateNetworkVolumeRequest": (
        bodies.CREATE_VOLUME,
        {"name": "n", "size": 50, "dataCenter": "d", "type": "STANDARD"},
    ),
    "UpdateNetworkVolumeRequest": (bodies.UPDATE_VOLUME, {"name": "n", "size": 50}),
    "UpdateSshKeysRequest": (bodies.SSH_KEYS, {"keys": ["ssh-ed25519 AAAA me"]}),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_emulator_takes_the_bodies_that_the_description_allows_and_no_others(spec, name):
    schema, body = BODIES[name]
    chance = random.Random(7)
    assert bodies.check(body, schema) == spec.schema_faults(name, body) == []
    told = {True}  # the body itself
    for _ in range(150):
        tried = mutated(body, chance)
        for _ in range(chance.choice([0, 0, 1, 3])):
            tried = mutated(tried, chance)
        allowed = not spec.schema_faults(name, tried)
        told.add(allowed)
        assert allowed == (not bodies.check(tried, schema)), (tried, spec.schema_faults(name, tried))
    assert told == {True, False}


# every answer, against the official description


def session(sim: Sim, seed: int, steps: int = 250) -> None:
    """Whatever comes to a client's mind, with every fault there is."""
    chance, api = random.Random(seed), Api(sim)
    ids: list[str] = []
    volume = sim.create_volume().id
    faults = ["sold-out", "no-balance", "no-image", "spend-limit", "error-after-create", "cut-after-create",
              "error-before-create", "hidden-pod", "host-full", "stale-list", "stale-status", "stale-port",
              "stop-ignored", "delete-ignored", "rate-limited", "cloudflare", "cloudflare-after", "server-error",
              "logs-down", "no-machine", "pod-error", "zero-gpu"]  # fmt: skip
    lasting = ["unknown-keys", "unknown-status", "paged"]

    def create() -> None:
        own = {"mounts": {"persistent": {"size": 20, "path": "/workspace"}}}
        body = wish(
            name=f"pc-{len(ids)}", **chance.choice([{}, {"volume": volume}, own, {"disk": 0}, {"startSsh": True}])
        )
        try:
            reply = api.post("/pods", body)
        except (ConnectionError, OSError):
            return
        if reply.status == 201:
            ids.append(reply.json["id"])

    def any_id() -> str:
        return chance.choice([*ids[-5:], "nobody"])

    def log() -> None:
        # a stream ends with its pod
        gone = [p.id for p in sim.pods(gone=True) if p.status == "TERMINATED"]
        api.get(f"/pods/{chance.choice([*gone, 'nobody'])}/logs?tail=5")

    doings = [
        create, create, create, log,
        lambda: api.get("/pods"),
        lambda: api.get(f"/pods/{any_id()}"),
        lambda: api.get(f"/pods/{any_id()}"),
        lambda: api.act(any_id(), chance.choice(["start", "stop", "restart", "terminate", "reset"])),
        lambda: api.act(any_id(), chance.choice(["start", "stop"])),
        lambda: api.delete(f"/pods/{any_id()}"),
        lambda: api.patch(f"/pods/{any_id()}", {"env": {"A": "b"}}),
        lambda: api.get("/network-volumes"),
        lambda: api.post("/network-volumes", {"name": "n", "size": chance.choice([1, 20]), "dataCenter": "EU-RO-1"}),
        lambda: api.get(f"/catalog/{chance.choice(['gpus?include=AVAILABILITY&product=POD', 'gpus', 'x'])}"),
        lambda: api.get("/catalog/datacenters?include=GPU_AVAILABILITY"),
        lambda: api.get(chance.choice(["/account/ssh-keys", "/nothing"])),
        lambda: api.get("/billing/pods?bucketSize=hour&lastN=3"),
        lambda: api.ask("PUT", "/v2/pods", {}),
        lambda: sim.advance(chance.choice([0.3, 5.0, 40.0])),
        lambda: sim.faults.add(Fault(chance.choice(faults), times=1, seconds=1.0)),
        lambda: sim.faults.add(Fault(chance.choice(lasting))) if chance.random() < 0.2 else None,
        lambda: sim.faults.clear() if chance.random() < 0.3 else None,
    ]  # fmt: skip
    for _ in range(steps):
        chance.choice(doings)()


def the_rest(sim: Sim) -> None:
    """What a session of a client with a right key and sound words does not meet by itself."""
    api = Api(sim)
    sim.faults.clear()
    Api(sim, "").get("/pods")
    Api(sim, agent="Python-urllib/3.11").get("/pods")
    api.post("/pods", wish(env={"A": "x" * 102400}))
    api.get("/openapi.json")
    api.ask("GET", "/v1/pods")
    api.graphql("{ myself { id } }")
    for fault in ("no-balance", "no-image", "sold-out", "error-after-create", "cut-after-create"):
        sim.faults.add(Fault(fault, times=1))
        try:
            api.post("/pods", wish())
        except OSError:
            assert fault == "cut-after-create"
    sim.faults.add(Fault("hidden-pod"), Fault("unknown-status"), Fault("unknown-keys"), Fault("paged"))
    hidden = api.create(name="pc-hidden", gpu="NVIDIA L40S")
    for _ in range(6):
        api.get(f"/pods/{hidden}")
        sim.advance(0.1)
    api.get("/pods")
    sim.advance(60)
    api.act(hidden, "stop")
    sim.faults.add(Fault("host-full"), Fault("logs-down"), Fault("cloudflare", path="/billing"))
    api.act(hidden, "start")
    api.get(f"/pods/{hidden}/logs")
    api.get("/billing/pods")
    Api(sim, sim.cloud.pods[hidden].key).get("/pods")


def named(exchange) -> list[str]:
    """The deviations that an answer is."""
    found = []
    for d in DEVIATIONS:
        statuses = d["status"] if isinstance(d["status"], list) else [d["status"]]
        if (
            exchange.status in statuses
            and d.get("method", exchange.method) == exchange.method
            and re.search(d["path"], exchange.path)
            and re.search(d.get("body", ""), exchange.answer.decode("utf-8", "replace"))
            and exchange.answer_type.startswith(d.get("type", ""))
        ):
            found.append(d)
    return found


@pytest.fixture(scope="module")
def exchanges(tmp_path_factory):
    found = []
    for seed in range(3):
        with Sim(tmp_path_factory.mktemp("session"), backend="none", seed=seed, balance_usd=1e6) as sim:
            session(sim, seed)
            the_rest(sim)
            found += sim.requests
    with Sim(tmp_path_factory.mktemp("session"), timing=Timing(0, 0, 0)) as sim:  # the emulator's own ways
        Api(sim).create(volume=sim.create_volume().id, args="true")
        found += sim.requests
    return found


def test_every_answer_validates_or_is_a_deviation_that_is_listed(spec, exchanges):
    assert len(exchanges) > 400
    wrong = []
    for e in exchanges:
        faults = spec.answer_faults(e.method, e.path, e.status, e.answer_type, e.answer) if e.status else ["no answer"]
        if faults and not any(not d.get("validates") for d in named(e)):
            wrong.append((e.method, e.path, e.status, faults, e.answer[:300]))
    assert not wrong, wrong[:3]


def test_every_deviation_that_is_listed_does_occur(spec, exchanges):
    occurred = {d["name"] for e in exchanges for d in named(e)}
    assert occurred == {d["name"] for d in DEVIATIONS}


def test_a_deviation_that_is_said_to_validate_does(spec, exchanges):
    for e in exchanges:
        if e.status and (found := named(e)) and all(d.get("validates") for d in found):
            assert not spec.answer_faults(e.method, e.path, e.status, e.answer_type, e.answer), found


def test_a_body_is_refused_as_422_if_and_only_if_the_description_does_not_allow_it(spec, exchanges):
    for e in exchanges:
        if e.method in ("POST", "PATCH", "PUT") and e.path.startswith("/v2/") and e.status in (200, 201, 204, 400, 422):
            faults = spec.request_faults(e.method, e.path, "", e.body)
            faults = faults or (b"not found in its registry" in e.answer and ["no such image"])
            assert bool(faults) == (e.status == 422), (e.method, e.path, e.status, e.body, faults)
