//! What mount tests stand on: a mount and process namespace of their own, hosts, and stores.
//!
//! A test that mounts runs again in a child whose mounts nobody else sees and whose processes all end with it, under a
//! deadline, and keeps its files below one directory that its parent removes: a failing or hanging test leaves nothing
//! behind, no mount, no daemon, no server, no file.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::proxy::Proxy;

const INSIDE: &str = "DATAMON_TEST_INSIDE";
/// Where a test keeps its files, made and removed by its parent.
const SCRATCH: &str = "DATAMON_TEST_SCRATCH";
/// A test that takes longer hangs; one that was asked for more rounds says how long it may take.
const LIMIT_SECONDS: &str = "240";
const LIMIT: &str = "DATAMON_TEST_LIMIT";
/// umount(8)'s table of the host, its journal and its syslog are none of a test's business.
const HIDE_THE_HOST: &str = "\
    for dir in /run/mount /run/systemd/journal; do mkdir -p $dir; mount -t tmpfs none $dir; done
    if [ -S /dev/log ]; then mount --bind /dev/null /dev/log; fi
    exec \"$@\"";
const ROOT: u32 = 0;
/// What has to be done by then, beside other tests.
pub const SOON: Duration = Duration::from_secs(60);

/// Whether the test goes on: true in the child, whose outcome the parent takes for its own.
pub fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if fs::metadata("/proc/self").unwrap().uid() != ROOT {
        // Past the capture of a test's output: a skip is never silent.
        let _ =
            writeln!(std::io::stderr(), "SKIPPED {test}: mounts in a namespace of its own need root (CONTRIBUTING.md)");
        return false;
    }
    let scratch = tempfile::Builder::new().prefix("datamon-test.").tempdir().unwrap();
    let seconds = std::env::var(LIMIT).unwrap_or_else(|_| LIMIT_SECONDS.to_owned());
    let limit = ["--signal=KILL", &seconds, "unshare"];
    let namespaces = ["-m", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let child = Command::new("timeout")
        .args(limit)
        .args(namespaces)
        .args(["sh", "-ec", HIDE_THE_HOST, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("suites::{test}"), "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env(SCRATCH, scratch.path())
        // Where su(1) left a user's PATH to root, mkfs and losetup would not be found.
        .env("PATH", format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null())
        .output()
        .expect("timeout and unshare run (coreutils, util-linux)");
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{test} failed in its namespace ({}):\n{out}\n{err}", child.status);
    assert!(out.contains("1 passed"), "{test} did not run in its namespace:\n{out}");
    // What a test counted, for who asks with --nocapture.
    eprint!("{err}");
    false
}

/// A scratch directory. In a namespace the parent removes it when every mount in it is gone; else its owner does.
pub fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("datamon-test.");
    match std::env::var_os(SCRATCH) {
        Some(dir) => builder.disable_cleanup(true).tempdir_in(dir).unwrap(),
        None => builder.tempdir().unwrap(),
    }
}

/// A command that has to succeed; answers what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything a command said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The gesture that commits a staging tree.
pub fn sync(dir: &Path) {
    let output = within(SOON, Command::new("sync").arg(dir));
    assert!(output.status.success(), "sync {}: {}", dir.display(), text(&output));
}

/// What a directory lists, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The data packs in a directory store; `#` marks what is still being written.
pub fn data_packs(store: &Path) -> Vec<PathBuf> {
    let find = ["-type", "f", "-path", "*/p/*", "-not", "-name", "*#*"];
    run(Command::new("find").arg(store).args(find)).lines().map(PathBuf::from).collect()
}

/// A host: configuration, state and cache of its own.
pub struct Host {
    dir: PathBuf,
    variables: Vec<(String, String)>,
}

impl Host {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        Self { dir: dir.to_owned(), variables: Vec::new() }
    }

    pub fn with(mut self, variables: &[(&str, &str)]) -> Self {
        self.variables.extend(variables.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        self
    }

    /// A call of datamon on this host.
    pub fn datamon<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_datamon"));
        command.args(arguments);
        command
    }

    /// A call of any program on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for place in ["config", "state", "cache"] {
            command.env(format!("DATAMON_{}_DIR", place.to_uppercase()), self.dir.join(place));
        }
        // Never a cloud's metadata address.
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", &self.dir);
        command.envs(self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        command
    }

    /// Mounts `source` at a new directory of this host.
    pub fn mount(&self, source: &str, options: &str) -> PathBuf {
        let name = format!("mnt-{}", source.replace('/', "-"));
        let dir = self.dir.join(name);
        // A dead mount is there, but cannot be looked at: mounting replaces it.
        let _ = fs::create_dir(&dir);
        run(&mut self.datamon(["mount", source, dir.to_str().unwrap(), "-o", options]));
        dir
    }

    pub fn umount(&self, dir: &Path) {
        run(&mut self.datamon(["umount", dir.to_str().unwrap()]));
    }

    /// The same where other threads start programs, which hold what is open here until they begin: busy for a moment.
    pub fn umount_among_others(&self, dir: &Path) {
        let unmounted = || self.datamon(["umount", dir.to_str().unwrap()]).output().unwrap().status.success();
        until(Duration::from_secs(20), "an unmount", unmounted);
    }

    /// What the daemons of the context `prod` have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("state/log/prod.log")).unwrap_or_default()
    }

    /// Process ids of the daemons that serve `dir`.
    pub fn daemons(&self, dir: &Path) -> Vec<u32> {
        let dir = dir.to_str().unwrap();
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let serves = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            words.contains(&&b"--child"[..]) && words.contains(&dir.as_bytes())
        };
        pids.filter(serves).collect()
    }
}

