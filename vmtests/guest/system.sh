# Sourced by the first program of a guest whose first disk has a system of its
# own: that one starts, and runs what the test brought along.
mkdir -p /disk
mount -o noatime /dev/vda /disk
mount -t tmpfs -o mode=755 run /disk/run
mkdir -p /disk/run/test /disk/run/systemd/system/multi-user.target.wants
cp -a /test/. /disk/run/test
cat >/disk/run/test/start <<'END'
stty -opost
cd /run/test
echo "guest: up"
./run
status=$?
sync
echo "guest: exit $status"
# Off only when all that was said has gone out.
stty opost
systemctl poweroff --force --force
END
cat >/disk/run/systemd/system/guest.service <<'END'
[Unit]
Description=What a test brought along
DefaultDependencies=no
After=multi-user.target
[Service]
ExecStart=/bin/sh /run/test/start
Environment=HOME=/root LC_ALL=C.UTF-8 PLATTER_GUEST=1
StandardInput=tty
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/ttyS1
END
ln -s ../guest.service /disk/run/systemd/system/multi-user.target.wants/guest.service
for dir in /sys/kernel/debug /sys/kernel/tracing /sys/fs/bpf /dev/pts /dev/shm; do umount $dir; done
mount --move /dev /disk/dev
umount /sys
umount /proc
exec switch_root /disk /lib/systemd/systemd
