"""`podctl init`: a project made ready. All is asked before anything is written; a second time changes nothing."""

import getpass
import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podctl import envfile, first, sshkeys
from podctl.errors import BadInput, PodctlError
from podctl.files import put, text_of
from podctl.project import Project
from podctl.settings import FILE, clean_owner, read_env_file, refuse_tracked_keys
from podctl.ui import Ui, shown

if TYPE_CHECKING:
    from podctl.experiment import PodSection

IGNORED = (FILE, ".podctl/")
QUESTIONS = {
    "RUNPOD_API_KEY": "RunPod API key",
    "LAMBDA_API_KEY": "Lambda API key",
    "WANDB_API_KEY": "Weights & Biases key, to keep curves there too",
    "HF_TOKEN": "Hugging Face token, for models and data that need one",
}
TRIES = 3


@dataclass(frozen=True)
class Order:
    """What was typed. `ssh` is `[USER@]HOST[:PORT]`."""

    yes: bool = False
    owner: str = ""
    ssh: str = ""
    volume: str = ""
    podctl: str = "podctl"


@dataclass(frozen=True)
class Before:
    """What is here before anything is done."""

    env_text: str | None
    in_file: Mapping[str, str] = field(repr=False)
    ignore_text: str | None
    experiments: tuple[Path, ...]
    keys: sshkeys.Keys | None  # None without a home folder


@dataclass(frozen=True)
class Answers:
    """What a person said. Values may be keys and never show in a repr."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    make_key: bool = False


@dataclass
class Told:
    """What was done and found, for a person and for --json."""

    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)


def init(order: Order, project: Project, ui: Ui) -> Told:
    """Make a project ready. Raises BadInput, MissingHere before anything is written, Cancelled within a question."""
    pod = first.ssh_pod(parse_ssh(order.ssh), order.volume) if machine_named(order) else ""
    before = look(project)
    answers = ask(order, before, ui)
    told = Told()
    write_ignores(project, before, told)  # first: no key may lie here for a moment that git would take
    write_env(project, before, answers, told)
    write_key(order, before, answers, told)
    write_experiment(order, project, before, pod, told)
    return told


def look(project: Project) -> Before:
    """What there is. Raises BadInput where it can't be gone on from, MissingHere where it can't be read."""
    refuse_tracked_keys(project.root)
    in_file = read_env_file(project.root / FILE)
    env_text = text_of(project.root / FILE)
    if env_text is not None and _has_stray_quote(env_text):
        raise BadInput(
            f"a line of {FILE} is no NAME=VALUE", f"see {FILE}.example; a value with spaces stands in quotes"
        )
    ignore_text = text_of(project.root / ".gitignore")
    try:
        keys = sshkeys.look_at_keys(Path.home())
    except RuntimeError:
        keys = None
    return Before(env_text, in_file, ignore_text, tuple(first.experiments_in(project.root)), keys)


def ask(order: Order, before: Before, ui: Ui) -> Answers:
    """Every question, none of which has an effect yet. With `yes` their defaults: no keys, and an SSH key is made."""
    wants_key = before.keys is not None and not before.keys.files and not before.keys.in_agent
    open_names = [name for name in QUESTIONS if not before.in_file.get(name) and not os.environ.get(name)]
    owner = clean_owner(order.owner) if order.owner else ""
    asks_owner = not owner and not before.in_file.get("PODCTL_OWNER") and not os.environ.get("PODCTL_OWNER")
    if order.yes:
        return Answers({"PODCTL_OWNER": owner}, make_key=wants_key)
    values = {}
    if open_names or asks_owner or wants_key:
        ui.refuse_without_terminal()
    if open_names:
        ui.note("Keys stay on this machine and are not shown while you type; Enter skips one.")
    for name in open_names:
        values[name] = _ask_key(ui, QUESTIONS[name])
    if asks_owner:
        owner = clean_owner(ui.ask("your name within pods' names", default=clean_owner(_user())))
    values["PODCTL_OWNER"] = owner
    make_key = wants_key and ui.agree("there is no SSH key: make ~/.ssh/id_ed25519, without a passphrase?")
    return Answers(values, make_key)


def write_ignores(project: Project, before: Before, told: Told) -> None:
    """Have git ignore keys and results."""
    path = project.root / ".gitignore"
    text = ignoring(before.ignore_text or "", IGNORED)
    if text == before.ignore_text:
        told.kept.append(".gitignore has the lines already")
        return
    put(path, text, 0o644, keep_mode=True)
    told.changed.append(f"git ignores {' and '.join(IGNORED)}")


def write_env(project: Project, before: Before, answers: Answers, told: Told) -> None:
    """The keys, for their owner's eyes alone."""
    path = project.root / FILE
    text = envfile.fill_in(envfile.new_text() if before.env_text is None else before.env_text, answers.values)
    names = [name for name, value in answers.values.items() if value and not before.in_file.get(name)]
    is_private = path.exists() and not stat.S_IMODE(path.stat().st_mode) & 0o077
    if text == before.env_text and is_private:
        told.kept.append(f"{FILE} stays as it is")
        return
    put(path, text, 0o600)
    what = f"{FILE}: {', '.join(names)}" if names else FILE
    if before.env_text is None:
        told.changed.append(f"{what} made, for you alone to read")
    elif text != before.env_text:
        told.changed.append(f"{what} filled in")
    else:
        told.changed.append(f"{FILE} could be read by others: now by you alone")


