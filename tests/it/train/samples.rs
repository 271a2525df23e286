//! Answers to dev prompts are the server's.

use lima::train::samples::{SampleError, Settings, answer, check, read};
use lima::train::{Base, Dataset};
use serde_json::json;

use crate::support::goldens;
use crate::support::server::Server;

const SETTINGS: Settings = Settings { max_tokens: 24, seed: 7, threads: Some(1) };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_those_of_the_server() {
    let prompts = ["Say hello.", "Name three colours, and nothing else.", "Why is the sky blue?"].map(String::from);
    let model = goldens::default_model();
    let answers = tokio::task::spawn_blocking({
        let (model, prompts) = (model.clone(), prompts.clone());
        move || answer(&model, &prompts, &SETTINGS).unwrap()
    })
    .await
    .unwrap();
    let server = Server::start(&["--max-model-len", "512"]).await;
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let body = json!({
            "model": "lima", "messages": [{ "role": "user", "content": prompt }],
            "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 7, "max_completion_tokens": 24,
        });
        let reply = server.chat(&body).await;
        assert_eq!(&answer.prompt, prompt);
        assert_eq!(reply["choices"][0]["message"]["content"], json!(answer.text), "{prompt}");
        assert_eq!(reply["usage"]["completion_tokens"], json!(answer.tokens), "{prompt}");
        assert_eq!(reply["choices"][0]["finish_reason"] == "stop", answer.ended, "{prompt}");
    }
}

#[test]
fn prompts_that_leave_no_room_are_named() {
    let model = goldens::default_model();
    let base = Base::open(model.to_str().unwrap()).unwrap();
    let renderer = base.tokenizer.renderer().unwrap();
    let prompts = ["short".to_owned(), "long ".repeat(100)];
    assert_eq!(check(&prompts, &renderer, 2048).unwrap().len(), 2);
    match check(&prompts, &renderer, 64).unwrap_err() {
        SampleError::TooLong { number: 2, limit: 64, tokens } => assert!(tokens > 100),
        other => panic!("{other}"),
    }
    let missing = answer("/no/such/model".as_ref(), &prompts, &SETTINGS).unwrap_err().to_string();
    assert!(missing.contains("/no/such/model"), "{missing}");
}

#[test]
fn our_own_prompts_are_not_in_our_own_data() {
    let path = format!("{}/data/assistant.jsonl", env!("CARGO_MANIFEST_DIR"));
    let data = Dataset::read(path.as_ref()).unwrap();
    let prompts = read(None).unwrap();
    assert_eq!(prompts.len(), 8);
    for conversation in &data.conversations {
        assert!(!prompts.contains(&conversation.turns[0].text), "{}", conversation.turns[0].text);
    }
}
