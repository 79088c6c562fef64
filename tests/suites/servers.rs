//! Real object stores on loopback, each in a process of its own that ends with the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The S3 server, from PyPI, into a virtual environment under the target directory.
const PACKAGE: &str = "ministack==1.5.33";

/// A running S3 server with one bucket named `bucket`.
pub struct S3 {
    child: Child,
    /// Where it listens: `http://127.0.0.1:PORT`.
    pub endpoint: String,
    _data: tempfile::TempDir,
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl S3 {
    /// Starts the server and makes the bucket.
    pub fn start() -> Self {
        let program = installed();
        let data = tempfile::tempdir().expect("a temporary directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let child = Command::new(program)
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("SERVICES", "s3")
            .current_dir(data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the S3 server starts");
        let server = Self { child, endpoint: format!("http://127.0.0.1:{port}"), _data: data };
        let limit = Instant::now() + Duration::from_secs(30);
        while !make_bucket(port) {
            assert!(Instant::now() < limit, "the S3 server did not answer within 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// The options of a context in this server.
    pub fn options(&self) -> Vec<(String, String)> {
        let options = [("endpoint", self.endpoint.as_str()), ("allow_http", "true"), ("region", "us-east-1")];
        options.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// The environment with credentials for it.
    pub fn credentials() -> [(&'static str, &'static str); 2] {
        [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]
    }
}

fn make_bucket(port: u16) -> bool {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let request = b"PUT /bucket HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
    socket.write_all(request).is_ok() && socket.read_to_string(&mut answer).is_ok() && answer.contains(" 200 ")
}

/// The server's program, installed by the first test that needs it.
fn installed() -> PathBuf {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers").join(PACKAGE.replace("==", "-"));
    let program = venv.join("bin/ministack");
    if !program.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", PACKAGE]));
    }
    program
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
