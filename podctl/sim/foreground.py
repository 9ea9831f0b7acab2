"""`podctl sim`: the cloud in the foreground: what to type in another terminal, then pods and the bill."""

import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from podctl import shell
from podctl.errors import BadInput
from podctl.sim.catalogue import Catalogue, Stock
from podctl.sim.faults import FAULTS, Fault
from podctl.sim.records import TERMINATED, Timing
from podctl.sim.sim import Sim
from podctl.ui import Ui, money
from remote.clock import duration

LOOK_S = 0.2


@dataclass(frozen=True)
class Order:
    """What was typed."""

    rate: float
    faults: Sequence[str]
    stock: Sequence[str]
    volumes: Sequence[str]
    balance_usd: float
    seed: int
    port: int
    folder: Path | None


def run(order: Order, ui: Ui) -> int:
    """Stand until Ctrl-C; then all pods end. Raises BadInput."""
    faults = [Fault.parse(words) for words in order.faults]
    catalogue = Catalogue.shipped()
    stock = read_stock(order.stock, catalogue)
    with ExitStack() as stack:
        root = order.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podctl-sim-")))
        try:
            cloud = Sim(
                root, rate=order.rate, faults=faults, stock=stock, timing=Timing.real(), seed=order.seed,
                balance_usd=order.balance_usd, port=order.port, guard_tick_s=1.0, proxy=True,
            )  # fmt: skip
        except OSError as e:
            raise BadInput(
                f"port {order.port}: {e.strerror}", "podctl sim without --port takes one that is free"
            ) from e
        sim = stack.enter_context(cloud)
        stack.enter_context(shell.ending_like_ctrl_c())
        try:
            _announce(sim, order, ui)
            _watch(sim, ui)
        except KeyboardInterrupt:
            bill = sim.bill()
    ui.live("")
    ui.emit({"event": "end", "usd": round(bill, 6)}) if ui.as_json else ui.done(f"all pods ended; {_play(bill)}")
    return 0


def show_faults(ui: Ui) -> int:
    """What `--fault` takes."""
    if ui.as_json:
        for name, what in FAULTS.items():
            ui.emit({"fault": name, "what": what})
        return 0
    ui.facts(list(FAULTS.items()))
    ui.note("each takes times, skip, pod, gpu, data_center, path, method, at, seconds: host-full,times=1")
    return 0


def read_stock(words: Sequence[str], catalogue: Catalogue) -> Stock | None:
    """`4090=0`, `L40S@US-KS-2=2`: the catalogue's stock with that many of it, in all. Raises BadInput."""
    if not words:
        return None
    stock = {gpu: {c: _sizes(n) for c, n in centers.items()} for gpu, centers in catalogue.stock.items()}
    for word in words:
        place, _, number = word.rpartition("=")
        name, _, center = place.partition("@")
        gpus = [g for g in catalogue.gpus.values() if name and name.lower() in f"{g.id} {g.name}".lower()]
        if not gpus or not number.isdigit() or (center and center not in catalogue.data_centers):
            known = ", ".join(g.name for g in catalogue.gpus.values())
            centers = ", ".join(catalogue.data_centers)
            raise BadInput(f"--stock {word}: not GPU[@DC]=N", f"GPU is one of {known}; DC of {centers}")
        for gpu in gpus:
            at = center or next(iter(stock.get(gpu.id, {"US-KS-2": []})))
            stock[gpu.id] = {**({} if not center else stock.get(gpu.id, {})), at: [int(number)]}
    return stock


def _announce(sim: Sim, order: Order, ui: Ui) -> None:
    """What another terminal needs."""
    made = []
    for word in order.volumes:
        name, _, center = word.partition("@")
        made.append(sim.create_volume(name or "data", 50, center or "US-KS-2"))
    if ui.as_json:
        volumes = [{"id": v.id, "name": v.name, "data_center": v.data_center} for v in made]
        ui.emit({"event": "ready", "url": sim.url, "env": sim.env(), "volumes": volumes})
        return
    ui.note(f"an emulated RunPod, in play money, at {sim.url}; in another terminal type:")
    for name, value in sim.env().items():
        ui.data(f"export {name}={shlex.quote(value)}")
    for volume in made:
        ui.note(f"network volume {volume.name}: {volume.id} in {volume.data_center}")
    ui.note("Ctrl-C ends it and all pods")


def _watch(sim: Sim, ui: Ui) -> None:
    """Say what changes, for ever; without a terminal a line for each change of a pod's state."""
    began, last = sim.clock.now(), dict[str, str]()
    while True:
        pods = sim.table()
        for pod in pods:
            if last.get(pod["id"]) != pod["status"]:
                last[pod["id"]] = pod["status"]
                ui.emit({"event": "pod", **pod}) if ui.as_json else ui.note(_line(pod))
        live = [p for p in pods if p["status"] != TERMINATED]
        gone_by = duration(sim.clock.now() - began)
        ui.live(f"{len(live)} pods · {_play(sum(p['usd'] for p in pods))} · {gone_by} of the cloud's time")
        time.sleep(LOOK_S)


def _line(pod: Mapping[str, object]) -> str:
    gpu = f"{pod['count']} × {str(pod['gpu']).removeprefix('NVIDIA ')}"
    return f"{pod['name']}  {pod['id']}  {str(pod['status']).lower()}  {gpu} in {pod['data_center']}  ${pod['usd']:.4f}"


def _play(usd: float) -> str:
    return f"{money(usd)} of play money"


def _sizes(sizes: Sequence[int] | int) -> list[int]:
    return [sizes] if isinstance(sizes, int) else list(sizes)
