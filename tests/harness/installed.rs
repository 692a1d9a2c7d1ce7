//! The guest kernels that amphi has installed.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::command::{Amphi, BINARY};

/// The distribution's kernels that the cases boot. Without `--series` the newest alone would be installed.
const STOCK_SERIES: [&str; 2] = ["6.1", "6.12"];

/// Gets the kernels that the cases boot. Quick where they are there already.
pub(crate) fn prepare() {
    let stock = STOCK_SERIES.map(|series| vec!["kernel", "install", "--series", series]);
    for args in stock.into_iter().chain([vec!["kernel", "build"]]) {
        eprintln!("amphi {}", args.join(" "));
        match Command::new(BINARY).args(&args).stdin(Stdio::null()).stdout(Stdio::null()).status() {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("warning: amphi {} ended with {status}: cases that need it will fail", args.join(" "))
            }
            Err(error) => eprintln!("warning: {BINARY} does not start: {error}"),
        }
    }
}

/// A kernel that amphi knows by name.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) release: String,
    pub(crate) own: bool,
}

/// A case that is for several kernels.
pub(crate) type WithKernel = fn(&Kernel);

/// All of them.
pub(crate) fn kernels() -> Vec<Kernel> {
    let list = Amphi::new(["kernel", "list", "--format", "json"]).finish().expect(0);
    let list: Vec<Value> = serde_json::from_slice(&list.stdout).unwrap_or_else(|error| panic!("{error} {list}"));
    let text = |kernel: &Value, field: &str| {
        kernel[field].as_str().unwrap_or_else(|| panic!("no {field} in {kernel}")).to_owned()
    };
    let own = |kernel: &Value| kernel["own"].as_bool().unwrap_or_else(|| panic!("no own in {kernel}"));
    list.iter()
        .map(|kernel| Kernel { name: text(kernel, "name"), release: text(kernel, "release"), own: own(kernel) })
        .collect()
}

/// The distribution's kernel of that series, such as "6.1."; the case fails where there is none.
pub(crate) fn stock(series: &str) -> Kernel {
    let kernels = kernels();
    let names: Vec<_> = kernels.iter().map(|kernel| kernel.name.clone()).collect();
    let found = kernels.into_iter().find(|kernel| !kernel.own && kernel.release.starts_with(series));
    found.unwrap_or_else(|| panic!("no stock kernel {series}* is installed, only {names:?}"))
}

/// amphi's own kernel; the case fails where there is none.
pub(crate) fn own() -> Kernel {
    kernels().into_iter().find(|kernel| kernel.own).expect("amphi's own kernel is not built: amphi kernel build")
}
