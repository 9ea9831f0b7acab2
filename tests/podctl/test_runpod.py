"""The RunPod provider against a RunPod that behaves, and one that does not. Every request is held against the spec."""

import base64
import gzip
import json
import math
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from support.runpod import ACCOUNT, KEY, PAGE, SOLD_OUT, Cloud, making, problem, refusing

from podctl.errors import BadInput, NoCapacity, NoRights, OfferRefused, PodctlError, ProviderUnclear
from podctl.pods import Balance, Boot, Offer, PodSpec, SshAddress
from podctl.providers.base import PROVIDERS, provider_named
from podctl.providers.runpod import catalogue, graphql, shapes
from podctl.providers.runpod.faults import Answer, Doing, fault_of

WORDS = (
    *(
        "id",
        "name",
        "status",
        "ssh",
        "direct",
        "proxy",
        "host",
        "port",
        "username",
        "command",
        "mounts",
        "network",
        "path",
    ),
    *(
        "persistent",
        "volumeId",
        "gpu",
        "count",
        "cost",
        "env",
        "PODCTL_PYTHON",
        "createdAt",
        "startedAt",
        "dataCenterId",
    ),
    *("price", "secure", "maxCount", "availability", "dataCenters", "gpuAvailability", "networkVolumeTypes", "size"),
    *("detail", "errors", "message", "error", "title", "clientBalance", "spendLimit", "currentSpendPerHr"),
)
SPEC = PodSpec(gpu=("4090",), disk_gb=40)
BOOT = Boot(
    public_key="ssh-ed25519 AAAA podctl\n", env={"A": "a'; rm -rf /"}, start_script="echo 'hi'\nexec /start.sh\n"
)
OFFER = Offer("runpod", "RTX 4090", 1, 0.69, "US-KS-2", "NVIDIA GeForce RTX 4090")
NAME = "pc-ann-demo-261121-120000-abcd"


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path / "home"))


@pytest.fixture
def cloud():
    cloud = Cloud()
    yield cloud
    assert cloud.faults == [], "every request is as the official description says"
    for request in cloud.requests:
        assert request.headers["user-agent"].startswith("podctl/"), "Cloudflare turns libraries' own names away"
        assert KEY not in str(request.url) + request.content.decode(), "the key travels in one header, nowhere else"


def made(cloud: Cloud, spec: PodSpec = SPEC, offer: Offer = OFFER, boot: Boot = BOOT):
    return cloud.provider().create(NAME, offer, spec, boot)


def test_the_table_knows_it():
    assert provider_named("runpod").name == "runpod" in PROVIDERS
    assert provider_named("runpod").can.rents


# offers


def refs(cloud: Cloud, **wish: object) -> list[tuple[str, str]]:
    return [(o.gpu, o.data_center) for o in cloud.provider().offers(replace(SPEC, **wish))]


def test_a_persons_order_of_gpus_comes_first_then_data_centers_then_stock_then_price(cloud: Cloud):
    places = ("US-KS-2", "eu-ro-1")
    assert refs(cloud, gpu=("L40S", "4090"), data_centers=places) == [
        ("L40S", "US-KS-2"), ("L40S", "EU-RO-1"), ("RTX 4090", "US-KS-2"), ("RTX 4090", "EU-RO-1")
    ]  # fmt: skip
    assert refs(cloud, gpu=("rtx4090",), data_centers=places[::-1])[0] == ("RTX 4090", "EU-RO-1")
    assert [gpu for gpu, _ in refs(cloud, gpu=("A100",))] == ["A100 80GB PCIe", "A100-SXM4-80GB"], "the better stocked"
    (query,) = {str(r.url.query, "ascii") for r in cloud.calls("GET", "/catalog/gpus")}
    assert query == "include=AVAILABILITY&product=POD&count=1&cloud=SECURE&minCudaVersion=13.0"


def test_a_price_is_for_all_gpus_of_the_machine(cloud: Cloud):
    (one,) = cloud.provider().offers(SPEC)
    (eight,) = cloud.provider().offers(replace(SPEC, gpu_count=8))
    assert eight.usd_per_hour == pytest.approx(8 * one.usd_per_hour)
    assert (one.ref, one.stock) == ("NVIDIA GeForce RTX 4090", "low")
    assert one.data_center == "", "without a volume, RunPod chooses the place"


def test_a_volume_binds_all_offers_to_its_place(cloud: Cloud):
    cloud.volume("v1", "data", "EU-RO-1")
    assert {place for _, place in refs(cloud, gpu=("4090", "L40S"), volume="data")} == {"EU-RO-1"}
    assert refs(cloud, volume="v1") == refs(cloud, volume="data")


