//! What HTTP adds to a request: the same request with and without HTTP, in turn, in one process.
//!
//! `cargo bench --bench http_overhead -- [--requests 300] [flags of lima]`
//!
//! A server answers on a loopback port. A request asks for one greedy token after a prompt that is in the
//! prefix cache, and is made twice:
//! - over HTTP: from before `POST /v1/chat/completions` is written to a kept-alive connection until the whole
//!   body is read;
//! - to the engine alone: from before the prompt's tokens are submitted to the same engine until the end of the
//!   sequence is received by a blocked thread.
//!
//! The difference is therefore everything around the engine: sockets, the client's own work, parsing, validation,
//! the chat template, tokenising, detokenising, the JSON answer, and all hand-overs between threads except those
//! any caller of the engine has. Tokenising grows with the prompt, so a short and a long one are measured.
//! Differences are taken pair by pair; the order within a pair alternates.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use lima::config::Options;
use lima::engine::{self, EngineHandle, Event, Request, SamplingParams, TokenId};
use lima::http::{self, App, Limits, ModelParts, ServedModel};
use lima::serve::load_model;
use lima::text::ChatMessage;
use serde_json::{Map, Value, json};

#[derive(Parser)]
#[command(name = "http_overhead")]
struct Cli {
    /// Pairs of requests to measure
    #[arg(long, default_value_t = 300)]
    requests: usize,
    #[command(flatten)]
    options: Options,
}

/// Requests before those that count.
const WARM_UP: usize = 20;
const WORDS: [&str; 8] = ["river", "stone", "window", "seven", "garden", "never", "yellow", "paper"];

/// A kept-alive connection.
struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { reader: BufReader::new(stream) }
    }

    /// Sends a request and reads the whole answer.
    fn call(&mut self, request: &[u8]) -> (u16, Vec<u8>) {
        self.reader.get_mut().write_all(request).expect("the server reads");
        let (mut line, mut status, mut length) = (String::new(), 0, None);
        loop {
            line.clear();
            self.reader.read_line(&mut line).expect("the server answers");
            let text = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = text.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().expect("a status");
            } else if let Some(value) = text.strip_prefix("content-length:") {
                length = Some(value.trim().parse().expect("a length"));
            } else if text.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length.expect("an answer says its length")];
        self.reader.read_exact(&mut body).expect("the answer is whole");
        (status, body)
    }
}

/// Runs a request on the engine alone.
fn direct(engine: &EngineHandle, request: &Request) {
    let mut events = engine.submit(vec![request.clone()]).expect("the engine takes it").remove(0);
    loop {
        match events.blocking_recv().expect("an end precedes the close") {
            Event::Finished(_) => return,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// The value that a part `q` of them does not exceed.
fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * q).ceil() as usize).clamp(1, values.len()) - 1]
}

fn main() {
    let cli = Cli::parse_from(std::env::args().filter(|a| a != "--bench"));
    let pairs = cli.requests.max(1);
    let config = cli.options.resolve().expect("the flags are valid");
    assert!(config.prefix_caching, "the prompt is to be cached");
    let app = App::new(Limits::default());
    let loaded = load_model(&config, &app.progress).expect("the model loads");
    let (engine, _thread) = engine::spawn(loaded.engine, loaded.executor);
    let renderer = Arc::new(loaded.renderer);
    let name = loaded.name;
    app.set_model(ServedModel::new(ModelParts {
        names: vec![name.clone()],
        root: loaded.root,
        engine: engine.clone(),
        tokenizer: Arc::clone(renderer.tokenizer()),
        renderer: Arc::clone(&renderer),
        vocab_size: loaded.vocab_size,
        eos: loaded.eos.clone(),
        defaults: loaded.defaults,
        seed: Some(0),
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    runtime.spawn(http::serve(app, listener, std::future::pending(), Duration::ZERO));
    let mut client = Client::connect(address);

    println!("{name}, {} threads, {pairs} pairs of requests, milliseconds", config.threads);
    println!("| prompt tokens | engine alone, median | over HTTP, median | HTTP adds, median | HTTP adds, p99 |");
    println!("|---|---|---|---|---|");
    for words in [10, 700] {
        let text: Vec<&str> = (0..words).map(|i| WORDS[i * i % 61 % WORDS.len()]).collect();
        let text = text.join(" ");
        let messages = [ChatMessage::text("user", text.clone())];
        let prompt: Arc<[TokenId]> = renderer.chat(&messages, true, &Map::new()).expect("the template renders").into();
        let params = SamplingParams { max_tokens: 1, stop_token_ids: loaded.eos.clone(), ..SamplingParams::default() };
        let request = Request::generate(Arc::clone(&prompt), params);
        let body = json!({
            "model": name,
            "messages": [{ "role": "user", "content": text }],
            "max_tokens": 1,
            "temperature": 0,
            "repetition_penalty": 1,
        });
        let body = body.to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let bytes = [head.as_bytes(), body.as_bytes()].concat();

        let (status, answer) = client.call(&bytes);
        let answer: Value = serde_json::from_slice(&answer).expect("the answer is JSON");
        assert_eq!(status, 200, "{answer}");
        // Both ways ask for the same.
        assert_eq!(answer["usage"]["prompt_tokens"], json!(prompt.len()), "{answer}");

        let (mut alone, mut over, mut added) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..WARM_UP + pairs {
            let timed_direct = || {
                let started = Instant::now();
                direct(&engine, &request);
                ms(started.elapsed())
            };
            let mut timed_http = || {
                let started = Instant::now();
                let (status, _) = client.call(&bytes);
                let took = ms(started.elapsed());
                assert_eq!(status, 200);
                took
            };
            let (a, h) = if i % 2 == 0 {
                let a = timed_direct();
                (a, timed_http())
            } else {
                let h = timed_http();
                (timed_direct(), h)
            };
            if i >= WARM_UP {
                alone.push(a);
                over.push(h);
                added.push(h - a);
            }
        }
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} |",
            prompt.len(),
            quantile(&mut alone, 0.5),
            quantile(&mut over, 0.5),
            quantile(&mut added, 0.5),
            quantile(&mut added, 0.99)
        );
    }
    runtime.shutdown_background();
}
