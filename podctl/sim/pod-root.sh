#!/usr/bin/env bash
# The first process of an emulated pod that has walls: builds the pod's own root out of this machine's, and becomes its
# main program. usage: pod-root.sh HOME TIME VOLUME MOUNT -- PROGRAM [ARG …], in new mount, pid, uts and ipc namespaces.
# HOME holds: disk/{upper,work,root} (the container disk), signs/ (what the cloud tells), binds (folders to show).
set -eu
home=$1 time=$2 volume=$3 mount=$4
shift 5
root=$home/disk/root

mount --make-rprivate /
mount -t overlay -o "lowerdir=/,upperdir=$home/disk/upper,workdir=$home/disk/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
for folder in tmp run root; do [ -d "$home/disk/own/$folder" ] || mkdir -p "$home/disk/own/$folder"; done
for folder in tmp run root; do mount --bind "$home/disk/own/$folder" "$root/$folder"; done
chmod 1777 "$root/tmp"
chmod 700 "$root/root"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null zero full random urandom tty; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "$root/dev/${n#*:}"; done
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$root/dev/shm" # new at every start, as in a container

mkdir -p "$root/run/sshd" "$root/run/podctl-sim/time" "$root/run/podctl-sim/signs"
mount --bind "$time" "$root/run/podctl-sim/time"
mount --bind "$home/signs" "$root/run/podctl-sim/signs"
if [ -n "$volume" ]; then
  mkdir -p "$root$mount"
  mount --bind "$volume" "$root$mount"
fi
while IFS= read -r path; do # interpreters that lie where the pod has a folder of its own
  mkdir -p "$root$path"
  mount --bind "$path" "$root$path"
  mount -o remount,bind,ro "$root$path"
done <"$home/binds"

if [ ! -e "$home/disk/made" ]; then # once a disk
  rm -f "$root"/etc/ssh/ssh_host_*
  : >"$home/disk/made"
fi
hostname "${RUNPOD_POD_HOSTNAME:-pod}"

mkdir -p "$root/old"
cd "$root"
pivot_root . old
umount -l /old
rmdir /old 2>/dev/null || true
cd /root
exec "$@"
