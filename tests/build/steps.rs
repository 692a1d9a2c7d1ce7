//! `RUN`, in both isolations.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Setting;
use crate::harness::{Case, Isolation, both, container, world};

pub(crate) fn cases() -> Vec<Case> {
    let shared = [
        both("build_runs_commands", runs_commands),
        both("build_uses_what_is_known", uses_what_is_known),
        both("build_run_is_reproducible", run_is_reproducible),
        both("build_run_fails_with_its_line", run_fails),
    ];
    let killed = container("build_killed_in_a_command_leaves_a_whole_store", killed);
    shared.into_iter().flatten().chain([killed]).collect()
}

fn other(isolation: Isolation) -> Isolation {
    match isolation {
        Isolation::Vm => Isolation::Container,
        Isolation::Container => Isolation::Vm,
    }
}

fn runs_commands(isolation: Isolation) {
    let setting = Setting::new();
    let dockerfile = "FROM made\n\
        ARG who=nobody\n\
        ENV greeting=hello\n\
        WORKDIR /w\n\
        RUN echo \"$greeting $who\" > said && mkdir d && echo 1 > d/f && chown 7:8 d/f && ln d/f d/g && ln -s f d/l\n\
        RUN [ \"$(stat -c %u:%g:%h d/g)\" = 7:8:2 ] && rm d/l\n\
        RUN [\"/bin/rm\", \"/etc/passwd\"]\n\
        RUN rm -r d && mkdir d && echo 2 > d/only\n\
        RUN <<EOF\necho from a > here\ncat >> here <<X\ndocument\nX\nEOF\n\
        SHELL [\"/bin/sh\", \"-ec\"]\n\
        RUN echo $0; false || true\n\
        CMD cat said here; ls d; [ -e /etc/passwd ] || echo gone\n";
    let options = ["-t", "x", "--isolation", isolation.name(), "--build-arg", "who=you"];
    let built = setting.build(&options, dockerfile).finish().expect(0);
    assert!(built.errors().contains("STEP 5/12: RUN echo"), "{built}");
    let expected = "hello you\nfrom a\ndocument\nonly\ngone";
    setting.own.run(isolation, &["x"]).finish().expect_text(expected);
    if isolation == Isolation::Vm {
        setting.own.run(other(isolation), &["x"]).finish().expect_text(expected);
    }
}

fn uses_what_is_known(isolation: Isolation) {
    let setting = Setting::new();
    setting.write("f", "1");
    let dockerfile = "FROM made\nRUN echo first; cat /proc/sys/kernel/random/uuid > /a\nCOPY f /f\nRUN echo second; cat /f > /g\nCMD [\"/bin/cat\", \"/g\"]\n";
    let build = |options: &[&str]| {
        let options = [&["-t", "x", "--isolation", isolation.name()], options].concat();
        let built = setting.build(&options, dockerfile).finish().expect(0);
        let errors = built.errors();
        let ran = |text: &str| errors.lines().any(|line| line == text);
        (built.text(), ran("first"), ran("second"), errors.matches("--> Using cache").count())
    };
    let (first, ..) = build(&[]);
    assert_eq!(build(&[]), (first.clone(), false, false, 3));
    setting.write("f", "2");
    let (changed, ran_first, ran_second, cached) = build(&[]);
    assert_eq!((changed != first, ran_first, ran_second, cached), (true, false, true, 1));
    setting.own.run(isolation, &["x"]).finish().expect_text("2");
    // What only builds need survives the removal of an image, and goes with all that is not needed.
    setting.own.amphi(&["rmi", "x"]).finish().expect(0);
    assert_eq!(build(&[]).3, 3);
    setting.own.amphi(&["rmi", "x"]).finish().expect(0);
    setting.own.amphi(&["prune"]).finish().expect(0);
    assert_eq!(build(&[]).3, 0);
}

fn run_is_reproducible(isolation: Isolation) {
    let setting = Setting::new();
    let dockerfile = "FROM made\nRUN mkdir /n && echo 1 > /n/a && touch /etc/new && rm /etc/group\n";
    let build = |isolation: Isolation| {
        let options = ["-t", "x", "--no-cache", "--isolation", isolation.name()];
        setting.build(&options, dockerfile).env("SOURCE_DATE_EPOCH", "1700000000").finish().expect(0).text()
    };
    let first = build(isolation);
    assert_eq!(build(isolation), first);
    if isolation == Isolation::Vm {
        assert_eq!(build(other(isolation)), first, "both isolations make the same image");
    }
}

fn run_fails(isolation: Isolation) {
    let setting = Setting::new();
    let options = ["-t", "x", "--isolation", isolation.name()];
    let failed = setting.build(&options, "FROM made\n\nRUN echo said; exit 3\n").finish();
    assert!(failed.errors().contains("said"), "{failed}");
    failed.expect_error(125, &["line 3", "exit 3", "3"]);
    let failed = setting.build(&options, "FROM made\nRUN [\"/nowhere\"]\n").finish();
    failed.expect_error(125, &["line 2", "/nowhere"]);
    setting.own.amphi(&["inspect", "x"]).finish().expect_error(125, &["not in the store"]);
}

fn killed() {
    let setting = Setting::new();
    let options = ["-t", "x", "--isolation", "container"];
    let dockerfile = "FROM made\nRUN echo first > /a\nRUN echo 1 > /marker; sleep 1000\n";
    let mut build = setting.build(&options, dockerfile).start();
    let incoming = setting.own.path().join("images/incoming");
    let in_command = || {
        let mut folders = fs::read_dir(&incoming).into_iter().flatten().flatten();
        folders.any(|folder| folder.path().join("upper/marker").exists())
    };
    let deadline = Instant::now() + world::seconds(30);
    while !in_command() {
        assert!(Instant::now() < deadline, "the command does not run");
        std::thread::sleep(Duration::from_millis(10));
    }
    build.signal(Signal::KILL);
    build.wait_until_gone();
    setting.own.amphi(&["inspect", "x"]).finish().expect_error(125, &["not in the store"]);
    let built = setting.build(&options, "FROM made\nRUN echo first > /a\nRUN echo second > /b\n").finish().expect(0);
    assert_eq!(built.errors().matches("--> Using cache").count(), 1, "{built}");
    setting.own.amphi(&["prune"]).finish().expect(0);
    assert_eq!(fs::read_dir(&incoming).unwrap().count(), 0, "what the killed one has left goes");
}
