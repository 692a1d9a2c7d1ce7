use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::image::Image;

fn new<'a>(id: &str, name: Option<&str>) -> NewInstance<'a> {
    let image = Image {
        rootfs: Rootfs::Directory("/srv/x".into()),
        entrypoint: Vec::new(),
        default_command: vec!["/bin/sh".into()],
        env: vec![("A".into(), "1".into())],
        working_dir: None,
        user: None,
    };
    let spec = RunSpec::builder(&image).build().unwrap();
    let isolation = IsolationKind::Container;
    NewInstance { id: id.into(), name: name.map(Into::into), image: "dir:/srv/x", isolation, spec }
}

fn instances() -> (tempfile::TempDir, Instances) {
    let folder = tempfile::tempdir().unwrap();
    let instances = Instances::open(&folder.path().join("instances"));
    (folder, instances)
}

/// The instance, of which this process has let go. A program that another test starts has a copy of its lock until it is executed.
fn ended(instances: &Instances, text: &str) -> Instance {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = instances.find(text).unwrap();
        if found.state != State::Running || Instant::now() > deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_instance_runs_ends_and_is_found_again() {
    let (_folder, instances) = instances();
    assert!(instances.list().unwrap().is_empty());
    let running = instances.create(new("0123456789ab", Some("web"))).unwrap();
    assert_eq!(running.spec().writable.folder.as_deref(), Some(running.instance().folder()));
    let found = instances.find("web").unwrap();
    assert_eq!(found.state, State::Running);
    assert!(matches!(found.clone().start(), Err(InstanceError::Running { .. })));
    assert!(matches!(found.remove(&instances, false), Err(InstanceError::Running { .. })));
    running.finished(7);
    let found = ended(&instances, "0123");
    assert!(matches!(&found.state, State::Exited(Exit { code: 7, finished: Some(_) })), "{:?}", found.state);
    assert_eq!(found.record.spec.process.argv, ["/bin/sh"]);
    let again = found.start().unwrap();
    assert_eq!(again.spec().rootfs, Rootfs::Directory("/srv/x".into()));
    // As if it had been killed.
    drop(again);
    let found = ended(&instances, "web");
    assert_eq!(found.state, State::Exited(Exit { code: 137, finished: None }));
    found.remove(&instances, false).unwrap();
    assert!(matches!(instances.find("web"), Err(InstanceError::Unknown(_))));
}

#[test]
fn names_are_unique_and_prefixes_of_ids_do() {
    let (_folder, instances) = instances();
    let first = instances.create(new("aa0000000000", Some("web"))).unwrap();
    let error = instances.create(new("ab0000000000", Some("web"))).unwrap_err().to_string();
    assert!(error.contains("--name web") && error.contains("aa0000000000"), "{error}");
    let second = instances.create(new("ab0000000000", None)).unwrap();
    assert_eq!(instances.find("ab0000000000").unwrap().record.name, "ab0000000000");
    assert!(matches!(instances.find("a"), Err(InstanceError::Ambiguous(_))));
    assert!(matches!(instances.find(""), Err(InstanceError::Unknown(_))));
    drop((first, second));
}

#[test]
fn leftovers_are_swept_and_a_torn_end_is_none() {
    let (_folder, instances) = instances();
    instances.create(new("aa0000000000", None)).unwrap().finished(0);
    let root = instances.root.clone();
    for name in [".new-bb0000000000", ".removed-cc0000000000"] {
        fs::create_dir_all(root.join(name).join("upper/d")).unwrap();
    }
    assert_eq!(instances.list().unwrap().len(), 1);
    drop(instances.create(new("dd0000000000", None)).unwrap());
    let mut left: Vec<_> =
        fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [".lock", "aa0000000000", "dd0000000000"]);
    fs::write(root.join("aa0000000000/exit"), "{\"code\":0,\"finished\":\"x\"}").unwrap();
    assert_eq!(ended(&instances, "aa").state, State::Exited(Exit { code: 137, finished: None }));
    fs::write(root.join("aa0000000000/record.json"), "{").unwrap();
    assert!(matches!(instances.list(), Err(InstanceError::Damaged { .. })));
}
