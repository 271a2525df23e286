//! A small server that speaks the Hugging Face hub's protocol: `/api/models/{repo}/revision/{revision}`,
//! `/{repo}/resolve/{commit}/{file}` with ETag and `x-repo-commit`, large files by a redirect to another host, ranges,
//! tokens, and connections that break.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPO: &str = "org/tiny";
/// Files above this many bytes are "large": named by their SHA-256 and served from elsewhere.
const LARGE: usize = 2000;

/// What the server does; tests change it as they go.
#[derive(Default)]
pub struct Behaviour {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Demanded of whoever asks the hub.
    pub token: Option<String>,
    /// The next so many answers with content end after half of it.
    pub breaks: usize,
    /// Ranges are ignored.
    pub no_ranges: bool,
    /// Content is not what its hash says.
    pub corrupt: bool,
    /// The next so many requests are answered with 503.
    pub busy: usize,
    /// Said instead of the true ones.
    pub etag: Option<String>,
    pub commit: Option<String>,
    /// Every request: method, path, and the range asked for.
    pub log: Vec<String>,
}

pub struct HubServer {
    pub port: u16,
    pub state: Arc<Mutex<Behaviour>>,
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl HubServer {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(Behaviour { files, ..Behaviour::default() }));
        let shared = Arc::clone(&state);
        // Ends with the tests' process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    if let Some(request) = read(&stream) {
                        // A client that goes away is no failure of the server.
                        let _ = answer(stream, &request, &state, port);
                    }
                });
            }
        });
        Self { port, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.lock().unwrap());
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, headers })
}

fn respond(mut to: TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(to, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n", body.len())?;
    to.write_all(body)
}

fn answer(to: TcpStream, request: &Request, state: &Mutex<Behaviour>, port: u16) -> std::io::Result<()> {
    let mut s = state.lock().unwrap();
    let range = request.headers.get("range").cloned();
    let ranged = range.as_deref().map(|r| format!(" {r}")).unwrap_or_default();
    s.log.push(format!("{} {}{ranged}", request.method, request.path));
    if s.busy > 0 {
        s.busy -= 1;
        return respond(to, "503 Busy", "", b"");
    }
    let path = request.path.replace("%20", " ");
    if let Some(hash) = path.strip_prefix("/cdn/") {
        assert!(!request.headers.contains_key("authorization"), "the token left the hub");
        let body = s.files.values().find(|b| sha256(b) == hash).unwrap().clone();
        return content(to, request, s, &body, "");
    }
    let authorization = s.token.as_ref().map(|t| format!("Bearer {t}"));
    if authorization.is_some() && request.headers.get("authorization") != authorization.as_ref() {
        return respond(to, "401 Unauthorized", "x-error-code: GatedRepo\r\n", b"");
    }
    let commit = s.commit.clone().unwrap_or_else(|| COMMIT.to_owned());
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
        if !["main", "v1", COMMIT].contains(&revision) {
            return respond(to, "404 Not Found", "x-error-code: RevisionNotFound\r\n", b"");
        }
        let siblings: Vec<_> = s.files.keys().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"id": REPO, "sha": commit, "siblings": siblings, "private": false}).to_string();
        return respond(to, "200 OK", "content-type: application/json\r\n", body.as_bytes());
    }
    let file = path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/"));
    let Some(body) = file.and_then(|f| s.files.get(f)).cloned() else {
        return respond(to, "404 Not Found", "x-error-code: EntryNotFound\r\n", b"");
    };
    let hash = s.etag.clone().unwrap_or_else(|| sha256(&body));
    if body.len() > LARGE {
        // Another host's name, so that the token must not follow.
        let headers = format!(
            "x-repo-commit: {commit}\r\nx-linked-etag: \"{hash}\"\r\nx-linked-size: {}\r\netag: \"pointer-etag\"\r\n\
             location: http://localhost:{port}/cdn/{}\r\n",
            body.len(),
            sha256(&body)
        );
        return respond(to, "302 Found", &headers, b"");
    }
    let etag = s.etag.clone().unwrap_or_else(|| hash[..40].to_owned());
    content(to, request, s, &body, &format!("x-repo-commit: {commit}\r\netag: W/\"{etag}\"\r\n"))
}

fn content(
    mut to: TcpStream,
    request: &Request,
    mut s: std::sync::MutexGuard<'_, Behaviour>,
    body: &[u8],
    headers: &str,
) -> std::io::Result<()> {
    let mut body = body.to_vec();
    if s.corrupt {
        body[0] ^= 1;
    }
    let total = body.len();
    let range = request.headers.get("range").filter(|_| !s.no_ranges);
    let from: usize =
        range.map_or(0, |r| r.strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap());
    let (status, range) = match range {
        Some(_) if from >= total => return respond(to, "416 Range Not Satisfiable", "", b""),
        Some(_) => ("206 Partial Content", format!("content-range: bytes {from}-{}/{total}\r\n", total - 1)),
        None => ("200 OK", String::new()),
    };
    let body = &body[from..];
    if request.method == "HEAD" {
        return write!(to, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n", body.len());
    }
    let breaks = s.breaks > 0;
    s.breaks -= usize::from(breaks);
    drop(s);
    write!(to, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}{range}\r\n", body.len())?;
    to.write_all(if breaks { &body[..body.len() / 2] } else { body })
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