@pytest.mark.parametrize(
    ("wish", "said", "hint"),
    [
        ({"gpu": ()}, "names no GPU", "gpu: [RTX 4090"),
        ({"gpu": ("RTX 4900",)}, "no GPU 'RTX 4900': did you mean RTX 4090?", "RunPod has: RTX 4090, L40S"),
        ({"gpu": ("H10", "4091")}, "'4091'", "correct pod.gpu"),
        ({"gpu": ("'; rm -rf /",)}, "no GPU", "correct"),
        ({"gpu": ("   ",)}, "no GPU", "correct"),
        ({"gpu": ("H100 PCIe",), "gpu_count": 8}, "at most 4", "gpu_count"),
        ({"data_centers": ("EU-RO-2",)}, "no data centre 'EU-RO-2': did you mean EU-RO-1?", "there is: EU-RO-1"),
        ({"data_centers": ("AP-JP-1",)}, "RTX 4090 is not to be had in AP-JP-1", "there is: B200"),
        ({"volume": "dat"}, "no volume 'dat' in this account; there is: data (EU-RO-1), two", "did you mean data?"),
        ({"volume": "two"}, "2 volumes are named 'two': v2 (US-KS-2, 50 GB), v3 (EU-RO-1, 50 GB)", "by its id"),
        (
            {"volume": "data", "data_centers": ("US-KS-2",)},
            "data is in EU-RO-1, pod.data_centers says US-KS-2",
            "EU-RO-1",
        ),
        (
            {"volume": "data", "gpu": ("A100 SXM",)},
            "not to be had in EU-RO-1, where the volume data is",
            "there is: A100",
        ),
        ({"max_usd_per_hour": 0.5}, "costs $0.69 an hour, pod.max_usd_per_hour is $0.50", "raise"),
    ],
)
def test_a_wish_that_nobody_can_fulfil_is_named(cloud: Cloud, wish: dict, said: str, hint: str):
    for id_, name, place in (("v1", "data", "EU-RO-1"), ("v2", "two", "US-KS-2"), ("v3", "two", "EU-RO-1")):
        cloud.volume(id_, name, place)
    with pytest.raises(BadInput) as e:
        refs(cloud, **wish)
    assert said in e.value.message
    assert hint in e.value.hint


@pytest.mark.parametrize("wish", [{"gpu": ("H100",)}, {"gpu": ("H100",), "data_centers": ("US-KS-2",)}])
def test_sold_out_names_what_is_free_there(cloud: Cloud, wish: dict):
    with pytest.raises(NoCapacity) as e:
        refs(cloud, **wish)
    assert "H100" in e.value.message
    assert "RTX 4090 ($0.69/h)" in e.value.hint


