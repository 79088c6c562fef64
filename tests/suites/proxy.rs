//! A proxy in front of a real store that does to requests what a bad day does to them.
//!
//! HTTP/1.1 with threads and `std::net` alone. Each request is read whole and shown to a plan, which says what goes wrong
//! with it; everything else is passed on. What was asked, when, and what became of it is kept, so that a test can count.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often a connection that is held looks whether anybody still waits.
const LOOK: Duration = Duration::from_millis(50);
/// Who does not send or take a byte for so long has gone.
const IDLE: Duration = Duration::from_secs(120);

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store is not asked; the answer is this status, with a Retry-After of so many seconds if any.
    Status(u16, Option<u32>),
    /// The connection is reset, the store is not asked.
    ResetBefore,
    /// The connections are reset when half of the request's body has reached the store.
    ResetInRequest,
    /// The connection is reset in the middle of the answer's body.
    ResetInAnswer,
    /// The connection is closed in the middle of the answer's body.
    CutAnswer,
    /// The answer has half of its body, and says that this is all.
    ShortAnswer,
    /// One byte of the answer's body is another, the n-th of a thousand parts in.
    Flip(u16),
    /// The store does what was asked; the connection is reset instead of the answer.
    LoseAnswer,
    /// The store does what was asked; the answer is this status.
    LandedStatus(u16),
    /// The store does what was asked; no answer ever comes.
    LandedStall,
    /// The answer begins so late.
    SlowFirstByte(Duration),
    /// The store is not asked; no answer ever comes.
    Stall,
    /// The store overwrites what it should only create.
    Overwrite,
}

/// One request, as a plan sees it.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET, HEAD, PUT, …
    pub method: String,
    /// Path without the query: bucket and key.
    pub path: String,
    /// What stands behind the `?`; a LIST has one.
    pub query: String,
    /// The bytes that it asks for, both ends included.
    pub range: Option<(u64, u64)>,
    /// How many requests came before it.
    pub number: usize,
}

impl Request {
    /// Whether it asks for a list of objects.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.query.contains("list-type")
    }

    /// Whether it asks for an object or a part of one.
    pub fn is_read(&self) -> bool {
        self.method == "GET" && !self.is_list()
    }

    /// Whether it creates an object.
    pub fn is_write(&self) -> bool {
        self.method == "PUT"
    }
}

/// What became of one request.
#[derive(Debug, Clone)]
pub struct Seen {
    pub request: Request,
    /// When it had come.
    pub at: Instant,
    /// What went wrong.
    pub fault: Option<Fault>,
    /// The status that the client was given whole; none when it got no answer, or a part of one.
    pub status: Option<u16>,
}

type Plan = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

struct Shared {
    upstream: u16,
    plan: Mutex<Plan>,
    seen: Mutex<Vec<Seen>>,
    ended: AtomicBool,
}

