"""Which machines could be rented, in the order to try them: from RunPod's catalogue and a wish to offers. Pure."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from podctl.errors import BadInput, NoCapacity, ProviderUnclear
from podctl.pods import Offer, PodSpec, Volume
from podctl.providers.runpod.gpu_names import matching, nearest, short
from podctl.providers.runpod.loose import mapping, number

PROVIDER = "runpod"
STOCK = {"HIGH": 3, "MEDIUM": 2, "LOW": 1, "NONE": 0}
UNKNOWN_STOCK = 1  # a level that RunPod has added since: there is some


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU in the Secure Cloud."""

    id: str
    name: str
    usd_per_hour: float  # of one
    max_count: int  # in one machine
    availability: str | None = None  # anywhere; None: not told
    stock: Mapping[str, str] = field(default_factory=dict)  # data centre → level, in this configuration
    secure: bool = True


@dataclass(frozen=True)
class DataCenter:
    id: str
    gpus: frozenset[str] | None = None  # ids that it has at all; None: not told
    has_volumes: bool = True


def gpus_of(items: Iterable[Mapping[str, Any]]) -> list[Gpu]:
    """The catalogue's GPUs; what lacks an id or a price is passed over."""
    found = []
    for item in items:
        id_, price, most = item.get("id"), mapping(item.get("price")), mapping(item.get("maxCount"))
        usd, count = number(price.get("secure")), number(most.get("secure"))
        if not isinstance(id_, str) or usd is None:
            continue
        centers = item.get("dataCenters")
        stock = {
            str(c["id"]): str(c.get("availability") or "").upper()
            for c in (centers if isinstance(centers, list) else [])
            if isinstance(c, dict) and c.get("id")
        }
        told = item.get("availability")
        found.append(
            Gpu(
                id=id_,
                name=str(item.get("name") or short(id_)),
                usd_per_hour=usd,
                max_count=int(count) if count is not None else 1,
                availability=told.upper() if isinstance(told, str) else None,
                stock=stock,
                secure=item.get("secure") is not False,
            )
        )
    return found


def centers_of(items: Iterable[Mapping[str, Any]]) -> list[DataCenter]:
    found = []
    for item in items:
        if not isinstance(item.get("id"), str):
            continue
        gpus, kinds = item.get("gpuAvailability"), item.get("networkVolumeTypes")
        found.append(
            DataCenter(
                id=item["id"],
                gpus=frozenset(str(g["id"]) for g in gpus if isinstance(g, dict) and g.get("id"))
                if isinstance(gpus, list)
                else None,
                has_volumes=bool(kinds) if isinstance(kinds, list) else True,
            )
        )
    return found


def find_volume(wish: str, volumes: Sequence[Volume]) -> Volume:
    """The volume of that id, else of that name. Raises BadInput for none, and for several of a name."""
    for volume in volumes:
        if volume.id == wish:
            return volume
    named = [v for v in volumes if v.name == wish]
    if len(named) == 1:
        return named[0]
    if named:
        each = ", ".join(f"{v.id} ({v.data_center}, {v.size_gb} GB)" for v in named)
        raise BadInput(f"{len(named)} volumes are named {wish!r}: {each}", "name one by its id: pod.volume")
    near = difflib.get_close_matches(wish, [n for v in volumes for n in (v.name, v.id)], n=1)
    there = ", ".join(f"{v.name} ({v.data_center})" for v in volumes) or "none yet"
    raise BadInput(
        f"there is no volume {wish!r} in this account; there is: {there}",
        f"did you mean {near[0]}?"
        if near
        else "make one at https://console.runpod.io/user/storage, or correct pod.volume",
    )


def rank(
    spec: PodSpec, gpus: Sequence[Gpu], centers: Sequence[DataCenter] = (), volume: Volume | None = None
) -> list[Offer]:
    """Offers in the order to try them: the person's GPUs, then data centres as given, then stock, then price.

    Where neither a volume nor a data centre is asked for, RunPod chooses the place: its offers name none. `centers` is
    needed where one is. Raises BadInput with every mistake, NoCapacity.
    """
    wanted = _gpus_meant(spec, gpus)
    places = _places(spec, centers, volume)
    of_size = [(i, g) for i, g in wanted if g.secure and g.max_count >= spec.gpu_count]
    if not of_size:
        most = max((g.max_count for _, g in wanted if g.secure), default=0)
        what = f"has at most {most} in one machine" if most else "is only in the Community Cloud, which has no volumes"
        raise BadInput(f"{_names(wanted)} {what}: {spec.gpu_count} are asked for", "lower pod.gpu_count, or other GPUs")
    have = {c.id: c.gpus for c in centers}
    found = [
        (i, g, p) for i, g in of_size for p in places if p == "" or (kinds := have.get(p)) is None or g.id in kinds
    ]
    where = _where(places, volume)
    if not found:
        there = sorted({short(id_) for p in places for id_ in have.get(p) or ()})
        raise BadInput(
            f"{_names(of_size)} {_are(of_size)} not to be had{where}",
            f"there is: {', '.join(there)}" if there else "correct pod.gpu, pod.data_centers or pod.volume",
        )
    limit = spec.max_usd_per_hour
    payable = [c for c in found if limit is None or c[1].usd_per_hour * spec.gpu_count <= limit + 1e-9]
    if not payable:
        least = min(g.usd_per_hour for _, g, _ in found) * spec.gpu_count
        raise BadInput(
            f"the cheapest of {_names(of_size)} costs ${least:.2f} an hour, pod.max_usd_per_hour is ${limit:.2f}",
            "raise pod.max_usd_per_hour, or name cheaper GPUs",
        )
    offers = [(i, p, _offer(spec, g, p)) for i, g, p in payable if _level(g, p) != 0]
    if not offers:
        free = _alternatives(spec, gpus, places)
        hint = f"there now: {', '.join(free)}" if free else "name more data centres, or try later"
        raise NoCapacity(f"RunPod has no {spec.gpu_count} × {_names(of_size)} free{where} now", hint)
    order = {p: n for n, p in enumerate(places)}
    ranked = sorted(
        offers, key=lambda c: (c[0], order[c[1]], -STOCK.get(c[2].stock.upper(), UNKNOWN_STOCK), c[2].usd_per_hour)
    )
    return [offer for _, _, offer in ranked]


