//! What the chunks of a chat say, one thing after the other. The APIs whose answers are lists of blocks are made of
//! this: they read the chunks as a client would, so what a chat can say they can say.

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use super::chat::{Identity, deadline};
use super::choice::Added;
use super::error::ApiError;
use super::generation::Generation;
use super::state::Stage;
use super::stream::ChatChunks;

/// One thing.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text, and what a chat says of its tokens, if that is asked for.
    Text {
        /// What is new.
        text: String,
        /// As in `logprobs.content`.
        logprobs: Vec<Value>,
    },
    /// A function is called.
    Call {
        /// Of the call.
        id: String,
        /// Of the function.
        name: String,
    },
    /// More of the arguments of the call that was begun last.
    Arguments(String),
    /// The end, with the finish reason.
    End(String),
}

/// Reads the chunks of one answer.
pub struct Pieces(ChatChunks);

impl Pieces {
    /// Of these chunks.
    pub fn new(chunks: ChatChunks) -> Self {
        Self(chunks)
    }

    /// What `added` says.
    pub fn of(&mut self, identity: &Identity, added: Added) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for chunk in self.0.chunks(identity, 0, added, None) {
            read(&chunk, &mut pieces);
        }
        pieces
    }
}

#[derive(Deserialize)]
struct Chunk {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(default)]
    tool_calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    id: Option<String>,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: Option<String>,
    #[serde(default)]
    arguments: String,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Value>>,
}

fn read(chunk: &str, pieces: &mut Vec<Piece>) {
    let chunk: Chunk = serde_json::from_str(chunk).expect("chunks are written by this server");
    for Choice { delta, logprobs, finish_reason } in chunk.choices {
        let text = delta.content.unwrap_or_default();
        let logprobs = logprobs.and_then(|l| l.content).unwrap_or_default();
        if !text.is_empty() || !logprobs.is_empty() {
            pieces.push(Piece::Text { text, logprobs });
        }
        for Call { id, function } in delta.tool_calls {
            // A call's id and name come once, at its beginning.
            if let Some(id) = id {
                pieces.push(Piece::Call { id, name: function.name.unwrap_or_default() });
            }
            if !function.arguments.is_empty() {
                pieces.push(Piece::Arguments(function.arguments));
            }
        }
        pieces.extend(finish_reason.map(Piece::End));
    }
}

/// Hands everything that is generated to `take`. When the client goes away this future is dropped, and with it the
/// sequences.
pub async fn each(
    generation: &mut Generation,
    mut stage: watch::Receiver<Stage>,
    mut take: impl FnMut(Added),
) -> Result<(), ApiError> {
    let all = async {
        while let Some(next) = generation.next().await {
            take(next?.1);
        }
        Ok(())
    };
    tokio::select! {
        result = all => result,
        () = deadline(&mut stage) => Err(ApiError::DrainDeadline),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pieces(delta: Value, finish_reason: Value) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let chunk = json!({"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]});
        read(&chunk.to_string(), &mut pieces);
        pieces
    }

    #[test]
    fn chunks_say_text_calls_and_ends() {
        let text = |text: &str| Piece::Text { text: text.into(), logprobs: vec![] };
        assert_eq!(pieces(json!({"role": "assistant", "content": "", "refusal": null}), Value::Null), []);
        assert_eq!(pieces(json!({"content": "hi"}), Value::Null), [text("hi")]);
        let begin = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}});
        let call = |id: &str| Piece::Call { id: id.into(), name: "f".into() };
        assert_eq!(pieces(json!({"tool_calls": [begin]}), Value::Null), [call("call_1")]);
        let whole = json!({"index": 1, "id": "call_2", "function": {"name": "f", "arguments": "{}"}});
        let more = json!({"index": 1, "function": {"arguments": " "}});
        let expected = [call("call_2"), Piece::Arguments("{}".into()), Piece::Arguments(" ".into())];
        assert_eq!(pieces(json!({"content": null, "tool_calls": [whole, more]}), Value::Null), expected);
        assert_eq!(pieces(json!({}), json!("tool_calls")), [Piece::End("tool_calls".into())]);
    }
}
