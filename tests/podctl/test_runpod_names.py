"""Short names of GPUs, and what nobody means by them."""

import pytest
from support.runpod import KINDS

from podctl.providers.runpod.gpu_names import matching, nearest, short

KNOWN = [
    *((id_, name) for id_, (name, *_) in KINDS.items()),
    ("NVIDIA RTX 4000 Ada Generation", "RTX 4000 Ada"),
    ("NVIDIA RTX A4000", "RTX A4000"),
    ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
    ("AMD Instinct MI300X OAM", "MI300X"),
    ("NVIDIA A40", "A40"),
]


@pytest.mark.parametrize(
    ("wish", "meant"),
    [
        ("4090", ["RTX 4090"]),
        ("rtx4090", ["RTX 4090"]),
        ("RTX-4090", ["RTX 4090"]),
        (" nvidia  geforce rtx 4090 ", ["RTX 4090"]),
        ("L40", ["L40"]),
        ("l40s", ["L40S"]),
        ("A40", ["A40"]),
        ("A4000", ["RTX A4000"]),
        ("RTX 4000", ["RTX 4000 Ada Generation"]),
        ("6000", ["RTX 6000 Ada Generation", "RTX PRO 6000 Blackwell Server Edition"]),
        ("A100", ["A100 80GB PCIe", "A100-SXM4-80GB"]),
        ("A100 SXM", ["A100-SXM4-80GB"]),
        ("a100 pcie", ["A100 80GB PCIe"]),
        ("H100", ["H100 80GB HBM3", "H100 PCIe"]),
        ("H100 SXM", ["H100 80GB HBM3"]),
        ("H100 MIG", ["H100 80GB HBM3 MIG 1g.10gb"]),
        ("mi300x", ["MI300X OAM"]),
        ("409", []),
        ("", []),
        ("-", []),
        ("NVIDIA GeForce RTX 4090; rm -rf /", []),
    ],
)
def test_a_short_name_means_what_a_person_means(wish: str, meant: list[str]):
    assert [short(id_) for id_ in matching(wish, KNOWN)] == meant


@pytest.mark.parametrize("kind", range(len(KNOWN)))
def test_whole_names_mean_themselves_alone_and_short_ones_at_least_that(kind: int):
    id_, name = KNOWN[kind]
    for whole in (id_, name, id_.upper(), name.lower(), short(id_), short(id_).replace(" ", "")):
        assert matching(whole, KNOWN) == [id_]


@pytest.mark.parametrize(
    ("wish", "near"),
    [("RTX 4900", "RTX 4090"), ("L40X", "L40S"), ("H10", "H100 80GB HBM3"), ("A100 SMX", "A100-SXM4-80GB")],
)
def test_a_slip_is_met_with_the_nearest(wish: str, near: str):
    assert near in nearest(wish, KNOWN)


def test_nothing_is_suggested_for_what_is_near_to_nothing():
    assert nearest("quantum", KNOWN) == nearest("", KNOWN) == []
