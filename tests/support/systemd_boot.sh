#!/bin/bash
# Run in namespaces of its own: makes a root for systemd out of this machine's, and becomes its PID 1.
# Usage: systemd_boot.sh DISK ROOT...
# DISK: a tmpfs; what the machine writes stays there, so it can be booted again. ROOT: folders of
# this machine that are to be readable at the same place, also where they are mounts.
set -euo pipefail
disk=$1
shift
root=$disk/root
mkdir -p "$disk"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$root"
for folder in "$@"; do
    mkdir -p "$root$folder"
    mount --bind -o ro "$folder" "$root$folder"
done

mount -t proc proc "$root/proc"
# These are this machine's settings, and no namespace's: systemd leaves them alone then.
mount --bind -o ro /proc/sys "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for folder in run tmp; do mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/$folder"; done
chmod 1777 "$root/tmp"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
# In place of the Nitro Enclaves driver's: a number that no driver has, so that opening it fails
# with ENXIO where it is allowed, and with something else where it is not.
mknod -m 0660 "$root/dev/nitro_enclaves" c 10 250

# As this machine has them: cgroup v2, or v1 with systemd's own hierarchy beside the controllers.
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    for controller in devices memory pids; do
        mkdir "$root/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
    done
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi

# Of this machine's services none, whatever is enabled on it; of systemd's own those of every boot.
mkdir -p "$disk/units"
mount --bind "$disk/units" "$root/etc/systemd/system"
mount -t tmpfs tmpfs "$root/usr/lib/systemd/system-generators"

mkdir -p "$root/mnt/outside"
cd "$root"
pivot_root . mnt/outside
umount -l /mnt/outside
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
