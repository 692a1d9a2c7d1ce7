use super::*;

fn first(text: &str) -> Instruction {
    let file = Dockerfile::parse(&format!("FROM a\n{text}\n")).unwrap_or_else(|error| panic!("{text}: {error}"));
    file.stages[0].steps[0].instruction.clone()
}

fn problem(text: &str) -> DockerfileError {
    Dockerfile::parse(text).expect_err(text)
}

fn exec(words: &[&str]) -> Command {
    Command::Exec(words.iter().map(|&word| word.to_owned()).collect())
}

#[test]
fn stages_have_names_and_instructions() {
    let text = "ARG v=1\nFROM --platform=linux/amd64 a:$v AS Build\nRUN x\nfrom build\nfrom scratch as last\nCMD y\n";
    let file = Dockerfile::parse(text).unwrap();
    assert_eq!(file.global.len(), 1);
    let stages: Vec<_> =
        file.stages.iter().map(|s| (&*s.image, s.name.as_deref(), s.steps.len(), s.from.line)).collect();
    assert_eq!(stages, [("a:$v", Some("build"), 1, 2), ("build", None, 0, 4), ("scratch", Some("last"), 1, 5)]);
    assert_eq!(file.stages[0].from.instruction, Instruction::From { platform: Some("linux/amd64".into()) });
    assert_eq!(file.stages[0].from.text, "FROM --platform=linux/amd64 a:$v AS Build");
}

#[test]
fn commands_have_two_forms() {
    let run = |command| Instruction::Run { command, here_documents: Vec::new(), network: None };
    assert_eq!(first("RUN a  && b"), run(Command::Shell("a  && b".into())));
    assert_eq!(first(r#"RUN ["a", "b c"]"#), run(exec(&["a", "b c"])));
    assert_eq!(first("RUN [ -f x ]"), run(Command::Shell("[ -f x ]".into())));
    assert_eq!(first(r#"CMD ["a", 1]"#), Instruction::Cmd(Command::Shell(r#"["a", 1]"#.into())));
    assert_eq!(first("CMD []"), Instruction::Cmd(exec(&[])));
    assert_eq!(first(r#"SHELL ["/bin/bash","-c"]"#), Instruction::Shell(vec!["/bin/bash".into(), "-c".into()]));
    let with_network = Instruction::Run {
        command: Command::Shell("a".into()),
        here_documents: Vec::new(),
        network: Some("none".into()),
    };
    assert_eq!(first("RUN --network=none a"), with_network);
}

#[test]
fn variables_are_set_in_two_forms() {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>();
    assert_eq!(
        first(r#"ENV a=1 b="2 3" c=4\ 5"#),
        Instruction::Env(pairs(&[("a", "1"), ("b", "\"2 3\""), ("c", "4\\ 5")]))
    );
    assert_eq!(first("ENV a  b = c"), Instruction::Env(pairs(&[("a", "b = c")])));
    assert_eq!(first("LABEL a.b=c"), Instruction::Label(pairs(&[("a.b", "c")])));
    let arguments = Instruction::Arg(vec![("a".into(), None), ("b".into(), Some("$a".into()))]);
    assert_eq!(first("ARG a b=$a"), arguments);
}

#[test]
fn files_are_copied_with_options() {
    let copy = |text: &str| match first(text) {
        Instruction::Copy(copy) => copy,
        other => panic!("{other:?}"),
    };
    let found = copy("COPY --from=x --chown=1:2 --link --chmod=0644 a b/ c/");
    assert_eq!(
        (found.from.as_deref(), found.chown.as_deref(), found.chmod.as_deref()),
        (Some("x"), Some("1:2"), Some("0644"))
    );
    assert_eq!((found.sources, &*found.destination, found.add), (vec!["a".into(), "b/".into()], "c/", false));
    let found = copy(r#"ADD ["a b", "/c d"]"#);
    assert_eq!((found.sources, &*found.destination, found.add), (vec!["a b".into()], "/c d", true));
    let found = copy("COPY <<x a <<-'y' /b/\n1\nx\n\t2\ny");
    assert_eq!(found.sources, ["a"]);
    let documents: Vec<_> = found.here_documents.iter().map(|d| (&*d.name, &*d.text, d.expand)).collect();
    assert_eq!(documents, [("x", "1\n", true), ("y", "2\n", false)]);
}

#[test]
fn health_and_triggers_are_kept() {
    let options = vec![("interval".into(), "5s".into())];
    let check = Instruction::Healthcheck { options, command: Some(Command::Shell("a b".into())) };
    assert_eq!(first("HEALTHCHECK --interval=5s CMD a b"), check);
    assert_eq!(first("HEALTHCHECK none"), Instruction::Healthcheck { options: Vec::new(), command: None });
    assert_eq!(first("ONBUILD RUN a"), Instruction::OnBuild("RUN a".into()));
    assert_eq!(first("ONBUILD copy <<x /y\nz\nx"), Instruction::OnBuild("copy <<x /y\nz\nx\n".into()));
    assert!(Dockerfile::parse_trigger("RUN a\nRUN b").is_err());
}

#[test]
fn errors_name_the_line() {
    for (text, line) in [
        ("", 1),
        ("\n# nothing\n", 1),
        ("RUN a\n", 1),
        ("ARG a\n\n\nENV b=c\nFROM d", 4),
        ("FROM a\nRNU b\n", 2),
        ("FROM a\nRUN\n", 2),
        ("FROM a\nRUN b \\\n c\nBOGUS\n", 4),
        ("FROM a b\n", 1),
        ("FROM a AS 1b\n", 1),
        ("FROM a AS b\nFROM c AS B\n", 2),
        ("FROM a\nCOPY b\n", 2),
        ("FROM a\nCOPY --parents b c\n", 2),
        ("FROM a\nCOPY --from= b c\n", 2),
        ("FROM a\nCOPY --chown=1 --chown=2 b c\n", 2),
        ("FROM a\nADD --from=x b c\n", 2),
        ("FROM a\nRUN --mount=type=cache,target=/c b\n", 2),
        ("FROM a\nSHELL /bin/sh\n", 2),
        ("FROM a\nENV b\n", 2),
        ("FROM a\nENV b=c d\n", 2),
        ("FROM a\nARG 1=2\n", 2),
        ("FROM a\nHEALTHCHECK CMD\n", 2),
        ("FROM a\nONBUILD ONBUILD RUN b\n", 2),
        ("FROM a\nONBUILD FROM b\n", 2),
    ] {
        assert_eq!(problem(text).line, line, "{text:?}: {}", problem(text));
    }
    let error = problem("FROM a\nRNU b\n").to_string();
    assert!(error.starts_with("line 2: \"RNU\" is no instruction"), "{error}");
}
