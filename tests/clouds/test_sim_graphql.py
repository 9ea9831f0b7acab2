"""GraphQL of the emulated cloud: what it reads, what a pod's own key may, spot pods, and what it takes and ignores."""

import pytest
from support.cloud import GPU, Api

from podctl.sim.faults import Fault
from podctl.sim.graphql_text import Field, GraphQlSyntaxError, Operation, parse
from podctl.sim.keys import PodRights
from podctl.sim.sim import Sim


def deploy(name: str = "x", extra: str = "", mutation: str = "podFindAndDeployOnDemand") -> str:
    return f"""mutation {{ {mutation}(input: {{ name: "{name}", imageName: "img", cloudType: ALL, startSsh: true,
        gpuTypeId: "{GPU}", supportPublicIp: true, gpuCount: 1, volumeInGb: 0, minVcpuCount: 1, minMemoryInGb: 1,
        dataCenterId: null, dockerArgs: "", containerDiskInGb: 10, ports: "22/tcp", volumeMountPath: "/runpod-volume",
        env: [{{ key: "K", value: "V" }}] {extra} }}) {{ id imageName env machineId machine {{ podHostId }} }} }}"""


def test_a_document_is_read_with_names_values_variables_and_comments():
    text = """query named($id: String! = "d", $n: [Int]) { # said
      a: pod(input: {podId: $id, n: $n, f: -1.5e3, b: true, z: null, e: ALL, s: "q\\"\\u0041\\n"})
      { id, machine { x } } }"""
    pod = Field(
        "pod",
        {"input": {"podId": "d", "n": [1], "f": -1500.0, "b": True, "z": None, "e": "ALL", "s": 'q"A\n'}},
        (Field("id"), Field("machine", {}, (Field("x"),))),
        "a",
    )
    assert parse(text, {"n": [1]}) == Operation("query", (pod,))


@pytest.mark.parametrize(
    "text", ["", "{", "{ a", "{ a(b: ) }", "subscription { a }", "{ a(b: 1 }", 'q { a(b: "x) }', "}"]
)
def test_a_document_that_is_none_is_refused(text, api):
    with pytest.raises(GraphQlSyntaxError):
        parse(text)
    assert api.ask("POST", "/graphql", {"query": text}).status == 400


def test_errors_come_with_200_and_their_code(api):
    told = api.graphql('mutation { podTerminate(input: {podId: "none"}) }')
    assert told["errors"][0]["extensions"]["code"] == "POD_NOT_FOUND"
    assert told["data"] == {"podTerminate": None}
    assert api.graphql('{ pod(input: {podId: "none"}) { id } }') == {"data": {"pod": None}}


def test_an_unknown_field_is_400(api):
    for text in ("{ bogus }", "{ myself { bogus } }", "mutation { podExplode }"):
        reply = api.ask("POST", "/graphql", {"query": text})
        assert reply.status == 400
        assert "Cannot query field" in reply.json["errors"][0]["message"]


def test_a_wrong_key_is_401_and_none_sees_the_catalogue_alone(sim):
    assert Api(sim, "rpa_wrong").ask("POST", "/graphql", {"query": "{ myself { id } }"}).status == 401
    nobody = Api(sim, "")
    assert len(nobody.graphql("{ gpuTypes { id } }")["data"]["gpuTypes"]) > 5
    assert nobody.graphql("{ myself { id } }")["errors"][0]["message"] == "Unauthorized"
    assert nobody.ask("POST", f"/graphql?api_key={sim.account_key}", {"query": "{ myself { id } }"}).json["data"]


