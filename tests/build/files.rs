//! Steps that need no instance: files and settings.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::Setting;
use crate::harness::images::{OwnRoot, tool};
use crate::harness::{Case, host};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        host("build_copies_files_where_docker_does", copies_files),
        host("build_stages_lead_to_one_image", stages),
        host("build_settings_reach_the_configuration", settings),
        host("build_unpacks_archives", unpacks),
        host("build_never_leaves_the_context", never_leaves_the_context),
        host("build_leaves_out_what_is_ignored", ignores),
        host("build_errors_name_the_line", errors),
        host("build_is_reproducible", is_reproducible),
        host("build_images_fit_other_tools", fits_other_tools),
        host("build_triggers_wait_for_the_next_image", triggers),
    ]
}

/// The image as umoci unpacks it: for each path below `top` its mode, owner and contents.
fn unpacked(own: &OwnRoot, name: &str, top: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    own.amphi(&["save", "-o", &format!("oci:{}:x", layout.display()), name]).finish().expect(0);
    let bundle = folder.path().join("bundle");
    tool("umoci", &["unpack", "--image", &format!("{}:x", layout.display()), bundle.to_str().unwrap()]);
    let script = format!(
        "cd {}/rootfs/{top} && find . -mindepth 1 | LC_ALL=C sort | while read -r f; do \
         stat -c '%n %a %u:%g' \"$f\" | tr '\\n' ' '; if [ -L \"$f\" ]; then readlink \"$f\"; elif [ -f \"$f\" ]; then tr '\\n' ' ' < \"$f\"; echo; else echo; fi; done",
        bundle.display()
    );
    tool("sh", &["-c", &script]).lines().map(|line| line.trim_end().to_owned()).collect()
}

