//! Builds what is carried inside amphi.

#[path = "build/guest_init.rs"]
mod guest_init;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    guest_init::build();
}
