#!/usr/bin/env bash
# What a pod's container runs: who may log in, who it is, what its sessions know; then sshd, for the container's life.
#
#   PUBLIC_KEY   who may log in: public keys, a line each
#   HOST_KEY     the private key by which the pod is known; none: a new one is made. It is in no process after this one
#
# Where the image has a start of its own, /start.sh, this ends in it. A start script of a provider's (the boot guard)
# comes before this one and ends in it, in turn.
set -eu
umask 077

ssh=/etc/ssh
home=${HOME:-/root}

say() { echo "entry: $*"; }
warn() { echo "entry: $*" >&2; }

is_public_key() { ssh-keygen -l -f - <<<"$1" >/dev/null 2>&1; }

# authorized_keys out of PUBLIC_KEY; what is no key is named by its number and never printed: it may be a private one
let_in() {
  local text=${PUBLIC_KEY:-} line n=0 good=0 beside=$home/.ssh/.authorized_keys.$$
  if [ -z "$text" ]; then
    [ -s "$home/.ssh/authorized_keys" ] || warn "PUBLIC_KEY is not set: nobody can log in → start the pod with PUBLIC_KEY=\"\$(cat ~/.ssh/id_ed25519.pub)\""
    return
  fi
  text=${text//\\n/$'\n'} # some forms hand over a line's end as two characters
  text=${text//$'\r'/}
  mkdir -p "$home/.ssh"
  chmod 700 "$home/.ssh"
  : >"$beside"
  while IFS= read -r line || [ -n "$line" ]; do
    n=$((n + 1))
    case $line in '' | '#'*) continue ;; esac
    if is_public_key "$line"; then
      printf '%s\n' "$line" >>"$beside"
      good=$((good + 1))
    else
      warn "line $n of PUBLIC_KEY is not a public key: left out"
    fi
  done <<<"$text"
  mv -f "$beside" "$home/.ssh/authorized_keys"
  if [ $good -eq 0 ]; then
    warn "PUBLIC_KEY holds no public key: nobody can log in → give what is in a .pub file, ssh-ed25519 AAAA…"
  else
    say "$good public keys may log in"
  fi
}

# the key by which this pod is known, told in the log, where a person's own account vouches for it
be_known() {
  local key=$ssh/ssh_host_ed25519_key
  mkdir -p "$ssh/sshd_config.d"
  chmod 755 "$ssh" "$ssh/sshd_config.d"
  if [ -n "${HOST_KEY:-}" ]; then
    printf '%s\n' "${HOST_KEY//\\n/$'\n'}" >"$key.new"
    if ssh-keygen -y -P '' -f "$key.new" >"$key.pub.new" 2>/dev/null; then
      mv -f "$key.new" "$key"
      mv -f "$key.pub.new" "$key.pub"
    else
      rm -f "$key.new" "$key.pub.new"
      warn "HOST_KEY is not a private key without a passphrase: a new one is made, and whoever was told the old one will refuse it"
    fi
  fi
  unset HOST_KEY
  [ -s "$key" ] || ssh-keygen -q -t ed25519 -N '' -C pod -f "$key"
  chmod 644 "$key.pub"
  say "host key $(cut -d' ' -f1,2 "$key.pub")"
  cat >"$ssh/sshd_config.d/podctl.conf" <<CONF
HostKey $key
PasswordAuthentication no
PermitRootLogin prohibit-password
PermitUserEnvironment yes
ClientAliveInterval 30
ClientAliveCountMax 10
MaxSessions 100
MaxStartups 100
CONF
}

# sessions over SSH do not inherit a container's environment: what a GPU and a provider's tools need, and no secrets
tell_sessions() {
  local name value beside=$home/.ssh/.environment.$$
  mkdir -p "$home/.ssh"
  : >"$beside"
  while IFS= read -r name; do
    case $name in
      *KEY | *TOKEN | *SECRET | *PASSWORD | *PASSWD | *CREDENTIALS) continue ;;
      PATH | LANG | LC_ALL | LD_LIBRARY_PATH | LIBRARY_PATH | CUDA_* | NVIDIA_* | NCCL_* | RUNPOD_* | PODCTL_*) ;;
      *) continue ;;
    esac
    value=${!name}
    case $value in *$'\n'*) continue ;; esac
    printf '%s=%s\n' "$name" "$value" >>"$beside"
  done < <(compgen -e)
  mv -f "$beside" "$home/.ssh/environment"
}

let_in
be_known
tell_sessions

if [ -x /start.sh ] && [ -z "${PODCTL_ENTERED:-}" ]; then
  export PODCTL_ENTERED=1 # a start that ends in this script again must not go round
  say "on to /start.sh"
  exec /start.sh
fi
mkdir -p /run/sshd
chmod 755 /run/sshd
exec /usr/sbin/sshd -D -e # as the first process it also reaps what jobs leave
