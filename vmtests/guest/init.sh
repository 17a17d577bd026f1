#!/sbin/busybox sh
# The first program of a guest: makes the usual file systems, loads the modules
# and runs what the test brought along. It always ends with the machine off.
export PATH=/sbin:/applets HOME=/root LC_ALL=C DM_DISABLE_UDEV=1 PLATTER_GUEST=1
/sbin/busybox mkdir -p /applets /dev /proc /sys /run /tmp /mnt /root /var/lib
/sbin/busybox --install -s /applets
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /run/lock/lvm /run/lvm
mount -t tmpfs shm /dev/shm
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/mounts /etc/mtab
cat /modules/order* | while read -r module; do insmod "/modules/$module"; done
if [ -e /test/system ]; then . /test/system; fi
ifconfig lo 127.0.0.1 up
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 -opost
cd /test || poweroff -f
echo "guest: up"
./run
status=$?
sync
echo "guest: exit $status"
# Off only when all that was said has gone out.
stty -F /dev/ttyS1 opost
poweroff -f
