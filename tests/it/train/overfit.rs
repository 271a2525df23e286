//! From conversations to a served model that says them again.

use lima::ops::quant::DType;
use serde_json::{Value, json};

use super::tiny::{Bench, conversations, losses};
use crate::support::server::{Server, said};

/// Trains until the loss is far below 0.05 and asks the server for every turn. That an answer ends with "stop", greedy
/// and within its limit, means that the end-of-turn token was said.
async fn overfit(more: &[&str]) {
    let bench = Bench::new(DType::F32);
    let recipe =
        ["--epochs", "60", "--batch-size", "5", "--lr", "5e-3", "--lr-end", "1e-4", "--dropout", "0", "--keep", "1"];
    let out = bench.trained("out", &[&recipe, more].concat());
    let losses = losses(&out);
    let last = losses[losses.len() - 4..].iter().sum::<f64>() / 4.0;
    assert!(losses[0] > 2.0 && last < 0.05, "{} to {last}", losses[0]);

    let server = Server::of(&out.join("epoch-60"), &[]).await;
    for turns in conversations() {
        for (i, answer) in turns.iter().enumerate().filter(|(i, _)| i % 2 == 1) {
            let roles = ["user", "assistant"].into_iter().cycle();
            let messages: Vec<Value> =
                roles.zip(&turns[..i]).map(|(role, text)| json!({ "role": role, "content": text })).collect();
            let body = json!({ "model": "lima", "messages": messages, "temperature": 0, "max_tokens": 60 });
            assert_eq!(said(&server.chat(&body).await, 0), (answer.clone(), Some("stop".to_owned())), "{turns:?}");
        }
    }
}

#[tokio::test]
async fn with_limas_template() {
    overfit(&[]).await;
}

#[tokio::test]
async fn with_the_bases_template() {
    overfit(&["--template", "base"]).await;
}

/// LoRA learns as much, with the rows of the new token.
#[tokio::test]
async fn with_lora() {
    overfit(&["--lora-rank", "16", "--lora-base", "q8_0"]).await;
}

/// And so do BF16 matrices without masters, multiplied in BF16.
#[tokio::test]
async fn with_bf16() {
    overfit(&["--compute", "bf16", "--weights", "bf16", "--moments", "bf16"]).await;
}
