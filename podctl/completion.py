"""Completion in bash, zsh and fish: a script for the shell, and a quick answer to what it asks.

The shell runs podctl itself with `_PODCTL_COMPLETE` set and the words so far as arguments, the last one unfinished.
The first line of the answer says what follows: `words`, a line each (value, tab, help), or `files`, the shell's own
completion. No network, no process but git, nothing heavy.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "_PODCTL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
RUNS_SHOWN = 40
HELP_WIDTH = 60

BASH = r"""# podctl completion for bash: eval "$(podctl completion bash)", or podctl completion bash --install
_podctl_completion() {
    local kind='' line cur="${COMP_WORDS[COMP_CWORD]}"
    COMPREPLY=()
    while IFS= read -r line; do
        if [ -z "$kind" ]; then kind=$line; else COMPREPLY+=("${line%%$'\t'*}"); fi
    done < <(_PODCTL_COMPLETE=bash "${COMP_WORDS[0]/#\~/$HOME}" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [ "$kind" = files ]; then
        while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$cur")
        compopt -o filenames 2>/dev/null
    elif [[ ${COMPREPLY[0]-} == *[/=] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o nosort -F _podctl_completion podctl 2>/dev/null || complete -F _podctl_completion podctl
"""

ZSH = r"""#compdef podctl
# podctl completion for zsh: eval "$(podctl completion zsh)" after compinit, or podctl completion zsh --install
_podctl() {
    local -a lines values shown open open_shown
    local kind line value
    lines=("${(@f)$(_PODCTL_COMPLETE=zsh ${(Q)words[1]/#\~/$HOME} "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    kind=$lines[1]
    if [[ $kind == files ]]; then
        _files
        return
    fi
    for line in "${(@)lines[2,-1]}"; do
        value=${line%%$'\t'*}
        line=${line/$'\t'/   }
        if [[ $value == *[/=] ]]; then
            open+=("$value") open_shown+=("$line")
        elif [[ -n $value ]]; then
            values+=("$value") shown+=("$line")
        fi
    done
    (( $#values )) && compadd -V podctl -l -d shown -- "${(@)values}"
    (( $#open )) && compadd -V podctl-open -l -S '' -d open_shown -- "${(@)open}"
}
if [[ $funcstack[1] == _podctl ]]; then _podctl "$@"; else compdef _podctl podctl; fi
"""

FISH = r"""# podctl completion for fish: podctl completion fish | source, or podctl completion fish --install
function __podctl_complete
    set -l before (commandline -opc)
    set -l cur (commandline -ct)
    set -l lines (env _PODCTL_COMPLETE=fish $before[1] $before[2..-1] "$cur" 2>/dev/null)
    if test "$lines[1]" = files
        __fish_complete_path "$cur"
    else
        printf '%s\n' $lines[2..-1]
    end
end
complete -c podctl -f -k -a '(__podctl_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


@dataclass(frozen=True)
class Option:
    """One option of a command. `value`: the metavar of what it takes, "" for a flag."""

    names: tuple[str, ...]
    value: str = ""
    help: str = ""
    repeats: bool = False


@dataclass(frozen=True)
class Command:
    """What may be typed after a command's name. `arguments`: metavars; the last one may repeat."""

    help: str = ""
    options: tuple[Option, ...] = ()
    arguments: tuple[str, ...] = ()


Word = tuple[str, str]  # the word, its help
Values = Callable[[str, str, Sequence[str]], Iterable[Word] | None]  # metavar, begun, words → words; None: files


def answer(words: Sequence[str], commands: Mapping[str, Command], values: Values) -> list[Word] | None:
    """What the last word may become; None where any file may stand there. Pure, apart from `values`."""
    *before, begun = words or [""]
    name = next((w for w in before if not w.startswith("-")), None)
    if name is None:
        return _beginning(begun, [*((n, c.help) for n, c in commands.items()), ("--help", ""), ("--version", "")])
    command = commands.get(name)
    if command is None:
        return []
    after = before[before.index(name) + 1 :]
    if "--" in after:
        return None
    takes = {n: o for o in command.options for n in o.names if o.value}
    if after and after[-1] in takes:
        return _of(values(takes[after[-1]].value, begun, words), begun)
    option, equals, part = begun.partition("=")
    if equals and option in takes:
        found = _of(values(takes[option].value, part, words), part)
        return None if found is None else [(f"{option}={w}", h) for w, h in found]
    if begun.startswith("-"):
        used = {w.partition("=")[0] for w in after}
        left = [o for o in command.options if o.repeats or not used & set(o.names)]
        return _beginning(begun, [(n, o.help) for o in left for n in o.names])
    return _of(_positional(command, after, takes, begun, words, values), begun)


def _positional(
    command: Command,
    after: Sequence[str],
    takes: Mapping[str, Option],
    begun: str,
    words: Sequence[str],
    values: Values,
) -> Iterable[Word] | None:
    given = [w for i, w in enumerate(after) if not w.startswith("-") and (i == 0 or after[i - 1] not in takes)]
    if not command.arguments:
        return []
    at = len(given)
    if at >= len(command.arguments):
        if not command.arguments[-1].endswith("..."):
            return []
        at = len(command.arguments) - 1
    return values(command.arguments[at], begun, words)


def _beginning(begun: str, words: Iterable[Word]) -> list[Word]:
    wants_option = begun.startswith("-")
    return [(w, h) for w, h in words if w.startswith(begun) and w.startswith("-") == wants_option]


def _of(words: Iterable[Word] | None, begun: str) -> list[Word] | None:
    return None if words is None else [(w, h) for w, h in words if w.startswith(begun)]


# what stands behind the words


def values_here(value: str, begun: str, words: Sequence[str]) -> Iterable[Word] | None:
    """The words that a metavar stands for, in this project at this moment."""
    if value.startswith("RUN") or value == "OTHER":  # of exec: RUN -- CMD
        return runs_here()
    if value == "FILE":
        return experiment_files(begun)
    if value == "A.B=C":
        return keys_to_set(words)
    if value == "SHELL":
        return [(name, "") for name in SHELLS]
    if value == "HOST":
        return hosts_known()
    if value in ("DIR", "PATH", "CMD", "MANIFEST..."):
        return None
    return []


def runs_here() -> list[Word]:
    """Ids and names of this project's runs, the newest first."""
    from podctl.cli.options import this_project
    from podctl.ledger import Ledger
    from podctl.settings import state_dir

    project = this_project().id
    runs = [r for r in Ledger(state_dir() / "ledger.jsonl").runs().values() if r.project == project]
    runs = sorted(runs, key=lambda r: r.created_at, reverse=True)[:RUNS_SHOWN]
    names = dict.fromkeys(r.name for r in runs)
    return [*((r.id, f"{r.provider}, {r.last_event}") for r in runs), *((name, "its newest run") for name in names)]


def experiment_files(begun: str) -> list[Word]:
    """YAML files, and folders to look for them in."""
    folder, slash, _ = begun.rpartition("/")
    base = Path(folder + slash).expanduser() if slash else Path()
    found = []
    with os.scandir(base) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith(".") and not begun.rpartition("/")[2].startswith("."):
                continue
            if entry.is_dir():
                found.append((f"{folder}{slash}{entry.name}/", ""))
            elif entry.name.endswith((".yaml", ".yml")):
                found.append((f"{folder}{slash}{entry.name}", ""))
    return found


def keys_to_set(words: Sequence[str]) -> list[Word]:
    """`train.optim.lr=` and its like: the keys of the experiment named before; what `pod:` takes where none was."""
    file = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            file = value if equals else following
    if file:
        from podctl.yamls import read_yaml

        there = _flat(read_yaml(Path(file).expanduser())[0], "")
        return [(f"{key}=", str(value)) for key, value in there]
    from podctl.experiment import PodSection  # 100 ms: not for every Tab

    return [(f"pod.{name}=", info.description or "") for name, info in PodSection.model_fields.items()]


def hosts_known() -> list[Word]:
    """The plain names of ~/.ssh/config."""
    text = (Path.home() / ".ssh" / "config").read_text(encoding="utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines()]
    names = [name for words in lines if words[:1] and words[0].lower() == "host" for name in words[1:]]
    return [(name, "") for name in dict.fromkeys(names) if not set(name) & set("*?!")]


def _flat(document: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# between a shell and the answer


def reply(shell: str, args: Sequence[str], commands: Mapping[str, Command]) -> str:
    """The text for a shell that asked. Whatever goes wrong, nothing is offered: no error may reach a prompt."""
    words, cut = joined(args) if shell == "bash" else (list(args), 0)
    try:
        found = answer(words, commands, values_here)
    except Exception:
        found = []
    if found is None:
        return "files\n"
    lines = ["words"]
    for word, help in found:
        shown = escaped(word[cut:]) if shell == "bash" else word
        if shown.isprintable():
            lines.append(f"{shown}\t{help[:HELP_WIDTH]}".replace("\n", " ") if help else shown)
    return "\n".join(lines) + "\n"


def joined(args: Sequence[str]) -> tuple[list[str], int]:
    """Words as they were typed, where bash has cut them at `=`; and how much of the last one it has put aside. Pure."""
    words: list[str] = []
    cut, glue = 0, False
    for arg in args:
        if arg == "=" and words:
            words[-1] += "="
            cut, glue = len(words[-1]), True
        elif glue:
            words[-1] += arg
            glue = False
        else:
            words.append(arg)
            cut = 0
    return words, cut


def escaped(word: str) -> str:
    """As bash would have it typed."""
    return "".join(f"\\{c}" if c in " '\"\\$&;()<>|*?[]#!{}`" else c for c in word)


def commands_of(app: Any) -> dict[str, Command]:
    """What a Typer application takes, by command."""
    from typer.main import get_command

    group: Any = get_command(app)
    found = {}
    for name, command in group.commands.items():
        if not command.hidden:
            parameters = [p for p in command.params if not getattr(p, "hidden", False)]
            options = [_option(p) for p in parameters if p.param_type_name == "option"]
            arguments = tuple(str(p.metavar or p.name) for p in parameters if p.param_type_name == "argument")
            help_line = (command.help or "").strip().split("\n")[0]
            options.append(Option(("--help", "-h"), help="Show this message and exit."))
            found[name] = Command(help_line, tuple(options), arguments)
    return found


def _option(p: Any) -> Option:
    value = "" if p.is_flag or p.count else str(p.metavar or "VALUE")
    return Option((*p.opts, *p.secondary_opts), value, p.help or "", bool(p.multiple))


# to stay


def target_of(shell: str, home: Path, environ: Mapping[str, str]) -> Path:
    """The file that a shell reads by itself when podctl is to be completed."""
    if shell == "bash":
        data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
        return data / "bash-completion" / "completions" / "podctl"
    if shell == "fish":
        config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
        return config / "fish" / "completions" / "podctl.fish"
    return Path(environ.get("ZDOTDIR") or home) / ".zfunc" / "_podctl"


def after_install(shell: str, target: Path) -> str:
    """What is left to do, "" where nothing is."""
    if shell == "bash":
        return "it needs the package bash-completion; without it add to ~/.bashrc:  . " + str(target)
    if shell == "zsh":
        return f"~/.zshrc must say, once:  fpath+=({target.parent}); autoload -Uz compinit; compinit"
    return ""
