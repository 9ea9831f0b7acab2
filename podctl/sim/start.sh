#!/bin/sh
# What an official image's /start.sh does, for a pod of the emulated cloud that is a tree of processes: sshd with the
# pod's PUBLIC_KEY, then for ever. The environment names every path; nothing outside the pod's own folder is written.
set -u
disk=$PODCTL_SIM_DISK
mkdir -p "$disk/etc" "$HOME/.ssh"
chmod 700 "$HOME/.ssh"
printf '%s\n' "${PUBLIC_KEY:-}" >"$HOME/.ssh/authorized_keys"

[ -s "$PODCTL_HOST_KEY" ] || ssh-keygen -q -t ed25519 -N '' -C pod -f "$PODCTL_HOST_KEY"

cat >"$disk/etc/sshd_config" <<EOF
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
SetEnv "HOME=$HOME" "PATH=$PATH" "TMPDIR=$TMPDIR" "PODCTL_SIM_POD=$PODCTL_SIM_POD" "PODCTL_CLOCK_FILE=$PODCTL_CLOCK_FILE" "PODCTL_GUARD_DIR=$PODCTL_GUARD_DIR"
EOF

if [ -n "${PUBLIC_KEY:-}" ]; then
  # the cloud opens the gate when a real sshd would have been up
  (
    until [ -e "$PODCTL_SIM_SSH_GATE" ]; do sleep 0.05; done
    exec env -u RUNPOD_API_KEY "$PODCTL_SIM_SSHD" -D -f "$disk/etc/sshd_config" -E "$disk/sshd.log"
  ) </dev/null &
fi
echo "Start script(s) finished, Pod is ready to use."
exec sleep infinity