def test_dearer_offers_are_left_out(cloud: Cloud):
    assert refs(cloud, gpu=("A100", "4090"), max_usd_per_hour=0.7) == [("RTX 4090", "")]


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_lists_are_read_page_by_page(cloud: Cloud, size: int):
    for n in range(5):
        cloud.volume(f"v{n}", f"data{n}", "EU-RO-1")
    cloud.page_size = size
    assert [v.name for v in cloud.provider().volumes()] == [f"data{n}" for n in range(5)]
    assert len(cloud.calls("GET", "/network-volumes")) == (-(-5 // size) if size else 1)


def test_a_server_whose_pages_never_end_ends(cloud: Cloud):
    page = {"networkVolumes": [], "pagination": {"nextCursor": "again", "hasNextPage": True}}
    cloud.amiss["GET /network-volumes"] = [httpx.Response(200, json=page)] * 9
    assert cloud.provider().volumes() == []


# create


@pytest.mark.parametrize("volume", [None, "data"])
def test_what_is_sent_with_a_create(cloud: Cloud, volume: str | None):
    cloud.volume("v1", "data", "US-KS-2")
    pod = made(cloud, replace(SPEC, volume=volume, disk_gb=5))
    (body,) = cloud.bodies("POST", "/pods")
    assert body["name"] == pod.name == NAME
    assert body["image"].startswith("runpod/pytorch:")
    assert body["gpu"] == {"id": "NVIDIA GeForce RTX 4090", "count": 1, "minCudaVersion": "13.0"}
    assert body["ports"] == ["22/tcp"]
    assert body["dataCenterIds"] == ["US-KS-2"]
    assert gzip.decompress(base64.b64decode(body["env"].pop("PODCTL_BOOT"))).decode() == BOOT.start_script
    assert body["env"] == {"A": "a'; rm -rf /", "PUBLIC_KEY": "ssh-ed25519 AAAA podctl"}
    own = {"persistent": {"size": 10, "path": "/workspace"}}
    assert body["mounts"] == ({"network": [{"volumeId": "v1", "path": "/workspace"}]} if volume else own)
    assert pod.volume == ("v1" if volume else "")
    assert not cloud.calls(path="ssh-keys"), "account keys are nobody's business here"


def test_the_start_script_is_run_by_the_args_that_are_sent(cloud: Cloud, tmp_path: Path):
    script = "printf '%s\\n' \"it's me: $0\"\n"
    made(cloud, boot=Boot(start_script=script))
    (body,) = cloud.bodies("POST", "/pods")
    env = {"PATH": "/usr/bin:/bin", "PODCTL_GUARD_DIR": str(tmp_path / "gu ard"), **body["env"]}
    done = subprocess.run(shlex.split(body["args"]), env=env, capture_output=True, text=True)
    assert done.stdout == f"it's me: {tmp_path}/gu ard/podctl-boot\n"


def test_without_a_start_script_the_image_starts_as_it_does(cloud: Cloud):
    made(cloud, replace(SPEC, image="me/mine:1"), replace(OFFER, data_center=""), Boot())
    (body,) = cloud.bodies("POST", "/pods")
    assert not {"args", "dataCenterIds"} & set(body)
    assert body["image"] == "me/mine:1"


def test_more_variables_than_runpod_takes_are_refused_before_it_costs(cloud: Cloud):
    with pytest.raises(BadInput, match="51 environment variables"):
        made(cloud, boot=Boot(env={f"N{n}": "" for n in range(51)}))
    assert cloud.requests == []


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (problem(400, SOLD_OUT), NoCapacity, "no such machine free now"),
        (problem(400, "This machine does not have the resources to deploy your pod"), NoCapacity, "free now"),
        (problem(400, "create pod: could not find any pods with required specifications"), NoCapacity, "of that shape"),
        (problem(400, "Unknown GPU type: x"), OfferRefused, "Unknown GPU type: x"),
        (problem(400, "You have exceeded your spend limit"), NoRights, "spend limit"),
        (problem(402, "nope"), NoRights, "balance"),
        (problem(401, "missing bearer token"), NoRights, "does not accept the key"),
        (problem(403, "access denied"), NoRights, "may not create a pod: access denied"),
        (problem(403, "no access to this pool"), OfferRefused, "no access to this pool"),
        (problem(404, "template not found"), BadInput, "template not found"),
        (problem(410, "gone"), BadInput, "retired"),
        (problem(413, "too large"), BadInput, "too large"),
        (
            problem(422, "failed.", errors=["$: missing property 'x'", "$.y: no"]),
            BadInput,
            "failed.; $: missing property",
        ),
        (httpx.Response(403, text="error code: 1010"), ProviderUnclear, "Cloudflare turns this podctl away"),
        (httpx.Response(302, headers={"location": "https://evil.example/"}), ProviderUnclear, "was not sent there"),
        (httpx.Response(400, text='[{"error":"At #/paths: no"}]'), OfferRefused, "At #/paths: no"),
        (problem(400, "bad \x1b[31mred\n\u202ethings"), OfferRefused, "bad [31mred things"),
    ],
)
def test_each_refusal_has_its_class_and_its_sentence(cloud: Cloud, answer: httpx.Response, kind: type, said: str):
    cloud.amiss["POST /pods"] = [answer]
    with pytest.raises(PodctlError) as e:
        made(cloud)
    assert type(e.value) is kind
    assert said in e.value.message
    assert e.value.hint
    assert len(cloud.calls("POST", "/pods")) == 1


def test_a_refused_offer_carries_runpods_own_words(cloud: Cloud):
    cloud.amiss["POST /pods"] = [problem(400, "dataCenterIds: no such thing")]
    with pytest.raises(OfferRefused) as e:
        made(cloud)
    assert e.value.detail == "dataCenterIds: no such thing"


@pytest.mark.parametrize(
    "answer",
    [
        problem(500, "Something went wrong. Please try again later or contact support."),
        PAGE,
        httpx.Response(200, text="<html>welcome to this hotel</html>"),
        httpx.Response(201, text="{"),
        httpx.Response(201, json={"name": "no id"}),
        refusing(httpx.ReadTimeout),
        refusing(httpx.RemoteProtocolError),
        refusing(httpx.WriteError),
    ],
)
def test_a_create_without_a_clear_answer_is_sent_once_and_says_that_a_pod_may_be_there(cloud: Cloud, answer):
    cloud.amiss["POST /pods"] = [making(cloud, answer), problem(400, "a second create")]
    with pytest.raises(ProviderUnclear, match="a pod may have been made") as e:
        made(cloud)
    assert e.value.hint
    assert len(cloud.pods) == 1, "never blindly again"
    assert [p.name for p in cloud.provider().list()] == [NAME], "its name tells"


