//! The store's contract and the context commands, against a real S3 server.

use std::process::{Command, Output};

use datamon::cli::host::{HostClock, HostEntropy};
use datamon::store::backend::Place;
use datamon::store::contract;

use super::servers::S3;

fn variables() -> Vec<(String, String)> {
    S3::credentials().map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

#[test]
fn an_s3_server_keeps_the_stores_contract() {
    let server = S3::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let options = server.options().into_iter().collect();
    let broken = runtime.block_on(async {
        let place = Place::open("s3://bucket/contract", &options, &variables()).expect("an S3 place");
        let broken =
            contract::violations(&place, std::sync::Arc::new(HostClock), std::sync::Arc::new(HostEntropy)).await;
        assert!(place.time().is_some(), "the store's own time was read");
        broken
    });
    assert_eq!(broken, Vec::<String>::new());
}

/// A host: its own directories, and the `datamon` of this build.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_datamon"));
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
        for (name, dir) in [("CONFIG", "config"), ("STATE", "state"), ("CACHE", "cache")] {
            command.env(format!("DATAMON_{name}_DIR"), self.0.path().join(dir));
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).envs(S3::credentials()).output().expect("datamon runs")
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_context_is_created_on_one_host_and_added_on_another() {
    let server = S3::start();
    let options: Vec<String> =
        server.options().iter().map(|(name, value)| format!("--option={name}={value}")).collect();
    let with_options = |arguments: &[&str]| -> Vec<String> {
        arguments.iter().map(|argument| (*argument).to_owned()).chain(options.clone()).collect()
    };
    let run = |host: &Host, arguments: &[&str]| {
        let arguments = with_options(arguments);
        host.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (one, two) = (Host::new(), Host::new());
    let url = "s3://bucket/here";
    let created = run(&one, &["context", "create", "prod", "--store", url]);
    assert!(created.status.success(), "{}", stderr(&created));
    assert!(stdout(&created).starts_with("created context prod ("), "{}", stdout(&created));
    let again = run(&two, &["context", "create", "prod", "--store", url]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("use `context add`"), "{}", stderr(&again));
    assert!(run(&two, &["context", "add", url]).status.success());
    let checked = two.run(&["context", "check", "prod", "--json"]);
    assert!(checked.status.success(), "{}", stdout(&checked));
    let answer: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("one JSON object");
    assert_eq!(answer["ok"], true);
    let listed = |host: &Host| -> serde_json::Value {
        serde_json::from_slice(&host.run(&["context", "list", "--json"]).stdout).expect("a JSON array")
    };
    assert_eq!(listed(&one)[0]["id"], listed(&two)[0]["id"]);
}

#[test]
fn what_is_wrong_with_a_store_is_said_in_one_line_and_soon() {
    let server = S3::start();
    let host = Host::new();
    let endpoint = format!("--option=endpoint={}", server.endpoint);
    let create = |url: &str, more: &[&str]| {
        let arguments = [&["context", "create", "x", "--store", url, "--option=allow_http=true"], more].concat();
        host.command(&arguments)
    };
    let mut cases = vec![
        (create("gs://bucket", &[]), "gs:// is not in this version"),
        (create("s3://bucket", &["--option=colour=blue"]), "colour: no such store option"),
        (create("s3://absent", &[&endpoint]), "there is no such bucket"),
        (create("s3://bucket", &["--option=endpoint=http://127.0.0.1:1"]), "does not answer"),
    ];
    for (command, _) in &mut cases {
        command.envs(S3::credentials());
    }
    // No credentials anywhere; the metadata service of a machine that has none.
    let mut without = create("s3://bucket", &[&endpoint]);
    without.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1");
    cases.push((without, "no credentials were found"));
    for (mut command, expected) in cases {
        let start = std::time::Instant::now();
        let output = command.output().expect("datamon runs");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("datamon: ") && said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(start.elapsed().as_secs() < 10, "{expected}: took {:?}", start.elapsed());
    }
}