def center_named(word: str, centers: Sequence[DataCenter]) -> str | None:
    """An id as RunPod writes it; None for an unknown one."""
    return next((c.id for c in centers if c.id.upper() == word.strip().upper()), None)


def _gpus_meant(spec: PodSpec, gpus: Sequence[Gpu]) -> list[tuple[int, Gpu]]:
    """Each GPU once, with the place of the wish that means it first. Raises BadInput for wishes that mean none."""
    if not spec.gpu:
        raise BadInput("pod.gpu names no GPU", "rank some: gpu: [RTX 4090, L40S]; the first that is free is rented")
    if not gpus:
        raise ProviderUnclear("RunPod's catalogue names no GPU at all", "again in a moment")
    known = [(g.id, g.name) for g in gpus]
    by_id = {g.id: g for g in gpus}
    found: dict[str, int] = {}
    mistakes = []
    for i, wish in enumerate(spec.gpu):
        ids = matching(wish, known)
        if not ids:
            near = nearest(wish, known)
            mistakes.append(f"RunPod has no GPU {wish!r}" + (f": did you mean {' or '.join(near)}?" if near else ""))
        for id_ in ids:
            found.setdefault(id_, i)
    if mistakes:
        names = ", ".join(short(g.id) for g in gpus)
        raise BadInput("; ".join(mistakes), f"correct pod.gpu; RunPod has: {names}")
    return [(i, by_id[id_]) for id_, i in sorted(found.items(), key=lambda f: f[1])]


def _places(spec: PodSpec, centers: Sequence[DataCenter], volume: Volume | None) -> list[str]:
    """Ids of data centres in the order to try them; [""]: wherever RunPod likes. Raises BadInput."""
    asked, mistakes = [], []
    for word in spec.data_centers:
        id_ = center_named(word, centers)
        if id_ is None:
            near = difflib.get_close_matches(word.upper(), [c.id for c in centers], n=1)
            mistakes.append(f"RunPod has no data centre {word!r}" + (f": did you mean {near[0]}?" if near else ""))
        elif id_ not in asked:
            asked.append(id_)
    if mistakes:
        raise BadInput("; ".join(mistakes), f"correct pod.data_centers; there is: {', '.join(c.id for c in centers)}")
    if volume is None:
        return asked or [""]
    if asked and volume.data_center not in asked:
        raise BadInput(
            f"the volume {volume.name} is in {volume.data_center}, pod.data_centers says {', '.join(asked)}: "
            "a volume stays where it is",
            f"data_centers: [{volume.data_center}], or leave it out; or another volume",
        )
    return [volume.data_center]


def _level(gpu: Gpu, place: str) -> int:
    """How much there is; 0 is none."""
    if place == "":
        told = gpu.availability
    elif gpu.stock or gpu.availability is not None:
        told = gpu.stock.get(place, "NONE")  # RunPod lists only those that have it in this configuration
    else:
        told = None
    return UNKNOWN_STOCK if told is None else STOCK.get(told, UNKNOWN_STOCK)


def _offer(spec: PodSpec, gpu: Gpu, place: str) -> Offer:
    told = (gpu.availability if place == "" else gpu.stock.get(place)) or ""
    return Offer(
        provider=PROVIDER,
        gpu=short(gpu.id),
        gpu_count=spec.gpu_count,
        usd_per_hour=round(gpu.usd_per_hour * spec.gpu_count, 4),
        data_center=place,
        ref=gpu.id,
        stock=told.lower(),
    )


def _alternatives(spec: PodSpec, gpus: Sequence[Gpu], places: Sequence[str]) -> list[str]:
    """What is free in these places, the cheapest first, at most four."""
    free = []
    for gpu in gpus:
        usd = gpu.usd_per_hour * spec.gpu_count
        dear = spec.max_usd_per_hour is not None and usd > spec.max_usd_per_hour
        if gpu.secure and gpu.max_count >= spec.gpu_count and not dear and any(_level(gpu, p) for p in places):
            free.append((usd, f"{short(gpu.id)} (${usd:.2f}/h)"))
    return [text for _, text in sorted(free)[:4]]


def _where(places: Sequence[str], volume: Volume | None) -> str:
    if places == [""]:
        return ""
    return f" in {', '.join(places)}" + (f", where the volume {volume.name} is" if volume else "")


def _names(wanted: Sequence[tuple[int, Gpu]]) -> str:
    return ", ".join(short(g.id) for _, g in wanted)


def _are(wanted: Sequence[tuple[int, Gpu]]) -> str:
    return "is" if len(wanted) == 1 else "are"