@pytest.mark.parametrize(
    ("troubles", "slept"),
    [
        ([refusing(httpx.ConnectError)] * 3, [0.5, 1, 2]),
        ([problem(429, "rate limit exceeded", {"Retry-After": "12"})], [12]),
        ([problem(429, "rate limit exceeded")] * 2, [0.5, 1]),
    ],
)
def test_a_create_that_was_certainly_not_heard_is_sent_again(cloud: Cloud, troubles: list, slept: list):
    cloud.amiss["POST /pods"] = troubles
    made(cloud)
    assert len(cloud.pods) == 1
    assert cloud.clock.slept == slept


def test_a_long_wait_is_said_in_place_of_being_waited_for(cloud: Cloud):
    cloud.amiss["POST /pods"] = [problem(429, "rate limit exceeded for the hour window", {"Retry-After": "1812"})]
    with pytest.raises(ProviderUnclear, match="nothing was done") as e:
        made(cloud)
    assert "1812 s" in e.value.hint
    assert cloud.clock.slept == []


def test_nobody_at_home_is_told_as_that(cloud: Cloud):
    cloud.amiss["POST /pods"] = [refusing(httpx.ConnectError, "[Errno -2] Name or service not known")] * 9
    with pytest.raises(ProviderUnclear, match=r"can't be reached: .*; nothing was made"):
        made(cloud)


@pytest.mark.parametrize("value", [b"\xff".decode("utf-8", "surrogateescape"), "a\0b"])
def test_bytes_that_are_no_text_are_refused_by_name(cloud: Cloud, value: str):
    with pytest.raises(BadInput, match=r"pod\.env\.LABEL"):
        made(cloud, boot=Boot(env={"LABEL": value}))
    assert cloud.requests == []


def test_a_pod_whose_price_is_not_told_yet_costs_what_was_offered(cloud: Cloud):
    cloud.extra = {"cost": 0.0}
    assert made(cloud).usd_per_hour == OFFER.usd_per_hour


# a pod's life


def test_a_pod_is_read_as_it_is(cloud: Cloud, tmp_path: Path):
    pod = made(cloud)
    assert (pod.state, pod.ssh, pod.started_at) == ("starting", None, None)
    cloud.run(pod.id)
    pod = cloud.provider().get(pod.id)
    assert pod.state == "running"
    assert pod.ssh == SshAddress("195.26.233.3", 34446, "root", str(tmp_path / "home/keys/podctl_ed25519"))
    assert pod.proxy == f"ssh {pod.id}-64411eb2@ssh.runpod.io"
    assert pod.host_id == "64411eb2"
    assert pod.started_at == 1795262520.5
    assert pod.created_at == 1795262400
    assert (pod.gpu, pod.gpu_count, pod.data_center, pod.usd_per_hour) == ("RTX 4090", 1, "US-KS-2", 0.69)
    assert (str(pod.volume_dir), pod.python) == ("/workspace", "")


def test_folders_and_python_are_what_the_answer_says(cloud: Cloud):
    pod = made(cloud)
    cloud.pods[pod.id]["mounts"] = {"network": [{"volumeId": "v", "path": "/somewhere/else"}]}
    cloud.pods[pod.id]["env"] |= {"PODCTL_PYTHON": "/opt/python"}
    pod = cloud.provider().get(pod.id)
    assert (str(pod.volume_dir), pod.python, pod.volume) == ("/somewhere/else", "/opt/python", "v")


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PROVISIONING", "starting"),
        ("STARTING", "starting"),
        ("RUNNING", "running"),
        ("EXITED", "stopped"),
        ("ERROR", "broken"),
        ("TERMINATED", "gone"),
        ("MIGRATING", "starting"),
        (None, "starting"),
    ],
)
def test_each_status_is_a_state(cloud: Cloud, status: str | None, state: str):
    pod = made(cloud)
    cloud.pods[pod.id]["status"] = status
    assert cloud.provider().get(pod.id).state == state


def test_a_stopped_pod_has_no_price_and_no_address_whatever_is_told(cloud: Cloud):
    pod = made(cloud)
    cloud.run(pod.id)
    cloud.pods[pod.id]["status"] = "EXITED"
    pod = cloud.provider().get(pod.id)
    assert (pod.usd_per_hour, pod.ssh) == (0.0, None)


