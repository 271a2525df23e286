//! Requests to a server of OpenAI's API.

use std::io::{BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde_json::Value;
use ureq::{Agent, Error, Request, Response};

use super::events;

/// Most of an answer that is not a stream.
const MAX_BODY: u64 = 8 << 20;
/// Time without a byte after which a server is given up.
const SILENCE: Duration = Duration::from_secs(600);

/// Where chats are answered, below the base.
const CHAT: &str = "/chat/completions";

/// Why there is no answer, or no whole one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// Not an address.
    #[error("--url '{0}' is not an address such as http://127.0.0.1:8000/v1")]
    Url(String),
    /// Not a key.
    #[error("--api-key has characters that no key has")]
    Key,
    /// Nobody answers there.
    #[error("{url} cannot be reached: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Of the connection.
        reason: String,
    },
    /// The server says no.
    #[error("the server answers {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's words.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// An error within the stream.
    #[error("the server broke off: {0}")]
    InStream(String),
    /// The connection ended.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// Not this API.
    #[error("{url} does not answer as OpenAI's API does: {reason}")]
    Strange {
        /// What was asked.
        url: String,
        /// What is missing.
        reason: String,
    },
    /// The answer cannot be shown.
    #[error("standard output cannot be written: {0}")]
    Output(String),
    /// A command that cannot be followed.
    #[error("{0}")]
    Command(String),
}

/// What a stream brings, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// More of the answer.
    Text(String),
    /// Token counts, as the API has them.
    Usage(Value),
    /// `[DONE]`: the answer is whole.
    Done,
    /// It is not.
    Failed(ChatError),
}

/// A server.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    /// Without a slash at the end.
    base: String,
    key: Option<String>,
}

impl Client {
    /// A server at `url`; without a path, its API is below `/v1`.
    ///
    /// # Errors
    /// An address or a key that cannot be sent.
    pub fn new(url: &str, key: Option<&str>) -> Result<Self, ChatError> {
        let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_graphic());
        let wrong = || ChatError::Url(url.to_owned());
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).ok_or_else(wrong)?;
        if !plain(rest) || rest.starts_with(['/', ':']) {
            return Err(wrong());
        }
        let key = key.filter(|key| !key.is_empty());
        if key.is_some_and(|key| !plain(key)) {
            return Err(ChatError::Key);
        }
        let base = url.trim_end_matches('/');
        let base = if rest.trim_end_matches('/').contains('/') { base.to_owned() } else { format!("{base}/v1") };
        let is_near = ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| rest.starts_with(host));
        let agent = ureq::builder()
            .try_proxy_from_env(!is_near)
            .user_agent(concat!("lima/", env!("CARGO_PKG_VERSION")))
            .redirects(0)
            .timeout_connect(Duration::from_secs(15))
            .timeout_read(SILENCE)
            .build();
        Ok(Self { agent, base, key: key.map(str::to_owned) })
    }

    fn signed(&self, request: Request) -> Request {
        match &self.key {
            Some(key) => request.set("Authorization", &format!("Bearer {key}")),
            None => request,
        }
    }

    fn strange(&self, path: &str, reason: impl ToString) -> ChatError {
        ChatError::Strange { url: format!("{}{path}", self.base), reason: reason.to_string() }
    }

    /// The name of the first model.
    ///
    /// # Errors
    /// As the server answers, or does not.
    pub fn first_model(&self) -> Result<String, ChatError> {
        let request = self.signed(self.agent.get(&format!("{}/models", self.base)));
        let response = request.call().map_err(|e| refusal(e, &self.base))?;
        let list: Value =
            serde_json::from_reader(response.into_reader().take(MAX_BODY)).map_err(|e| self.strange("/models", e))?;
        let name = list["data"][0]["id"].as_str().ok_or_else(|| self.strange("/models", "it names no model"))?;
        Ok(name.to_owned())
    }

    /// The whole answer to `body`, as the API has it.
    ///
    /// # Errors
    /// As the server answers, or does not.
    pub fn complete(&self, body: &Value) -> Result<Value, ChatError> {
        let request = self.agent.post(&format!("{}{CHAT}", self.base)).set("Content-Type", "application/json");
        let response = self.signed(request).send_string(&body.to_string()).map_err(|e| refusal(e, &self.base))?;
        let parsed = serde_json::from_reader(response.into_reader().take(MAX_BODY));
        parsed.map_err(|e| match e.is_io() || e.is_eof() {
            true => ChatError::Broken(e.to_string()),
            false => self.strange(CHAT, e),
        })
    }

    /// Where the API is, without a slash at the end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends `body`; the answer's pieces come on the channel, `Done` or `Failed` last. Who drops the receiver ends
    /// the connection at the next piece.
    pub fn stream(&self, body: &Value) -> Receiver<Piece> {
        let (pieces, receiver) = channel();
        let (client, body) = (self.clone(), body.to_string());
        std::thread::spawn(move || {
            let last = match client.read(&body, &pieces) {
                Ok(()) => Piece::Done,
                Err(error) => Piece::Failed(error),
            };
            // Nobody may be left to be told.
            let _ = pieces.send(last);
        });
        receiver
    }

    fn read(&self, body: &str, pieces: &Sender<Piece>) -> Result<(), ChatError> {
        let request = self.agent.post(&format!("{}{CHAT}", self.base)).set("Content-Type", "application/json");
        let response = self.signed(request).send_string(body).map_err(|e| refusal(e, &self.base))?;
        let mut reader = BufReader::new(response.into_reader());
        let broken = |e: std::io::Error| ChatError::Broken(e.to_string());
        while let Some(data) = events::next(&mut reader).map_err(broken)? {
            if data == "[DONE]" {
                return Ok(());
            }
            let mut chunk: Value = serde_json::from_str(&data).map_err(|e| self.strange(CHAT, e))?;
            if let Some(message) = message_of(&chunk) {
                return Err(ChatError::InStream(message));
            }
            let text = chunk["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty());
            let text = text.map(|text| Piece::Text(text.to_owned()));
            let usage = Some(chunk["usage"].take()).filter(Value::is_object).map(Piece::Usage);
            for piece in [text, usage].into_iter().flatten() {
                if pieces.send(piece).is_err() {
                    return Ok(());
                }
            }
        }
        Err(ChatError::Broken("the stream ended without [DONE]".into()))
    }
}

