//! Kernel modules: which of a package's are kept, and in what order they load.
//!
//! A package has no `modules.dep`; depmod makes it when the package is installed, which amphi does not do. The
//! same facts are in every module's `.modinfo` section (`depends=`, `softdep=pre:`, `alias=`). They are written
//! in kmod's own formats, so that modprobe understands the directory too.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::KernelError;
use super::elf;
use super::payload::{Compression, decoder};

/// Larger than any module that a distribution ships, uncompressed, in bytes.
const MODULE_MAX: u64 = 64 << 20;
/// Below these a module may be of use in a virtual machine without PCI; a name ending in `/` is a directory.
pub(super) const WANTED: [&str; 44] = [
    "arch/x86/crypto/",
    "crypto/",
    "lib/",
    "drivers/block/loop",
    "drivers/block/nbd",
    "drivers/block/virtio_blk",
    "drivers/block/zram/",
    "drivers/char/hw_random/rng-core",
    "drivers/char/hw_random/virtio-rng",
    "drivers/char/virtio_console",
    "drivers/dax/",
    "drivers/md/dm-",
    "drivers/misc/pvpanic/pvpanic-mmio",
    "drivers/net/bonding/",
    "drivers/net/dummy",
    "drivers/net/macvlan",
    "drivers/net/net_failover",
    "drivers/net/tap",
    "drivers/net/tun",
    "drivers/net/veth",
    "drivers/net/virtio_net",
    "drivers/net/vxlan/",
    "drivers/net/wireguard/",
    "drivers/nvdimm/",
    "drivers/ptp/ptp_kvm",
    "drivers/virt/vmgenid",
    "drivers/virtio/",
    "drivers/watchdog/wdat_wdt",
    "fs/binfmt_misc",
    "fs/btrfs/",
    "fs/erofs/",
    "fs/ext4/",
    "fs/fat/",
    "fs/fuse/",
    "fs/isofs/",
    "fs/overlayfs/",
    "fs/squashfs/",
    "fs/xfs/",
    "net/bridge/",
    "net/core/failover",
    "net/ipv4/",
    "net/ipv6/",
    "net/netfilter/",
    "net/vmw_vsock/",
];

/// A module's name as the kernel writes it: without directory and extension, `_` for `-`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// What a module says of itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Info {
    depends: Vec<String>,
    /// Modules, or aliases of modules, that are of use to it and should be loaded before.
    soft_pre: Vec<String>,
    aliases: Vec<String>,
}

impl Info {
    /// Reads the `.modinfo` section of a module: `key=value`, each ended by NUL.
    fn of(module: &[u8]) -> Option<Self> {
        let mut info = Self::default();
        for field in elf::section(module, ".modinfo")?.split(|b| *b == 0) {
            let Some((key, value)) = std::str::from_utf8(field).ok().and_then(|f| f.split_once('=')) else { continue };
            match key {
                "depends" => info.depends.extend(value.split(',').filter(|d| !d.is_empty()).map(name_of)),
                "softdep" => info.soft_pre.extend(soft_pre(value)),
                "alias" => info.aliases.push(value.to_owned()),
                _ => {}
            }
        }
        Some(info)
    }
}

/// The names after `pre:` in a soft dependency such as `pre: a b post: c`.
fn soft_pre(value: &str) -> Vec<String> {
    let mut pre = false;
    let mut names = Vec::new();
    for word in value.split_whitespace() {
        match word {
            "pre:" => pre = true,
            "post:" | "platform:" => pre = false,
            name if pre => names.push(name.replace('-', "_")),
            _ => {}
        }
    }
    names
}

