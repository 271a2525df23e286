//! `/v1/completions`.

use std::sync::atomic::Ordering::Relaxed;

use lima::engine::fake::score_token;
use lima::engine::{SamplingParams, TokenId};
use serde_json::{Value, json};

use super::{END, START, Server, Setup, VOCAB};

const ANSWER: &str = "Hello, wörld!";

impl Server {
    /// Posts to a path.
    pub async fn to(&self, path: &str, body: &Value) -> reqwest::Response {
        self.request(reqwest::Method::POST, path).json(body).send().await.unwrap()
    }

    async fn completion(&self, mut body: Value) -> Value {
        body["model"] = json!("test/model");
        let response = self.to("/v1/completions", &body).await;
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn completion_stream(&self, mut body: Value) -> Vec<Value> {
        (body["model"], body["stream"]) = (json!("test/model"), json!(true));
        let response = self.to("/v1/completions", &body).await;
        assert_eq!(response.status(), 200);
        let (chunks, done) = super::events(&response.text().await.unwrap());
        assert!(done);
        chunks
    }
}

fn bytes(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shape_of_a_completion() {
    let server = Server::default().await;
    let answer = server.completion(json!({"prompt": "Say: "})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let tokens = ANSWER.len() + 1;
    assert_eq!(
        answer,
        json!({
            "id": answer["id"], "object": "text_completion", "created": answer["created"].as_u64().unwrap(),
            "model": "test/model",
            "choices": [{"index": 0, "text": ANSWER, "logprobs": null, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0, "audio_tokens": 0,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
                },
            },
        })
    );
    // 16 tokens unless told otherwise, and fewer where the context ends before.
    let limited = server.completion(json!({"prompt": "x", "ignore_eos": true})).await;
    assert_eq!(limited["usage"]["completion_tokens"], 16);
    assert_eq!(limited["choices"][0]["finish_reason"], "length");
    let room = server.completion(json!({"prompt": "x".repeat(super::MAX_LEN - 3), "ignore_eos": true})).await;
    assert_eq!(room["usage"]["completion_tokens"], 3);
    let stopped = server.completion(json!({"prompt": "x", "stop": ["wö"], "suffix": "", "user": "u"})).await;
    assert_eq!(
        (&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]),
        (&json!("Hello, "), &json!("stop"))
    );
}

/// Harnesses drop the last entry as the one that was generated, so it must be there when it ends the answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_the_last_token_listed() {
    let server = Server::default().await;
    let ask = json!({"prompt": "ab", "echo": true, "logprobs": 1});
    let answer = server.completion(ask.clone()).await;
    let listed = &answer["choices"][0]["logprobs"];
    let total = answer["usage"]["total_tokens"].as_u64().unwrap() as usize;
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(listed[name].as_array().unwrap().len(), total, "{name}");
    }
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert_eq!(listed["text_offset"][total - 1], text.chars().count());
    let mut streamed = 0;
    for chunk in server.completion_stream(ask).await {
        streamed += chunk["choices"][0]["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
    }
    assert_eq!(streamed, total);
    // A chat's tokens are those of its text.
    let chat = server.chat(json!({"logprobs": true})).await;
    let tokens = chat["choices"][0]["logprobs"]["content"].as_array().unwrap().len();
    assert_eq!(tokens as u64 + 1, chat["usage"]["completion_tokens"].as_u64().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_every_form_in_order() {
    let server = Server::start(Setup { answer: "\0", ..Setup::default() }).await;
    let ask = |prompt: Value| json!({"prompt": prompt, "n": 2, "seed": 5, "max_tokens": 6, "ignore_eos": true, "logprobs": 0});
    let text = |answer: &Value, i: usize| {
        assert_eq!(answer["choices"][i]["index"], i);
        answer["choices"][i]["logprobs"]["tokens"].clone()
    };
    let single = |prompt: &'static str| server.completion(ask(json!(prompt)));
    let (a, b) = (single("ab").await, single("cde").await);
    assert_ne!(text(&a, 0), text(&a, 1));
    for prompts in [json!(["ab", "cde"]), json!([bytes("ab"), bytes("cde")])] {
        let both = server.completion(ask(prompts)).await;
        assert_eq!(both["choices"].as_array().unwrap().len(), 4);
        // index = prompt * n + choice.
        for (i, expected) in [text(&a, 0), text(&a, 1), text(&b, 0), text(&b, 1)].into_iter().enumerate() {
            assert_eq!(text(&both, i), expected);
        }
        assert_eq!((&both["usage"]["prompt_tokens"], &both["usage"]["completion_tokens"]), (&json!(5), &json!(24)));
    }
    let ids = server.completion(ask(json!(bytes("ab")))).await;
    assert_eq!((text(&ids, 0), text(&ids, 1)), (text(&a, 0), text(&a, 1)));
    let truncated = server
        .completion(json!({"prompt": "xxab", "truncate_prompt_tokens": 2, "n": 2, "seed": 5,
        "max_tokens": 6, "ignore_eos": true, "logprobs": 0}))
        .await;
    assert_eq!(text(&truncated, 0), text(&a, 0));
}

/// The arrays that scoring this prompt alone makes, `top` alternatives each.
fn expected_scores(tokens: &[TokenId], top: u32) -> Vec<Value> {
    let one = |i: usize| json!(score_token(&tokens[..i], tokens[i], top, None, VOCAB as u32).logprob);
    std::iter::once(Value::Null).chain((1..tokens.len()).map(one)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echoed_prompt_is_scored_in_line() {
    let server = Server::default().await;
    let prompt = "wö ist";
    let tokens = bytes(prompt);
    // The harness's request: token ids, one token more, the sum taken over all but the last.
    for max_tokens in [0, 1] {
        let ask = json!({"prompt": [tokens], "echo": true, "max_tokens": max_tokens, "logprobs": 1, "temperature": 0});
        let choice = server.completion(ask.clone()).await["choices"][0].clone();
        let arrays = &choice["logprobs"];
        let all = tokens.len() + max_tokens;
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(arrays[name].as_array().unwrap().len(), all, "{name}");
        }
        assert_eq!(choice["text"], format!("{prompt}{}", &ANSWER[..max_tokens]));
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(arrays["token_logprobs"].as_array().unwrap()[..tokens.len()], expected_scores(&tokens, 1));
        assert_eq!(arrays["top_logprobs"][0], Value::Null);
        for i in 1..tokens.len() {
            let scored = score_token(&tokens[..i], tokens[i], 1, None, VOCAB as u32);
            let top = arrays["top_logprobs"][i].as_object().unwrap();
            // The most likely token, and the one at hand.
            let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
            assert_eq!(best, -0.5);
            assert_eq!(top.len(), 1 + usize::from(scored.rank > 1));
            assert_eq!(arrays["token_logprobs"][i].as_f64() == Some(best), scored.rank == 1);
        }
        // In characters: the two bytes of "ö" have the same.
        assert_eq!(arrays["text_offset"].as_array().unwrap()[..7], [0, 1, 1, 2, 3, 4, 5].map(Value::from));
        assert_eq!(
            arrays["tokens"].as_array().unwrap()[..4],
            [json!("w"), json!("bytes:\\xc3"), json!("bytes:\\xb6"), json!(" ")]
        );
        if max_tokens == 1 {
            assert_eq!((&arrays["tokens"][7], &arrays["text_offset"][7]), (&json!("H"), &json!(6)));
        }
        // Text gives the same, and a stream too, the prompt first.
        let mut as_text = ask.clone();
        as_text["prompt"] = json!(prompt);
        assert_eq!(server.completion(as_text).await["choices"][0], choice);
        let chunks = server.completion_stream(ask).await;
        assert_eq!(chunks[0]["choices"][0]["text"], prompt);
        let mut joined = json!({"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []});
        let mut text = String::new();
        for chunk in &chunks {
            text += chunk["choices"][0]["text"].as_str().unwrap();
            for (name, into) in joined.as_object_mut().unwrap() {
                let more = chunk["choices"][0]["logprobs"][name].as_array().cloned().unwrap_or_default();
                into.as_array_mut().unwrap().extend(more);
            }
        }
        assert_eq!((&json!(text), &joined), (&choice["text"], arrays));
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    }
    // Several prompts, several choices: each has its own prompt's scores.
    let many =
        server.completion(json!({"prompt": ["ab", "cde"], "n": 2, "echo": true, "max_tokens": 1, "logprobs": 0})).await;
    for (i, prompt) in ["ab", "ab", "cde", "cde"].into_iter().enumerate() {
        let choice = &many["choices"][i];
        assert_eq!(choice["text"], format!("{prompt}H"));
        let scores = &choice["logprobs"]["token_logprobs"].as_array().unwrap()[..prompt.len()];
        assert_eq!(scores, expected_scores(&bytes(prompt), 0));
        assert_eq!(choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len(), 1);
    }
    assert_eq!(many["usage"]["prompt_tokens"], 5);
    // Without log-probabilities nothing is scored, and a whole context can be echoed.
    let long = "y".repeat(super::MAX_LEN);
    let whole = server.completion(json!({"prompt": long, "echo": true, "max_tokens": 0})).await;
    assert_eq!(whole["choices"][0]["text"], long);
    assert_eq!(whole["usage"]["completion_tokens"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn special_tokens_in_raw_prompts() {
    let server = Server::default().await;
    let ask = |more: Value| {
        let mut ask = json!({"prompt": "<|im_start|>a", "echo": true, "max_tokens": 0, "logprobs": 0});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    let text = server.completion(ask(json!({}))).await["choices"][0].clone();
    assert_eq!(text["text"], "<|im_start|>a");
    assert_eq!(
        (&text["logprobs"]["tokens"], &text["logprobs"]["text_offset"]),
        (&json!(["<|im_start|>", "a"]), &json!([0, 12]))
    );
    let ids = server.completion(ask(json!({"prompt": [START, 97]}))).await["choices"][0].clone();
    assert_eq!((&ids["text"], &ids["logprobs"]["text_offset"]), (&json!("a"), &json!([0, 0])));
    let shown = server.completion(ask(json!({"prompt": [START, 97], "skip_special_tokens": false}))).await;
    assert_eq!(shown["choices"][0]["text"], "<|im_start|>a");
    let named = server.completion(ask(json!({"return_tokens_as_token_ids": true}))).await["choices"][0].clone();
    assert_eq!(named["logprobs"]["tokens"], json!([format!("token_id:{START}"), "token_id:97"]));
    // A character that the prompt began is completed.
    let cut = server.completion(json!({"prompt": [0xE2, 0x82], "max_tokens": 2})).await;
    assert_eq!(cut["choices"][0]["text"], "\u{fffd}He");
    let end =
        server.completion(json!({"prompt": "a", "skip_special_tokens": false, "stop": ["Hello, wörld!<|im"]})).await;
    assert_eq!(end["choices"][0]["text"], ANSWER, "the token that ends a text is not shown: {END}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_logprobs_as_vllm_has_them() {
    let server = Server::default().await;
    let tokens = bytes("abc");
    let expected = |i: usize| {
        let scored = score_token(&tokens[..i], tokens[i], 2, None, VOCAB as u32);
        let mut entries = serde_json::Map::new();
        let mut add = |id: TokenId, logprob: f32, rank: u32| {
            let text = match id {
                START => "<|im_start|>".to_owned(),
                END => "<|im_end|>".to_owned(),
                id => String::from_utf8_lossy(&[id as u8]).into_owned(),
            };
            entries.insert(id.to_string(), json!({"logprob": logprob, "rank": rank, "decoded_token": text}));
        };
        scored.top.iter().zip(1..).for_each(|(&(id, logprob), rank)| add(id, logprob, rank));
        add(scored.token, scored.logprob, scored.rank);
        Value::Object(entries)
    };
    let answer = server.completion(json!({"prompt": "abc", "prompt_logprobs": 2, "max_tokens": 0})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["prompt_logprobs"], json!([null, expected(1), expected(2)]));
    assert_eq!((&choice["text"], &choice["logprobs"]), (&json!(""), &Value::Null));
    // In chats beside the choices.
    let chat = server.chat(json!({"prompt_logprobs": 0, "n": 2})).await;
    let prompt = "<user\nhi>\n<assistant\n".len();
    assert_eq!(chat["prompt_logprobs"].as_array().unwrap().len(), prompt);
    assert_eq!(chat["prompt_logprobs"][0], Value::Null);
    assert!(chat["prompt_logprobs"].as_array().unwrap()[1..].iter().all(|e| e.as_object().unwrap().len() == 1));
    assert_eq!(chat["choices"][1]["message"]["content"], ANSWER);
    assert!(server.chat(json!({})).await.get("prompt_logprobs").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_of_several() {
    let server = Server::start(Setup { answer: "\0", ..Setup::default() }).await;
    let ask = json!({"prompt": ["ab", "cd"], "n": 2, "best_of": 5, "seed": 1, "max_tokens": 4, "ignore_eos": true});
    let best = server.completion(ask).await;
    assert_eq!(best["choices"].as_array().unwrap().len(), 4);
    assert_eq!(best["usage"]["completion_tokens"], 2 * 5 * 4);
    assert_eq!(best["usage"]["prompt_tokens"], 4);
    assert_eq!(best["choices"][3]["index"], 3);
    assert_eq!(best["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_completions() {
    let server = Server::default().await;
    let ask = json!({"prompt": ["a", "bc"], "n": 2, "max_tokens": 20, "stream_options": {"include_usage": true}});
    let chunks = server.completion_stream(ask.clone()).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["prompt_tokens"]), (&json!([]), &json!(3)));
    for index in 0..4 {
        let of: Vec<_> = others.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
        let text: String = of.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(text, ANSWER);
        let reasons: Vec<_> = of.iter().filter(|c| !c["finish_reason"].is_null()).collect();
        assert_eq!((reasons.len(), &of.last().unwrap()["finish_reason"]), (1, &json!("stop")));
    }
    for chunk in others {
        assert_eq!(
            (&chunk["object"], &chunk["usage"], &chunk["id"]),
            (&json!("text_completion"), &Value::Null, &chunks[0]["id"])
        );
    }
    let plain = server.completion_stream(json!({"prompt": "a"})).await;
    assert!(plain.iter().all(|c| c.get("usage").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_field() {
    let server = Server::default().await;
    let (kind, above, below, invalid) =
        ("invalid_type", "integer_above_max_value", "integer_below_min_value", "invalid_value");
    let long = "x".repeat(super::MAX_LEN);
    for (changes, code, param) in [
        (json!({"prompt": 3}), kind, "prompt"),
        (json!({"prompt": null}), kind, "prompt"),
        (json!({"prompt": {}}), kind, "prompt"),
        (json!({"prompt": []}), "empty_array", "prompt"),
        (json!({"prompt": ""}), invalid, "prompt"),
        (json!({"prompt": ["a", ""]}), invalid, "prompt"),
        (json!({"prompt": [[]]}), invalid, "prompt"),
        (json!({"prompt": ["a", 3]}), kind, "prompt[1]"),
        (json!({"prompt": [3, "a"]}), kind, "prompt[1]"),
        (json!({"prompt": [[3], "a"]}), kind, "prompt[1]"),
        (json!({"prompt": [true]}), kind, "prompt[0]"),
        (json!({"prompt": [258]}), above, "prompt[0]"),
        (json!({"prompt": [[1], [2, -1]]}), below, "prompt[1][1]"),
        (json!({"prompt": vec!["a"; 2049]}), "array_above_max_length", "prompt"),
        (json!({"prompt": vec!["a"; 20], "n": 103}), "array_above_max_length", "prompt"),
        (json!({"prompt": long}), "context_length_exceeded", "prompt"),
        (json!({"prompt": "x".repeat(40_000)}), "context_length_exceeded", "prompt"),
        (json!({"max_tokens": super::MAX_LEN}), "context_length_exceeded", "prompt"),
        (json!({"max_tokens": 0}), below, "max_tokens"),
        (json!({"max_tokens": -1, "echo": true}), below, "max_tokens"),
        (json!({"min_tokens": 17}), invalid, "min_tokens"),
        (json!({"echo": 1}), kind, "echo"),
        (json!({"logprobs": 6}), above, "logprobs"),
        (json!({"logprobs": true}), kind, "logprobs"),
        (json!({"prompt_logprobs": 21}), above, "prompt_logprobs"),
        (json!({"prompt_logprobs": 1, "stream": true}), invalid, "prompt_logprobs"),
        (json!({"best_of": 21}), above, "best_of"),
        (json!({"best_of": 1, "n": 2}), invalid, "best_of"),
        (json!({"best_of": 2, "stream": true}), invalid, "best_of"),
        (json!({"n": 129}), above, "n"),
        (json!({"suffix": "end"}), "unsupported_parameter", "suffix"),
        (json!({"truncate_prompt_tokens": 0}), below, "truncate_prompt_tokens"),
        (json!({"add_special_tokens": "no"}), kind, "add_special_tokens"),
        (json!({"messages": []}), "unknown_parameter", "messages"),
        (json!({"top_logprobs": 2}), "unknown_parameter", "top_logprobs"),
    ] {
        let mut body = json!({"model": "test/model", "prompt": "a"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let response = server.to("/v1/completions", &body).await;
        let status = response.status();
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        let got = (status.as_u16(), error["code"].as_str(), error["param"].as_str());
        assert_eq!(got, (400, Some(code), Some(param)), "{changes:.80} → {error}");
    }
    assert_eq!(server.engine.stats().accepted.load(Relaxed), 0, "all prompts or none");
    assert_eq!(SamplingParams::default().max_tokens, 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_admitted_as_a_whole_and_aborted_as_a_whole() {
    let server = Server::start(Setup { max_num_seqs: 1, max_queued: 4, ..Setup::default() }).await;
    server.control.hold();
    let ask = json!({"model": "test/model", "prompt": ["a", "b", "c"], "stream": true});
    let first = server.to("/v1/completions", &ask).await;
    assert_eq!(first.status(), 200);
    let second = server.to("/v1/completions", &ask).await;
    assert_eq!(second.status(), 429);
    assert_eq!(server.engine.stats().accepted.load(Relaxed), 3);
    drop(first);
    // Aborted while the first step is held back: nothing can have finished.
    server.until("the client gone", |s| s.app.active() == 0).await;
    server.control.open();
    server.until("no work", |s| s.engine.stats().finished_aborted.load(Relaxed) == 3).await;
    server.until("free blocks", |s| s.engine.stats().blocks_in_use.load(Relaxed) == 0).await;
}
