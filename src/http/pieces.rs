//! What the chunks of a chat say, one thing after the other. The APIs whose answers are lists of blocks are made of
//! this, so what a chat can say they can say.

use tokio::sync::watch;

use super::chat::deadline;
use super::choice::Added;
use super::error::ApiError;
use super::generation::Generation;
use super::state::Stage;
use super::stream::ChatChunks;
use super::tools::CallParser;
use super::vocabulary::Vocabulary;
use super::wire::{ChunkChoice, TokenLogprob};

/// One thing.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text.
    Text {
        /// What is new.
        text: String,
        /// Of its tokens, if asked for.
        logprobs: Vec<TokenLogprob>,
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
    End(&'static str),
}

/// Reads the chunks of one answer.
pub struct Pieces(ChatChunks);

impl Pieces {
    /// Of an answer whose calls are read by `calls`.
    pub fn new(vocabulary: Vocabulary, logprobs: bool, calls: Option<CallParser>) -> Self {
        Self(ChatChunks::new(1, vocabulary, logprobs, calls))
    }

    /// What `added` says.
    pub fn of(&mut self, added: Added) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for ChunkChoice { delta, logprobs, finish_reason, .. } in self.0.choices(0, added) {
            let text = delta.content.unwrap_or_default();
            let logprobs = logprobs.map(|l| l.content).unwrap_or_default();
            // Tokens of a call are not those of a text.
            if !text.is_empty() || (!logprobs.is_empty() && delta.tool_calls.is_empty()) {
                pieces.push(Piece::Text { text, logprobs });
            }
            for call in delta.tool_calls {
                // A call's id and name come once, at its beginning.
                if let (Some(id), Some(name)) = (call.id, call.function.name) {
                    pieces.push(Piece::Call { id, name });
                }
                if !call.function.arguments.is_empty() {
                    pieces.push(Piece::Arguments(call.function.arguments));
                }
            }
            pieces.extend(finish_reason.map(Piece::End));
        }
        pieces
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
