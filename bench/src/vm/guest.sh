# Runs in the guest, as root: measures contenders, a line of fio's JSON for each cell. Before it stand assignments:
#   contenders  raw, dm_core, dm_disk, md, or mirrord:LOG:KIND; KIND is files or devices
#   workloads   as fio has them: rw:block:depth:requests
#   rounds      how often everything is measured
#   size_mib    size of the volumes
# Every contender has the same two legs, files on a tmpfs that are allocated and were written before; those that take
# devices have them as /dev/loop0 and /dev/loop1, with direct IO, and the file of a disk log as /dev/loop2.
set -u
export MIRRORD_RUNTIME_DIR=/run/mirrord MIRRORD_STATE_DIR=/run/mirrord-state
mkdir -p "$MIRRORD_RUNTIME_DIR" "$MIRRORD_STATE_DIR"
cd /test || exit 1

die() { echo "FAILED: $*"; exit 1; }

quietly() { "$@" >/tmp/said 2>&1 || { cat /tmp/said; die "$*"; }; }

# Writes the volume: its legs are allocated, its regions were written to, and it is a device.
warm() {
  [ -b "$device" ] || die "$device is not a block device"
  quietly fio --name=warm --filename="$device" --direct=1 --ioengine=libaio --iodepth=8 --thread --rw=write --bs=128k \
    --size="${size_mib}m" --allow_file_create=0
}

raw_up() { device=/dev/loop0; }
raw_down() { :; }

dm_up() { # log word..
  quietly dmsetup create m --table "0 $((size_mib * 2048)) mirror $* 2 /dev/loop0 0 /dev/loop1 0 1 handle_errors"
  device=/dev/mapper/m
}
dm_down() { quietly dmsetup remove --retry m; }
dm_core_up() { dm_up core 2 1024 nosync; }
dm_core_down() { dm_down; }
dm_disk_up() { dm_up disk 3 /dev/loop2 1024 nosync; }
dm_disk_down() { dm_down; }

md_up() {
  quietly mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --assume-clean --bitmap=internal \
    /dev/loop0 /dev/loop1
  device=/dev/md0
}
md_down() { quietly mdadm --stop /dev/md0; }

mirrord_up() { # log kind
  local legs=(/test/a /test/b) log=$1
  [ "$2" = files ] || legs=(/dev/loop0 /dev/loop1)
  case "$log/$2" in
    disk/files) log=disk:/test/log ;;
    disk/*) log=disk:/dev/loop2 ;;
  esac
  quietly mirrord create --legs "${legs[@]}" --size "${size_mib}MiB" --name v --log "$log" --front ublk --assume-clean --force
  device=$(echo /dev/ublkb*)
}
mirrord_down() { quietly mirrord stop v; }

measure() { # contender round
  local workload rw block depth requests
  for workload in $workloads; do
    IFS=: read -r rw block depth requests <<<"$workload"
    [ -b "$device" ] || die "$device is not a block device"
    fio --name=cell --filename="$device" --direct=1 --ioengine=libaio --iodepth="$depth" --thread --rw="$rw" \
      --bs="$block" --size="${size_mib}m" --io_size="$((${block%k} * requests))k" --norandommap \
      --allow_file_create=0 --output-format=json >/tmp/fio.json 2>/tmp/said || { cat /tmp/said; die "fio on $1"; }
    echo "CELL $1 $2 $workload $(tr -d '\n\t ' </tmp/fio.json)"
  done
}

modprobe -a ublk_drv dm-mirror raid1 loop || die "modules"
# Space for what mirrord and md keep beside the volume.
for leg in a b; do quietly fallocate -l "$((size_mib + 16))m" $leg; done
quietly fallocate -l 4m log
echo "KERNEL $(uname -r)"

for ((round = 1; round <= rounds; round++)); do
  for contender in $contenders; do
    IFS=: read -r name log kind <<<"$contender"
    # A leg that is in use by somebody else is refused.
    [ "$kind" = files ] ||
      for n in 0:a 1:b 2:log; do quietly losetup --direct-io=on "/dev/loop${n%:*}" "/test/${n#*:}"; done
    "${name}_up" "$log" "$kind"
    warm
    measure "$contender" "$round"
    "${name}_down"
    [ "$kind" = files ] || for n in 0 1 2; do quietly losetup -d /dev/loop$n; done
    # What the last one left beside the volume.
    for leg in a b; do quietly dd if=/dev/zero of=$leg bs=1M seek="$size_mib" count=16 conv=notrunc,nocreat; done
    quietly dd if=/dev/zero of=log bs=1M count=4 conv=notrunc,nocreat
  done
done
echo DONE
