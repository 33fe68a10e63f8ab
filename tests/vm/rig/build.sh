# What is built here, linked statically so that it needs nothing of the guest, and its part of the image.
# shellcheck shell=bash disable=SC2154 # $scratch is set by tests/vm/run

target=x86_64-unknown-linux-gnu
built=$PWD/target/tests/$target/tests

build_mirrord() { nice scripts/build-tests build --quiet --bin mirrord; }

# Sets $guest, and `tests` to lines "name file" of both test binaries.
build_tests() {
  local messages
  messages=$(nice scripts/build-tests test --workspace --quiet --no-run --message-format json-render-diagnostics \
    --test guest --test integration) || return 1
  tests=$(sed -nE 's/.*"kind":\["test"\].*"name":"([a-z_]+)".*"executable":"([^"]+)".*/\1 \2/p' <<<"$messages")
  guest=$(sed -n 's/^guest //p' <<<"$tests")
}

add_fresh() { # file name
  mkdir -p "$scratch/fresh/usr/bin"
  strip --strip-debug -o "$scratch/fresh/usr/bin/$2" "$1"
}

# The test binaries, and the files of the tree that they read, at the path that they were compiled with.
add_tests() {
  local name path folder
  while read -r name path; do add_fresh "$path" "$name" || return 1; done <<<"$tests"
  for folder in tests/golden log/tests/vectors; do
    mkdir -p "$scratch/fresh/$PWD/$folder"
    cp -r "$folder"/* "$scratch/fresh/$PWD/$folder/"
  done
  mkdir -p "$scratch/fresh/$built"
  ln -s /bin/mirrord "$scratch/fresh/$built/mirrord"
}

# Makes $scratch/initrd: the kernel unpacks one archive after the other.
pack_fresh() {
  find "$scratch/fresh" -type d -exec chmod 755 {} +
  pack "$scratch/fresh" "$scratch/fresh.cpio" && cat "$base" "$scratch/fresh.cpio" >"$scratch/initrd"
}
