"""Ways in which a pod can end itself, and what each is allowed: asked without changing anything, and told in words.

A route is a row of `ROUTES`: a name, a probe, an ending. A probe finds one of `LEVELS`; `drilled` is podctl's word. An
ending says whether the provider said yes, which is not yet an ending: the watchdog asks again while it lives.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from remote.claims import STOP, TERMINATE

LEVELS = ("none", "read", "allowed", "drilled")
NONE, READ, ALLOWED, DRILLED = LEVELS
USER_AGENT = "podctl-guard"  # the provider's front turns Python's own away (403, error code: 1010)
HTTP_TIMEOUT_S = 20.0
PROGRAM_TIMEOUT_S = 30.0
BODY_LIMIT = 200_000

# what GraphQL says to somebody who may, of a pod that is in no state for it (no list of them is published)
STATE_ERRORS = re.compile(
    r"already (running|started|resumed)|is (already )?running|not (stopped|exited|in an? (stopped|exited) state)"
    r"|cannot (be )?(resumed?|started)|not valid for|not enough free gpus|failed to resume",
    re.IGNORECASE,
)
RIGHTS_ERRORS = re.compile(r"unauthori[sz]ed|forbidden|permission|not allowed|access denied|not authori[sz]ed", re.I)


@dataclass(frozen=True)
class Self:
    """The pod as it knows itself: its id, its own key, and where its provider is."""

    pod_id: str
    key: str
    api_url: str
    graphql_url: str
    n_gpus: int
    environ: Mapping[str, str]

    def __repr__(self) -> str:
        return "Self({})".format(self.pod_id)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Self":
        n_gpus = environ.get("RUNPOD_GPU_COUNT", "")
        key = environ.get("RUNPOD_API_KEY", "")
        return cls(
            pod_id=environ.get("RUNPOD_POD_ID", ""),
            key=key if re.match(r"[!#-\[\]-~]*\Z", key) else "",  # what no header may hold is no key
            api_url=environ.get("PODCTL_RUNPOD_API_URL") or "https://api.runpod.io/v2",
            graphql_url=environ.get("PODCTL_RUNPOD_GRAPHQL_URL") or "https://api.runpod.io/graphql",
            n_gpus=int(n_gpus) if n_gpus.isdigit() and n_gpus != "0" else 1,
            environ=environ,
        )

    def hide(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


class Found(NamedTuple):
    """What a route is allowed, as far as could be seen. Not `settled`: worth another look soon."""

    level: str
    detail: str
    settled: bool = True


class Answer(NamedTuple):
    """What the provider said to the wish that this pod end."""

    accepted: bool
    words: str


class Route(NamedTuple):
    name: str
    probe: Callable[[Self], Found]
    end: Callable[[Self, str], Answer]  # the second: stop or terminate


def probe_all(me: Self, routes: Optional[Sequence[Route]] = None) -> List[Tuple[Route, Found]]:
    """Every route and its level, best first."""
    with ThreadPoolExecutor() as threads:  # one that hangs does not delay the others
        found = list(threads.map(lambda route: (route, _probe(route, me)), ROUTES if routes is None else routes))
    return sorted(found, key=lambda pair: -LEVELS.index(pair[1].level))  # stable: equal ones keep the table's order


def best_of(found: Sequence[Tuple[Route, Found]]) -> str:
    return max((f.level for _, f in found), key=LEVELS.index, default=NONE)


def ask_to_end(route: Route, me: Self, how: str) -> Answer:
    """One request over one route, bounded; never raises."""
    try:
        answer = route.end(me, how)
    except Exception as e:  # whatever a broken provider makes of our code, the next route is asked
        answer = Answer(False, "{}: {}".format(type(e).__name__, e))
    return answer._replace(words=_one_line(me.hide(answer.words)))


def _probe(route: Route, me: Self) -> Found:
    try:
        found = route.probe(me)
    except Exception as e:
        found = Found(NONE, "{}: {}".format(type(e).__name__, e), settled=False)
    return found._replace(detail=_one_line(me.hide(found.detail)))


# --- RunPod, REST v2 ---


def probe_v2(me: Self) -> Found:
    """Starting a pod that runs is not legal: 409 for one who may ask, 403 for one who may not."""
    if not me.key or not me.pod_id:
        return _no_key()
    pod = "{}/pods/{}".format(me.api_url, me.pod_id)
    code, text = _http(me, "GET", pod)
    if code != 200:
        return Found(
            NONE, "reading this pod: {}".format(_said(code, text)), settled=code in (401, 403, 410)
        )  # 404: not listed yet
    code, text = _http(me, "POST", pod + "/action", {"action": "start"})
    if code == 409 or code == 200:
        return Found(ALLOWED, "an action that is not legal now was answered with {}, not 403".format(code))
    return Found(READ, "may read this pod; an action: {}".format(_said(code, text)), settled=code in (401, 403, 410))


def end_v2(me: Self, how: str) -> Answer:
    if not me.key or not me.pod_id:
        return Answer(False, "no key")
    code, text = _http(me, "POST", "{}/pods/{}/action".format(me.api_url, me.pod_id), {"action": how})
    return Answer(200 <= code < 300, "{}".format(code) if 200 <= code < 300 else _said(code, text))


# --- RunPod, GraphQL ---


def probe_graphql(me: Self) -> Found:
    """Resuming a pod that runs, with the GPUs that it has, changes nothing; who may not is told so."""
    if not me.key or not me.pod_id:
        return _no_key()
    pod = json.dumps(me.pod_id)
    data, trouble, refused = _graphql(me, "query { pod(input: { podId: %s }) { id desiredStatus } }" % pod, "pod")
    if not isinstance(data, dict):
        return Found(NONE, "reading this pod: {}".format(trouble or "there is none of this id"), settled=refused)
    resume = "mutation { podResume(input: { podId: %s, gpuCount: %d }) { id desiredStatus } }" % (pod, me.n_gpus)
    data, trouble, refused = _graphql(me, resume, "podResume")
    if isinstance(data, dict) and data.get("id") == me.pod_id:
        return Found(ALLOWED, "resuming this running pod was accepted")
    if not refused and STATE_ERRORS.search(trouble):
        return Found(ALLOWED, "resuming this running pod was answered by its state: {}".format(trouble))
    return Found(READ, "may read this pod; a mutation: {}".format(trouble or "no answer to the point"), settled=refused)


def end_graphql(me: Self, how: str) -> Answer:
    if not me.key or not me.pod_id:
        return Answer(False, "no key")
    name, fields = ("podTerminate", "") if how == TERMINATE else ("podStop", " { id desiredStatus }")
    query = "mutation { %s(input: { podId: %s })%s }" % (name, json.dumps(me.pod_id), fields)
    _, trouble, _ = _graphql(me, query, name)
    return Answer(not trouble, trouble or "accepted")


def _graphql(me: Self, query: str, name: str) -> Tuple[Any, str, bool]:
    """(what it answered under that name, what went wrong, whether that was a refusal for good)."""
    code, text = _http(me, "POST", me.graphql_url, {"query": query})
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    errors = value.get("errors") if isinstance(value, dict) else None
    if isinstance(errors, list) and errors:
        first = errors[0] if isinstance(errors[0], dict) else {}
        message = str(first.get("message", "an error without a message"))
        return None, message, code in (401, 403) or bool(RIGHTS_ERRORS.search(message))
    if code != 200 or not isinstance(value, dict) or not isinstance(value.get("data"), dict):
        return None, _said(code, text), code in (401, 403, 410)
    return value["data"].get(name), "", False


# --- RunPod, the program in its images ---

# the words of runpodctl 1.14, which its images carry, then those of newer ones, which 1.14 does not know
WORDS = {STOP: (("stop", "pod"), ("pod", "stop")), TERMINATE: (("remove", "pod"), ("pod", "delete"), ("pod", "remove"))}


def probe_runpodctl(me: Self) -> Found:
    """That it is there says nothing about what it may do."""
    if not shutil.which("runpodctl", path=me.environ.get("PATH")):
        return Found(NONE, "this image has no runpodctl")
    code, text = _program(me, ["runpodctl", "version"])
    if code != 0:
        return Found(NONE, "runpodctl version: {}".format(text or "exit code {}".format(code)), settled=False)
    return Found(READ, "{} is there; what it may do is not proved".format(text or "runpodctl"))


def end_runpodctl(me: Self, how: str) -> Answer:
    if not shutil.which("runpodctl", path=me.environ.get("PATH")):
        return Answer(False, "this image has no runpodctl")
    said: List[str] = []
    for words in WORDS[how]:
        code, text = _program(me, ["runpodctl", *words, me.pod_id])
        said.append("{}: {}".format(" ".join(words), text or "exit code {}".format(code)))
        if code == 0:
            return Answer(True, said[-1])
    return Answer(False, "; ".join(said))


def _program(me: Self, argv: List[str]) -> Tuple[int, str]:
    """(exit code, its last line). The key is in its environment, where it belongs, and in no argv."""
    try:
        done = subprocess.run(
            argv,
            env=dict(me.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROGRAM_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as e:
        return -1, type(e).__name__
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


ROUTES = (
    Route("v2", probe_v2, end_v2),
    Route("graphql", probe_graphql, end_graphql),
    Route("runpodctl", probe_runpodctl, end_runpodctl),
)


# --- HTTP ---


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _http(me: Self, method: str, url: str, body: Optional[Dict[str, str]] = None) -> Tuple[int, str]:
    """(status, text); 0 and the reason where there was no answer in time.

    In a thread, since neither a name that is not resolved nor an answer that drips has an end of its own.
    """
    answers: List[Tuple[int, str]] = []
    thread = threading.Thread(target=lambda: answers.append(_exchange(me, method, url, body)), daemon=True)
    thread.start()
    thread.join(HTTP_TIMEOUT_S + 5)
    return answers[0] if answers else (0, "no answer in {:.0f} s".format(HTTP_TIMEOUT_S + 5))


def _exchange(me: Self, method: str, url: str, body: Optional[Dict[str, str]]) -> Tuple[int, str]:
    headers = {"Authorization": "Bearer " + me.key, "User-Agent": USER_AGENT, "Accept": "application/json"}
    data = None
    if body is not None:
        data = json.dumps(body).encode("utf-8")
        headers["Content-Type"] = "application/json"
    try:
        request = urllib.request.Request(url, data, headers, method=method)
        handlers = [_Stay(), urllib.request.HTTPSHandler(context=_tls())]
        with urllib.request.build_opener(*handlers).open(request, timeout=HTTP_TIMEOUT_S) as answer:
            return answer.status, answer.read(BODY_LIMIT).decode("utf-8", "replace")
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read(BODY_LIMIT).decode("utf-8", "replace")
    except Exception as e:  # http.client raises many kinds for an answer that is none
        reason = getattr(e, "reason", None) or e
        return 0, "no answer: {}".format(reason if str(reason) else type(e).__name__)


def _tls() -> ssl.SSLContext:
    """A Python that was built elsewhere may look for certificates where this image has none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats().get("x509_ca"):
        for path in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"):
            if os.path.exists(path):
                context.load_verify_locations(path)
                break
    return context


def _said(code: int, text: str) -> str:
    """A status and what a person can make of the body. Never a whole body: a pod's holds its environment."""
    if code == 0:
        return text
    if code == 410:
        return "410, this way is retired"
    if "error code: 1010" in text:
        return "{}, turned away at the provider's front (error code: 1010)".format(code)
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    detail = ""
    if isinstance(value, dict):
        detail = next((str(value[k]) for k in ("detail", "title", "error", "message") if value.get(k)), "")
    return "{} {}".format(code, detail).strip()


def _no_key() -> Found:
    return Found(NONE, "this pod has no key or no id of its own (RUNPOD_API_KEY, RUNPOD_POD_ID)")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
