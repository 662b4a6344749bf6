use super::*;

fn commands(text: &str) -> Commands {
    toml::from_str(text).unwrap()
}

/// What is wrong with a command of these settings, besides who would run it.
fn problems(settings: &str) -> String {
    let commands = commands(&format!("[commands.x]\n{settings}"));
    commands
        .problems()
        .into_iter()
        .filter(|problem| !problem.starts_with("user"))
        .collect::<Vec<_>>()
        .join("|")
}

#[test]
fn all_that_is_wrong_is_said() {
    let sh = "program = \"/bin/sh\"\n";
    for (settings, expected) in [
        ("", ""),
        ("args = [\"{a}\"]\nparams.a.pattern = \".*\"", ""),
        ("dir = \"tmp\"", "dir \"tmp\" must be an absolute path"),
        ("fatal = [0]", "exit codes are 1 to 255"),
        ("fatal = [3]\nretry = [3]", "stands in fatal and in retry"),
        ("fatal = [75]", "stands in fatal and in retry"),
        ("env = { HOPLINE_JOB_ID = \"x\" }", "cannot be passed"),
        ("pass_env = [\"A=B\"]", "cannot be passed"),
        ("args = [\"{a}\"]", "args name {a}, which is not in params"),
        ("args = [\"{a\"]", "has braces that are no {param}"),
        ("params.a.pattern = \".*\"", "params.a is in no argument"),
        ("args = [\"{a}\"]\nparams.a = {}", "needs either a pattern or choices"),
        ("args = [\"{a}\"]\nparams.a = { pattern = \"a\", choices = [\"a\"] }", "needs either"),
        ("args = [\"{a}\"]\nparams.a = { pattern = \"a\", default = \"ab\" }", "its default is not allowed"),
        (
            "args = [\"{a}\"]\nparams.a = { pattern = \"a\", default = \"a\", optional = true }",
            "cannot be optional",
        ),
        ("limits.time = 0", "limits.time must be 1 s to 1 d"),
        ("limits.cpu = \"1500ms\"", "limits.cpu must be whole seconds"),
        ("limits.memory = 1", "limits.memory must be at least 67108864"),
        ("limits.processes = 0", "limits.processes must be"),
        ("limits.open_files = 3", "limits.open_files must be"),
        ("limits.output = 0", "limits.output must be"),
    ] {
        let found = problems(&format!("{sh}{settings}"));
        assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{settings}: {found}");
    }
    for (program, expected) in [
        ("sh", "must be an absolute path"),
        ("/bin", "is no executable file"),
        ("/etc/passwd", "is no executable file"),
        ("/nowhere/x", "No such file"),
    ] {
        let found = problems(&format!("program = \"{program}\""));
        assert!(found.contains(expected), "{program}: {found}");
    }
    let two = commands("concurrency = 0\n[commands.\"a b\"]\nprogram = \"/bin/sh\"").problems();
    assert!(two.iter().any(|problem| problem.contains("concurrency")), "{two:?}");
    assert!(two.iter().any(|problem| problem.contains("a name is")), "{two:?}");
}

#[test]
fn what_cannot_be_read_is_refused() {
    for bad in [
        "",
        "[commands.x]",
        "[commands.x]\nprogram = \"/bin/sh\"\nshell = true",
        "[commands.x]\nprogram = \"/bin/sh\"\nparams.a.pattern = \"(\"",
        "[commands.x]\nprogram = \"/bin/sh\"\nparams.a.pattern = \"a)|(b\"",
        "[commands.x]\nprogram = \"/bin/sh\"\nlimits.cores = 1",
    ] {
        assert!(toml::from_str::<Commands>(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_pattern_is_for_the_whole_value() {
    let param: Param = toml::from_str("pattern = \"a|b\"").unwrap();
    let allowed = |value| param.allows(value);
    assert!(
        allowed("a") && allowed("b") && !allowed("ab") && !allowed("xa") && !allowed("a\n") && !allowed("")
    );
}

#[test]
fn root_runs_nothing_as_root_and_others_only_as_themselves() {
    let with = |user: &str| commands(&format!("{user}\n[commands.x]\nprogram = \"/bin/sh\""));
    for (user, own, expected) in [
        ("", 0, Some("runs as root")),
        ("", 1000, None),
        ("user = { uid = 65534, gid = 65534 }", 0, None),
        ("user = { uid = 65534, gid = 65534 }", 1000, Some("only root")),
        ("user = { uid = 1000, gid = 1000 }", 1000, None),
        ("user = { uid = 0, gid = 1000 }", 0, Some("never run as root")),
        ("user = { uid = 1000, gid = 0 }", 0, Some("never run as root")),
    ] {
        let problem = with(user).user_problem(own);
        match (&problem, expected) {
            (Some(problem), Some(part)) => assert!(problem.contains(part), "{problem}"),
            (None, None) => {}
            _ => panic!("{user} of {own}: {problem:?}"),
        }
    }
}

#[test]
fn the_environment_is_what_is_listed() {
    let text =
        "program = \"/bin/sh\"\nenv = { LANG = \"C\", A = \"1\" }\npass_env = [\"A\", \"TZ\", \"HOME\"]";
    let command: Command = toml::from_str(text).unwrap();
    let of_worker = |name: &str| ["A", "TZ", "SECRET"].contains(&name).then(|| "worker's".to_owned());
    let environment = command.environment(of_worker);
    let lines: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(lines, ["A=1", "LANG=C", &format!("PATH={PATH}"), "TZ=worker's"]);
}

#[test]
fn the_example_is_one() {
    let text = include_str!("../exec.example.toml");
    let example = commands(text);
    assert!(example.problems().iter().all(|problem| problem.starts_with("user")), "{:?}", example.problems());
    assert_eq!(example.longest(), Duration::from_secs(80));
}
