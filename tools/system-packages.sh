#!/usr/bin/env bash
# Installs what podctl needs beside Python, where it is missing: tmux, rsync, OpenSSH, espeak-ng.
set -eu

missing=()
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }

if [ "$(uname)" = Darwin ]; then
  need tmux tmux; need rsync rsync; need espeak-ng espeak-ng
  [ ${#missing[@]} -eq 0 ] && exit 0
  command -v brew >/dev/null || { echo "missing: ${missing[*]} → install Homebrew (https://brew.sh), then make again" >&2; exit 9; }
  exec brew install "${missing[@]}"
fi

"${PYTHON:-python3}" -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)
need tmux tmux; need rsync rsync; need ssh openssh-client; need sshd openssh-server; need espeak-ng espeak-ng
[ ${#missing[@]} -eq 0 ] && exit 0

command -v apt-get >/dev/null || {
  echo "missing: ${missing[*]} → install them with this system's package manager, then make again" >&2
  exit 9
}
sudo=""
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "missing: ${missing[*]} → run as root: apt-get install ${missing[*]}" >&2; exit 9; }
  sudo="sudo"
fi
echo "installing ${missing[*]}" >&2
$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
