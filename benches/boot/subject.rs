//! What is measured: a command line each, and how to see its stages.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use amphi::bench::RunReport;
use amphi::isolation::Instant;
use amphi::kernel::Kernel;

use crate::closing;
use crate::guest::{self, Act, MARK};
use crate::in_memory;
use crate::memory::Footprint;
use crate::world::progress;

/// The guests' RAM.
pub(crate) const MEMORY_MIB: u32 = 128;
/// The command line of the runs with identical inputs. Firecracker adds `pci=off` to what it is given, and so does amphi.
const COMMAND_LINE: &str = "quiet console=ttyS0 reboot=k panic=-1 nomodule pci=off";
/// Between runs, and from a guest's first sign of life until its memory is looked at.
const SETTLE: Duration = Duration::from_millis(200);

/// How the guest's PID 1 makes itself known.
#[derive(Clone, Copy, PartialEq)]
enum Sign {
    /// By a mark on the console, which is standard output.
    Console,
    /// By amphi's timeline.
    Timeline,
    /// Not at all.
    None,
}

/// One thing to measure.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// Whether all figures are also given in relation to this one's.
    pub(crate) is_peer: bool,
    command: Vec<String>,
    /// A command of the same kind that stays, for its memory.
    lasting: Option<Vec<String>>,
    sign: Sign,
    /// Whether it is amphi's, which writes a timeline when asked to.
    timeline: bool,
}

/// The stages of one run, in nanoseconds from its start.
#[derive(Clone, Copy, Default)]
pub(crate) struct Measured {
    pub(crate) first_instruction: Option<u64>,
    pub(crate) init: Option<u64>,
    pub(crate) exit: u64,
    /// When the host's kernel has closed the VM, too.
    pub(crate) gone: u64,
}

/// How long one process took, and until the mark where it is looked for.
struct Run {
    exit: u64,
    gone: u64,
    marked: Option<u64>,
}

impl Subject {
    /// Runs the subject twice: undisturbed, for the time to its exit, and watched, for the stages before.
    pub(crate) fn measure(&self) -> Result<Measured, String> {
        let Run { exit, gone, .. } = self.run(&self.command, false)?;
        let mut measured = Measured { exit, gone, ..Measured::default() };
        if !self.timeline && self.sign == Sign::None {
            return Ok(measured);
        }
        let mut command = self.command.clone();
        let mut file = tempfile::tempfile_in("/dev/shm").map_err(|e| format!("a temporary file: {e}"))?;
        if self.timeline {
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).map_err(|e| e.to_string())?;
            command.splice(3..3, ["--timeline-fd".to_owned(), file.as_raw_fd().to_string()]);
        }
        let start = Instant::now();
        measured.init = self.run(&command, self.sign == Sign::Console)?.marked;
        if self.timeline {
            let mut text = String::new();
            std::io::Seek::rewind(&mut file)
                .and_then(|()| file.read_to_string(&mut text))
                .map_err(|e| e.to_string())?;
            let report: RunReport =
                serde_json::from_str(&text).map_err(|e| format!("{}: its timeline: {e}", self.name))?;
            let since = |at: Option<Instant>| at.map(|at| at.0 - start.0);
            measured.first_instruction = since(report.timeline.first_instruction);
            measured.init = measured.init.or(since(report.timeline.init_ready));
        }
        Ok(measured)
    }

    /// Runs a command to its end, and on until no VM is left that could disturb the next one.
    fn run(&self, command: &[String], find_mark: bool) -> Result<Run, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.name);
        let stdout = if find_mark { Stdio::piped() } else { Stdio::null() };
        let mut prepared = prepare(command);
        prepared.stdout(stdout).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = prepared.spawn().map_err(failed)?;
        let marked = if find_mark { Some(wait_for_mark(&mut child).map_err(failed)?.0 - start.0) } else { None };
        let status = child.wait().map_err(failed)?;
        let exit = Instant::now().0 - start.0;
        closing::wait().map_err(failed)?;
        let gone = Instant::now().0 - start.0;
        // What the kernel still does for this one (it ends namespaces and groups on its own time) is not the next one's.
        std::thread::sleep(SETTLE);
        if status.success() {
            return Ok(Run { exit, gone, marked });
        }
        let mut said = String::new();
        let _ = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        Err(format!("{} ended with {status}: {said}", self.name))
    }

    /// What the process of a running instance takes beside guest RAM.
    pub(crate) fn footprint(&self) -> Option<Result<(&'static str, Footprint), String>> {
        let lasting = self.lasting.as_ref()?;
        let look = || -> std::io::Result<Footprint> {
            let mut child =
                prepare(lasting).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            // A guest that reads gives the mark back; others write it by themselves.
            let stdin = child.stdin.take().map(|mut stdin| {
                let _ = stdin.write_all(MARK);
                stdin
            });
            let found = wait_for_mark(&mut child).and_then(|_| {
                std::thread::sleep(SETTLE);
                Footprint::of(child.id())
            });
            child.kill()?;
            child.wait()?;
            drop(stdin);
            found
        };
        Some(look().map(|footprint| (self.name, footprint)).map_err(|error| format!("{}: {error}", self.name)))
    }
}

