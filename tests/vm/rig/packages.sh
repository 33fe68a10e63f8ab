# Debian packages for the guest: its kernels and its programs. They are downloaded and unpacked below $store,
# never installed, with an apt configuration of their own: the machine's lists, status and cache are not touched.
# shellcheck shell=bash disable=SC2154 # $store is set by tests/vm/run

# The programs that image.sh names come from these, and from what these depend on.
tools=(
  bash btrfs-progs busybox-static coreutils diffutils dmsetup dosfstools e2fsprogs fdisk fuse3 libaio-dev mdadm
  mount strace udev util-linux xfsprogs
)

# What these functions return when another try could not do better: no mirror has it. After any other failure one may.
never=3

private_apt() { # program argument..
  local apt=$store/apt program=$1
  shift
  "$program" -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferencesparts=/dev/null -o Dir::State="$apt" -o Dir::State::Lists="$apt/lists" \
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User="$(id -un)" \
    -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# Fetches the package lists, from the mirror that this machine uses for its own packages.
update_lists() {
  local apt=$store/apt codename targets uri release component
  command -v apt-get >/dev/null || { echo "no apt-get: Debian packages cannot be fetched"; return $never; }
  codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") ||
    { echo "not a Debian: no mirror is known that has its kernels"; return $never; }
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  : >"$apt/status"
  targets=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages')
  local sign="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
  while read -r uri release component; do
    case "$release $component" in
      "$codename main" | "$codename-security main") echo "deb $sign $uri $release main" ;;
    esac
    # The program whose package needs too many libraries is built from source; new kernels come as backports.
    if [ "$release $component" = "$codename main" ]; then
      echo "deb-src $sign $uri $release main"
      echo "deb $sign $uri trixie-backports main"
    fi
  done <<<"$targets" | sort -u >"$apt/sources.list"
  [ -s "$apt/sources.list" ] || { echo "apt's sources name no Debian mirror"; return $never; }
  private_apt apt-get update -q >"$apt/log" 2>&1 && ! grep -q '^[EW]: Failed' "$apt/log" ||
    { echo "package lists cannot be fetched: $(grep -m1 '^[EW]:' "$apt/log")"; return 1; }
}

# Lists of the last hour are new enough.
listed() {
  [ -n "$(find "$store/apt/listed" -mmin -60 2>/dev/null)" ] && return
  update_lists && touch "$store/apt/listed"
}

unpack() { # folder deb..
  local into=$1 deb
  shift
  for deb in "$@"; do dpkg -x "$deb" "$into" || return 1; done
}

# Unpacks the newest cloud kernel X.Y to $store/kernels/X.Y, unless there is one already. Says why it cannot.
fetch_kernel() { # X.Y
  local into=$store/kernels/$1 name parts
  [ -e "$into/name" ] && return
  listed || return
  name=$(private_apt apt-cache search --names-only "^linux-image-${1/./\\.}\.[0-9]+[^ ]*-cloud-amd64$" |
    cut -d' ' -f1 | sort -V | tail -1)
  [ -n "$name" ] || { echo "no package linux-image-$1.*-cloud-amd64 in the mirror's suites"; return $never; }
  # From 7.x on the image package is empty and depends on those that have the files.
  mapfile -t parts < <(private_apt apt-cache depends --important "$name" |
    grep -oE 'linux-[a-z]+-[0-9].*' | grep -F -- "-${name#linux-image-}")
  rm -rf "$into.new" && mkdir -p "$into.new/debs" &&
    (cd "$into.new/debs" && private_apt apt-get download -q "$name" "${parts[@]}") >"$store/apt/log" 2>&1 &&
    unpack "$into.new" "$into.new"/debs/*.deb ||
    { echo "$name cannot be fetched: $(grep -m1 '^E:' "$store/apt/log")"; return 1; }
  rm -r "$into.new/debs"
  # Where things are depends on whether the package is of a Debian with /usr merged.
  [ -d "$into.new/lib/modules" ] || ln -s usr/lib "$into.new/lib"
  cp "$into.new"/boot/vmlinuz-* "$into.new/vmlinuz" 2>/dev/null ||
    cp "$into.new"/lib/modules/*/vmlinuz "$into.new/vmlinuz" || { echo "$name has no kernel in it"; return 1; }
  echo "${name#linux-image-}" >"$into.new/name"
  mv "$into.new" "$into"
}

# Unpacks the packages that the guest's programs come from, with all they depend on, to $store/tools.
fetch_tools() {
  local into=$store/tools debs=$store/apt/cache/archives
  [ "$(cat "$into/packages" 2>/dev/null)" = "${tools[*]}" ] && return
  listed || return
  rm -rf "$into" && mkdir -p "$into" && rm -f "$debs"/*.deb &&
    private_apt apt-get install -y -q --no-install-recommends --download-only "${tools[@]}" >"$store/apt/log" 2>&1 &&
    unpack "$into" "$debs"/*.deb ||
    { echo "the guest's programs cannot be fetched: $(grep -m1 '^E:' "$store/apt/log")"; return 1; }
  rm -f "$debs"/*.deb
  echo "${tools[*]}" >"$into/packages"
}

# Builds fio without its many libraries: Debian's would make the guest's memory 120 MB larger.
fetch_fio() {
  local into=$store/fio
  [ -x "$into/fio" ] && return
  listed || return
  rm -rf "$into" && mkdir -p "$into/src" &&
    (cd "$into" && private_apt apt-get source -q --download-only fio) >"$store/apt/log" 2>&1 &&
    tar -xf "$into"/fio_*.orig.tar.gz -C "$into/src" --strip-components=1 ||
    { echo "the source of fio cannot be fetched: $(grep -m1 '^E:' "$store/apt/log")"; return 1; }
  (cd "$into/src" && export LDFLAGS="-static -L$store/tools/usr/lib/x86_64-linux-gnu" &&
    ./configure --build-static --disable-native --extra-cflags="-I$store/tools/usr/include" && make -j2 fio &&
    ./fio --enghelp=libaio) >"$into/log" 2>&1 && strip -o "$into/fio" "$into/src/fio" ||
    { echo "fio cannot be built: see ${into#"$PWD"/}/log"; return 1; }
  rm -r "$into"/{src,fio_*}
}
