//! Answers to prompts, as LIMA's were made.

use clap::Args;
use serde_json::{Map, Value, json};

use super::EvalError;
use super::answers::Answer;
use super::ask::{AskError, Asker, each, message};
use super::prompts::Prompt;
use super::store::digest;

/// How answers are sampled; the paper's values unless said otherwise.
#[derive(Args, Clone, Debug)]
pub struct Decoding {
    /// Sampling temperature
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f64,
    /// Sample from the smallest set of tokens with this much probability
    #[arg(long, value_name = "P", default_value_t = 0.9)]
    pub top_p: f64,
    /// Penalty on tokens that were there already; 1 is off and not sent, as OpenAI's own servers do not know it
    #[arg(long, value_name = "FACTOR", default_value_t = 1.2)]
    pub repetition_penalty: f64,
    /// Longest answer, tokens
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub max_tokens: u32,
    /// Each answer's own seed is drawn from this, its prompt and its number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// System prompt [default: none]
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Answers to each prompt [default: 1; for an ablation 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub samples: Option<u32>,
}

impl Decoding {
    fn params(&self, id: &str, sample: u32) -> Map<String, Value> {
        let drawn = digest(format!("{}/{id}/{sample}", self.seed).as_bytes());
        // Below 2³¹, which every server takes.
        let seed = u32::from_str_radix(&drawn[..8], 16).unwrap_or(0) >> 1;
        let mut params = Map::new();
        params.insert("temperature".into(), json!(self.temperature));
        params.insert("top_p".into(), json!(self.top_p));
        if self.repetition_penalty != 1.0 {
            params.insert("repetition_penalty".into(), json!(self.repetition_penalty));
        }
        params.insert("max_tokens".into(), json!(self.max_tokens));
        params.insert("seed".into(), json!(seed));
        params
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Generated {
    /// In the order of the prompts, all samples of one together.
    pub answers: Vec<Answer>,
    /// Prompts that the server refused, and why.
    pub refused: Vec<(String, String)>,
}

/// Answers all prompts. A dialogue is had turn by turn, each answer part of the next question.
///
/// # Errors
/// Some found no answer, or the server refused all of them.
pub fn generate(
    asker: &Asker<'_>,
    prompts: &[Prompt],
    decoding: &Decoding,
    at_once: usize,
) -> Result<Generated, EvalError> {
    let samples = decoding.samples.unwrap_or(1);
    let jobs: Vec<(&Prompt, u32)> =
        prompts.iter().flat_map(|prompt| (0..samples).map(move |sample| (prompt, sample))).collect();
    let all = each("answers", at_once, &jobs, |(prompt, sample)| answer(asker, prompt, decoding, *sample))?;
    let mut out = Generated { answers: Vec::new(), refused: Vec::new() };
    for result in all {
        match result {
            Ok(answer) => out.answers.push(answer),
            Err(refusal) => out.refused.push(refusal),
        }
    }
    match out.refused.first() {
        Some((_, words)) if out.answers.is_empty() => {
            Err(EvalError::Usage(format!("the server refused every prompt: {words}")))
        }
        _ => Ok(out),
    }
}

type Refusal = (String, String);

fn answer(
    asker: &Asker<'_>,
    prompt: &Prompt,
    decoding: &Decoding,
    sample: u32,
) -> Result<Result<Answer, Refusal>, AskError> {
    let params = decoding.params(&prompt.id, sample);
    let mut messages: Vec<Value> = decoding.system.iter().map(|system| message("system", system)).collect();
    let mut answer = Answer {
        id: prompt.id.clone(),
        category: prompt.category.clone(),
        turns: prompt.turns.clone(),
        answers: Vec::new(),
        sample,
        model: asker.model.clone(),
        finish_reasons: Vec::new(),
        completion_tokens: Vec::new(),
        params: params.clone(),
    };
    for turn in &prompt.turns {
        messages.push(message("user", turn));
        let call = asker.ask(messages.clone(), &params, sample)?;
        let Some(text) = call.text else {
            return Ok(Err((prompt.id.clone(), call.refused.unwrap_or_default())));
        };
        messages.push(message("assistant", &text));
        answer.answers.push(text);
        answer.finish_reasons.push(call.finish_reason);
        answer.completion_tokens.push(call.completion_tokens);
    }
    Ok(Ok(answer))
}
