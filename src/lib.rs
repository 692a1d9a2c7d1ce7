//! amphi runs the same image as a microVM on KVM or as a Linux container, behind one API.
//!
//! The data flows one way: [`image`] opens what is to be run, [`spec`] says how,
//! [`isolation`](mod@isolation) runs it, and [`bench`](mod@bench) measures it.
//!
//! ```no_run
//! use amphi::isolation::Stdio;
//! use amphi::{Image, IsolationKind, RunSpec, isolation};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let image = Image::open("dir:/srv/alpine")?;
//! let spec = RunSpec::builder(&image).args(["/bin/uname", "-r"]).vcpus(1).memory_mib(128).build()?;
//! for kind in IsolationKind::ALL {
//!     let sandbox = isolation(kind).create(&spec, Stdio::inherit()?)?;
//!     sandbox.start()?;
//!     println!("{kind}: {}, init ready at {:?}", sandbox.wait()?, sandbox.timeline().init_ready);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - An [`Image`] is opened once and may be shared: it holds a checked path, not the files.
//! - A [`RunSpec`] is checked when it is built and then never changes; it fits both isolations.
//! - An [`Isolation`] is cheap to make. [`Isolation::probe`] says whether this host can run it.
//! - A [`Sandbox`] is one run. Dropping it ends the workload and removes what was made for it. Several may live in one
//!   process, of both kinds.
//!
//! The library prints nothing, installs no signal handlers, and leaves the terminal alone; what it has to say along the
//! way it says through the [`log`] facade.

pub mod bench;
pub mod build;
pub mod host;
pub mod image;
pub mod instance;
pub mod isolation;
pub mod kernel;
pub mod spec;

pub use image::{Image, Rootfs};
pub use isolation::{ExitStatus, Isolation, IsolationKind, Sandbox, Timeline, isolation};
pub use spec::{RunSpec, RunSpecBuilder};
