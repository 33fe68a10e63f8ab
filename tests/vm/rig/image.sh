# The guest's memory image, in two parts: `base` with modules and programs, one for each kernel and kept,
# and `fresh` with what was just built. The kernel unpacks them one after the other.
# shellcheck shell=bash disable=SC2154 # $store is set by tests/vm/run

modules=(
  ublk_drv
  dm-mod dm-mirror dm-region-hash dm-log dm-log-userspace dm-raid dm-flakey dm-delay dm-log-writes dm-snapshot
  md-mod raid1
  null_blk scsi_debug brd loop nbd virtio_blk sd_mod
  virtio_pci virtio_console xfs ext4 fuse ext2 crc32c_generic crc32c_cryptoapi libcrc32c
)

# The rest are busybox's.
programs=(
  bash env cp dd ls stat sync timeout truncate head cmp
  dmsetup mke2fs e2fsck dumpe2fs mdadm mkfs.xfs xfs_repair mkfs.btrfs mkfs.vfat
  losetup blkdiscard blockdev blkid fstrim sfdisk lsblk findmnt mount umount
  flock setpriv prlimit unshare fallocate mkswap strace fusermount3 udevadm
)

pack() { # folder file
  (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"
}

# The libraries that a program of the tools folder needs, and its loader.
libraries() { # program
  local tools=$store/tools loader
  loader=$(echo "$tools"/lib*/ld-linux-x86-64.so.2)
  local paths=$tools/lib/x86_64-linux-gnu:$tools/usr/lib/x86_64-linux-gnu
  "$loader" --library-path "$paths:$tools/usr/lib/x86_64-linux-gnu/systemd" --list "$1" 2>/dev/null |
    grep -oE "${tools}[^ ]+"
  echo "$loader"
}

add_programs() { # root
  local root=$1 tools=$store/tools name path
  # One folder for programs and one for libraries: no name is there twice.
  mkdir -p "$root"/usr/{bin,lib/x86_64-linux-gnu}
  ln -s usr/bin "$root/bin"
  ln -s usr/bin "$root/sbin"
  ln -s bin "$root/usr/sbin"
  ln -s usr/lib "$root/lib"
  ln -s usr/lib/x86_64-linux-gnu "$root/lib64"
  for name in "${programs[@]}"; do
    path=$(ls "$tools"/{bin,sbin,usr/bin,usr/sbin}/"$name" 2>/dev/null | head -1)
    [ -n "$path" ] || { echo "no program $name in the packages"; return 1; }
    cp -L "$path" "$root/usr/bin/$name"
    libraries "$path"
  done | sort -u | while read -r path; do cp -L "$path" "$root/lib64/"; done
  for name in 2 3 4; do ln -s mke2fs "$root/usr/bin/mkfs.ext$name"; done
  ln -s e2fsck "$root/usr/bin/fsck.ext4"
  ln -s bash "$root/usr/bin/sh"
  ln -s udevadm "$root/usr/bin/systemd-udevd"
  chmod 4755 "$root/usr/bin/fusermount3"
  cp "$tools/bin/busybox" "$root/usr/bin/busybox"
  "$tools/bin/busybox" --list | while read -r name; do
    [ -e "$root/usr/bin/$name" ] || ln -s busybox "$root/usr/bin/$name"
  done
  cp "$store/fio/fio" "$root/usr/bin/fio"
  cc -O -static -o "$root/usr/bin/end-with" tests/vm/rig/end-with.c
}

add_modules() { # root X.Y
  local root=$1 from=$store/kernels/$2 version to name path
  version=$(cat "$from/name")
  to=$root/lib/modules/$version
  mkdir -p "$to"
  depmod -b "$from" "$version" || return 1
  for name in "${modules[@]}"; do
    # What is built in, or not in this kernel, is not a file; a case that needs it finds out.
    modprobe -d "$from" -S "$version" --show-depends "$name" 2>/dev/null || true
  done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r path; do
    cp "$path" "$to/"
    path=$to/${path##*/}
    case "$path" in *.xz) xz -d "$path" ;; *.zst) zstd -q --rm -d "$path" ;; esac
  done
  cp "$from/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$to/"
  depmod -b "$root" "$version"
}

# Builds the base for a kernel at $base, unless it is there; its name says what it was made of.
build_base() { # X.Y
  local root=$store/root-$1 key
  key=$(cat tests/vm/rig/{image.sh,packages.sh,init,end-with.c} "$store/kernels/$1/name" | sha256sum | cut -c1-16)
  base=$store/base-$1-$key.cpio
  [ -e "$base" ] && return
  rm -rf "$root" "$store/base-$1"-*.cpio
  mkdir -p "$root"/{dev,proc,sys,run,tmp,root,mnt,etc,home/user}
  cp tests/vm/rig/init "$root/init"
  printf '%s:/bin/sh\n' root:x:0:0::/root user:x:1000:1000::/home/user nobody:x:65534:65534::/ >"$root/etc/passwd"
  printf '%s:\n' root:x:0 user:x:1000 nogroup:x:65534 >"$root/etc/group"
  echo user_allow_other >"$root/etc/fuse.conf"
  ln -s /proc/mounts "$root/etc/mtab" # of fusermount3
  add_programs "$root" && add_modules "$root" "$1" || return 1
  # Users other than root must be able to look in.
  chmod -R go+rX "$root" && chmod 755 "$root" "$root/init"
  pack "$root" "$base.new" && mv "$base.new" "$base" && rm -r "$root"
}
