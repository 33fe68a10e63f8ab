# One guest's life, and what it printed.
# shellcheck shell=bash disable=SC2154 # options are set by tests/vm/run

# What a kernel says when something is wrong with it.
complaints='BUG:|Oops|WARNING:|INFO: task .* blocked|possible (circular|recursive) locking|KASAN|'
complaints+='general protection|soft lockup|detected stalls|Kernel panic'

# The processor's clock: a guest that measures it on a busy machine sometimes hangs at boot.
clock_khz() { awk -F: '/^cpu MHz/ {printf "%d", $2 * 1000; exit}' /proc/cpuinfo; }

# Becomes a guest. The job's line of its two serial lines goes where the caller says, the kernel's to a file.
machine() { # job's-character-device kernel-log memory "kernel arguments" disk..
  local job=$1 log=$2 memory=$3 words=$4 disk n=0
  shift 4
  local arguments=(
    -M q35 -m "$memory" -smp "$smp" -nodefaults -no-user-config -no-reboot -display none
    -kernel "$store/kernels/$kernel/vmlinuz" -initrd "$scratch/initrd"
    -chardev "file,id=kernel,append=on,path=$log" -serial chardev:kernel
    -chardev "$job,id=job" -serial chardev:job
    -device isa-debug-exit,iobase=0x501,iosize=1
  )
  # The kernel's test of its timer fails on a processor that gets no time on a busy host.
  # What is emulated is translated once for each address: programs that begin at the same one each time start quickly.
  words="console=ttyS0 panic=-1 oops=panic mitigations=off no_timer_check norandmaps $words"
  # String instructions are emulated byte by byte: a kernel that uses them copies memory a third as fast.
  arguments+=(-cpu max,erms=off,fsrm=off,smap=off)
  if [ -n "$icount" ]; then
    arguments+=(-accel tcg,thread=single -icount shift=1,sleep=off)
  else
    arguments+=(-accel tcg,thread=multi)
    words+=" tsc_early_khz=$(clock_khz)"
  fi
  for disk in "$@"; do
    # The host does not crash in these tests: its page cache is as good as a disk.
    arguments+=(-drive "file=$disk,if=none,id=disk$n,format=raw,cache=unsafe,discard=unmap")
    arguments+=(-device "virtio-blk-pci,drive=disk$n,serial=disk$n")
    n=$((n + 1))
  done
  # It must not outlive the shell that waits for it.
  exec setpriv --pdeathsig KILL qemu-system-x86_64 "${arguments[@]}" -append "$words"
}

# The status that the guest ended with (rig/end-with.c), `none` when the whole machine went down.
status_of() { # qemu's-status
  if [ "$1" -ge 3 ] && [ "$1" -lt 128 ]; then echo $((($1 - 3) / 2)); else echo none; fi
}
