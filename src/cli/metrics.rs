//! `-o metrics=ADDR:PORT`: the numbers of a mount over HTTP, for Prometheus.
//!
//! One page, `/metrics`, answered by hand: whoever asks is read up to its empty line, answered, and let go. A caller
//! that is slow or says too much is let go without an answer; the mount never waits for one.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::cli::output::Failure;
use crate::vfs::Vfs;

/// Callers at once; the next ones wait.
const CALLERS: usize = 8;
/// How long one may take.
const CALLER_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a request that are looked at.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Takes the address, or says why that cannot be.
pub fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|why| Failure::new("failed", format!("metrics={address}: {why} (choose another: ADDR:PORT)")))
}

/// Serves the numbers of `vfs` for as long as it lives.
pub fn serve(listener: TcpListener, runtime: &tokio::runtime::Runtime, vfs: Weak<Vfs>) -> Result<(), Failure> {
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener);
    let listener = listener.map_err(|why| Failure::new("failed", format!("metrics: {why}")))?;
    runtime.spawn(async move {
        let callers = Arc::new(Semaphore::new(CALLERS));
        loop {
            let Ok(place) = callers.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // No descriptor is free, or the caller is gone already.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let vfs = vfs.clone();
            tokio::spawn(async move {
                let _place = place;
                // What goes wrong with a caller is the caller's.
                let _ = tokio::time::timeout(CALLER_LIMIT, answer(stream, &vfs)).await;
            });
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, vfs: &Weak<Vfs>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let count = stream.read(&mut part).await?;
        if count == 0 || request.len() + count > REQUEST_BYTES_MAX {
            return Ok(());
        }
        request.extend_from_slice(&part[..count]);
    }
    let stats = match vfs.upgrade() {
        Some(vfs) => Some(vfs.stats().await),
        None => None,
    };
    let said = reply(&request, stats);
    stream.write_all(&said).await?;
    stream.shutdown().await
}

/// The answer to a request.
fn reply(request: &[u8], stats: Option<String>) -> Vec<u8> {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let page = target.split('?').next().unwrap_or_default();
    let (status, text) = match (method, page) {
        ("GET" | "HEAD", "/metrics") => match stats {
            Some(text) => ("200 OK", text),
            None => ("503 Service Unavailable", "unmounted\n".to_owned()),
        },
        ("GET" | "HEAD", _) => ("404 Not Found", "only /metrics is here\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    head.into_bytes().into_iter().chain(if method == "HEAD" { Vec::new() } else { text.into_bytes() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(request: &str) -> String {
        String::from_utf8(reply(request.as_bytes(), Some("a 1\n".to_owned()))).unwrap()
    }

    #[test]
    fn one_page_is_served_and_the_rest_refused() {
        let page = said("GET /metrics?x HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\na 1\n"), "{page}");
        assert!(page.contains("Content-Length: 4\r\n"));
        assert!(said("HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
        assert!(said("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(said("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(said("").starts_with("HTTP/1.1 405"));
        let gone = reply(b"GET /metrics HTTP/1.1\r\n\r\n", None);
        assert!(gone.starts_with(b"HTTP/1.1 503"));
    }
}
