//! A server of OpenAI's API that answers as a script says.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What comes back.
pub enum Reply {
    /// An answer.
    Text(String),
    /// A status, and when to come again.
    Status(u16, Option<u64>),
    /// 200, and something that is not the API.
    Garbage,
    /// The connection ends within the body.
    Broken,
    /// Nothing ever, until the client goes.
    Silence,
}

type Script = dyn Fn(&Value, usize) -> Reply + Send + Sync;

/// Bodies that came, and how many at once.
#[derive(Default)]
pub struct Seen {
    pub bodies: Mutex<Vec<Value>>,
    times: Mutex<BTreeMap<String, usize>>,
    now: AtomicUsize,
    pub most: AtomicUsize,
}

pub struct Judge {
    pub url: String,
    pub seen: Arc<Seen>,
}

impl Judge {
    /// Serves; the script gets a body, and how often that body came before.
    pub async fn start(script: impl Fn(&Value, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (seen, script): (Arc<Seen>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&shared)));
            }
        });
        Self { url, seen }
    }

    /// Calls that came.
    pub fn calls(&self) -> usize {
        self.seen.bodies.lock().unwrap().len()
    }
}

/// Requests of one connection; by hand, as it must be able to break.
async fn serve(mut stream: TcpStream, script: Arc<Script>, seen: Arc<Seen>) {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
        let length = text.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        while buffer.len() < head + length {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body: Vec<u8> = buffer.drain(..head + length).skip(head).collect();
        if text.starts_with("get /v1/models") {
            answer(&mut stream, "200 OK", "", &json!({"data": [{"id": "judge"}]}).to_string()).await;
            continue;
        }
        let body: Value = serde_json::from_slice(&body).unwrap();
        let before = {
            let mut times = seen.times.lock().unwrap();
            let times = times.entry(body.to_string()).or_default();
            *times += 1;
            *times - 1
        };
        seen.bodies.lock().unwrap().push(body.clone());
        let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
        seen.most.fetch_max(now, Ordering::SeqCst);
        // Others may come meanwhile.
        tokio::task::yield_now().await;
        let reply = script(&body, before);
        seen.now.fetch_sub(1, Ordering::SeqCst);
        match reply {
            Reply::Text(text) => {
                let message = json!({"role": "assistant", "content": text});
                let whole = json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                                   "usage": {"completion_tokens": 7}});
                answer(&mut stream, "200 OK", "", &whole.to_string()).await;
            }
            Reply::Status(status, after) => {
                let after = after.map_or_else(String::new, |s| format!("retry-after: {s}\r\n"));
                let body = json!({"error": {"message": format!("scripted {status}")}}).to_string();
                answer(&mut stream, &format!("{status} Scripted"), &after, &body).await;
            }
            Reply::Garbage => answer(&mut stream, "200 OK", "", "<html>").await,
            Reply::Broken => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"choices\":").await;
                return;
            }
            Reply::Silence => {
                let _ = stream.read(&mut [0; 1]).await;
                return;
            }
        }
    }
}

async fn answer(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all((head + body).as_bytes()).await;
}

/// The user's words in a body.
pub fn asked(body: &Value) -> &str {
    body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap()
}