@pytest.mark.parametrize(
    "amiss",
    [
        {"ssh": None, "mounts": None, "env": None, "gpu": None, "cost": None, "createdAt": None},
        {"ssh": {"direct": {"host": "-oProxyCommand=evil", "port": 22}, "proxy": "x"}, "mounts": {"network": []}},
        {"ssh": {"direct": {"host": "1.2.3.4", "port": "22"}}, "mounts": {"network": ["x"]}, "gpu": {"count": True}},
        {"ssh": {"direct": {"host": "1.2.3.4", "port": 99999}}, "startedAt": "Fri Jul 12 2024", "cost": "0.4"},
        {
            "ssh": [],
            "mounts": [],
            "env": [],
            "gpu": [],
            "cost": True,
            "startedAt": 5,
            "createdAt": "2026-11-21T12:00:00",
        },
    ],
)
def test_an_odd_pod_is_still_one(cloud: Cloud, amiss: dict):
    pod = made(cloud)
    cloud.run(pod.id)
    cloud.pods[pod.id] |= amiss
    pod = cloud.provider().get(pod.id)
    assert pod.state == "running"
    assert pod.ssh is None
    assert str(pod.volume_dir) == "/workspace"


def test_unknown_keys_change_nothing(cloud: Cloud):
    plain = [cloud.provider().offers(replace(SPEC, data_centers=("US-KS-2",))), made(cloud)]
    cloud.extra = {"newerThanUs": {"deep": [1]}}
    richer = [cloud.provider().offers(replace(SPEC, data_centers=("US-KS-2",))), made(cloud)]
    assert replace(plain[1], id="") == replace(richer[1], id="")
    assert plain[0] == richer[0]


def test_an_unknown_level_of_stock_is_some(cloud: Cloud):
    gpu = cloud._gpu("NVIDIA L40S") | {"availability": "PLENTY"}
    cloud.amiss["GET /catalog/gpus"] = [httpx.Response(200, json={"gpus": [gpu, {"id": 5}, {}, "x"]})]
    (offer,) = cloud.provider().offers(replace(SPEC, gpu=("l40s",)))
    assert offer.stock == "plenty"


def test_an_empty_catalogue_is_nobodys_misspelling(cloud: Cloud):
    cloud.amiss["GET /catalog/gpus"] = [httpx.Response(200, json={"gpus": []})]
    with pytest.raises(ProviderUnclear):
        cloud.provider().offers(SPEC)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.sampled_from(WORDS), deeper, max_size=5),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@example(
    {"cost": math.inf, "gpu": {"count": math.inf}, "size": math.nan, "id": "x", "price": {"secure": math.nan}}, 400
)
@example({"cost": -1.0, "gpu": {"count": -math.inf}, "detail": "\x00\x1b", "clientBalance": math.nan}, 500)
@given(st.dictionaries(st.sampled_from(WORDS), ODD), st.sampled_from([200, 400, 403, 404, 409, 422, 429, 500]))
def test_whatever_runpod_says_is_read_or_is_an_error_of_ours(told: dict, status: int):
    pod = shapes.pod_of(told, "key")
    assert pod.state in {"starting", "running", "stopped", "broken", "gone"}
    assert pod.usd_per_hour >= 0
    assert str(pod.volume_dir)
    shapes.volume_of(told)
    catalogue.centers_of([told])
    assert all(math.isfinite(g.usd_per_hour) for g in catalogue.gpus_of([told]))
    graphql.balance_of(Answer(200, {"data": {"myself": told}}))
    fault = fault_of(Answer(status, told), Doing("do that"))
    assert isinstance(fault, PodctlError)
    assert fault.message.isprintable()
    assert fault.hint


def test_a_pod_that_runpod_does_not_know_is_gone(cloud: Cloud):
    assert cloud.provider().get("nobody").state == "gone"


@pytest.mark.parametrize("answer", [httpx.Response(404, text="404 page not found"), httpx.Response(404, text="<html>")])
def test_a_404_of_somebody_else_proves_nothing(cloud: Cloud, answer: httpx.Response):
    pod = made(cloud)
    cloud.amiss[f"GET /pods/{pod.id}"] = [answer] * 9
    with pytest.raises(ProviderUnclear):
        cloud.provider().get(pod.id)


@pytest.mark.parametrize("odd", ["../account/ssh-keys", "a b", "x?y=1", "%2e%2e", "é"])
def test_an_odd_id_stays_one_part_of_the_path(cloud: Cloud, odd: str):
    assert cloud.provider().get(odd).state == "gone"
    assert cloud.provider().terminate(odd) is None
    assert all(r.url.raw_path.count(b"/") == 3 for r in cloud.requests)
    cloud.faults.clear()


