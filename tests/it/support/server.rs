//! The real binary as a child process, and requests to it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::description::Ask;
use super::goldens;

/// The binary, knowing nothing of this process's own settings.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lima"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        // Where models are, and the way to them, stays.
        if name.starts_with("LIMA_") && !["LIMA_CACHE", "LIMA_PYTHON", "LIMA_CPU_LEVEL"].contains(&&*name) {
            command.env_remove(name);
        }
    }
    command
}

/// A running server.
pub struct Server {
    child: Child,
    pub base: String,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    client: reqwest::Client,
}

impl Server {
    /// Starts it on a free port and waits until it is ready.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::of(&goldens::default_model(), arguments).await
    }

    /// Likewise with another model.
    pub async fn of(model: &Path, arguments: &[&str]) -> Self {
        let mut child = command()
            .arg("--model")
            .arg(model)
            // One thread: tests run side by side, and threads that wait for each other want a core each.
            .args(["--port", "0", "--served-model-name", "lima", "--threads", "1", "--drain-timeout", "300"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut pipe, text) = (child.stderr.take().unwrap(), stderr.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let base = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut server = Self { child, base, stderr, reader: Some(reader), client };
        while server.status("/readyz").await != Some(200) {
            assert!(server.child.try_wait().unwrap().is_none(), "{}", server.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// The status of a GET on a connection of its own; `None` if nobody answers.
    pub async fn status(&self, path: &str) -> Option<u16> {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client.get(format!("{}{path}", self.base)).send().await.ok().map(|r| r.status().as_u16())
    }

    pub async fn post(&self, body: &Value) -> reqwest::Response {
        let url = format!("{}/v1/chat/completions", self.base);
        Ask::new(&self.client, reqwest::Method::POST, url).json(body).send().await.unwrap()
    }

    /// The answer to a request that succeeds.
    pub async fn chat(&self, body: &Value) -> Value {
        let response = self.post(body).await;
        let status = response.status();
        let body = response.text().await.unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Starts a stream.
    pub async fn stream(&self, body: &Value) -> Stream {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.post(&body).await;
        assert_eq!(response.status(), 200);
        Stream { response, buffer: String::new() }
    }

    /// The value of a metric; `name` with its labels but those all have in common.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.client.get(format!("{}/metrics", self.base)).send().await.unwrap().text().await.unwrap();
        let (name, label) = name.split_once('{').unwrap_or((name, ""));
        let matches = |line: &&str| {
            line.strip_prefix(name).is_some_and(|l| l.starts_with(['{', ' ']))
                && line.contains(label.trim_end_matches('}'))
        };
        let line = text.lines().find(matches).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends it a signal, such as `HUP`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Its exit code and all it logged.
    pub async fn wait(mut self) -> (Option<i32>, String) {
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.reader.take().unwrap().join().unwrap();
        (status.code(), self.stderr())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr = self.stderr.lock().unwrap_or_else(|e| e.into_inner());
        if stderr.contains("panicked") && !std::thread::panicking() {
            panic!("the server panicked:\n{stderr}");
        }
    }
}

/// Server-sent events as they come.
pub struct Stream {
    response: reqwest::Response,
    buffer: String,
}

impl Stream {
    /// The next chunk; `None` at `[DONE]`. The connection must not end before.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.buffer = rest;
                match event.strip_prefix("data: ") {
                    Some("[DONE]") => return None,
                    Some(data) => {
                        let chunk: Value = serde_json::from_str(data).unwrap();
                        assert!(chunk["error"].is_null(), "{chunk}");
                        return Some(chunk);
                    }
                    None => continue,
                }
            }
            let bytes = self.response.chunk().await.unwrap();
            let bytes = bytes.unwrap_or_else(|| panic!("the stream ended without [DONE]: {:?}", self.buffer));
            // Only whole events are sent, so characters are whole too.
            self.buffer.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// Reads to the end.
    pub async fn rest(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        while let Some(chunk) = self.next().await {
            chunks.push(chunk);
        }
        chunks
    }
}

/// What the chunks of a choice spell, and how it ended.
pub fn spelled(chunks: &[Value], index: u64) -> (String, Option<String>) {
    let choices = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
    let (mut text, mut reason) = (String::new(), None);
    for choice in choices {
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        reason = choice["finish_reason"].as_str().map(str::to_owned).or(reason);
    }
    (text, reason)
}

/// The text of a choice, and how it ended.
pub fn said(answer: &Value, index: usize) -> (String, Option<String>) {
    let choice = &answer["choices"][index];
    (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"].as_str().map(str::to_owned))
}

/// A request of one user message.
pub fn ask(content: &str, max_tokens: u32, seed: u64) -> Value {
    json!({
        "model": "lima", "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens, "seed": seed,
        "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2,
    })
}

/// Runs the binary to its end, without logs.
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command();
    command.args(arguments).env("LIMA_LOG", "off").envs(environment.iter().copied());
    command.stdin(Stdio::null()).output().unwrap()
}
