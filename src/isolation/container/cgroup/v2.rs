//! Version 2: one hierarchy. A controller must be handed down from the root to every group on the way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::limits::Limit;
use super::{Group, PARENT, ensure_dir};
use crate::host::cgroup::{Cgroups, Hierarchy};
use crate::isolation::container::error::ContainerError;

/// Makes the group for these limits, all of whose controllers must be here. Without limits, `None` where it
/// cannot be made.
pub(super) fn create(cgroups: &Cgroups, id: &str, limits: &[&Limit]) -> Result<Option<Group>, ContainerError> {
    let Some(hierarchy) = cgroups.unified() else {
        return match limits.first() {
            None => Ok(None),
            Some(limit) => {
                Err(limit.refused(format!("this host has no cgroup controller {:?}", limit.controller), None))
            }
        };
    };
    if let Some(limit) = limits.iter().find(|limit| !hierarchy.controllers.iter().any(|c| c == limit.controller)) {
        return Err(limit.refused(
            format!("{} has no cgroup controller {:?}", hierarchy.mount_point.display(), limit.controller),
            None,
        ));
    }
    let mut problem = None;
    for parent in parents(hierarchy) {
        match create_in(&parent, id, limits) {
            Ok(group) => return Ok(Some(group)),
            Err(error) => {
                log::debug!("no cgroup below {}: {error}", parent.display());
                problem.get_or_insert(error);
            }
        }
    }
    match problem {
        Some(error) if !limits.is_empty() => Err(error),
        _ => Ok(None),
    }
}

/// Where a group may be made: for root below the root, for others wherever above amphi they have been given a group.
fn parents(hierarchy: &Hierarchy) -> Vec<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return vec![hierarchy.mount_point.clone()];
    }
    hierarchy.own.ancestors().map(|own| hierarchy.mount_point.join(own)).collect()
}

fn create_in(parent: &Path, id: &str, limits: &[&Limit]) -> Result<Group, ContainerError> {
    let amphi = parent.join(PARENT);
    let refuse = |path: &Path, source: io::Error| match limits.first() {
        Some(limit) => limit.refused(format!("the cgroup {} cannot be made", path.display()), Some(source)),
        None => ContainerError::Cgroup { path: path.to_owned(), source },
    };
    ensure_dir(&amphi).map_err(|source| refuse(&amphi, source))?;
    for limit in limits {
        for directory in [parent, &amphi] {
            hand_down(directory, limit.controller).map_err(|source| {
                let file = directory.join("cgroup.subtree_control");
                let problem = format!("{} does not hand down {:?}", file.display(), limit.controller);
                limit.refused(problem, Some(source))
            })?;
        }
    }
    let path = amphi.join(id);
    let group = Group::make(path.clone()).map_err(|source| refuse(&path, source))?;
    for limit in limits {
        for setting in &limit.v2 {
            match group.set(setting.file, &setting.value) {
                Err(source) if setting.optional && source.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|source| {
                    let file = path.join(setting.file);
                    limit.refused(format!("{} does not take {:?}", file.display(), setting.value), Some(source))
                })?,
            }
        }
    }
    Ok(group)
}

/// Gives the groups in `directory` a controller, unless they have it.
fn hand_down(directory: &Path, controller: &str) -> io::Result<()> {
    let file = directory.join("cgroup.subtree_control");
    if fs::read_to_string(&file)?.split_ascii_whitespace().any(|c| c == controller) {
        return Ok(());
    }
    super::write(&file, &format!("+{controller}"))
}
