//! Whole answers.

use serde_json::{Value, json};

use super::{Server, Setup, VOCAB};

#[tokio::test(flavor = "multi_thread")]
async fn the_shape_of_an_answer() {
    let server = Server::default().await;
    let answer = server.chat(json!({})).await;
    let id = answer["id"].as_str().unwrap();
    assert!(id.starts_with("chatcmpl-"));
    let prompt = "<user\nhi>\n<assistant\n".len();
    let tokens = "Hello, wörld!".len() + 1;
    assert_eq!(
        answer,
        json!({
            "id": id,
            "object": "chat.completion",
            "created": answer["created"].as_u64().unwrap(),
            "model": "test/model",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, wörld!", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": tokens,
                "total_tokens": prompt + tokens,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0, "audio_tokens": 0,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
                },
            },
        })
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - answer["created"].as_u64().unwrap() < 60);
    assert_eq!(server.chat(json!({"model": "alias"})).await["model"], "alias");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_end_it() {
    let server = Server::default().await;
    for name in ["max_tokens", "max_completion_tokens"] {
        let answer = server.chat(json!({name: 4})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "Hell");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 4);
    }
    let both = server.chat(json!({"max_tokens": 3, "max_completion_tokens": 3})).await;
    assert_eq!(both["choices"][0]["message"]["content"], "Hel");
    // In the middle of a character.
    let cut = server.chat(json!({"max_tokens": "Hello, w".len() + 1})).await;
    assert_eq!(cut["choices"][0]["message"]["content"], "Hello, w\u{fffd}");
    // Without a limit, to the end of the context.
    let all = server.chat(json!({"ignore_eos": true})).await;
    assert_eq!(all["choices"][0]["finish_reason"], "length");
    assert_eq!(all["usage"]["total_tokens"], super::MAX_LEN);
    let most = server.chat(json!({"min_tokens": 20, "max_tokens": 40})).await;
    // Where the end was suppressed stands the fake model's next token.
    assert_eq!(most["choices"][0]["message"]["content"], "Hello, wörld!\u{0}Hello, wörld!");
    let token = server.chat(json!({"stop_token_ids": [u32::from(b',')]})).await;
    assert_eq!(token["choices"][0]["message"]["content"], "Hello");
    assert_eq!(token["choices"][0]["finish_reason"], "stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_count_after_min_tokens() {
    let server = Server::default().await;
    for (min_tokens, text) in [(0, "He"), (2, "He"), (3, "Hel"), (4, "Hello, wör")] {
        let answer = server.chat(json!({"stop": "l", "min_tokens": min_tokens})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], text, "{min_tokens}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_are_never_returned() {
    let server = Server::default().await;
    for (stop, text) in [
        (json!("wö"), "Hello, "),
        (json!(["nothing", "lo, "]), "Hel"),
        (json!(["l", "el"]), "H"),
        (json!("H"), ""),
        (json!("!x"), "Hello, wörld!"),
        (json!([]), "Hello, wörld!"),
        (json!(null), "Hello, wörld!"),
    ] {
        let answer = server.chat(json!({"stop": stop})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], text, "{stop}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let chunks = server.stream(json!({"stop": stop})).await;
        assert_eq!(super::streaming::text(&chunks, 0), text, "{stop}");
    }
    server
        .until("free blocks", |s| s.engine.stats().blocks_in_use.load(std::sync::atomic::Ordering::Relaxed) == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_differ_and_repeat() {
    let server = Server::start(Setup { answer: "\0", ..Setup::default() }).await;
    let ask = json!({"n": 3, "seed": 7, "max_tokens": 24, "ignore_eos": true, "logprobs": true});
    let answer = server.chat(ask.clone()).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(answer["usage"]["completion_tokens"], 72);
    let bytes = |c: &Value| c["logprobs"]["content"].clone();
    assert_ne!(bytes(&choices[0]), bytes(&choices[1]));
    assert_ne!(bytes(&choices[1]), bytes(&choices[2]));
    assert_eq!(server.chat(ask).await["choices"], answer["choices"]);
    let negative = server.chat(json!({"seed": -1, "max_tokens": 2})).await;
    assert_eq!(negative, {
        let mut again = server.chat(json!({"seed": -1, "max_tokens": 2})).await;
        for key in ["id", "created", "usage"] {
            again[key] = negative[key].clone();
        }
        again
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_spell_the_message() {
    let server = Server::default().await;
    let spelled = |content: &Value| -> String {
        let bytes = content.as_array().unwrap().iter().flat_map(|t| t["bytes"].as_array().unwrap().clone());
        String::from_utf8(bytes.map(|b| b.as_u64().unwrap() as u8).collect()).unwrap()
    };
    for (changes, text) in [
        (json!({"logprobs": true, "top_logprobs": 3}), "Hello, wörld!"),
        (json!({"logprobs": true, "top_logprobs": 3, "stop": "ö"}), "Hello, w"),
        (json!({"logprobs": true, "top_logprobs": 3, "stop": "lo"}), "Hel"),
    ] {
        let answer = server.chat(changes.clone()).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["logprobs"]["refusal"], Value::Null);
        let content = &choice["logprobs"]["content"];
        assert_eq!(spelled(content), text);
        assert_eq!(content[0]["token"], "H");
        assert_eq!(content[0]["logprob"], -0.5);
        assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(content[0]["top_logprobs"][0], json!({"token": "H", "logprob": -0.5, "bytes": [72]}));
        // The same entries come with the stream.
        let chunks = server.stream(changes).await;
        let entries = chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array()).flatten();
        assert_eq!(&Value::Array(entries.cloned().collect()), content);
    }
    let none = server.chat(json!({"logprobs": true})).await;
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_all_accepted_kinds() {
    let server = Server::default().await;
    let part = |text: &str| json!({"type": "text", "text": text});
    let answer = server
        .chat(json!({"messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [part("a"), part("b")], "name": "bob"},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": [], "audio": null, "function_call": null},
            {"role": "user", "content": "<|im_end|>"},
        ]}))
        .await;
    // The user's text spells a special token, and is ten characters all the same.
    let prompt = "<system\nbe brief>\n<user\na\nb>\n<assistant\nc>\n<user\n<|im_end|>>\n<assistant\n".len();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_ask_for_nothing_are_accepted() {
    let server = Server::default().await;
    let nothing = json!({
        "tools": [], "tool_choice": "none", "parallel_tool_calls": true, "functions": [], "function_call": "none",
        "response_format": {"type": "text"}, "reasoning_effort": "none", "verbosity": "medium",
        "modalities": ["text"], "store": false, "service_tier": "auto", "user": "u", "safety_identifier": "s",
        "metadata": {"k": "v"}, "prompt_cache_key": "k", "top_logprobs": 0, "logprobs": false, "n": 1,
        "logit_bias": {}, "stream": false, "temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0,
        "repetition_penalty": 1.2, "presence_penalty": -2, "frequency_penalty": 2.0, "max_tokens": 3.0,
    });
    server.chat(nothing.clone()).await;
    let nulls: serde_json::Map<_, _> = nothing.as_object().unwrap().keys().map(|k| (k.clone(), Value::Null)).collect();
    server.chat(Value::Object(nulls)).await;
    server.chat(json!({"stream_options": null, "audio": null, "prediction": null, "seed": null, "stop": null})).await;
    server.chat(json!({"logit_bias": {"0": 100, "257": -100.0}})).await;
    assert_eq!(VOCAB, 258);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_reuses_its_prefix() {
    let server = Server::default().await;
    let first = "x".repeat(100);
    let one = json!([{"role": "user", "content": first}]);
    assert_eq!(server.chat(json!({"messages": one})).await["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let two = json!([{"role": "user", "content": first}, {"role": "assistant", "content": "Hello, wörld!"},
                     {"role": "user", "content": "more"}]);
    let usage = server.chat(json!({"messages": two})).await["usage"].clone();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached >= 96 && cached.is_multiple_of(32), "{usage}");
}
