//! PID 1 of microVMs, built for the guest and put where `include_bytes!` finds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// What lays out the built-in image, of which this program is the only one.
const BUILTIN: &str = "src/image/builtin.rs";

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What makes it a freestanding program: its own entry point, no C library, fixed addresses, no padding.
const RUSTFLAGS: [&str; 10] = [
    "--cfg=amphi_guest",
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,norelro",
    "-Clink-arg=-Wl,-z,noseparate-code",
    "-Clink-arg=-Wl,--gc-sections",
];

/// Builds `amphi-guest-init` with a cargo of its own, since it needs other flags and another profile than amphi.
pub(crate) fn build() {
    for path in ["build/guest_init.rs", "resources/guest-init", BUILTIN, "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let variable = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    assert!(architecture == "x86_64", "amphi's guest is for x86_64 only so far, not {architecture}");

    let manifest_dir = variable("CARGO_MANIFEST_DIR");
    let embed = |features: &[&str], name: &str| {
        let bytes = compile(&variable("CARGO"), &manifest_dir, &variable("OUT_DIR").join("guest-init"), features);
        let embedded = variable("OUT_DIR").join(name);
        std::fs::write(&embedded, &bytes).unwrap_or_else(|e| panic!("cannot write {}: {e}", embedded.display()));
        bytes
    };
    let bytes = embed(&["--no-default-features"], "amphi-guest-init");
    // Few guests do a service, and the others are not to carry its code: what is in an initramfs is copied several times.
    embed(&["--features", "service"], "amphi-guest-service");

    // The built-in image's name changes with everything that is in it.
    let layout = read(&manifest_dir.join(BUILTIN));
    let digest = Sha256::new().chain_update(&bytes).chain_update(&layout).finalize();
    let digest: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=AMPHI_BUILTIN_DIGEST={digest}");
}

/// The program, built with those `features`.
fn compile(program: &Path, manifest_dir: &Path, target_dir: &Path, features: &[&str]) -> Vec<u8> {
    let mut cargo = Command::new(program);
    cargo
        .current_dir(manifest_dir)
        // The outer cargo has resolved and fetched everything.
        .args(["build", "--quiet", "--frozen", "--profile", "guest", "--target", TARGET])
        .args(["--package", "amphi-guest-init", "--bin", "amphi-guest-init"])
        .args(features)
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    // Linters and coverage tools come in through these; they have seen the crate already as a part of the workspace.
    for (name, _) in env::vars_os() {
        let foreign = name.to_str().is_some_and(|name| {
            ["RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"].contains(&name)
                || ["CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_BUILD_"].iter().any(|prefix| name.starts_with(prefix))
        });
        if foreign {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run {cargo:?}: {error}"));
    assert!(status.success(), "amphi-guest-init does not build: {cargo:?}: {status}");

    let built = target_dir.join(TARGET).join("guest/amphi-guest-init");
    read(&built)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}