/// Waits until `done`, or fails after `limit`.
pub fn until(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A store that a context can be made in.
pub struct Place {
    pub url: String,
    pub options: Vec<String>,
    pub variables: Vec<(&'static str, &'static str)>,
    server: Option<Child>,
}

impl Place {
    /// A directory.
    pub fn directory(dir: &Path) -> Self {
        Self { url: format!("file://{}", dir.display()), options: vec![], variables: vec![], server: None }
    }

    /// A bucket on a real S3 server of this test's own (tests/tools.sh).
    pub fn s3(dir: &Path) -> Self {
        let python = target_dir().join("test-tools/venv/bin/python3");
        assert!(python.exists(), "{}: missing (run tests/tools.sh, as `make test` does)", python.display());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::create_dir_all(dir).unwrap();
        // By module: a script's first line would not survive a move of the directory.
        let server = Command::new(python)
            .args(["-m", "ministack"])
            .current_dir(dir)
            .envs([("BIND_HOST", "127.0.0.1"), ("SERVICES", "s3"), ("GATEWAY_PORT", &port.to_string())])
            .envs([("S3_PERSIST", "1"), ("S3_DATA_DIR", dir.to_str().unwrap())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until(Duration::from_secs(30), "S3 server", || put_bucket(port, "bucket"));
        Self {
            url: "s3://bucket/prefix".into(),
            options: vec![
                format!("endpoint=http://127.0.0.1:{port}"),
                "allow_http=true".into(),
                "region=us-east-1".into(),
            ],
            variables: vec![("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")],
            server: Some(server),
        }
    }

    /// A host on which the context `prod` in this store is known, made there by `verb` (create or add).
    pub fn host(&self, dir: &Path, verb: &str) -> Host {
        let host = Host::new(dir).with(&self.variables);
        let mut command = match verb {
            "create" => host.datamon(["context", "create", "prod", "--store", &self.url]),
            _ => host.datamon(["context", "add", &self.url]),
        };
        for option in &self.options {
            command.args(["--option", option]);
        }
        run(&mut command);
        host
    }
}

/// A host with the empty repo `census` in a store that is a directory.
pub fn host_with_repo(dir: &Path) -> (Place, Host) {
    let place = Place::directory(&dir.join("store"));
    let host = place.host(&dir.join("one"), "create");
    let mnt = host.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    host.umount(&mnt);
    (place, host)
}

impl Place {
    /// The same server's `prefix`, asked through a proxy of its own. It lives no longer than this place.
    pub fn behind_proxy(&self, prefix: &str) -> (Self, Proxy) {
        let port = |option: &String| option.strip_prefix("endpoint=http://127.0.0.1:")?.parse().ok();
        let port = self.options.iter().find_map(port).expect("a place with a server");
        let proxy = Proxy::before(port);
        let mut options = self.options.clone();
        options.retain(|option| !option.starts_with("endpoint="));
        options.push(format!("endpoint=http://127.0.0.1:{}", proxy.port));
        (Self { url: format!("s3://bucket/{prefix}"), options, variables: self.variables.clone(), server: None }, proxy)
    }

    /// Sends a signal to the server: STOP makes it hang, CONT lets it go on.
    pub fn signal_server(&self, signal: &str) {
        let server = self.server.as_ref().expect("a place with a server");
        run(Command::new("kill").args(["-s", signal, &server.id().to_string()]));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Where cargo builds, and tests/tools.sh installs.
pub fn target_dir() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_datamon"));
    program.ancestors().nth(2).expect("target/debug/datamon").to_owned()
}

/// The outcome of a command that has to end within `limit`; it is killed after that, and the test fails.
pub fn within(limit: Duration, command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (pid, said) = (child.id(), format!("{command:?}"));
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(limit) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            panic!("{said}: did not end within {limit:?}");
        }
    }
}

fn put_bucket(port: u16, name: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let request = format!("PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

/// What rsync would still have to do to make `copy` the same as `original`: nothing, when all is well.
pub fn differences(original: &Path, copy: &Path) -> String {
    let from = format!("{}/", original.display());
    let to = format!("{}/", copy.display());
    run(Command::new("rsync").args(["-aHAXn", "--checksum", "--delete", "--itemize-changes", "--specials", &from, &to]))
}
