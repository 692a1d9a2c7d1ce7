//! The command line itself: errors that need no isolation, and what the host can do.

use crate::harness::{Amphi, Case, host};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        host("usage_errors", usage_errors),
        host("options_before_all_else", options_before_all_else),
        host("values_that_are_none", values_that_are_none),
        host("images_that_are_none", images_that_are_none),
        host("help_and_version", help_and_version),
        host("doctor", doctor),
        host("completions", completions),
        host("kvm_is_missing_or_forbidden", kvm_is_missing_or_forbidden),
    ]
}

fn usage_errors() {
    for (args, word) in [
        (["run", "--bogus"].as_slice(), "--bogus"),
        (&["bogus"], "bogus"),
        (&["run"], "IMAGE"),
        (&["run", "--isolation", "jail", "builtin"], "jail"),
        (&["run", "--kernel", "k", "--initrd", "i", "--isolation", "container"], "--kernel"),
    ] {
        Amphi::new(args).finish().expect_error(125, &[word]);
    }
}

/// What is wrong with an option is said before anything else, such as that there is no kernel yet.
fn options_before_all_else() {
    let nothing = tempfile::tempdir().unwrap();
    for options in [
        ["-v", "/no/such:/b"].as_slice(),
        &["--disk", "/no/such"],
        &["--pmem", "/no/such"],
        &["-p", "80:80"],
        &["--network", "bridge"],
        &["-d"],
    ] {
        let amphi = Amphi::new(["--root", nothing.path().to_str().unwrap(), "run"]).with(options).with(["builtin"]);
        amphi.finish().expect_error(125, &[options[0]]);
    }
}

fn values_that_are_none() {
    for (option, values) in [
        ("--memory", ["0", "0M", "lots", "-5M", "", "99999999999999999999G"].as_slice()),
        ("--cpus", &["0", "many", "-1", ""]),
        ("--pids", &["0", "few", "-1"]),
        ("--hostname", &["", "a b", "-x-"]),
    ] {
        for value in values {
            for isolation in ["vm", "container"] {
                let option_and_value = format!("{option}={value}");
                let args = ["run", "--isolation", isolation, &option_and_value, "builtin"];
                Amphi::new(args).finish().expect_error(125, &[option.trim_start_matches('-')]);
            }
        }
    }
}

fn images_that_are_none() {
    for isolation in ["vm", "container"] {
        for image in ["dir:/no/such/folder", "dir:/etc/passwd", "dir:", "disk:/no/such/disk", "nonsense:/x"] {
            Amphi::new(["run", "--isolation", isolation, image, "true"])
                .finish()
                .expect_error(125, &[image_name(image)]);
        }
    }
}

/// What of a reference an error must name.
fn image_name(image: &str) -> &str {
    image.split_once(":/").map_or(image, |(_, path)| path)
}

fn help_and_version() {
    let version = Amphi::new(["--version"]).finish().expect(0);
    assert_eq!(version.text(), concat!("amphi ", env!("CARGO_PKG_VERSION")), "{version}");
    for args in [["--help"].as_slice(), &["run", "--help"], &["kernel", "--help"]] {
        let help = Amphi::new(args).finish().expect(0);
        assert!(help.text().contains("Usage"), "{help}");
    }
}

fn doctor() {
    let finished = Amphi::new(["doctor"]).finish();
    let text = finished.text().to_lowercase();
    for subject in ["kvm", "cgroup", "namespace", "overlay", "erofs", "tun"] {
        assert!(text.contains(subject), "it says nothing of {subject} {finished}");
    }
}

fn completions() {
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef amphi"), ("fish", "complete -c amphi")] {
        let script = Amphi::new(["completions", shell]).finish().expect(0);
        assert!(script.text().contains(word) && script.text().contains("kernel-arg"), "{script}");
    }
    Amphi::new(["completions", "csh"]).finish().expect_error(125, &["csh"]);
}

/// In a mount namespace in which the device is gone, or is a file that amphi may not open.
fn kvm_is_missing_or_forbidden() {
    let missing = "mount -t tmpfs none /dev && mkdir /dev/pts && exec \"$@\"";
    let forbidden = "mount -t tmpfs none /dev && touch /dev/kvm && chmod 0 /dev/kvm && \
                     exec setpriv --bounding-set=-dac_override,-dac_read_search -- \"$@\"";
    for (prepare, problem) in [(missing, "/dev/kvm does not exist"), (forbidden, "/dev/kvm may not be opened")] {
        let unshare = ["unshare", "--user", "--map-root-user", "--mount", "--", "/bin/sh", "-c", prepare, "sh"];
        let run = || Amphi::new(["run", "--isolation", "vm", "builtin"]);
        run().finish_under(&unshare).expect_error(125, &[problem, "--isolation container"]);
        let report = Amphi::new(["doctor"]).finish_under(&unshare);
        assert!(report.text().contains(problem), "{report}");
    }
}