fn prepare(command: &[String]) -> Command {
    let mut prepared = Command::new(&command[0]);
    prepared.args(&command[1..]).stdin(Stdio::null());
    prepared
}

/// Reads the child's standard output up to the mark, and the rest of it, and tells when the mark came.
fn wait_for_mark(child: &mut Child) -> std::io::Result<Instant> {
    let mut stdout = child.stdout.take().ok_or(std::io::ErrorKind::NotFound)?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stdout.read(&mut buffer)?;
        if count == 0 {
            let said = String::from_utf8_lossy(&seen).into_owned();
            return Err(std::io::Error::other(format!("it ended before its init began, and said: {said}")));
        }
        seen.extend_from_slice(&buffer[..count]);
        if seen.windows(MARK.len() - 1).any(|window| window == &MARK[..MARK.len() - 1]) {
            let at = Instant::now();
            // Whoever writes more must not be stopped by a closed pipe.
            std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
            return Ok(at);
        }
    }
}

/// All that can be measured here, with everything that it needs below `directory`.
pub(crate) fn all(directory: &Path) -> Result<Vec<Subject>, String> {
    let files = Files::prepare(directory).map_err(|error| format!("preparing the inputs: {error}"))?;
    let mut subjects = vec![files.direct()];
    subjects.extend(files.firecracker()?);
    subjects.extend(files.qemu());
    subjects.push(files.own());
    subjects.push(files.container());
    subjects.extend(files.oci("crun")?);
    subjects.extend(files.oci("runc")?);
    subjects.push(files.unshare());
    for program in ["firecracker", "crun", "runc", "unshare"] {
        let copy = directory.join(program);
        let program = if copy.exists() { copy.display().to_string() } else { program.to_owned() };
        in_memory::bring(&program, directory).map_err(|error| format!("bringing {program} into memory: {error}"))?;
    }
    Ok(subjects)
}

/// Copies on a memory file system: the lab's view of the host's files is slow.
struct Files {
    directory: PathBuf,
    kernel: String,
    reboot: String,
    sleep: String,
    amphi: String,
    exit: String,
}

