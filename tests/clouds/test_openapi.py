"""The yardstick itself: what the official description allows, and what it does not."""

import json

import pytest

BODY = {
    "name": "pc-me-demo",
    "image": "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
    "disk": 50,
    "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 1, "minCudaVersion": "13.0"},
    "mounts": {"network": [{"volumeId": "2q9m7x4c", "path": "/workspace"}]},
    "env": {"PUBLIC_KEY": "ssh-ed25519 AAAA me"},
    "ports": ["22/tcp"],
}


def test_a_create_call_as_the_reference_writes_it_validates(spec):
    assert spec.request_faults("POST", "/v2/pods", "", json.dumps(BODY)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpuTypeIds": ["x"]}, "gpuTypeIds"),
        ({"disk": 0}, "minimum"),
        ({"env": {"A": 1}}, "not of type 'string'"),
        ({"mounts": {"network": [{"volumeId": "v"}]}}, "path"),
        ({"gpu": {"count": 1}}, "'id' is a required"),
        ({"name": ""}, ""),
    ],
)
def test_a_create_call_that_breaks_the_description_is_told_where(spec, change, said):
    faults = spec.request_faults("POST", "/v2/pods", "", json.dumps(BODY | change))
    assert faults
    assert said in " ".join(faults)


def test_paths_methods_and_parameters_that_are_not_described_are_faults(spec):
    assert spec.request_faults("GET", "/v2/networkvolumes")
    assert spec.request_faults("PUT", "/v2/pods")
    assert spec.request_faults("GET", "/v2/pods", "desiredStatus=RUNNING")
    assert spec.request_faults("GET", "/v2/pods/x/logs", {"tail": "9999"})
    assert not spec.request_faults("GET", "/v2/pods/x/logs?tail=200&source=container&since=2026-11-21T10:00:00Z")
    assert not spec.request_faults("GET", "/v2/catalog/gpus", "include=AVAILABILITY&product=POD&count=1&cloud=SECURE")


def test_answers_are_held_against_status_type_and_schema(spec):
    problem = '{"title":"Payment Required","status":402,"detail":"no"}'
    assert not spec.answer_faults("POST", "/v2/pods", 402, "application/problem+json", problem)
    assert spec.answer_faults("POST", "/v2/pods", 200, "application/json", "{}")
    assert spec.answer_faults("POST", "/v2/pods", 201, "application/json", "{}")
    assert spec.answer_faults("POST", "/v2/pods", 502, "text/html", "<html>")
    assert spec.answer_faults("DELETE", "/v2/pods/x", 204, "", b"left over")
    assert not spec.answer_faults("DELETE", "/v2/pods/x", 204)


def test_a_log_stream_is_events_with_the_moment_of_their_line(spec):
    event = 'id: 2026-06-01T12:02:03Z/1\ndata: {"ts":"2026-06-01T12:02:03Z","source":"container","line":"a: b"}\n\n'
    assert not spec.answer_faults("GET", "/v2/pods/x/logs", 200, "text/event-stream", event + ": ping\n\n" + event)
    assert spec.answer_faults("GET", "/v2/pods/x/logs", 200, "text/event-stream", "data: {}\n\n")
