//! Version 1: a hierarchy for each controller. Only those that a limit needs get a group, since moving a
//! process into one can take milliseconds.

use std::io;

use super::limits::Limit;
use super::{Group, PARENT, ensure_dir};
use crate::host::cgroup::Cgroups;
use crate::isolation::container::error::ContainerError;

/// Makes the groups for those limits whose controller is in a hierarchy of version 1.
pub(super) fn create(cgroups: &Cgroups, id: &str, limits: &[Limit]) -> Result<Vec<Group>, ContainerError> {
    let mut groups: Vec<Group> = Vec::new();
    for limit in limits {
        let Some(hierarchy) = cgroups.controller(limit.controller).filter(|h| !h.unified) else { continue };
        let parent = hierarchy.mount_point.join(PARENT);
        let path = parent.join(id);
        // Two controllers may share a hierarchy.
        let group = match groups.iter().position(|group| group.path == path) {
            Some(known) => &groups[known],
            None => {
                let made = ensure_dir(&parent).and_then(|()| Group::make(path.clone()));
                groups.push(made.map_err(|source| {
                    limit.refused(format!("the cgroup {} cannot be made", path.display()), Some(source))
                })?);
                &groups[groups.len() - 1]
            }
        };
        for setting in &limit.v1 {
            match group.set(setting.file, &setting.value) {
                Err(source) if setting.optional && source.kind() != io::ErrorKind::InvalidInput => {
                    log::debug!("{} has no {}: {source}", path.display(), setting.file);
                }
                other => other.map_err(|source| {
                    let file = path.join(setting.file);
                    limit.refused(format!("{} does not take {:?}", file.display(), setting.value), Some(source))
                })?,
            }
        }
    }
    Ok(groups)
}
