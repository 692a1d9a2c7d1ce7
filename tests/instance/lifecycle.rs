//! From `run` over `ps`, `inspect` and `start` to `rm`.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::run;
use crate::harness::images::{Made, OwnRoot};
use crate::harness::{Case, Finished, Isolation, both, container, rootfs};

pub(crate) fn cases() -> Vec<Case> {
    [
        both("instance_stays_and_goes_on", instance_stays_and_goes_on),
        both("instance_is_listed_while_it_runs", instance_is_listed_while_it_runs),
        both("instance_after_kill", instance_after_kill),
        vec![container("instance_is_not_used_before_its_killed_run_has_ended", killed_run_ends_first)],
        both("instance_keeps_its_image", instance_keeps_its_image),
        both("instance_of_rm_is_none", instance_of_rm_is_none),
        both("instances_start_side_by_side", instances_start_side_by_side),
        both("instance_that_cannot_start", instance_that_cannot_start),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn list(own: &OwnRoot, options: &[&str]) -> Vec<Value> {
    let listed = own.amphi(&[&["ps", "--format", "json"], options].concat()).finish().expect(0);
    serde_json::from_slice(&listed.stdout).unwrap()
}

/// What is in the folder of the instances, but for its lock.
fn folders(own: &OwnRoot) -> Vec<String> {
    let entries = fs::read_dir(own.path().join("instances")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name != ".lock").collect()
}

fn instance_stays_and_goes_on(isolation: Isolation) {
    let own = OwnRoot::new();
    let script = "if [ -e /kept ]; then cat /kept; stat -c %u:%g /kept; exit 3; fi
                  echo first >/kept; chown 7:8 /kept; exit 2";
    run(&own, isolation, "web", script).finish().expect(2);
    assert_eq!(list(&own, &[]), Vec::<Value>::new(), "it does not run");
    let [one] = &list(&own, &["--all", "--size"])[..] else { panic!("not one") };
    assert_eq!((&one["name"], &one["state"], &one["exit_code"]), (&"web".into(), &"exited".into(), &2.into()));
    assert_eq!(one["isolation"], isolation.name());
    assert!(one["size"].as_u64().unwrap() >= 4096 && one["finished"].is_string(), "{one}");
    let id = one["id"].as_str().unwrap();
    assert_eq!(id.len(), 12);
    let table = own.amphi(&["ps", "-a", "-s"]).finish().expect(0).text();
    assert!(table.lines().count() == 2 && table.contains("exited (2)") && table.contains(id), "{table}");
    own.amphi(&["ps", "-aq"]).finish().expect_text(id);

    let again = own.amphi(&["start", "-a", &id[..5]]).finish().expect(3);
    assert_eq!(again.text(), "first\n7:8");
    let inspected = own.amphi(&["inspect", "web"]).finish().expect(0);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((&inspected["exit_code"], &inspected["record"]["name"]), (&3.into(), &"web".into()));

    run(&own, isolation, "web", "exit 0").finish().expect_error(125, &["--name", "web", id, "amphi rm"]);
    own.amphi(&["start", "web"]).finish().expect_error(125, &["--attach"]);
    own.amphi(&["start", "-a", "nobody"]).finish().expect_error(125, &["nobody", "amphi ps"]);
    own.amphi(&["rm", "web"]).finish().expect_text("web");
    own.amphi(&["rm", "web"]).finish().expect_error(125, &["web"]);
    assert_eq!(folders(&own), Vec::<String>::new());
}

fn instance_is_listed_while_it_runs(isolation: Isolation) {
    let own = OwnRoot::new();
    let mut running = run(&own, isolation, "busy", "echo up; while :; do sleep 1; done").start();
    running.wait_for_output("up");
    let [one] = &list(&own, &[])[..] else { panic!("not one") };
    assert_eq!((&one["state"], &one["exit_code"]), (&"running".into(), &Value::Null));
    for command in [&["rm", "busy"][..], &["start", "-a", "busy"]] {
        own.amphi(command).finish().expect_error(125, &["busy", "runs"]);
    }
    own.amphi(&["rm", "--force", "busy"]).finish().expect_text("busy");
    running.finish().expect_signal(Signal::KILL);
    assert_eq!(folders(&own), Vec::<String>::new());
}

fn instance_after_kill(isolation: Isolation) {
    let own = OwnRoot::new();
    let script = "echo $$ >>/runs; sync; echo up; [ $(wc -l </runs) -gt 1 ] || while :; do sleep 1; done; wc -l </runs";
    let mut running = run(&own, isolation, "cut", script).start();
    running.wait_for_output("up");
    running.signal(Signal::KILL);
    running.finish().expect_signal(Signal::KILL);
    let [one] = &list(&own, &["-a"])[..] else { panic!("not one") };
    assert_eq!((&one["state"], &one["exit_code"]), (&"exited".into(), &137.into()));
    assert_eq!(one["finished"], Value::Null, "nobody knows");
    let table = own.amphi(&["ps", "-a"]).finish().expect(0).text();
    assert!(table.contains("killed (137)"), "{table}");
    own.amphi(&["start", "-a", "cut"]).finish().expect_text("up\n2");
    own.amphi(&["rm", "cut"]).finish().expect(0);
}

/// Whether the process has not ended yet.
fn is_there(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    !(state.is_empty() || state.starts_with('Z') || state.starts_with('X'))
}

/// The container's PID 1 is stopped, so that it does not end by itself when its amphi is killed.
fn killed_run_ends_first() {
    let own = OwnRoot::new();
    let script = "[ ! -e /begun ] || exit 5; echo >/begun; echo up; while :; do echo >>/ticks; sleep 0.01; done";
    for (command, status) in [
        (&["diff", "cut"][..], 0),
        (&["cp", "cut:/begun", "-"], 0),
        // It was made from no image of the store, which is found out when it has been taken.
        (&["commit", "cut", "app:1"], 125),
        (&["start", "-a", "cut"], 5),
        (&["rm", "cut"], 0),
    ] {
        let mut running = run(&own, Isolation::Container, "cut", script).start();
        running.wait_for_output("up");
        let first = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.id())).unwrap();
        let first = first.trim();
        let pid = Pid::from_raw(first.parse().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        running.signal(Signal::KILL);
        running.wait_until_gone();
        assert!(is_there(first));
        own.amphi(command).finish().expect(status);
        if is_there(first) {
            kill_process(pid, Signal::KILL).unwrap();
            panic!("{command:?} was done while the first run's container was still there");
        }
        let _: Finished = running.finish();
        own.amphi(&["rm", "cut"]).finish();
    }
}

fn instance_keeps_its_image(isolation: Isolation) {
    let own = OwnRoot::new();
    let made = Made::new().layer(|root| fs::write(root.join("etc/second"), "2").unwrap());
    let layout = format!("oci:{}:made", made.layout().display());
    own.amphi(&["load", "--name", "app:1", &layout]).finish().expect(0);
    let command = ["/bin/sh", "-c", "cat /etc/second; echo >>/n; wc -l </n"];
    let base = ["run", "--isolation", isolation.name(), "--name", "user", "app:1", "--"];
    own.amphi(&[&base[..], &command].concat()).finish().expect_text("21");
    own.amphi(&["rmi", "app:1"]).finish().expect_error(125, &["app:1", "user", "amphi rm"]);
    own.amphi(&["tag", "app:1", "app:2"]).finish().expect(0);
    own.amphi(&["rmi", "app:1"]).finish().expect(0);
    own.amphi(&["rmi", "--force", "app:2"]).finish().expect(0);
    let dry = own.amphi(&["prune", "--dry-run"]).finish().expect(0).text();
    assert!(dry.contains("would keep the image sha256:") && dry.contains("user"), "{dry}");
    own.amphi(&["prune"]).finish().expect(0);
    own.amphi(&["start", "-a", "user"]).finish().expect_text("22");
    let dry = own.amphi(&["prune", "--instances", "--dry-run"]).finish().expect(0).text();
    assert!(dry.contains("would remove the instance user") && dry.contains(".erofs"), "{dry}");
    own.amphi(&["prune", "--instances"]).finish().expect(0);
    assert_eq!(folders(&own), Vec::<String>::new());
    let left = own.store_files();
    assert!(left.iter().all(|file| !file.contains('/')), "{left:?}");
}

fn instance_of_rm_is_none(isolation: Isolation) {
    let own = OwnRoot::new();
    let image = format!("dir:{}", rootfs::busybox().display());
    own.run(isolation, &["--name", "gone", &image, "--", "true"]).finish().expect(0);
    assert!(!own.path().join("instances").exists());
}

fn instances_start_side_by_side(isolation: Isolation) {
    let own = OwnRoot::new();
    let names = ["a", "b", "c"];
    let started: Vec<_> = names.iter().map(|name| run(&own, isolation, name, "cat /n; echo $0 >/n").start()).collect();
    for one in started {
        one.finish().expect_text("");
    }
    let started: Vec<_> = names.iter().map(|name| own.amphi(&["start", "-a", name]).start()).collect();
    for one in started {
        assert_eq!(one.finish().expect(0).text().lines().count(), 1, "each has its own layer");
    }
    own.amphi(&["rm", "a", "b", "c"]).finish().expect(0);
    assert_eq!(folders(&own), Vec::<String>::new());
}

fn instance_that_cannot_start(isolation: Isolation) {
    let own = OwnRoot::new();
    let image = format!("dir:{}", rootfs::busybox().display());
    let base = ["run", "--isolation", isolation.name(), "--name", "x"];
    own.amphi(&[&base[..], &["--user", "nobody-at-all", &image, "--", "true"]].concat()).finish().expect(125);
    own.amphi(&[&base[..], &["--kernel", "/no/kernel", &image, "--", "true"]].concat()).finish().expect(125);
    own.amphi(&["rm", "-f"]).finish().expect(125);
    if !folders(&own).is_empty() {
        own.amphi(&["rm", "x"]).finish().expect(0);
    }
    own.amphi(&[&base[..], &[&image, "--", "/no/command"]].concat()).finish().expect(127);
    assert_eq!(list(&own, &["-a"])[0]["exit_code"], 127);
}