def test_a_pod_is_made_read_stopped_resumed_and_terminated(sim, api):
    made = api.graphql(deploy())["data"]["podFindAndDeployOnDemand"]
    assert made["machine"]["podHostId"].startswith(made["id"])
    assert "K=V" in made["env"]
    ask = f'(input: {{podId: "{made["id"]}", gpuCount: 1}})'
    read = f"{{ pod{ask} {{ desiredStatus runtime {{ ports {{ privatePort publicPort }} }} }} }}"
    assert api.graphql(read)["data"]["pod"]["runtime"] is None
    for _ in range(3):
        sim.advance(1)
    assert api.graphql(read)["data"]["pod"]["runtime"]["ports"][0]["privatePort"] == 22
    assert api.graphql(f"mutation {{ podStop{ask} {{ desiredStatus }} }}")["data"]["podStop"] == {
        "desiredStatus": "EXITED"
    }
    assert api.graphql(f"mutation {{ podResume{ask} {{ desiredStatus }} }}")["data"]["podResume"] == {
        "desiredStatus": "RUNNING"
    }
    assert api.graphql(f"mutation {{ podTerminate{ask} }}") == {"data": {"podTerminate": None}}
    assert api.graphql("{ myself { pods { id } } }")["data"]["myself"]["pods"] == []


def test_a_deadline_is_taken_and_does_nothing(sim, api):
    for n, word in enumerate(("stopAfter", "terminateAfter")):
        api.graphql(deploy(f"pc-{n}", f', {word}: "2026-11-21T00:00:00Z"'))
    sim.advance(3 * 86400)
    assert [p.status for p in sim.pods()] == ["RUNNING", "RUNNING"]


@pytest.mark.parametrize(
    ("right", "reads", "stops"), [("none", False, False), ("read", True, False), ("stop", True, True)]
)
def test_a_pods_own_key_never_sees_the_account(tmp_path, right, reads, stops):
    with Sim(tmp_path, backend="none", rights=PodRights(graphql=right)) as sim:
        id = Api(sim).create_running()
        other = Api(sim).create(name="pc-b")
        own = Api(sim, sim.cloud.pods[id].key)
        assert own.graphql("{ myself { id } }")["errors"][0]["message"] == "Unauthorized"
        assert own.graphql(deploy())["errors"][0]["message"] == "Unauthorized"
        assert ("errors" not in own.graphql(f'{{ pod(input: {{podId: "{id}"}}) {{ id }} }}')) == reads
        assert "errors" in own.graphql(f'mutation {{ podStop(input: {{podId: "{other}"}}) {{ id }} }}')
        assert ("errors" not in own.graphql(f'mutation {{ podStop(input: {{podId: "{id}"}}) {{ id }} }}')) == stops


def test_a_spot_pod_costs_its_bid_and_is_taken_away(sim, api):
    low = api.graphql(deploy("pc-low", ", bidPerGpu: 0.01", "podRentInterruptable"))
    assert "no longer any instances available with the request specifications" in low["errors"][0]["message"]
    sim.faults.add(Fault("preempted", times=1, seconds=600))
    id = api.graphql(deploy("pc-spot", ", bidPerGpu: 0.25", "podRentInterruptable"))["data"]["podRentInterruptable"][
        "id"
    ]
    sim.advance(550)
    assert sim.pod().status == "RUNNING"
    sim.advance(60)
    assert sim.pod().status == "EXITED"
    assert 0.25 * 600 / 3600 < sim.bill() < 0.25 * 620 / 3600
    told = api.graphql(f'mutation {{ podBidResume(input: {{podId: "{id}", gpuCount: 1, bidPerGpu: 0.25}}) {{ id }} }}')
    assert told["data"]["podBidResume"]["id"] == id


def test_zero_gpus_are_no_way_to_start(sim, api):
    id = api.create_running()
    api.act(id, "stop")
    told = api.graphql(f'mutation {{ podResume(input: {{podId: "{id}", gpuCount: 0}}) {{ id }} }}')
    assert "not enough free GPUs" in told["errors"][0]["message"]
    assert sim.pod().status == "EXITED"


def test_the_balance_is_told_here_alone(sim, api):
    sim.advance(0)
    api.create()
    sim.advance(3600)
    told = api.graphql("{ myself { clientBalance currentSpendPerHr spendLimit } }")["data"]["myself"]
    assert told["clientBalance"] == pytest.approx(100 - sim.bill(), abs=1e-3)
    assert told["currentSpendPerHr"] == pytest.approx(0.44, abs=0.01)
    assert told["spendLimit"] == 80