impl Files {
    fn prepare(directory: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let path = |name: &str| directory.join(name).display().to_string();
        let found = Kernel::resolve(None)?;
        let store = found.image.parent().ok_or("the kernel has no directory")?;
        let release = found.release.ok_or("the kernel has no release")?;
        if !release.ends_with("amphi") {
            return Err("amphi's own kernel is not there: run `amphi kernel build` first".into());
        }
        let copied = directory.join("root/kernels/store/own");
        fs::create_dir_all(&copied)?;
        fs::create_dir_all(directory.join("root/kernels/names"))?;
        for name in ["vmlinux", "kernel.json"] {
            fs::copy(store.join(name), copied.join(name))?;
        }
        symlink("../store/own", directory.join("root/kernels/names").join(&release))?;
        fs::copy(env!("CARGO_BIN_EXE_amphi"), directory.join("amphi"))?;
        fs::write(directory.join("reboot.cpio"), guest::initramfs(Act::Reboot))?;
        fs::write(directory.join("sleep.cpio"), guest::initramfs(Act::Sleep))?;
        fs::create_dir_all(directory.join("bundle/rootfs"))?;
        for name in ["exit", "bundle/rootfs/exit"] {
            fs::write(directory.join(name), guest::exit_program())?;
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            kernel: copied.join("vmlinux").display().to_string(),
            reboot: path("reboot.cpio"),
            sleep: path("sleep.cpio"),
            amphi: path("amphi"),
            exit: path("exit"),
        })
    }

    /// `amphi run` with `arguments`, its data below the directory. Options of `run` may come after the third word.
    fn amphi(&self, arguments: &[&str]) -> Vec<String> {
        let root = format!("--root={}", self.directory.join("root").display());
        let memory = format!("--memory={MEMORY_MIB}M");
        let first = [self.amphi.clone(), root, "run".to_owned(), memory, "--rm".to_owned()];
        first.into_iter().chain(arguments.iter().map(|&argument| argument.to_owned())).collect()
    }

    fn direct(&self) -> Subject {
        let command = |initrd: &str| {
            let (kernel, initrd) = (format!("--kernel={}", self.kernel), format!("--initrd={initrd}"));
            self.amphi(&[&kernel, &initrd, &format!("--kernel-arg={COMMAND_LINE}")])
        };
        Subject {
            name: "amphi, identical inputs",
            is_peer: false,
            command: command(&self.reboot),
            lasting: Some(command(&self.sleep)),
            sign: Sign::Console,
            timeline: true,
        }
    }

    fn firecracker(&self) -> Result<Option<Subject>, String> {
        let Some(program) = std::env::var_os("FIRECRACKER").filter(|path| !path.is_empty()) else {
            progress("no FIRECRACKER=PATH given: not compared");
            return Ok(None);
        };
        let copy = self.directory.join("firecracker");
        fs::copy(&program, &copy).map_err(|error| format!("{}: {error}", program.display()))?;
        let command = |initrd: &str, name: &str| {
            let config = serde_json::json!({
                "boot-source": { "kernel_image_path": self.kernel, "initrd_path": initrd, "boot_args": COMMAND_LINE },
                "drives": [],
                "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
            });
            let path = self.directory.join(name);
            fs::write(&path, config.to_string()).map_err(|error| format!("{}: {error}", path.display()))?;
            let words = [copy.as_path(), "--no-api".as_ref(), "--config-file".as_ref(), &path];
            Ok::<_, String>(words.iter().map(|word| word.display().to_string()).collect::<Vec<_>>())
        };
        Ok(Some(Subject {
            name: "Firecracker, identical inputs",
            is_peer: true,
            command: command(&self.reboot, "reboot.json")?,
            lasting: Some(command(&self.sleep, "sleep.json")?),
            sign: Sign::Console,
            timeline: false,
        }))
    }

    /// QEMU's microvm machine has no keyboard controller: its guests end by a triple fault.
    fn qemu(&self) -> Option<Subject> {
        let program = std::env::var("QEMU").ok().filter(|program| !program.is_empty())?;
        let command = |initrd: &str| {
            let line = COMMAND_LINE.replace("reboot=k", "reboot=t");
            let memory = MEMORY_MIB.to_string();
            let words = [
                &program,
                "-M",
                "microvm,accel=kvm,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off,isa-serial=on",
                "-cpu",
                "host",
                "-m",
                &memory,
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
                "-kernel",
                &self.kernel,
                "-initrd",
                initrd,
                "-append",
                &line,
            ];
            words.iter().map(|&word| word.to_owned()).collect()
        };
        Some(Subject {
            name: "QEMU microvm, identical inputs",
            is_peer: false,
            command: command(&self.reboot),
            lasting: Some(command(&self.sleep)),
            sign: Sign::Console,
            timeline: false,
        })
    }

    fn own(&self) -> Subject {
        Subject {
            name: "amphi run builtin",
            is_peer: false,
            command: self.amphi(&["builtin", "--", "/bin/true"]),
            lasting: Some(self.amphi(&["-i", "builtin", "--", "/bin/cat"])),
            sign: Sign::Timeline,
            timeline: true,
        }
    }

    fn container(&self) -> Subject {
        Subject {
            name: "amphi run --isolation container builtin",
            is_peer: false,
            command: self.amphi(&["--isolation=container", "builtin", "--", "/bin/true"]),
            lasting: None,
            sign: Sign::Timeline,
            timeline: true,
        }
    }

    /// An OCI runtime, where it is installed, with the configuration that it makes itself.
    fn oci(&self, runtime: &'static str) -> Result<Option<Subject>, String> {
        let bundle = self.directory.join("bundle");
        let config = bundle.join("config.json");
        let _ = fs::remove_file(&config);
        let spec = Command::new(runtime).args(["spec", "--bundle"]).arg(&bundle).output();
        if !spec.is_ok_and(|output| output.status.success()) {
            return Ok(None);
        }
        let own = self.directory.join(format!("bundle-{runtime}"));
        let copy = || -> Result<(), Box<dyn std::error::Error>> {
            let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
            spec["process"]["terminal"] = false.into();
            spec["process"]["args"] = serde_json::json!(["/exit"]);
            spec["root"]["path"] = bundle.join("rootfs").display().to_string().into();
            fs::create_dir(&own)?;
            Ok(fs::write(own.join("config.json"), spec.to_string())?)
        };
        copy().map_err(|error| format!("{runtime}: {error}"))?;
        let own = own.display().to_string();
        let words = [runtime, "run", "--bundle", &own, "amphi-bench"];
        Ok(Some(Subject {
            name: runtime,
            is_peer: false,
            command: words.iter().map(|&word| word.to_owned()).collect(),
            lasting: None,
            sign: Sign::None,
            timeline: false,
        }))
    }

    fn unshare(&self) -> Subject {
        let words = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork", &self.exit];
        Subject {
            name: "unshare (6 namespaces)",
            is_peer: false,
            command: words.iter().map(|&word| word.to_owned()).collect(),
            lasting: None,
            sign: Sign::None,
            timeline: false,
        }
    }
}
