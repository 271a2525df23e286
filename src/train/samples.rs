//! Answers of a saved model to dev prompts, as the server would give them.
//!
//! The paper chose its checkpoint by looking at answers to 50 dev prompts, as perplexity does not tell. The engine that
//! serves is run on the saved directory itself: its tokenizer, its template, its end-of-turn token.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::events::Answer;
use crate::engine::{
    Core, EngineError, Event, FinishReason, Request, SamplingParams, SchedulerConfig, SeqEvent, SeqId, Speculation,
    TokenId,
};
use crate::model::weights::{Checkpoint, LoadError, Source};
use crate::ops::cpu::level::Level;
use crate::runner::{self, Loaded, RunnerError, RunnerOptions};
use crate::text::{ChatMessage, PromptError, PromptRenderer, TextStream};

/// Our own dev prompts, none of them in `data/assistant.jsonl`.
const OWN: &str = include_str!("../../data/dev_prompts.jsonl");

/// Most prompts of a file.
const MAX_PROMPTS: usize = 1000;

/// Answers that are generated side by side.
pub const MAX_SEQS: usize = 16;

/// A file of dev prompts that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A line is no prompt.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// There is nothing in it.
    #[error("{}: there are no prompts in it", .0.display())]
    Empty(PathBuf),
}

/// The prompts of a file, or our own: one a line, or as jsonl, recognised by the first line, with the text under
/// `prompt`. Empty lines are left out.
pub fn read(path: Option<&Path>) -> Result<Vec<String>, PromptsError> {
    let Some(path) = path else { return parse(OWN, Path::new("the built-in dev prompts")) };
    let text = fs::read_to_string(path).map_err(|error| PromptsError::Io { path: path.into(), error })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<String>, PromptsError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let is_json = lines().next().is_some_and(|(_, line)| line.trim_start().starts_with('{'));
    let mut prompts = Vec::new();
    for (i, line) in lines() {
        let error = |reason: String| PromptsError::Line { path: path.into(), line: i + 1, reason };
        if prompts.len() == MAX_PROMPTS {
            return Err(error(format!("more than {MAX_PROMPTS} prompts")));
        }
        if !is_json {
            prompts.push(line.to_owned());
            continue;
        }
        let row: Value = serde_json::from_str(line).map_err(|e| error(format!("not JSON: {e}")))?;
        match row.get("prompt") {
            Some(Value::String(prompt)) if !prompt.trim().is_empty() => prompts.push(prompt.clone()),
            Some(Value::String(_)) => return Err(error("\"prompt\" is empty".into())),
            Some(_) => return Err(error("\"prompt\" must be a string".into())),
            None => return Err(error("the object has no \"prompt\"".into())),
        }
    }
    match prompts.is_empty() {
        true => Err(PromptsError::Empty(path.into())),
        false => Ok(prompts),
    }
}

/// How answers are made. Temperature 0.7, top-p 0.9 and repetition penalty 1.2 are those of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Tokens of an answer at most.
    pub max_tokens: u32,
    /// Of the sampler.
    pub seed: u64,
    /// Worker threads; `None`: one a core. They change nothing but the speed.
    pub threads: Option<usize>,
}

/// Why there are no answers.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The saved model cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not fit.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// Its tokenizer or template cannot be read, or refuses a prompt.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A prompt leaves no room for an answer.
    #[error("dev prompt {number} has {tokens} tokens, and the model's context is {limit}")]
    TooLong {
        /// Counted from 1.
        number: usize,
        /// With the template's.
        tokens: usize,
        /// The model's.
        limit: usize,
    },
    /// The file has no tokenizer.
    #[error("{}: the file has no tokenizer", .0.display())]
    NoTokenizer(PathBuf),
    /// `LIMA_CPU_LEVEL` is wrong.
    #[error("{0}")]
    Level(String),
    /// A step failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Renders the prompts, and checks that each leaves room for an answer in a context of `limit` tokens: worth doing
/// before an epoch is spent.
pub fn check(prompts: &[String], renderer: &PromptRenderer, limit: usize) -> Result<Vec<Vec<TokenId>>, SampleError> {
    let render = |(i, prompt): (usize, &String)| {
        let ids = renderer.chat(&[ChatMessage::text("user", prompt.as_str())], true, &Map::new())?;
        match ids.len() < limit {
            true => Ok(ids),
            false => Err(SampleError::TooLong { number: i + 1, tokens: ids.len(), limit }),
        }
    };
    prompts.iter().enumerate().map(render).collect()
}

