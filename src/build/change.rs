//! One instruction applied to a configuration, as `amphi commit --change` takes it.

use super::dockerfile::{Dockerfile, Expander, Instruction};
use super::error::StepError;
use super::settings::{self, SHELL};
use crate::image::manifest::Execution;

/// Does to `execution` what `text`, an instruction of a Dockerfile, says: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`, `USER`, `VOLUME` or
/// `WORKDIR`. Variables are those of the configuration.
///
/// # Errors
/// It is another instruction, or malformed.
pub fn change(execution: &mut Execution, text: &str) -> Result<(), StepError> {
    let step = Dockerfile::parse_trigger(text).map_err(|error| StepError::Wrong(error.problem))?;
    let before = execution.clone();
    let value = |name: &str| settings::variable(&before, name);
    let expander = Expander { escape: '\\', value: &value };
    let expand = |text: &String| expander.expand(text).map_err(StepError::Wrong);
    let shell: Vec<String> = before.shell.clone().unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
    match &step.instruction {
        Instruction::Cmd(command) => execution.cmd = Some(settings::argv(command, &shell)),
        Instruction::Entrypoint(command) => {
            execution.entrypoint = Some(settings::argv(command, &shell)).filter(|argv| !argv.is_empty());
        }
        Instruction::Env(list) => {
            for (name, value) in list {
                settings::set_variable(execution, &expand(name)?, &expand(value)?);
            }
        }
        Instruction::Label(list) => {
            for (name, value) in list {
                execution.labels.get_or_insert_default().insert(expand(name)?, expand(value)?);
            }
        }
        Instruction::Expose(ports) => {
            let ports = ports.iter().map(expand).collect::<Result<Vec<_>, _>>()?;
            settings::expose(execution, &ports.join(" "))?;
        }
        Instruction::Volume(paths) => {
            for path in paths {
                settings::add_volume(execution, expand(path)?);
            }
        }
        Instruction::User(user) => execution.user = Some(expand(user)?),
        Instruction::Workdir(path) => {
            let path = expand(path)?;
            let below = before.working_dir.as_deref().filter(|below| !below.is_empty()).unwrap_or("/");
            execution.working_dir =
                Some(if path.starts_with('/') { path } else { format!("{}/{path}", below.trim_end_matches('/')) });
        }
        _ => {
            let problem = "only CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME and WORKDIR change a configuration";
            return Err(StepError::Wrong(problem.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_changed_as_by_a_dockerfile() {
        let mut execution = Execution { env: Some(vec!["A=1".into()]), ..Execution::default() };
        for text in [
            "CMD [\"/a\", \"b c\"]",
            "entrypoint run it",
            "ENV A=2 B=\"$A and more\"",
            "LABEL x=y",
            "EXPOSE 80 53/udp",
            "USER 7:8",
            "VOLUME /data",
            "WORKDIR /w",
            "WORKDIR below",
        ] {
            change(&mut execution, text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        assert_eq!(execution.cmd, Some(vec!["/a".into(), "b c".into()]));
        assert_eq!(execution.entrypoint, Some(vec!["/bin/sh".into(), "-c".into(), "run it".into()]));
        assert_eq!(execution.env, Some(vec!["A=2".into(), "B=1 and more".into()]));
        assert_eq!((execution.user.as_deref(), execution.working_dir.as_deref()), (Some("7:8"), Some("/w/below")));
        assert!(
            execution.exposed_ports.unwrap().contains_key("53/udp") && execution.volumes.unwrap().contains_key("/data")
        );
        for text in ["RUN x", "COPY a b", "FROM x", "ENV", "EXPOSE x", "", "NONSENSE"] {
            assert!(change(&mut Execution::default(), text).is_err(), "{text}");
        }
    }
}
