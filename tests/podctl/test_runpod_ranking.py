"""Laws of the order in which machines are tried, whatever RunPod has in stock."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from podctl.errors import BadInput, NoCapacity
from podctl.pods import Offer, PodSpec, Volume
from podctl.providers.runpod.catalogue import STOCK, DataCenter, Gpu, rank

NAMES = ("RTX 4090", "L40S", "A100 PCIe", "A100 SXM", "H100 NVL")
PLACES = ("EU-RO-1", "US-KS-2", "US-TX-3")
CENTERS = [DataCenter(p) for p in PLACES]

levels = st.sampled_from([*STOCK, *STOCK, "LOW", "HIGH"])
gpus = st.builds(
    lambda name, usd, most, stock: Gpu(f"NVIDIA {name}", name, usd, most, max(stock.values(), key=STOCK.get), stock),
    st.sampled_from(NAMES),
    st.sampled_from([0.4, 0.7, 1.2, 3.0]),
    st.sampled_from([8, 8, 8, 2]),
    st.fixed_dictionaries(dict.fromkeys(PLACES, levels)),
)
catalogues = st.lists(gpus, min_size=3, max_size=5, unique_by=lambda g: g.name)
wishes = st.builds(
    PodSpec,
    gpu=st.lists(st.sampled_from(["4090", "l40s", "A100", "H100"]), min_size=1, max_size=4, unique=True).map(tuple),
    gpu_count=st.sampled_from([1, 1, 2, 4]),
    data_centers=st.lists(st.sampled_from(PLACES), max_size=3, unique=True).map(tuple),
    max_usd_per_hour=st.sampled_from([None, None, 0.5, 1.0, 9.0]),
)


def ranked(spec: PodSpec, kinds: list[Gpu], volume: Volume | None = None) -> list[Offer]:
    try:
        return rank(spec, kinds, CENTERS, volume)
    except (BadInput, NoCapacity):
        return []


def place_in(spec: PodSpec, offer: Offer) -> int:
    """Which of the person's words means it first."""
    return next(i for i, wish in enumerate(spec.gpu) if wish.lower() in offer.ref.lower())


@settings(max_examples=150, deadline=None)
@given(wishes, catalogues)
def test_the_order_is_wish_then_place_then_stock_then_price(spec: PodSpec, kinds: list[Gpu]):
    offers = ranked(spec, kinds)
    where = [*spec.data_centers, ""]
    order = [(place_in(spec, o), where.index(o.data_center), -STOCK[o.stock.upper()], o.usd_per_hour) for o in offers]
    assert order == sorted(order)
    assert len({(o.ref, o.data_center) for o in offers}) == len(offers), "each once"


@settings(max_examples=150, deadline=None)
@given(wishes, catalogues)
def test_what_is_offered_can_be_paid_is_large_enough_and_is_there(spec: PodSpec, kinds: list[Gpu]):
    by_id = {g.id: g for g in kinds}
    for offer in ranked(spec, kinds):
        gpu = by_id[offer.ref]
        assert gpu.max_count >= spec.gpu_count == offer.gpu_count
        assert offer.usd_per_hour <= (spec.max_usd_per_hour or offer.usd_per_hour)
        assert offer.stock not in ("none", "")
        assert not offer.data_center or offer.data_center in spec.data_centers


@settings(max_examples=100, deadline=None)
@given(wishes, catalogues, st.sampled_from(PLACES))
def test_with_a_volume_all_offers_are_where_it_is(spec: PodSpec, kinds: list[Gpu], place: str):
    volume = Volume("v", "data", 50, place)
    offers = ranked(spec, kinds, volume)
    assert {o.data_center for o in offers} <= {place}
    if offers:
        assert not spec.data_centers or place in spec.data_centers
    free = ranked(replace(spec, data_centers=(place,)), kinds)
    assert not offers or offers == free, "a volume is a wish for its place"