/// Answers all prompts with the model at `path`, a directory that was saved or any other that the server takes, and
/// frees it. An answer depends on its prompt, the model and the seed alone.
pub fn answer(path: &Path, prompts: &[String], settings: &Settings) -> Result<Vec<Answer>, SampleError> {
    let checkpoint = Checkpoint::open(path)?;
    let renderer = match (checkpoint.source(), checkpoint.gguf_vocab()) {
        (Source::HuggingFace(dir), _) => PromptRenderer::from_dir(dir)?,
        (Source::Gguf(_), Some(vocab)) => PromptRenderer::from_gguf(vocab)?,
        (Source::Gguf(_), None) => return Err(SampleError::NoTokenizer(path.into())),
    };
    let limit = checkpoint.config().max_position_embeddings;
    let ids = check(prompts, &renderer, limit)?;
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    let max_len = limit.min(longest + settings.max_tokens as usize);
    let mut core = core(&checkpoint, &renderer, max_len, prompts.len(), settings.threads)?;
    let ends = ends(&checkpoint, &renderer);
    for (i, ids) in ids.iter().enumerate() {
        let params = SamplingParams {
            temperature: 0.7,
            top_p: 0.9,
            repetition_penalty: 1.2,
            seed: settings.seed,
            max_tokens: settings.max_tokens.min((max_len - ids.len()) as u32),
            stop_token_ids: ends.clone(),
            ..SamplingParams::default()
        };
        let request = Request::generate(ids.as_slice(), params);
        // A sequence that could never run: `max_len` has room for each.
        let refused = |_| SampleError::TooLong { number: i + 1, tokens: ids.len(), limit: max_len };
        core.scheduler_mut().add(SeqId(i as u64), request).map_err(refused)?;
    }
    let mut tokens = vec![Vec::new(); prompts.len()];
    let mut ended = vec![false; prompts.len()];
    let mut events = Vec::new();
    while core.advance(&mut events) {
        for SeqEvent { seq, event, .. } in events.drain(..) {
            match event {
                Event::Token(sampled) => tokens[seq.0 as usize].push(sampled.token),
                Event::Finished(reason) => ended[seq.0 as usize] = reason == FinishReason::Stop,
                Event::Failed(error) => return Err(error.into()),
                Event::Scheduled { .. } | Event::PromptLogprobs(_) | Event::Pooled(_) => {}
            }
        }
    }
    let text = |ids: &[TokenId]| {
        let mut stream = TextStream::new(renderer.tokenizer().clone(), true, Vec::new());
        let text: String = ids.iter().map(|id| stream.push(*id).text).collect();
        text + &stream.finish().text
    };
    let answers = prompts.iter().zip(&tokens).zip(ended).map(|((prompt, ids), ended)| {
        // The token that ends an answer is no part of its text, special or not.
        let said = if ended { &ids[..ids.len() - 1] } else { &ids[..] };
        Answer { prompt: prompt.clone(), text: text(said), tokens: ids.len() as u32, ended }
    });
    Ok(answers.collect())
}

/// The engine of the model, without its thread.
fn core(
    checkpoint: &Checkpoint,
    renderer: &PromptRenderer,
    max_len: usize,
    prompts: usize,
    threads: Option<usize>,
) -> Result<Core, SampleError> {
    let max_num_seqs = prompts.clamp(1, MAX_SEQS);
    let max_num_batched_tokens = 512;
    let options = RunnerOptions {
        threads,
        dtype: None,
        kv_cache: None,
        max_model_len: Some(max_len),
        max_num_batched_tokens,
        max_num_seqs,
        kv_cache_memory: None,
        level: Level::from_env().map_err(SampleError::Level)?,
    };
    let Loaded { mut executor, num_blocks, max_model_len, .. } = runner::load(checkpoint, &options, |_| ())?;
    // Rows of the embedding beyond the tokenizer's are padding.
    executor.sample_below(renderer.tokenizer().vocab_size());
    let config = SchedulerConfig {
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len,
        num_blocks,
        enable_prefix_caching: false,
        speculation: Speculation::OFF,
    };
    Ok(Core::new(config, Box::new(executor)))
}

/// What ends an answer, as for the server.
fn ends(checkpoint: &Checkpoint, renderer: &PromptRenderer) -> Vec<TokenId> {
    let tokenizer = renderer.tokenizer();
    let mut ends = checkpoint.config().eos_token_ids.clone();
    ends.extend(&checkpoint.generation_defaults().eos_token_ids);
    ends.extend(tokenizer.eos_id().into_iter().chain(tokenizer.eot_id()));
    ends.sort_unstable();
    ends.dedup();
    ends
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prompts_by_line_and_as_jsonl() {
        let path = Path::new("dev.txt");
        assert_eq!(parse("a b\n\n c \r\n", path).unwrap(), ["a b", " c "]);
        assert_eq!(parse("{\"prompt\": \"a\\nb\", \"id\": 1}\n\n{\"prompt\":\"c\"}", path).unwrap(), ["a\nb", "c"]);
        assert!(read(None).unwrap().len() >= 5);
    }

    #[test]
    fn lines_that_are_no_prompts_are_named() {
        for (text, message) in [
            ("", "dev.txt: there are no prompts in it"),
            ("{\"prompt\": \"a\"}\nb", "dev.txt:2: not JSON: expected value at line 1 column 1"),
            ("{\"text\": \"a\"}", "dev.txt:1: the object has no \"prompt\""),
            ("\n{\"prompt\": 1}", "dev.txt:2: \"prompt\" must be a string"),
            ("{\"prompt\": \" \"}", "dev.txt:1: \"prompt\" is empty"),
        ] {
            assert_eq!(parse(text, Path::new("dev.txt")).unwrap_err().to_string(), message);
        }
        let many = "a\n".repeat(MAX_PROMPTS + 1);
        assert_eq!(parse(&many, Path::new("dev.txt")).unwrap_err().to_string(), "dev.txt:1001: more than 1000 prompts");
        let missing = read(Some(Path::new("/no/such/file"))).unwrap_err().to_string();
        assert!(missing.starts_with("/no/such/file: "), "{missing}");
    }
}
