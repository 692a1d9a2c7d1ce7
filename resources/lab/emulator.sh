# The lab's QEMU: this machine's where it is new enough, else the distribution's newer one, kept in the cache. Sourced by lab.
#
# cache/qemu/                    QEMU's packages from Debian's backports, unpacked; `packages` names them
#
# QEMU 7.2 corrupts state now and then where guests are nested: within minutes a guest hits a triple fault, the machine's own
# kernel runs off its stack in the thread of a vCPU, or all stands still. 9.1 is the first with VMRUN and #VMEXIT mended.

qemu_oldest_sound=9.1

# version_of PROGRAM...: such as 7.2.22.
version_of() { "$@" --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p'; }

# Sets qemu, an array: the emulator's program, and where it finds its firmware.
prepare_emulator() {
  local version
  qemu=(qemu-system-x86_64)
  version=$(version_of "${qemu[@]}")
  printf '%s\n' "$qemu_oldest_sound" "$version" | sort -CV && return
  lock_cache
  [[ -f $cache/qemu/packages ]] || fetch_emulator || true
  exec {lock}>&-
  if [[ -f $cache/qemu/packages ]]; then
    qemu=("$cache/qemu/usr/bin/qemu-system-x86_64" -L "$cache/qemu/usr/share/qemu" -L "$cache/qemu/usr/share/seabios")
    [[ -n $(version_of "${qemu[@]}") ]] && return
    say "warning: $cache/qemu does not run here (remove the folder to fetch it again)"
    qemu=(qemu-system-x86_64)
  fi
  say "warning: QEMU $version is older than $qemu_oldest_sound: the machine, or a guest in it, may stop for no reason of its own"
}

# Unpacks the QEMU of Debian's backports, beside the system's own, whose libraries it uses. apt gets lists of its own for
# it, in the cache: the system's sources stay as they are.
fetch_emulator() {
  local codename mirror scratch=$cache/qemu.tmp apt
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $codename" 2>/dev/null | sed -n 1p)
  [[ $codename == bookworm && -n $mirror ]] || return 1
  rm -rf "$scratch" "$cache/qemu"
  mkdir -p "$scratch"/{lists/partial,packages}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $codename-backports main" >"$scratch/sources.list"
  apt=(apt-get -q -o APT::Sandbox::User=root -o "Dir::Etc::SourceList=$scratch/sources.list" -o Dir::Etc::SourceParts=-
    -o "Dir::State::Lists=$scratch/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  say "fetching QEMU from $codename-backports (about 13 MB, once)"
  "${apt[@]}" update >&2 || return 1
  (cd "$scratch/packages" && "${apt[@]}" download qemu-system-x86 qemu-system-common qemu-system-data seabios >&2) || return 1
  local package
  for package in "$scratch"/packages/*.deb; do
    dpkg-deb -x "$package" "$scratch" || return 1
  done
  (cd "$scratch/packages" && printf '%s\n' *.deb) >"$scratch/packages.list"
  rm -r "$scratch/packages" "$scratch/lists" "$scratch/sources.list"
  mv "$scratch/packages.list" "$scratch/packages"
  mv "$scratch" "$cache/qemu"
}
