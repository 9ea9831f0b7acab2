"""What an answer of RunPod's means: one class an answer, with a sentence and what to type next. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from podctl.errors import BadInput, NoCapacity, NoRights, OfferRefused, PodctlError, ProviderUnclear
from podctl.providers.runpod.account import BILLING_PAGE, HOW_TO_GET_ONE

# RunPod says what it means in prose only (seen in 2026; REST v2's own text promises no code for capacity).
SOLD_OUT = (
    "no longer any instances available",
    "no instances currently available",
    "there are no instances available",
    "does not have the resources to deploy your pod",
)
NOTHING_FITS = ("could not find any pods with required specifications",)
HOST_FULL = ("not enough free gpus on the host machine", "failed to resume pod")
SPEND = ("spend limit", "spending limit", "balance", "funds", "credits", "not enough credit")
LONGEST_DETAIL = 500


@dataclass(frozen=True)
class Answer:
    """An HTTP answer that has been read. `json` is None where it is none."""

    status: int
    json: Any = None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_unclear(self) -> bool:
        """Does it leave open whether anything was done?"""
        return self.status >= 500 or self.status in (408, 425) or (self.ok and self.is_page) or 300 <= self.status < 400

    @property
    def is_page(self) -> bool:
        """A web page, not an answer of the API: a proxy's, or Cloudflare's."""
        return self.json is None and bool(re.match(r"\s*<(!doctype|html)", self.text, re.IGNORECASE))

    @property
    def says_gone(self) -> bool:
        """Is it the API that says that there is no such thing? A page or a bare 404 is no proof of absence."""
        return self.status == 404 and isinstance(self.json, dict) and "not found" in detail_of(self).lower()

    @property
    def detail(self) -> str:
        return detail_of(self)


@dataclass(frozen=True)
class Doing:
    """What was asked, so that an error can say it."""

    what: str  # "create a pod"
    advice: str = HOW_TO_GET_ONE  # what to type where the key is at fault
    makes: str = ""  # what may have been made: "a pod", "a volume"
    of_many: bool = False  # one of several offers


def detail_of(answer: Answer) -> str:
    """RunPod's own words, in one printable line."""
    said, more = "", []
    if isinstance(answer.json, dict):
        for name in ("detail", "error", "message", "title"):
            if isinstance(answer.json.get(name), str) and answer.json[name].strip():
                said = answer.json[name]
                break
        errors = answer.json.get("errors")
        for e in errors if isinstance(errors, list) else []:
            more.append(str(e.get("message", "")) if isinstance(e, dict) else str(e))
    elif isinstance(answer.json, list):  # v1 says it so
        more = [str(e.get("error", "")) if isinstance(e, dict) else str(e) for e in answer.json]
    elif answer.is_page:
        title = re.search(r"<title>(.*?)</title>", answer.text, re.IGNORECASE | re.DOTALL)
        said = f"a web page{f', {title[1].strip()!r}' if title else ''}"
    else:
        said = answer.text
    return one_line("; ".join(part for part in (said, *more) if part))


def one_line(text: str) -> str:
    """Foreign text as a terminal may show it."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:LONGEST_DETAIL]


def says(detail: str, signals: tuple[str, ...]) -> bool:
    return any(s in detail.lower() for s in signals)


def fault_of(answer: Answer, doing: Doing) -> PodctlError:
    """The error that an answer is which is no success."""
    status, detail = answer.status, answer.detail
    said = f": {detail}" if detail else ""
    if "error code: 1010" in answer.text.lower():
        return ProviderUnclear(
            "Cloudflare turns this podctl away before RunPod sees it (error code 1010)",
            "a proxy or VPN in between may rewrite the User-Agent: try without it; it is not the key",
        )
    if answer.is_page or answer.is_unclear:
        return _unclear(answer, doing, said)
    if status == 401:
        return NoRights(f"RunPod does not accept the key{said}", doing.advice)
    if status == 402 or (status in (400, 403) and says(detail, SPEND)):
        return no_money(detail)
    if status == 403 and doing.of_many and "pool" in detail.lower():  # GPUs that this account is not let to
        return OfferRefused(f"RunPod can't {doing.what}{said}", "name other GPUs", detail)
    if status == 403:
        return NoRights(f"this key may not {doing.what}{said}", doing.advice)
    if status == 400:
        return _refused(detail, doing)
    if status == 404:
        return BadInput(f"RunPod can't {doing.what}{said or ': there is no such thing'}", "check the names and ids")
    if status == 409:
        return ProviderUnclear(f"RunPod can't {doing.what} as it is now{said}", "look again in a moment: podctl pods")
    if status == 410:
        return retired()
    if status == 429:
        wait = answer.headers.get("retry-after", "")
        again = f"again in {wait} s" if wait.isdecimal() else "again in a minute"
        return ProviderUnclear(f"RunPod asks for patience, nothing was done{said}", again)
    if status == 422:
        return BadInput(f"RunPod can't {doing.what}{said or ': bad request'}", "correct pod: in the experiment")
    return BadInput(f"RunPod can't {doing.what}{said or f': HTTP {status}'}", "a newer podctl may know: update it")


def no_capacity(detail: str) -> NoCapacity:
    """Sold out; a spend limit can look the same (seen 2026)."""
    return NoCapacity(
        f"RunPod has no such machine free now: {detail}",
        "name more GPUs or data centres, or try later; where that never helps, see the spend limit, $80/h at first: "
        + BILLING_PAGE,
    )


def host_full(detail: str) -> NoCapacity:
    return NoCapacity(
        f"the machine that this pod was stopped on has no GPU free: {detail}",
        "the same volume can go on with a new pod: podctl train does so",
    )


def no_money(detail: str) -> NoRights:
    return NoRights(
        f"RunPod says no for the account's balance or spend limit: {detail or 'HTTP 402'}",
        f"add credit or raise the limit: {BILLING_PAGE}",
    )


def retired() -> BadInput:
    return BadInput("RunPod has retired this part of its API (HTTP 410)", "a newer podctl speaks the new one: update")


def _refused(detail: str, doing: Doing) -> PodctlError:
    if says(detail, HOST_FULL):
        return host_full(detail)
    if says(detail, SOLD_OUT):
        return no_capacity(detail)
    if says(detail, NOTHING_FITS):
        return NoCapacity(
            f"RunPod has no machine of that shape: {detail}", "name more GPUs or data centres, or a smaller pod.disk_gb"
        )
    message = f"RunPod can't {doing.what}: {detail or 'HTTP 400'}"
    if doing.of_many:
        return OfferRefused(message, "correct what it names in pod:", detail)
    return BadInput(message, "correct what it names")


def _unclear(answer: Answer, doing: Doing, said: str) -> ProviderUnclear:
    if 300 <= answer.status < 400:
        return ProviderUnclear(
            f"RunPod's API sends us to another address (HTTP {answer.status}); the key was not sent there",
            "is there a login page of this network in between?",
        )
    made = f": {doing.makes} may have been made" if doing.makes else ""
    return ProviderUnclear(
        f"RunPod gave no clear answer (HTTP {answer.status}{said}){made}",
        f"see what there is: {'podctl pods' if doing.makes == 'a pod' else 'https://console.runpod.io'}"
        if doing.makes
        else "again in a moment; https://uptime.runpod.io tells of trouble there",
    )
