"""`/sim/…`: what a person in front of `podctl sim` may change while it runs. No part of any real cloud."""

import json
from dataclasses import asdict
from typing import Any

from podctl.errors import BadInput
from podctl.sim.cloud import Cloud, Refused, summary
from podctl.sim.faults import FAULTS, Fault
from podctl.sim.wire import Answer, Request, answer, problem


class Admin:
    """Pods and bill, faults on and off, time, a machine that dies."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def answer(self, request: Request) -> Answer:
        try:
            return self._answer(request, _body(request))
        except (BadInput, Refused) as e:
            return problem(400, str(e))

    def _answer(self, request: Request, body: dict[str, Any]) -> Answer:
        cloud = self._cloud
        match request.method, request.path:
            case "GET", "/sim/pods":
                pods = [summary(p, cloud.t) for p in cloud.pods.values()]
                return answer({"pods": pods, "bill_usd": cloud.bill(), "balance_usd": cloud.balance_usd})
            case "GET", "/sim/faults":
                return answer({"on": list(cloud.faults.names()), "fired": cloud.faults.fired, "known": dict(FAULTS)})
            case "POST", "/sim/faults":
                fault = Fault.parse(str(body.get("fault", "")))
                cloud.faults.add(fault)
                return answer(asdict(fault), 201)
            case "DELETE", "/sim/faults":
                cloud.faults.remove(name) if (name := request.values.get("name")) else cloud.faults.clear()
                return Answer(204)
            case "POST", "/sim/kill-host":
                cloud.kill_host(str(body.get("pod", "")))
                return Answer(204)
            case "POST", "/sim/fill-host":
                cloud.fill_host(str(body.get("pod", "")))
                return Answer(204)
            case "POST", "/sim/volumes":
                made = cloud.create_volume(str(body["name"]), int(body["size"]), str(body["dataCenter"]))
                return answer(asdict(made), 201)
        return problem(404, "there is no such switch")


def _body(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(request.body or b"{}")
    except ValueError:
        value = {}
    return value if isinstance(value, dict) else {}