@pytest.mark.parametrize("none", ["", ".", ".."])
def test_no_id_asks_nothing(cloud: Cloud, none: str):
    with pytest.raises(BadInput):
        cloud.provider().terminate(none)
    assert cloud.requests == []


def test_the_list_holds_podctls_pods_alone(cloud: Cloud):
    provider = cloud.provider()
    made(cloud)
    provider.create("somebody-elses", OFFER, SPEC, BOOT)
    cloud.page_size = 1
    assert [p.name for p in provider.list()] == [NAME]


def test_stop_start_and_terminate_may_be_repeated(cloud: Cloud):
    provider = cloud.provider()
    pod = made(cloud)
    for _ in range(2):
        provider.stop(pod.id)
        assert provider.get(pod.id).state == "stopped"
    for _ in range(2):
        assert provider.start(pod.id).state == "starting"
    for _ in range(2):
        provider.terminate(pod.id)
        assert provider.get(pod.id).state == "gone"
    provider.stop(pod.id)  # what is gone is stopped


@pytest.mark.parametrize("answer", [httpx.Response(200), httpx.Response(200, json={}), httpx.Response(204)])
def test_a_start_whose_answer_tells_nothing_is_looked_up(cloud: Cloud, answer: httpx.Response):
    pod = made(cloud)
    cloud.amiss[f"POST /pods/{pod.id}/action"] = [answer]
    assert cloud.provider().start(pod.id).state == "starting"


def test_a_start_tells_no_address_of_the_boot_before(cloud: Cloud):
    pod = made(cloud)
    cloud.run(pod.id)
    stale = dict(cloud.pods[pod.id], status="EXITED")
    cloud.amiss[f"POST /pods/{pod.id}/action"] = [httpx.Response(200, json=stale)]
    started = cloud.provider().start(pod.id)
    assert (started.state, started.ssh) == ("starting", None)


@pytest.mark.parametrize(
    "detail", ["Failed to resume pod.", "There are not enough free GPUs on the host machine to start this pod."]
)
def test_a_full_host_is_no_capacity(cloud: Cloud, detail: str):
    provider, pod = cloud.provider(), made(cloud)
    provider.stop(pod.id)
    cloud.amiss[f"POST /pods/{pod.id}/action"] = [problem(400, detail)]
    with pytest.raises(NoCapacity, match="has no GPU free"):
        provider.start(pod.id)


def test_a_pod_that_is_gone_can_not_be_started(cloud: Cloud):
    with pytest.raises(BadInput, match="pod not found"):
        cloud.provider().start("nobody")


def test_a_locked_pod_says_so(cloud: Cloud):
    pod = made(cloud)
    cloud.pods[pod.id] |= {"locked": True, "actions": []}
    with pytest.raises(BadInput, match="is locked"):
        cloud.provider().stop(pod.id)


@pytest.mark.parametrize("answer", [problem(500, "x"), PAGE, refusing(httpx.ReadTimeout), refusing(httpx.ReadError)])
def test_after_an_unclear_answer_a_change_is_looked_at_and_asked_again(cloud: Cloud, answer):
    provider, pod = cloud.provider(), made(cloud)
    cloud.amiss[f"POST /pods/{pod.id}/action"] = [answer]
    provider.stop(pod.id)
    assert cloud.pods[pod.id]["status"] == "EXITED"
    cloud.amiss[f"DELETE /pods/{pod.id}"] = [answer]
    provider.terminate(pod.id)
    assert cloud.pods == {}


def test_what_was_done_in_spite_of_an_unclear_answer_is_not_done_twice(cloud: Cloud):
    pod = made(cloud)

    def done(request: httpx.Request) -> httpx.Response:
        cloud.pods.clear()
        return problem(502, "bad gateway")

    cloud.amiss[f"DELETE /pods/{pod.id}"] = [done, problem(403, "a second delete")]
    cloud.provider().terminate(pod.id)
    assert len(cloud.calls("DELETE")) == 1


def test_a_terminate_that_never_gets_a_clear_answer_says_so(cloud: Cloud):
    pod = made(cloud)
    cloud.amiss[f"DELETE /pods/{pod.id}"] = [problem(500, "no")] * 9
    with pytest.raises(ProviderUnclear):
        cloud.provider().terminate(pod.id)


def test_a_key_that_reads_but_can_not_stop_is_a_matter_of_rights(cloud: Cloud):
    pod = made(cloud)
    cloud.amiss[f"POST /pods/{pod.id}/action"] = [problem(403, "access denied")]
    with pytest.raises(NoRights, match=f"may not stop the pod {pod.id}"):
        cloud.provider().stop(pod.id)


# reads


