#!/bin/sh
# What an official image's /start.sh does, for a pod of the emulated cloud that is a tree of processes: sshd with the
# pod's PUBLIC_KEY, then for ever. The environment names every path; nothing outside the pod's own folder is written.
set -u
disk=${PODCTL_SIM_DISK:-} # "": a root of its own
PODCTL_HOST_KEY=${PODCTL_HOST_KEY:-/etc/ssh/ssh_host_ed25519_key}
mkdir -p "$disk/etc" "$HOME/.ssh"
chmod 700 "$HOME/.ssh"
printf '%s\n' "${PUBLIC_KEY:-}" >"$HOME/.ssh/authorized_keys"

[ -s "$PODCTL_HOST_KEY" ] || ssh-keygen -q -t ed25519 -N '' -C pod -f "$PODCTL_HOST_KEY"

# what a session is told: without walls the pod's own folders have names that it could not know
told="\"HOME=$HOME\" \"PATH=$PATH\" \"PODCTL_SIM_POD=$PODCTL_SIM_POD\" \"PODCTL_CLOCK_FILE=$PODCTL_CLOCK_FILE\""
[ -z "$disk" ] || told="$told \"TMPDIR=$TMPDIR\" \"PODCTL_GUARD_DIR=$PODCTL_GUARD_DIR\""
cat >"$disk/etc/pod_sshd_config" <<EOF
Port $PODCTL_SIM_SSH_PORT
ListenAddress 127.0.0.1
HostKey "$PODCTL_HOST_KEY"
PidFile none
AuthorizedKeysFile "$HOME/.ssh/authorized_keys"
UsePAM no
StrictModes no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
SetEnv $told
EOF

if [ -n "${PUBLIC_KEY:-}" ]; then
  # the cloud opens the gate when a real sshd would have been up
  (
    until [ -e "$PODCTL_SIM_SSH_GATE" ]; do sleep 0.05; done
    exec env -u RUNPOD_API_KEY "$PODCTL_SIM_SSHD" -D -f "$disk/etc/pod_sshd_config" -E "$disk/etc/pod_sshd.log"
  ) </dev/null &
fi
echo "Start script(s) finished, Pod is ready to use."
exec sleep infinity