fn copies_files() {
    let setting = Setting::new();
    for name in ["a", "b", "d/1", "d/sub/2"] {
        setting.write(name, name);
    }
    fs::set_permissions(setting.path().join("a"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(setting.path().join("b"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("a", setting.path().join("link")).unwrap();
    symlink("../a", setting.path().join("d/inner")).unwrap();
    let dockerfile = "FROM made\n\
        WORKDIR /t/w\n\
        COPY a one\n\
        COPY a b many/\n\
        COPY d all\n\
        COPY [\"link\", \"followed\"]\n\
        ENV P=1\n\
        COPY --chown=5:6 --chmod=0600 [ab] wild/\n\
        ADD --chown=7 b .\n\
        COPY <<EOF <<'RAW' /t/here/\n${P:+x}\nEOF\n$PATH\nRAW\n";
    setting.build(&["-t", "x"], dockerfile).finish().expect(0);
    let found = unpacked(&setting.own, "x", "t");
    let expected = [
        "./here 755 0:0",
        "./here/EOF 644 0:0 x",
        "./here/RAW 644 0:0 $PATH",
        "./w 755 0:0",
        "./w/all 755 0:0",
        "./w/all/1 644 0:0 d/1",
        "./w/all/inner 777 0:0 ../a",
        "./w/all/sub 755 0:0",
        "./w/all/sub/2 644 0:0 d/sub/2",
        "./w/b 640 7:7 b",
        "./w/followed 751 0:0 a",
        "./w/many 755 0:0",
        "./w/many/a 751 0:0 a",
        "./w/many/b 640 0:0 b",
        "./w/one 751 0:0 a",
        "./w/wild 755 5:6",
        "./w/wild/a 600 5:6 a",
        "./w/wild/b 600 5:6 b",
    ];
    assert_eq!(found, expected, "{found:#?}");
    assert_eq!(setting.config("x", "/config/WorkingDir"), "\"/t/w\"");
}

fn stages() {
    let setting = Setting::new();
    setting.write("f", "one");
    let dockerfile = "ARG BASE=nothing\n\
        FROM ${BASE} AS First\n\
        COPY f /bin/prog\n\
        FROM made AS unused\n\
        COPY missing /\n\
        FROM first AS second\n\
        COPY --from=first --chown=3:4 /bin/prog /new\n\
        COPY --from=made /etc /e\n\
        FROM scratch\n\
        COPY --from=1 /missing /\n\
        FROM second\n\
        LABEL last=1\n";
    let built = setting.build(&["-t", "x", "--build-arg", "BASE=made"], dockerfile).finish().expect(0);
    assert!(built.errors().contains("[1/3] STEP 1/2: FROM ${BASE} AS First"), "{built}");
    assert!(built.errors().contains("[3/3] STEP 2/2: LABEL last=1"), "{built}");
    assert!(built.text().starts_with("sha256:"), "{built}");
    let found = unpacked(&setting.own, "x", "");
    assert!(found.iter().any(|line| line.starts_with("./new 644 3:4 one")), "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("./e/passwd")), "{found:#?}");
    // A stage by its name.
    setting.build(&["-t", "y", "--target", "FIRST", "--build-arg=BASE=made"], dockerfile).finish().expect(0);
    assert_eq!(setting.config("y", "/config/Labels"), "");
    setting.build(&["--target", "none"], dockerfile).finish().expect_error(125, &["--target none"]);
}

fn settings() {
    let setting = Setting::new();
    let dockerfile = "FROM scratch\n\
        MAINTAINER somebody\n\
        ARG V=1\n\
        ENV A=${V}2 B=\"$V x\"\n\
        ENV PATH /p:$A\n\
        USER $A:3\n\
        LABEL a.b=\"c d\"\n\
        EXPOSE 80 53/udp\n\
        VOLUME [\"/data\"]\n\
        STOPSIGNAL SIGINT\n\
        SHELL [\"/bin/ash\", \"-ec\"]\n\
        ENTRYPOINT [\"/e\"]\n\
        CMD run it\n\
        HEALTHCHECK --interval=5s CMD /check\n";
    let options = ["-t", "x", "-t", "z:2", "--build-arg", "V=7", "--build-arg", "UNKNOWN=1", "--label", "own=1"];
    let built = setting.build(&options, dockerfile).finish().expect(0);
    assert!(built.errors().contains("UNKNOWN"), "{built}");
    for (place, expected) in [
        ("/author", "\"somebody\""),
        ("/config/Env", r#"["A=72","B=7 x","PATH=/p:72"]"#),
        ("/config/User", "\"72:3\""),
        ("/config/Labels", r#"{"a.b":"c d","own":"1"}"#),
        ("/config/ExposedPorts", r#"{"53/udp":{},"80/tcp":{}}"#),
        ("/config/Volumes", r#"{"/data":{}}"#),
        ("/config/StopSignal", "\"SIGINT\""),
        ("/config/Entrypoint", r#"["/e"]"#),
        ("/config/Cmd", r#"["/bin/ash","-ec","run it"]"#),
        ("/config/Healthcheck", r#"{"Interval":5000000000,"Test":["CMD-SHELL","/check"]}"#),
        ("/architecture", "\"amd64\""),
    ] {
        assert_eq!(setting.config("x", place), expected, "{place}");
    }
    assert_eq!(setting.config("z:2", "/config/User"), "\"72:3\"");
    let history = setting.own.amphi(&["history", "x"]).finish().expect(0).text();
    assert!(history.contains("EXPOSE 80 53/udp"), "{history}");
    // An entry point takes the command of the image below away.
    setting.build(&["-t", "y"], "FROM x\nENTRYPOINT [\"/other\"]\n").finish().expect(0);
    assert_eq!(
        (setting.config("y", "/config/Cmd"), setting.config("y", "/config/StopSignal")),
        (String::new(), "\"SIGINT\"".into())
    );
}

fn unpacks() {
    let setting = Setting::new();
    let script = "mkdir -p t/in && echo 1 > t/in/f && ln t/in/f t/in/a && ln -s f t/in/l && chmod 700 t/in && \
                  tar --owner=8 --group=9 -C t -czf one.tar.gz in && tar --owner=8 --group=9 -C t -cJf two.txz in && rm -r t && echo no > plain.tar";
    tool("sh", &["-c", &format!("cd {} && {script}", setting.path().display())]);
    let dockerfile = "FROM made\nADD one.tar.gz two.txz plain.tar /t/\nCOPY one.tar.gz /t/kept\n";
    setting.build(&["-t", "x"], dockerfile).finish().expect(0);
    let found = unpacked(&setting.own, "x", "t");
    for line in ["./in 700 8:9", "./in/a 644 8:9 1", "./in/f 644 8:9 1", "./in/l 777 8:9 f", "./plain.tar 644 0:0 no"] {
        assert!(found.iter().any(|found| found == line), "{line}: {found:#?}");
    }
    assert!(found.iter().any(|line| line.starts_with("./kept 644 0:0")), "{found:#?}");
    let error = setting.build(&[], "FROM made\nADD https://example.com/x /\n").finish();
    error.expect_error(125, &["line 2", "https://example.com/x"]);
}

fn never_leaves_the_context() {
    let setting = Setting::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), setting.path().join("link")).unwrap();
    symlink(outside.path().join("secret"), setting.path().join("file")).unwrap();
    symlink("../../../../../../../etc/passwd", setting.path().join("up")).unwrap();
    for source in ["link/secret", "file", "up", "li*/secret", "../x", "a/../../x"] {
        let built = setting.build(&[], &format!("FROM made\nCOPY {source} /x\n")).finish();
        built.expect_error(125, &["line 2", source]);
    }
    // In the image, links lead nowhere else either: neither those that are copied, nor those of an archive.
    fs::create_dir(setting.path().join("d")).unwrap();
    symlink("/../..", setting.path().join("d/up")).unwrap();
    symlink(outside.path(), setting.path().join("d/out")).unwrap();
    setting.write("f", "mine");
    let out = outside.path().display();
    let dockerfile = format!(
        "FROM made\nCOPY d /\nCOPY f /out/new\nCOPY f /up/up/up/top\nWORKDIR {out}/w\nCOPY f ../../../../../../../last\n"
    );
    setting.build(&["-t", "x"], &dockerfile).finish().expect(0);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    let found = unpacked(&setting.own, "x", "");
    for path in [format!(".{out}/new"), "./top".into(), "./last".into()] {
        assert!(found.iter().any(|line| line.starts_with(&format!("{path} 644 0:0 mine"))), "{path}: {found:#?}");
    }
    let script = "mkdir t && echo x > t/f && tar -C t -cf evil.tar --transform=s,f,../../evil, f && rm -r t";
    tool("sh", &["-c", &format!("cd {} && {script}", setting.path().display())]);
    setting.build(&[], "FROM made\nADD evil.tar /a/\n").finish().expect_error(125, &["line 2", ".."]);
}

fn ignores() {
    let setting = Setting::new();
    for name in ["keep", "drop.log", "d/keep.log", "d/drop", "deep/a/b/drop.o", "deep/a/keep"] {
        setting.write(name, "");
    }
    setting
        .write(".dockerignore", "# what is not needed\n*.log\nd/*\n!d/keep.log\n**/*.o\nDockerfile\n.dockerignore\n");
    setting.build(&["-t", "x"], "FROM scratch\nCOPY . /\n").finish().expect(0);
    let found = unpacked(&setting.own, "x", "");
    let names: Vec<&str> = found.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["./d", "./d/keep.log", "./deep", "./deep/a", "./deep/a/b", "./deep/a/keep", "./keep"]);
    setting.build(&[], "FROM scratch\nCOPY drop.log /\n").finish().expect_error(125, &["line 2", "drop.log"]);
    setting.write(".dockerignore", "a\n[\n");
    setting.build(&[], "FROM scratch\nCOPY . /\n").finish().expect_error(125, &[".dockerignore", "line 2"]);
}

fn errors() {
    let setting = Setting::new();
    setting.write("f", "");
    for (dockerfile, words) in [
        ("FROM made\n\nRNU x\n", &["Dockerfile", "line 3", "RNU"][..]),
        ("FROM made\nCOPY nothing /\n", &["line 2", "COPY nothing /", "not in the context"]),
        ("FROM made\nCOPY --chown=nobody-such f /\n", &["line 2", "nobody-such"]),
        ("FROM made\nCOPY f /bin\nCOPY f /bin/busybox/x\n", &["line 3"]),
        ("FROM made AS a\nCOPY --from=a f /x\n", &["line 2", "--from=a"]),
        ("FROM made\nCOPY f f /x\n", &["line 2", "slash"]),
        ("FROM made\nENV a=${b:?gone}\n", &["line 2", "gone"]),
        ("FROM dir:/\n", &["line 1", "dir:/"]),
        ("FROM $X\n", &["line 1", "$X"]),
        ("FROM scratch\nRUN x\n", &["line 2", "no files"]),
        ("FROM made\nRUN --mount=type=cache,target=/c x\n", &["line 2", "--mount"]),
        ("FROM --platform=linux/arm64 made\n", &["line 1", "linux/arm64"]),
        ("FROM made\nEXPOSE x\n", &["line 2", "x"]),
    ] {
        setting.build(&["-t", "never"], dockerfile).finish().expect_error(125, words);
    }
    setting.own.amphi(&["build", "-f", "/nowhere/D", "."]).finish().expect_error(125, &["/nowhere/D"]);
    setting.own.amphi(&["build", "--label", "x", "."]).finish().expect_error(125, &["--label"]);
    setting.own.amphi(&["inspect", "never"]).finish().expect_error(125, &["never"]);
}

fn is_reproducible() {
    let setting = Setting::new();
    setting.write("d/f", "1");
    let dockerfile = "FROM made\nENV a=b\nCOPY d /d\nWORKDIR /w/x\nCOPY <<E y\nz\nE\n";
    let build = |options: &[&str]| {
        let built = setting.build(options, dockerfile).env("SOURCE_DATE_EPOCH", "1700000000").finish().expect(0);
        (built.text(), built.errors().matches("Using cache").count())
    };
    let (first, cached) = build(&["-t", "x", "--no-cache"]);
    assert_eq!(cached, 0);
    // Other times, and other places.
    let file = fs::File::options().write(true).open(setting.path().join("d/f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(build(&["-t", "x", "--no-cache"]), (first.clone(), 0));
    assert_eq!(build(&["-t", "x"]), (first.clone(), 3));
    let other = Setting::new();
    other.write("d/f", "1");
    let built = other.build(&["-t", "x"], dockerfile).env("SOURCE_DATE_EPOCH", "1700000000").finish().expect(0);
    assert_eq!(built.text(), first);
    assert_eq!(setting.config("x", "/created"), "\"2023-11-14T22:13:20Z\"");
    let wrong = setting.build(&[], dockerfile).env("SOURCE_DATE_EPOCH", "soon").finish();
    wrong.expect_error(125, &["SOURCE_DATE_EPOCH"]);
    // What is in the file counts, and so does its mode; then only the steps behind it are done again.
    fs::set_permissions(setting.path().join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    let (second, cached) = build(&["-t", "x"]);
    assert!(second != first && cached == 0, "{cached}");
    assert_eq!(build(&["-t", "x"]), (second, 3));
}

fn fits_other_tools() {
    let setting = Setting::new();
    setting.write("f", "1");
    let dockerfile = "FROM made\nCOPY f /f\nENV a=b\nWORKDIR /w\n";
    let digest = setting.build(&["-t", "x:1"], dockerfile).finish().expect(0).text();
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    setting.own.amphi(&["save", "-o", &format!("oci:{}:x", layout.display()), "x:1"]).finish().expect(0);
    let inspected = tool("skopeo", &["inspect", &format!("oci:{}:x", layout.display())]);
    assert!(inspected.contains(&digest) && inspected.contains("\"a=b\""), "{inspected}");
    let stat = tool("umoci", &["stat", "--image", &format!("{}:x", layout.display())]);
    assert!(stat.contains("COPY f /f") && stat.contains("WORKDIR /w"), "{stat}");
    tool(
        "skopeo",
        &[
            "copy",
            "-q",
            &format!("oci:{}:x", layout.display()),
            &format!("docker-archive:{}/a:x:1", folder.path().display()),
        ],
    );
}

fn triggers() {
    let setting = Setting::new();
    setting.write("f", "1");
    setting.build(&["-t", "base"], "FROM scratch\nONBUILD COPY f /triggered\nONBUILD ENV x=y\n").finish().expect(0);
    assert_eq!(setting.config("base", "/config/OnBuild"), r#"["COPY f /triggered","ENV x=y"]"#);
    let built = setting.build(&["-t", "next"], "FROM base\nCOPY f /own\n").finish().expect(0);
    assert!(built.errors().contains("STEP 2/4: COPY f /triggered"), "{built}");
    assert_eq!(unpacked(&setting.own, "next", ""), ["./own 644 0:0 1", "./triggered 644 0:0 1"]);
    assert_eq!(setting.config("next", "/config/OnBuild"), "");
}
