#!/usr/bin/env bash
# The first process of a test's pod: builds the pod's own root out of this machine's, and becomes what the pod runs.
# usage: netpod-init.sh HERE NAME VOLUME -- PROGRAM [ARG …], in new mount, uts, ipc and pid namespaces.
# HERE holds: disk/ (a place to mount on), files/ (copied over the root), binds (paths to show), hidden (programs to hide).
set -eu
here=$1 name=$2 volume=$3
shift 4
root=$here/disk/root

mount -t tmpfs -o size=2g,mode=755 tmpfs "$here/disk" # the container disk: gone with this process
mkdir "$here/disk/upper" "$here/disk/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$here/disk/upper,workdir=$here/disk/work" overlay "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys" # of its own network
for folder in tmp run root; do mount -t tmpfs -o size=1g tmpfs "$root/$folder"; done # nobody's files but the pod's
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
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$root/dev/shm"

mkdir -p "$root/workspace" "$root/run/sshd"
mount --bind "$volume" "$root/workspace"
while IFS= read -r path; do # interpreters that lie where the pod has a folder of its own
  mkdir -p "$root$path"
  mount --bind "$path" "$root$path"
  mount -o remount,bind,ro "$root$path"
done <"$here/binds"

rm -f "$root"/etc/ssh/ssh_host_*
while IFS= read -r program; do
  for folder in usr/local/sbin usr/local/bin usr/sbin usr/bin sbin bin; do rm -f "$root/$folder/$program"; done
done <"$here/hidden"
cp -R "$here/files/." "$root/"
chown -R 0:0 "$root/root/.ssh"
hostname "$name"

mkdir "$root/old"
cd "$root"
pivot_root . old
umount -l /old
rmdir /old
exec "$@"