@pytest.mark.parametrize("trouble", [problem(503, "x"), PAGE, problem(429, "x"), refusing(httpx.ReadError)])
def test_a_read_is_tried_again(cloud: Cloud, trouble):
    cloud.amiss["GET /pods"] = [trouble] * 3
    assert cloud.provider().list() == []
    assert cloud.clock.slept == [0.5, 1, 2]


def test_a_server_that_lets_us_wait_is_not_waited_for_four_times(cloud: Cloud):
    cloud.amiss["GET /pods"] = [refusing(httpx.ReadTimeout)] * 9
    with pytest.raises(ProviderUnclear, match="did not answer in time"):
        cloud.provider().list()
    assert len(cloud.requests) == 2


@pytest.mark.parametrize("answer", [httpx.Response(200, json=[]), httpx.Response(200, json={"pods": None})])
def test_a_list_that_is_none_is_not_an_empty_one(cloud: Cloud, answer: httpx.Response):
    cloud.amiss["GET /pods"] = [answer]
    with pytest.raises(ProviderUnclear, match="no list of pods"):
        cloud.provider().list()


def event(line: str, source: str = "container", n: int = 1) -> str:
    data = json.dumps({"ts": "2026-06-01T12:02:03Z", "source": source, "line": line})
    return f"id: 2026-06-01T12:02:03Z/{n:012}\ndata: {data}\n\n"


def test_the_log_is_the_containers_own_lines(cloud: Cloud):
    pod = made(cloud)
    cloud.log = event("one") + ": a comment\n\n" + event("pulling", "system") + "data: not json\n\n" + event("two\n")
    provider = cloud.provider()
    assert provider.log_lines(pod.id) == ["one", "not json", "two"]
    assert provider.log_lines(pod.id, tail=1) == ["two"]
    assert provider.log_lines(pod.id, tail=0) == []
    provider.log_lines(pod.id, since=1795262400.5)
    assert cloud.requests[-1].url.params["since"] == "2026-11-21T12:00:00Z"


def test_before_there_is_a_container_there_is_no_log(cloud: Cloud):
    assert cloud.provider().log_lines("nobody") == []


def test_a_log_that_can_not_be_had_is_said(cloud: Cloud):
    pod = made(cloud)
    cloud.amiss[f"GET /pods/{pod.id}/logs"] = [problem(503, "log store down"), problem(403, "access denied")]
    with pytest.raises(ProviderUnclear, match="log store down"):
        cloud.provider().log_lines(pod.id)
    with pytest.raises(NoRights):
        cloud.provider().log_lines(pod.id)


# money, volumes


def test_the_bill_is_summed_and_unknown_is_not_nothing(cloud: Cloud):
    assert cloud.provider().billed("p", 1795262400) is None
    cloud.records = [
        {"podId": "p", "totalAmount": 1.5},
        {"podId": "p", "totalAmount": 0.25},
        {"podId": "q", "totalAmount": 9},
    ]
    cloud.page_size = 1
    assert cloud.provider().billed("p", 1795262400) == 1.75
    assert cloud.requests[-1].url.params["startTime"] == "2026-11-21T12:00:00Z"


@pytest.mark.parametrize(
    ("answer", "balance"),
    [
        (None, Balance(12.5, 0.69, 80)),
        (httpx.Response(200, json={"errors": [{"message": "Unauthorized"}], "data": {"myself": None}}), None),
        (httpx.Response(401), None),
        (httpx.Response(410), None),
        (problem(422, "x"), None),
        (httpx.Response(200, json={"data": {"myself": {"clientBalance": 1}}}), Balance(1)),
    ],
)
def test_the_balance_is_told_or_not(cloud: Cloud, answer: httpx.Response | None, balance: Balance | None):
    cloud.amiss["POST graphql"] = [answer]
    assert cloud.provider().balance() == balance


def test_an_old_api_that_is_down_is_no_reason_not_to_train(cloud: Cloud):
    cloud.amiss["POST graphql"] = [problem(502, "x")] * 9
    assert cloud.provider().balance() is None


def test_a_volume_is_made_where_there_are_some(cloud: Cloud):
    volume = cloud.provider().create_volume("data", 50, "eu-ro-1")
    assert (volume.name, volume.size_gb, volume.data_center) == ("data", 50, "EU-RO-1")
    for size, place, said in (
        (9, "EU-RO-1", "10 to 4096"),
        (50, "AP-JP-1", "no network volumes"),
        (50, "X", "no data ce"),
    ):
        with pytest.raises(BadInput, match=said):
            cloud.provider().create_volume("data", size, place)
    with pytest.raises(BadInput) as e:
        cloud.provider().create_volume("data", 50, "AP-JP-1")
    assert e.value.hint == "those that have: EU-RO-1, US-KS-2"
    assert len(cloud.volumes) == 1


