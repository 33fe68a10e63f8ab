# Runs in the guest, as root: the kernel's dm-mirror with logs of several kinds. Before it stand assignments:
#   contenders  kernel, bare or mirrord, and core, disk or flush (a disk log with integrated flush), joined by a colon
#   workloads   depth:requests, of 4 KiB random writes
#   rounds      how often everything is measured
# A line of fio's JSON for each cell, and for each contender how many of 1,048,576 regions were resynced in 10 s.
set -u
export MIRRORD_RUNTIME_DIR=/run/mirrord MIRRORD_STATE_DIR=/run/mirrord-state
mkdir -p "$MIRRORD_RUNTIME_DIR" "$MIRRORD_STATE_DIR"
cd /test || exit 1

die() { echo "FAILED: $*"; exit 1; }

quietly() { "$@" >/tmp/said 2>&1 || { cat /tmp/said; die "$*"; }; }

serve() { # who kind
  case "$1" in
    kernel) ;;
    bare) if [ "$2" = core ]; then bare-log & else bare-log /dev/loop2 & fi; server=$! ;;
    mirrord) mirrord log serve --netlink --log-level error >/tmp/served & server=$! ;;
  esac
  [ "$1" = kernel ] || until grep -qE '^[0-9a-f]+ +11 +[0-9]+ +000000[4-7]' /proc/net/netlink; do sleep 0.1; done
}

# The log's part of a table.
log_of() { # who kind region
  local words
  case "$1:$2" in
    kernel:core) words="core 2 $3" ;;
    kernel:*) words="disk 3 /dev/loop2 $3" ;;
    bare:flush) words="userspace 5 b integrated_flush core $3" ;;
    bare:*) words="userspace 4 b core $3" ;;
    mirrord:core) words="userspace 4 m core $3" ;;
    mirrord:disk) words="userspace 5 m disk /dev/loop2 $3" ;;
    mirrord:flush) words="userspace 6 m integrated_flush disk /dev/loop2 $3" ;;
  esac
  echo "$words"
}

mirror() { # sectors log mode legs..
  quietly dmsetup create m --table "0 $1 mirror $2 $3 2 $4 0 $5 0 1 handle_errors"
}

modprobe -a dm-mirror dm-log-userspace loop || die "modules"
for leg in a b; do quietly fallocate -l 128m $leg; quietly truncate -s 1g big-$leg; done
quietly fallocate -l 4m log
for n in 0:a 1:b 2:log 3:big-a 4:big-b; do quietly losetup --direct-io=on "/dev/loop${n%:*}" "/test/${n#*:}"; done
echo "KERNEL $(uname -r)"

for ((round = 1; round <= rounds; round++)); do
  for contender in $contenders; do
    IFS=: read -r who kind <<<"$contender"
    quietly dd if=/dev/zero of=/dev/loop2 bs=1M count=4 oflag=direct
    serve "$who" "$kind"
    mirror 262144 "$(log_of "$who" "$kind" 1024)" nosync /dev/loop0 /dev/loop1
    for workload in $workloads; do
      IFS=: read -r depth requests <<<"$workload"
      [ -b /dev/mapper/m ] || die "no mirror"
      fio --name=cell --filename=/dev/mapper/m --direct=1 --ioengine=libaio --iodepth="$depth" --thread --rw=randwrite \
        --bs=4k --size=128m --io_size="$((4 * requests))k" --norandommap --allow_file_create=0 \
        --output-format=json >/tmp/fio.json 2>/tmp/said || { cat /tmp/said; die "fio on $1"; }
      echo "CELL $contender $depth $(tr -d '\n\t ' </tmp/fio.json)"
    done
    quietly dmsetup remove --retry m
    mirror 2097152 "$(log_of "$who" "$kind" 2)" sync /dev/loop3 /dev/loop4
    sleep 10
    read -r _ _ _ _ _ _ count _ < <(dmsetup status m)
    echo "RESYNC $contender ${count%/*}"
    quietly dmsetup remove --retry m
    [ "$who" = kernel ] || { kill -9 "$server"; wait "$server" 2>/dev/null; }
    rm -rf "$MIRRORD_RUNTIME_DIR"/log-serve
  done
done
echo DONE