fn refusal(error: Error, url: &str) -> ChatError {
    let (status, response) = match error {
        Error::Status(status, response) => (status, response),
        Error::Transport(e) => {
            let reason = e.message().map_or_else(|| e.kind().to_string(), str::to_owned);
            return ChatError::Unreachable { url: url.to_owned(), reason };
        }
    };
    let retry_after = response.header("retry-after").and_then(|s| s.trim().parse().ok()).map(Duration::from_secs);
    ChatError::Refused { status, message: words(response), retry_after }
}

/// What a refusal says, on one line.
fn words(response: Response) -> String {
    let text = response.status_text().to_owned();
    let body: Option<Value> = serde_json::from_reader(response.into_reader().take(MAX_BODY)).ok();
    let message = body.as_ref().and_then(message_of).unwrap_or(text);
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The message of an error object: OpenAI's, or a bare string.
fn message_of(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|error| !error.is_null())?;
    let message = error["message"].as_str().or(error.as_str()).map(str::to_owned);
    Some(message.unwrap_or_else(|| error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let base = |url: &str| Client::new(url, None).map(|client| client.base);
        for (url, expected) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
            ("https://example.com/team/v1", "https://example.com/team/v1"),
        ] {
            assert_eq!(base(url).unwrap(), expected);
        }
        for url in ["", "127.0.0.1:8000", "ftp://a", "http://", "http:///v1", "http://a b", "http://:80"] {
            assert_eq!(base(url), Err(ChatError::Url(url.into())));
        }
        assert_eq!(Client::new("http://a", Some("two words")).unwrap_err(), ChatError::Key);
    }

    #[test]
    fn errors_have_a_message_whatever_their_shape() {
        let of = |text: &str| message_of(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"error":{"message":"No."}}"#).as_deref(), Some("No."));
        assert_eq!(of(r#"{"error":"No."}"#).as_deref(), Some("No."));
        assert_eq!(of(r#"{"error":{"code":5}}"#).as_deref(), Some(r#"{"code":5}"#));
        assert_eq!(of(r#"{"error":null,"choices":[]}"#), None);
        assert_eq!(of(r#"{"choices":[]}"#), None);
    }
}