/// Takes from `unpacked`, a package's `lib/modules/RELEASE`, what amphi may need: decompresses the wanted modules and
/// all that they depend on into `kept`, with `modules.dep`, `modules.alias` and `modules.builtin`.
/// Returns how many modules were kept.
///
/// # Errors
/// A module is damaged, or a file cannot be read or written.
pub(super) fn keep(unpacked: &Path, kept: &Path) -> Result<usize, KernelError> {
    let mut files = BTreeMap::new();
    find_modules(unpacked, Path::new(""), &mut files)?;
    let wanted = files.iter().filter(|(_, path)| is_wanted(path)).map(|(name, _)| name.clone());
    let mut todo: VecDeque<String> = wanted.collect();
    let mut infos: BTreeMap<String, Info> = BTreeMap::new();
    while let Some(name) = todo.pop_front() {
        let Some(path) = files.get(&name).filter(|_| !infos.contains_key(&name)) else { continue };
        let bytes = read_module(&unpacked.join(path))?;
        let info =
            Info::of(&bytes).ok_or_else(|| KernelError::package(&unpacked.join(path), "it is not a kernel module"))?;
        let target = kept.join(plain_name(path));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(KernelError::store("create", parent))?;
        }
        fs::write(&target, bytes).map_err(KernelError::store("write", &target))?;
        todo.extend(info.depends.iter().chain(&info.soft_pre).cloned());
        infos.insert(name, info);
    }
    write_index(&files, &infos, kept)?;
    let builtin = unpacked.join("modules.builtin");
    if builtin.is_file() {
        let target = kept.join("modules.builtin");
        fs::copy(&builtin, &target).map_err(KernelError::store("write", &target))?;
    }
    Ok(infos.len())
}

fn is_wanted(path: &str) -> bool {
    let path = path.strip_prefix("kernel/").unwrap_or(path);
    WANTED.iter().any(|wanted| path.starts_with(wanted))
}

/// `PATH.ko.xz` as `PATH.ko`.
fn plain_name(path: &str) -> &str {
    path.find(".ko").and_then(|at| path.get(..at + 3)).unwrap_or(path)
}

/// Collects the modules below `root/directory`: name to path from `root`.
fn find_modules(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) -> Result<(), KernelError> {
    let full = root.join(directory);
    for entry in fs::read_dir(&full).map_err(KernelError::store("list", &full))? {
        let entry = entry.map_err(KernelError::store("list", &full))?;
        let path = directory.join(entry.file_name());
        let kind = entry.file_type().map_err(KernelError::store("examine", &path))?;
        if kind.is_dir() {
            find_modules(root, &path, found)?;
        } else if let Some(text) = path.to_str().filter(|t| kind.is_file() && t.contains(".ko")) {
            found.insert(name_of(text), text.to_owned());
        }
    }
    Ok(())
}

/// The module in `path`, uncompressed.
fn read_module(path: &Path) -> Result<Vec<u8>, KernelError> {
    let file = File::open(path).map_err(KernelError::store("open", path))?;
    let extension = path.extension().and_then(|e| e.to_str());
    let compression = match extension {
        Some("xz") => Compression::Xz,
        Some("zst") => Compression::Zstd,
        Some("gz") => Compression::Gzip,
        _ => Compression::None,
    };
    let mut bytes = Vec::new();
    let damaged = |e: io::Error| KernelError::package(path, format!("the module is damaged ({e})"));
    decoder(compression, file).map_err(damaged)?.take(MODULE_MAX).read_to_end(&mut bytes).map_err(damaged)?;
    Ok(bytes)
}

/// Writes `modules.dep` and `modules.alias`.
fn write_index(
    files: &BTreeMap<String, String>,
    infos: &BTreeMap<String, Info>,
    kept: &Path,
) -> Result<(), KernelError> {
    let before = direct_dependencies(infos);
    let path_of = |name: &str| plain_name(files.get(name).map_or("", String::as_str));
    let (mut dep, mut alias) = (String::new(), String::new());
    for (name, info) in infos {
        dep.push_str(path_of(name));
        dep.push(':');
        // kmod lists the nearest first and loads from the end.
        for dependency in in_order(name, &before).iter().rev().filter(|d| *d != name) {
            dep.push(' ');
            dep.push_str(path_of(dependency));
        }
        dep.push('\n');
        for pattern in info.aliases.iter().filter(|a| a.split(':').next() != Some("pci")) {
            alias.push_str(&format!("alias {pattern} {name}\n"));
        }
    }
    for (file, text) in [("modules.dep", dep), ("modules.alias", alias)] {
        let path = kept.join(file);
        fs::write(&path, text).map_err(KernelError::store("write", &path))?;
    }
    Ok(())
}

