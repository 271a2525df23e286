//! Starts servers and waits until they are ready.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A server of ours; ends with this value.
pub struct Started {
    child: Child,
    output: File,
    pub url: String,
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Cuts flags at blanks; single and double quotes keep them.
pub fn split(line: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed: {line}");
    }
    words.extend(word);
    Ok(words)
}

impl Started {
    /// The `lima` that was built with this tool.
    pub async fn lima(flags: &str, timeout: Duration) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_lima"));
        command.args(split(flags)?).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        Self::start(command, port, "/readyz", timeout).await.context("lima")
    }

    /// A shell command with `{port}` in it.
    pub async fn command(line: &str, timeout: Duration) -> Result<Self> {
        if !line.contains("{port}") {
            bail!("the command has no {{port}}: {line}");
        }
        let port = free_port()?;
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {}", line.replace("{port}", &port.to_string()))]);
        Self::start(command, port, "/v1/models", timeout).await.with_context(|| line.to_owned())
    }

    async fn start(mut command: Command, port: u16, probe: &str, timeout: Duration) -> Result<Self> {
        let output = tempfile::tempfile()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .spawn()
            .context("cannot start")?;
        let mut started = Self { child, output, url: format!("http://127.0.0.1:{port}") };
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let (probe, began) = (format!("{}{probe}", started.url), Instant::now());
        loop {
            if let Some(status) = started.child.try_wait()? {
                bail!("ended with {status}:\n{}", started.tail());
            }
            // llama.cpp lists its models while it loads them, with 503 from /health.
            let ready = |path: String| async { client.get(path).send().await.map(|r| r.status()) };
            let healthy = ready(format!("{}/health", started.url)).await.is_ok_and(|s| s.as_u16() != 503);
            if healthy && ready(probe.clone()).await.is_ok_and(|s| s.is_success()) {
                return Ok(started);
            }
            if began.elapsed() > timeout {
                bail!("not ready after {} s:\n{}", timeout.as_secs(), started.tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last lines it wrote.
    fn tail(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.output.rewind().and_then(|()| self.output.read_to_end(&mut bytes));
        if let Err(e) = read {
            return format!("(its output cannot be read: {e})");
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}
