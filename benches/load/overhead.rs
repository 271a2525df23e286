//! What the tool itself costs, measured against a server that does nothing.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::client::{Endpoint, Outcome, Target};
use super::stats::Distribution;

/// Streams at once, chunks of each, and the pause between two chunks of one stream.
const STREAMS: usize = 16;
const CHUNKS: usize = 100;
const PACE: Duration = Duration::from_millis(8);
/// Digits of a time stamp.
const STAMP: usize = 16;

/// The tool's own share.
#[derive(Clone, Debug, Serialize)]
pub struct Overhead {
    /// CPU time of the tool's thread for each chunk it received, requests included; `None` where the system does not
    /// tell.
    pub cpu_us_per_chunk: Option<f64>,
    pub streams: usize,
    pub chunks_per_second: f64,
    /// From the moment the null server begins to write a chunk to the chunk's time stamp in the tool, milliseconds.
    pub chunk_delay: Distribution,
}

/// CPU time of this thread so far.
pub fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds = text.split_whitespace().next()?.parse().ok()?;
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

/// Nanoseconds since the first call in this process.
fn stamp(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    at.saturating_duration_since(*START.get_or_init(Instant::now)).as_nanos() as u64
}

/// Answers every request on a connection with a stream whose chunks say when they were written.
async fn serve(stream: TcpStream, chunks: usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        stream.read_exact(&mut vec![0; length]).await?;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        let mut clock = tokio::time::interval(PACE);
        for i in 0..=chunks {
            clock.tick().await;
            let event = if i < chunks {
                let content = format!("{:0STAMP$}", stamp(Instant::now()));
                format!(
                    "data: {}\n\n",
                    json!({
                        "id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 0, "model": "null",
                        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}],
                    })
                )
            } else {
                let usage = json!({"prompt_tokens": 1, "completion_tokens": chunks, "total_tokens": chunks + 1});
                let last = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": usage});
                format!("data: {last}\n\ndata: [DONE]\n\n")
            };
            stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
        }
        stream.write_all(b"0\r\n\r\n").await?;
    }
}

/// Starts the null server on a thread of its own, so that its work is not counted as the tool's. It ends with the
/// process. Returns its address.
pub fn null_server(chunks: usize) -> Result<String> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("null-server".into()).spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, chunks));
            }
        });
    })?;
    Ok(format!("http://{address}"))
}

/// Measures the tool as it is used: the same client, on the same thread.
pub async fn measure() -> Result<Overhead> {
    stamp(Instant::now());
    let url = null_server(CHUNKS)?;
    let target = Arc::new(Target::connect(None, &url, Some("null".into()), None).await?);
    let ask = |target: Arc<Target>| async move {
        let body = target.body(Endpoint::Chat, &[("user", "Hi".into())], CHUNKS as u32, true, &Map::new());
        target.exchange(Endpoint::Chat, &body, None, Duration::from_secs(60)).await
    };
    ask(Arc::clone(&target)).await;
    let (cpu, began) = (thread_cpu(), Instant::now());
    let mut tasks: JoinSet<_> = (0..STREAMS).map(|_| ask(Arc::clone(&target))).collect();
    let mut delays = Vec::new();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen.context("a request's task failed")?;
        if let Outcome::Failed { kind, detail } = seen.outcome {
            anyhow::bail!("the null server: {kind}: {detail}");
        }
        let stamps = seen.text.as_bytes().chunks(STAMP);
        for (&came, text) in seen.chunks.iter().zip(stamps) {
            let sent: u64 = std::str::from_utf8(text)?.parse()?;
            delays.push(stamp(came).saturating_sub(sent) as f64 / 1e6);
        }
    }
    let (spent, took) = (cpu.zip(thread_cpu()).map(|(a, b)| b.saturating_sub(a)), began.elapsed());
    let chunks = delays.len() as f64;
    Ok(Overhead {
        cpu_us_per_chunk: spent.map(|s| s.as_secs_f64() * 1e6 / chunks),
        streams: STREAMS,
        chunks_per_second: chunks / took.as_secs_f64(),
        chunk_delay: Distribution::of(delays).context("no chunk came")?,
    })
}
