//! Networks that cannot be had: the error says which, why, and what to do.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use super::user;
use crate::harness::netns::{self, ip};
use crate::harness::{Amphi, Case, Isolation, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("network_options_that_are_none", network_options_that_are_none),
        vm("network_of_a_container", network_of_a_container),
        vm("tap_that_is_in_use", || netns::run(tap_that_is_in_use)),
        vm("tap_without_permission", || netns::run(tap_without_permission)),
        vm("tap_that_is_something_else", || netns::run(tap_that_is_something_else)),
        vm("passt_that_is_missing", passt_that_is_missing),
        vm("passt_without_a_host_network", || netns::run(passt_without_a_host_network)),
        vm("passt_with_a_port_in_use", || netns::run(passt_with_a_port_in_use)),
    ]
}

fn run(options: &[&str]) -> Amphi {
    Amphi::sh(Isolation::Vm, "true").with(options)
}

fn network_options_that_are_none() {
    for (network, word) in [
        ("bridge", "later"),
        ("host", "later"),
        ("web", "user"),
        ("tap", "tap:NAME"),
        ("user,mac=01:00:00:00:00:00", "mac"),
        ("tap:t,mac=x", "mac"),
        ("tap:t,ip=10.0.0.1", "ip=192.0.2.2/24"),
        ("tap:t,gateway=10.0.0.1", "gateway"),
        ("user,rx-ops=0", "rx-ops"),
        ("user,speed=1", "speed"),
        ("user,vhost", "vhost"),
        ("tap:t,vhost,tx-ops=1/s", "tx-ops"),
    ] {
        run(&["--network", network]).finish().expect_error(125, &["--network", word]);
    }
    for port in ["80", "0:80", "80:80/sctp", "here:80:80"] {
        run(&["--network", "user", "-p", port]).finish().expect_error(125, &["publish", port]);
    }
    run(&["-p", "80:80"]).finish().expect_error(125, &["--publish", "--network user"]);
    run(&["--network", "tap:a-name-that-is-too-long"]).finish().expect_error(125, &["--network", "15 characters"]);
}

fn network_of_a_container() {
    for network in ["user", "tap:t"] {
        let amphi = Amphi::sh(Isolation::Container, "true").with(["--network", network]);
        amphi.finish().expect_error(125, &["--network", "--isolation vm"]);
    }
}

fn tap_that_is_in_use() {
    let mut first = Amphi::sh(Isolation::Vm, "echo up; cat").with(["-i", "--network", "tap:t0"]).open_input().start();
    first.wait_for_output("up");
    run(&["--network", "tap:t0"]).finish().expect_error(125, &["tap:t0", "in use"]);
    assert!(netns::has_interface("t0"));
}

/// As root, but without the capability.
fn tap_without_permission() {
    let amphi = run(&["--network", "tap:t0"]).line();
    let output = Command::new("setpriv").args(["--bounding-set=-net_admin", "sh", "-c", &amphi]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    for word in ["tap:t0", "ip tuntap add t0 mode tap", "permission"] {
        assert!(errors.contains(word), "no {word}: {errors}");
    }
}

fn tap_that_is_something_else() {
    run(&["--network", "tap:lo"]).finish().expect_error(125, &["tap:lo", "no tap interface"]);
    ip("tuntap add tun0 mode tun");
    run(&["--network", "tap:tun0"]).finish().expect_error(125, &["tap:tun0", "no tap interface"]);
}

fn passt_that_is_missing() {
    run(&["--network", "user"])
        .env("PATH", "/var/empty")
        .finish()
        .expect_error(125, &["passt", "apt-get install passt"]);
}

fn passt_without_a_host_network() {
    run(&["--network", "user"]).finish().expect_error(125, &["--network user", "default route"]);
}

fn passt_with_a_port_in_use() {
    user::make_host();
    let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap();
    run(&["--network", "user", "-p", "8080:80"]).finish().expect_error(125, &["8080:80", "in use"]);
}