def test_an_unclear_volume_says_so(cloud: Cloud):
    cloud.amiss["POST /network-volumes"] = [refusing(httpx.ReadTimeout), problem(500, "x")]
    for _ in range(2):
        with pytest.raises(ProviderUnclear, match="a volume may have been made"):
            cloud.provider().create_volume("data", 50, "EU-RO-1")


# spot


def test_a_spot_pod_is_bid_for_over_the_old_api(cloud: Cloud):
    cloud.volume("v1", "data", "EU-RO-1")
    spec = replace(SPEC, spot=True, gpu_count=2, volume="data")
    (offer,) = cloud.provider().offers(spec)
    assert offer.spot
    assert offer.usd_per_hour == pytest.approx(0.4), "a bid is for one GPU"
    pod = made(cloud, spec, offer, replace(BOOT, env={"Q": 'a "quoted" \\ {brace}\n'}))
    assert (pod.id, pod.state, pod.usd_per_hour, pod.volume) == ("spot1", "starting", offer.usd_per_hour, "v1")
    query = cloud.bodies("POST", "/graphql")[-1]["query"]
    assert "podRentInterruptable" in query
    assert "bidPerGpu: 0.2000" in query
    assert 'networkVolumeId: "v1"' in query
    assert '{ key: "Q", value: "a \\"quoted\\" \\\\ {brace}\\n" }' in query
    assert not cloud.calls("POST", "/pods")


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (httpx.Response(410), BadInput, "retired its old API"),
        (httpx.Response(200, json={"errors": [{"message": SOLD_OUT}], "data": None}), NoCapacity, "free now"),
        (httpx.Response(200, json={"data": {"podRentInterruptable": None}}), NoCapacity, "spot"),
        (httpx.Response(200, json={"errors": [{"message": "Unauthorized"}]}), NoRights, "key"),
        (
            httpx.Response(200, json={"errors": [{"message": "Something went wrong."}]}),
            ProviderUnclear,
            "may have been",
        ),
        (httpx.Response(400, json={"errors": [{"message": "Unknown argument"}]}), OfferRefused, "Unknown argument"),
        (httpx.Response(200, text="{}"), ProviderUnclear, "may have been made"),
        (refusing(httpx.ReadTimeout), ProviderUnclear, "may have been made"),
    ],
)
def test_each_way_that_a_bid_fails_has_its_class(cloud: Cloud, answer, kind: type, said: str):
    cloud.amiss["POST graphql"] = [answer]
    with pytest.raises(PodctlError) as e:
        made(cloud, offer=replace(OFFER, spot=True))
    assert type(e.value) is kind
    assert said in e.value.message
    assert len(cloud.requests) == 1


def test_without_a_bid_there_is_no_spot_offer(cloud: Cloud):
    cloud.bid = None
    with pytest.raises(NoCapacity):
        cloud.provider().offers(replace(SPEC, spot=True))
    cloud.bid = 0.6
    with pytest.raises(BadInput, match=r"lowest bid is \$0.60"):
        cloud.provider().offers(replace(SPEC, spot=True, max_usd_per_hour=0.5, gpu=("MIG",)))


# the key


def test_a_wrong_key_is_told_with_where_it_came_from(cloud: Cloud):
    wrong = replace(ACCOUNT, key=SecretStr("rpa_wrong"))
    with pytest.raises(NoRights, match="does not accept the key") as e:
        cloud.provider(wrong).list()
    assert "RUNPOD_API_KEY (the environment)" in e.value.hint
    assert "rpa_wrong" not in str(e.value) + e.value.hint
    with pytest.raises(NoRights) as e:
        cloud.provider(replace(wrong, shadows=True)).list()
    assert e.value.hint.startswith("unset RUNPOD_API_KEY")


def test_the_key_shows_nowhere_even_where_a_server_repeats_it(cloud: Cloud):
    provider = cloud.provider()
    cloud.amiss["GET /pods"] = [
        problem(403, f"key {KEY} may not"),
        refusing(httpx.ReadError, f"while sending {KEY}"),
    ] * 5
    seen = [repr(provider), repr(provider._client), repr(ACCOUNT), str(vars(provider))]
    for _ in range(2):
        with pytest.raises(PodctlError) as e:
            provider.list()
        seen += [str(e.value), e.value.hint, repr(e.value), repr(e.value.__cause__), repr(e.getrepr(style="long"))]
        assert e.value.__suppress_context__ or e.value.__context__ is None
    assert KEY not in "\n".join(seen)
