//! The steps of a container's set-up, as values that fit the shared page.

use std::fmt;

use rustix::io::Errno;

/// A step that failed in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    /// Which step.
    pub(super) step: Step,
    /// What the kernel said.
    pub(super) errno: Errno,
    /// Which item of the step's table; 0 where it has none.
    pub(super) index: u32,
}

/// Names the step that an error belongs to.
pub(super) trait At<T> {
    /// The error as a failure of `step`.
    fn at(self, step: Step) -> Result<T, Failure>;
    /// The error as a failure of `step` at item `index` of its table.
    fn at_item(self, step: Step, index: usize) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.at_item(step, 0)
    }

    fn at_item(self, step: Step, index: usize) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step, errno, index: u32::try_from(index).unwrap_or(u32::MAX) })
    }
}

macro_rules! steps {
    ($($number:literal $name:ident: $text:literal,)*) => {
        /// What the child was doing. The text completes "cannot ...".
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub(super) enum Step {
            $(#[doc = $text] $name = $number,)*
        }

        impl Step {
            const ALL: &[Self] = &[$(Self::$name),*];
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

steps! {
    1 CloseFiles: "close the host's open files",
    2 NewSession: "start a new session",
    3 Hostname: "set the host name",
    4 Loopback: "bring the loopback interface up",
    5 WaitForParent: "wait for amphi to write the id maps",
    6 CgroupNamespace: "enter a new cgroup namespace",
    7 BecomeRoot: "become root of the user namespace",
    8 PrivateMounts: "make the mounts private",
    9 Scratch: "mount a tmpfs for the writable layer",
    10 Lower: "attach the image's directory",
    11 Overlay: "mount an overlay for /",
    12 MountPoint: "make a mount point",
    13 Proc: "mount /proc",
    14 Sys: "mount /sys",
    15 Cgroup: "mount /sys/fs/cgroup",
    16 Dev: "mount /dev",
    17 MakeDevice: "make a device in /dev",
    18 Pts: "mount /dev/pts",
    19 Shm: "mount /dev/shm",
    20 Mqueue: "mount /dev/mqueue",
    21 ReadOnlyPath: "make a path read-only",
    22 MaskPath: "hide a path",
    23 ReadOnlyRoot: "make / read-only",
    24 PivotRoot: "change the root to the image",
    25 Terminal: "make the terminal",
    26 WorkingDirectory: "enter the working directory",
    27 NoNewPrivileges: "set no_new_privs",
    28 BoundingSet: "drop capabilities from the bounding set",
    29 Seccomp: "install the seccomp filter",
    30 Fork: "fork the workload",
    31 ControllingTerminal: "take the terminal",
    32 StandardStreams: "connect the standard streams",
    33 Limits: "set the resource limits",
    34 Groups: "set the workload's groups",
    35 User: "set the workload's user",
    36 Capabilities: "set the workload's capabilities",
    37 Execute: "execute the command",
    38 InitCapabilities: "drop the capabilities of PID 1",
    39 InitSignals: "receive signals in PID 1",
    40 Volume: "mount the volume",
    41 Kept: "use the instance's folder for the writable layer",
    42 KeptOverlay: "mount an overlay over the instance's folder (its file system may not be fit for that: use --rm, or another --root)",
}

impl Step {
    /// The step of that number; 0 is none.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|&step| step as u32 == number)
    }
}