def write_key(order: Order, before: Before, answers: Answers, told: Told) -> None:
    """A key to reach machines with, or what there is of them."""
    keys = before.keys
    if keys is None:
        told.warnings.append("there is no home folder, so no SSH key was looked for")
        return
    if answers.make_key:
        path = keys.directory / "id_ed25519"
        try:
            sshkeys.make_key(path, f"podctl-{clean_owner(order.owner or _user())}")
        except PodctlError as e:  # a run on this machine needs none
            told.warnings.append(f"{e.message}: {e.hint}")
            return
        told.changed.append(f"{path} made; {path}.pub is what machines are told")
    elif keys.files or keys.in_agent:
        told.kept.append(f"SSH key {keys.files[0]}" if keys.files else "SSH keys in the agent")
    else:
        told.warnings.append("there is no SSH key: ssh-keygen -t ed25519 makes one")
    if keys.locked and not keys.usable:
        what = "the agent does not hold it" if keys.agent else "no agent holds it"
        first_do = "" if keys.agent else 'eval "$(ssh-agent)"; '
        told.warnings.append(f"{keys.locked[0]} has a passphrase and {what}: {first_do}ssh-add {keys.locked[0]}")


def write_experiment(order: Order, project: Project, before: Before, pod: str, told: Told) -> None:
    """A first experiment where there is none, and what to type with the one there is."""
    if not before.experiments:
        path = project.root / first.FILE
        if os.path.lexists(path):
            raise BadInput(f"{shown(path)} is there and is no experiment", "rename it, and type this again")
        put(path, first.first_experiment(project, pod or first.LOCAL), 0o644)
        told.changed.append(f"{first.FILE} made: read it, it is short")
    else:
        path = _the_experiment(order, before)
        told.kept.append(f"experiment {path.relative_to(project.root)}")
        if order.ssh and not first.names_machine(path, _host_of(order.ssh)):
            told.warnings.append(f"no experiment here runs on {order.ssh}: its pod section would begin\n{pod}".rstrip())
            return
    file = shlex.quote(shown(path))
    told.next = [
        f"{order.podctl} doctor --config {file}",
        f"{order.podctl} train --config {file} --dry-run",
        f"{order.podctl} train --config {file}",
    ]


def machine_named(order: Order) -> "PodSection | None":
    """The pod section of the machine that was named, None for none. Raises BadInput with every mistake."""
    from pydantic import ValidationError

    from podctl.experiment import PodSection
    from remote.mistakes import mistakes_of

    if not order.ssh:
        if order.volume:
            raise BadInput("--volume says where runs lie on a machine, and none is named", "add --ssh NAME")
        return None
    if not order.volume.startswith(("/", "~/")):
        raise BadInput(
            "--volume must be a folder on that machine: runs, data and checkpoints lie there",
            f"--ssh {shlex.quote(order.ssh)} --volume /data/podctl, or --volume '~/podctl'",
        )
    pod = {"provider": "ssh", "ssh": parse_ssh(order.ssh), "volume": order.volume, "max_hours": 1}
    try:
        return PodSection.model_validate(pod)
    except ValidationError as e:
        told = tuple(str(m) for m in mistakes_of(e.errors(include_url=False), "", {}))
        raise BadInput(f"--ssh {order.ssh} names no machine", "--ssh [USER@]HOST[:PORT]", told) from None


def parse_ssh(text: str) -> str | dict[str, Any]:
    """`gpubox` as it is, `me@gpubox:2222` as a mapping. Pure; what is wrong with it is found by the schema."""
    user, at, rest = text.rpartition("@")
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.startswith("[")):
        host, port = rest, ""
    host = host.removeprefix("[").removesuffix("]")
    if not at and not port:
        return host
    return {"host": host, **({"port": int(port)} if port else {}), **({"user": user} if at else {})}


def ignoring(text: str, names: tuple[str, ...]) -> str:
    """A .gitignore's text with these names in it, its own lines untouched. Pure."""
    newline = "\r\n" if "\r\n" in text else "\n"
    for name in names:
        bare = name.strip("/")
        same = {bare, f"/{bare}", *({f"{bare}/", f"/{bare}/"} if name.endswith("/") else ())}
        verdict = False  # the last line that fits decides
        for line in text.splitlines():
            line = line.rstrip()
            verdict = True if line in same else False if line.removeprefix("!") in same else verdict
        if not verdict:
            text += newline if text and not text.endswith("\n") else ""
            text += name + newline
    return text


def _ask_key(ui: Ui, question: str) -> str:
    for _ in range(TRIES):
        key = ui.ask(f"{question}:", hidden=True)
        if key.isascii() and key.isprintable() and " " not in key:
            return key
        ui.warn("a key has no spaces and no other letters than ASCII's: once more, or Enter")
    raise BadInput("that is no key", f"write it into {FILE} by hand")


def _has_stray_quote(text: str) -> bool:
    import io

    from dotenv.parser import parse_stream

    return any(piece.error for piece in parse_stream(io.StringIO(text, newline="")))


def _the_experiment(order: Order, before: Before) -> Path:
    """The one to go on with: that of the machine which was named, else the first."""
    fitting = [f for f in before.experiments if order.ssh and first.names_machine(f, _host_of(order.ssh))]
    return [*fitting, *before.experiments][0]


def _host_of(ssh: str) -> str:
    parsed = parse_ssh(ssh)
    return parsed if isinstance(parsed, str) else str(parsed["host"])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"u{os.getuid()}"