/// The kept modules that each one needs, hard and soft; a soft one may be named by alias.
fn direct_dependencies(infos: &BTreeMap<String, Info>) -> HashMap<&str, Vec<&str>> {
    let mut by_alias: HashMap<String, &str> = HashMap::new();
    for (name, info) in infos {
        for alias in &info.aliases {
            // Of several ways to do the same, the generic one works on every processor.
            let known = by_alias.entry(alias.replace('-', "_")).or_insert(name);
            if name.ends_with("_generic") {
                *known = name;
            }
        }
    }
    let resolve = |wanted: &String| {
        infos.get_key_value(wanted).map(|(name, _)| name.as_str()).or_else(|| by_alias.get(wanted).copied())
    };
    infos
        .iter()
        .map(|(name, info)| (name.as_str(), info.depends.iter().chain(&info.soft_pre).filter_map(resolve).collect()))
        .collect()
}

/// `name` and all it needs, each after what it needs itself. A cycle, which only a damaged module can make, is cut.
fn in_order<'a>(name: &'a str, before: &HashMap<&'a str, Vec<&'a str>>) -> Vec<&'a str> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::from([name]);
    // The second part is how many of its dependencies have been gone into.
    let mut path = vec![(name, 0)];
    while let Some((module, next)) = path.last_mut() {
        let dependency = before.get(*module).and_then(|all| all.get(*next)).copied();
        *next += 1;
        match dependency {
            Some(dependency) if seen.insert(dependency) => path.push((dependency, 0)),
            Some(_) => {}
            None => {
                order.push(*module);
                path.pop();
            }
        }
    }
    order
}

/// The files in `directory` that provide `names` and, as far as they are there, `optional`, in loading order, each once.
pub(super) fn loading_order(
    directory: &Path,
    names: &[&str],
    optional: &[&str],
    release: impl Fn() -> String,
) -> Result<Vec<PathBuf>, KernelError> {
    let index = directory.join("modules.dep");
    let dep = fs::read_to_string(&index).map_err(KernelError::store("read", &index))?;
    let mut builtin = None;
    let mut order: Vec<&str> = Vec::new();
    let all = names.iter().map(|name| (name, true)).chain(optional.iter().map(|name| (name, false)));
    for (name, required) in all {
        let wanted = name.replace('-', "_");
        let line = dep.lines().filter_map(|line| line.split_once(':')).find(|(path, _)| is_named(path, &wanted));
        if let Some((path, needs)) = line {
            for file in needs.split_whitespace().rev().chain([path]) {
                if !order.contains(&file) {
                    order.push(file);
                }
            }
            continue;
        }
        if !required {
            continue;
        }
        let list = match &builtin {
            Some(list) => list,
            None => builtin.insert(read_builtin(directory)?),
        };
        if !list.lines().any(|path| is_named(path, &wanted)) {
            return Err(KernelError::NoModule { release: release(), module: wanted });
        }
    }
    Ok(order.into_iter().map(|file| directory.join(file)).collect())
}

/// Whether `path` is that of the module `name`, which is written with `_`.
fn is_named(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split('.').next().unwrap_or(file);
    stem.len() == name.len() && stem.bytes().zip(name.bytes()).all(|(a, b)| a == b || (a == b'-' && b == b'_'))
}

fn read_builtin(directory: &Path) -> Result<String, KernelError> {
    let path = directory.join("modules.builtin");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(KernelError::store("read", &path)(e)),
    }
}

#[cfg(test)]
mod tests;