/// A running proxy; it ends with its value.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy in front of the server at `upstream` on this machine. Nothing goes wrong yet.
    pub fn before(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream,
            plan: Mutex::new(Box::new(|_| None)),
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), serving) = (client, serving.clone()) else { continue };
                // A connection that breaks is what this is for.
                std::thread::spawn(move || drop(serving.serve(client)));
            }
        });
        Self { port, shared }
    }

    /// From now on `plan` says what goes wrong.
    pub fn plan(&self, plan: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        *self.shared.plan.lock().unwrap() = Box::new(plan);
    }

    /// Nothing goes wrong any more; what is held stays held.
    pub fn clear(&self) {
        self.plan(|_| None);
    }

    /// What came so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How many requests came so far: a mark for [`Proxy::since`].
    pub fn mark(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    /// What came since then.
    pub fn since(&self, mark: usize) -> Vec<Seen> {
        self.shared.seen.lock().unwrap()[mark..].to_vec()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A message: first line, headers as they came, body without any framing.
struct Message {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The same without a header.
    fn without(&self, name: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
        Self { line: self.line.clone(), headers, body: self.body.clone() }
    }

    /// Line and headers, saying that `length` bytes of body follow.
    fn head(&self, length: Option<usize>) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            let is_framing = ["content-length", "transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own));
            if !is_framing || length.is_none() {
                text += &format!("{name}: {value}\r\n");
            }
        }
        if let Some(length) = length {
            text += &format!("Content-Length: {length}\r\n");
        }
        (text + "\r\n").into_bytes()
    }

    fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// The next message; of an answer to HEAD, its head alone.
fn message(from: &mut impl BufRead, is_headless: bool) -> io::Result<Message> {
    let first = line(from)?;
    let mut headers = Vec::new();
    loop {
        let text = line(from)?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(|| broken("header"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let mut message = Message { line: first, headers, body: Vec::new() };
    if is_headless || [204, 304].contains(&message.status()) {
        return Ok(message);
    }
    if message.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        loop {
            let size = line(from)?;
            let size = size.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(|_| broken("chunk"))?;
            let at = message.body.len();
            message.body.resize(at + size, 0);
            from.read_exact(&mut message.body[at..])?;
            line(from)?;
            if size == 0 {
                return Ok(message);
            }
        }
    }
    let length = message.header("content-length").map_or(Ok(0), str::parse).map_err(|_| broken("length"))?;
    message.body.resize(length, 0);
    from.read_exact(&mut message.body)?;
    Ok(message)
}

/// Ends a connection as a host does that has lost it.
fn reset(stream: TcpStream) {
    let socket = tokio::net::TcpSocket::from_std_stream(stream);
    let _ = socket.set_zero_linger();
}

impl Shared {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(IDLE))?;
        let mut reader = BufReader::new(client.try_clone()?);
        let mut upstream = None;
        loop {
            let asked = message(&mut reader, false)?;
            let request = self.request(&asked)?;
            let fault = (*self.plan.lock().unwrap())(&request);
            let number = request.number;
            self.seen.lock().unwrap()[number].fault = fault;
            let Some(status) = self.answer(&client, &mut upstream, &asked, &request, fault)? else {
                return Ok(());
            };
            self.seen.lock().unwrap()[number].status = Some(status);
        }
    }

    /// The request as plans see it, noted.
    fn request(&self, asked: &Message) -> io::Result<Request> {
        let mut words = asked.line.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(broken("request")) };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let range = asked.header("range").and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse().ok()?, to.parse().ok()?))
        });
        let mut seen = self.seen.lock().unwrap();
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            range,
            number: seen.len(),
        };
        seen.push(Seen { request: request.clone(), at: Instant::now(), fault: None, status: None });
        Ok(request)
    }

    /// Answers the client; none when the connection is at its end with that.
    fn answer(
        &self,
        client: &TcpStream,
        upstream: &mut Option<BufReader<TcpStream>>,
        asked: &Message,
        request: &Request,
        fault: Option<Fault>,
    ) -> io::Result<Option<u16>> {
        let (mut out, is_head) = (client, request.method == "HEAD");
        match fault {
            Some(Fault::Status(status, after)) => {
                out.write_all(&refusal(status, after, is_head))?;
                return Ok(Some(status));
            }
            Some(Fault::ResetBefore) => return self.end(client),
            Some(Fault::ResetInRequest) => {
                let mut stream = TcpStream::connect(("127.0.0.1", self.upstream))?;
                stream.write_all(&asked.head(None))?;
                stream.write_all(&asked.body[..asked.body.len() / 2])?;
                reset(stream);
                return self.end(client);
            }
            Some(Fault::Stall) => return self.hold(client),
            _ => {}
        }
        let answered = match fault {
            Some(Fault::Overwrite) => self.forward(upstream, &asked.without("if-none-match"), is_head)?,
            _ => self.forward(upstream, asked, is_head)?,
        };
        let status = answered.status();
        let half = answered.body.len() / 2;
        let is_whole = is_head || [204, 304].contains(&status);
        let head = answered.head((!is_whole).then_some(answered.body.len()));
        match fault {
            Some(Fault::LoseAnswer) => return self.end(client),
            Some(Fault::LandedStall) => return self.hold(client),
            Some(Fault::LandedStatus(status)) => {
                out.write_all(&refusal(status, None, is_head))?;
                return Ok(Some(status));
            }
            Some(Fault::ResetInAnswer | Fault::CutAnswer) => {
                out.write_all(&head)?;
                out.write_all(&answered.body[..half])?;
                // What was sent is to arrive: a reset overtakes it otherwise.
                std::thread::sleep(Duration::from_millis(20));
                if fault == Some(Fault::ResetInAnswer) {
                    return self.end(client);
                }
                client.shutdown(std::net::Shutdown::Both)?;
                return Ok(None);
            }
            Some(Fault::ShortAnswer) if !is_whole => {
                out.write_all(&answered.head(Some(half)))?;
                out.write_all(&answered.body[..half])?;
                return Ok(Some(status));
            }
            Some(Fault::SlowFirstByte(time)) => std::thread::sleep(time),
            _ => {}
        }
        let mut body = answered.body;
        if let (Some(Fault::Flip(part)), false) = (fault, body.is_empty()) {
            let at = body.len() * usize::from(part % 1000) / 1000;
            body[at] ^= 0x10;
        }
        out.write_all(&head)?;
        out.write_all(&body)?;
        Ok(Some(status))
    }

    /// Resets the client's connection.
    fn end(&self, client: &TcpStream) -> io::Result<Option<u16>> {
        // The caller holds other handles of it: the linger time is the socket's, and the last one to be dropped resets.
        let socket = tokio::net::TcpSocket::from_std_stream(client.try_clone()?);
        socket.set_zero_linger()?;
        Ok(None)
    }

    /// Keeps the client waiting for as long as it waits.
    fn hold(&self, client: &TcpStream) -> io::Result<Option<u16>> {
        client.set_read_timeout(Some(LOOK))?;
        while !self.ended.load(Ordering::Relaxed) {
            match client.peek(&mut [0]) {
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                // Whoever has gone sends an end; whoever sends more than one request at a time is not served.
                _ => break,
            }
        }
        Ok(None)
    }

    /// The server's own answer.
    fn forward(
        &self,
        upstream: &mut Option<BufReader<TcpStream>>,
        asked: &Message,
        is_head: bool,
    ) -> io::Result<Message> {
        // A kept connection may have been closed meanwhile: only then the request is sent again, on a new one.
        if let Some(kept) = upstream
            && let Ok(answered) = exchange(kept, asked, is_head)
        {
            return Ok(answered);
        }
        let stream = TcpStream::connect(("127.0.0.1", self.upstream))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IDLE))?;
        let fresh = upstream.insert(BufReader::new(stream));
        exchange(fresh, asked, is_head)
    }
}

fn exchange(upstream: &mut BufReader<TcpStream>, asked: &Message, is_head: bool) -> io::Result<Message> {
    let length = (!asked.body.is_empty()).then_some(asked.body.len());
    upstream.get_mut().write_all(&asked.head(length))?;
    upstream.get_mut().write_all(&asked.body)?;
    message(upstream, is_head)
}

fn refusal(status: u16, after: Option<u32>, is_head: bool) -> Vec<u8> {
    let body = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>on purpose</Message></Error>";
    let after = after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
    let shown = if is_head { "" } else { body };
    format!(
        "HTTP/1.1 {status} On Purpose\r\nContent-Type: application/xml\r\n{after}Content-Length: {}\r\n\r\n{shown}",
        if is_head { 0 } else { body.len() }
    )
    .into_bytes()
}
