# The lab's kernel and initramfs, made once and kept in the cache. Sourced by lab.
#
# cache/linux/                   the distribution's kernel package, unpacked; `package` names it
# cache/initramfs-KEY.cpio       busybox, the modules that the root needs, init; KEY covers all of it

# Modules that are loaded before the command starts; any other loads on demand from /lib/modules.
lab_modules=(virtio_pci virtio_console virtio_rng 9pnet_virtio 9p overlay kvm_amd tun loop)

# Sets vmlinuz, release and initramfs.
prepare_kernel() {
  lock_cache
  [[ -f $cache/linux/package ]] || fetch_kernel
  vmlinuz=$(compgen -G "$cache/linux/boot/vmlinuz-*" | sed -n 1p) || die "no kernel in $cache/linux: remove that folder and try again"
  release=${vmlinuz##*/vmlinuz-}
  local key
  key=$( { echo "$release" "${lab_modules[@]}"; cat "$here/init" "$here/kernel.sh" "$(command -v busybox)"; } | sha256sum | cut -c 1-16)
  initramfs=$cache/initramfs-$key.cpio
  [[ -f $initramfs ]] || build_initramfs
  exec {lock}>&-
}

# Unpacks the kernel that the distribution's metapackage stands for; nothing is installed.
fetch_kernel() {
  local package scratch=$cache/linux.tmp
  package=${AMPHI_LAB_KERNEL_PACKAGE:-$(newest_kernel_package)}
  if [[ -z $package ]] && [[ $(id -u) == 0 ]]; then
    say "fetching the package lists"
    apt-get -qq update >&2 || die "apt-get update failed: no package lists to find a kernel in"
    package=$(newest_kernel_package)
  fi
  [[ -n $package ]] || die "apt knows no linux-image-amd64: run apt-get update as root, or set AMPHI_LAB_KERNEL_PACKAGE"
  rm -rf "$scratch" "$cache/linux"
  mkdir "$scratch"
  say "fetching the kernel package $package (about 70 MB, once)"
  (cd "$scratch" && apt-get -q -o APT::Sandbox::User=root download "$package" >&2) || die "apt-get could not download $package"
  say "unpacking $package into $cache/linux"
  dpkg-deb -x "$scratch"/*.deb "$scratch" || die "$package cannot be unpacked into $scratch"
  [[ -d $scratch/lib ]] || ln -s usr/lib "$scratch/lib"
  local modules
  modules=$(compgen -G "$scratch/lib/modules/*" | sed -n 1p) || die "$package holds no modules: give another in AMPHI_LAB_KERNEL_PACKAGE"
  depmod -b "$scratch" "${modules##*/}" || die "depmod failed for ${modules##*/}"
  basename "$scratch"/*.deb .deb >"$scratch/package"
  rm "$scratch"/*.deb
  mv "$scratch" "$cache/linux"
}

# Prints nothing where apt does not know it.
newest_kernel_package() {
  LC_ALL=C apt-cache depends linux-image-amd64 2>/dev/null | awk '$1 == "Depends:" && !found++ {print $2}' || true
}

build_initramfs() {
  local root module name
  say "building the initramfs for $release"
  rm -rf "$cache"/initramfs.tmp.*
  root=$(mktemp -d "$cache/initramfs.tmp.XXXXXX")
  mkdir -p "$root"/{bin,proc,sys,dev,lower,over,root,saved,modules}
  install -m 755 "$(command -v busybox)" "$root/bin/busybox"
  install -m 755 "$here/init" "$root/init"
  while read -r module; do
    name=$(basename "$module")
    name=${name%%.ko*}.ko
    case $module in
      *.xz) need xz xz-utils; xz -dc "$module" ;;
      *.zst) need zstd zstd; zstd -qdc "$module" ;;
      *) cat "$module" ;;
    esac >"$root/modules/$name" || die "cannot unpack $module"
    echo "$name" >>"$root/modules/order"
  done < <(modprobe -d "$cache/linux" -S "$release" --show-depends -a "${lab_modules[@]}" 2>/dev/null |
    awk '$1 == "insmod" && !seen[$2]++ {print $2}')
  [[ -s $root/modules/order ]] || die "the kernel $release has none of the modules ${lab_modules[*]}"
  (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc) >"$initramfs.tmp" || die "cannot write $initramfs.tmp"
  rm -rf "$root"
  find "$cache" -maxdepth 1 -name 'initramfs-*.cpio' -mtime +7 -delete
  mv "$initramfs.tmp" "$initramfs"
}
