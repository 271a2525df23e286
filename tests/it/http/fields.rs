//! Every field of a chat request has an effect that can be seen, or is refused by its name.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use lima::engine::SamplingParams;
use serde_json::{Value, json};

use super::{Server, Setup, body};

/// What a value of a field does.
enum Effect {
    /// To the parameters of the sampler.
    Sampler(fn(&SamplingParams) -> bool),
    /// To the answer.
    Answer(fn(&Value) -> bool),
    /// To nothing but the request's span; too long, it is refused.
    Label(Value),
    /// It is refused.
    Refused,
}

/// OpenAI's fields (but `messages` and `model`, without which there is no request), and vLLM's.
fn table() -> Vec<(&'static str, Value, Effect)> {
    use Effect::*;
    vec![
        ("temperature", json!(0.5), Sampler(|p| p.temperature == 0.5)),
        ("top_p", json!(0.25), Sampler(|p| p.top_p == 0.25)),
        ("frequency_penalty", json!(0.5), Sampler(|p| p.frequency_penalty == 0.5)),
        ("presence_penalty", json!(0.5), Sampler(|p| p.presence_penalty == 0.5)),
        ("logit_bias", json!({"7": 2}), Sampler(|p| p.logit_bias == [(7, 2.0)])),
        ("seed", json!(-7), Sampler(|p| p.seed == -7i64 as u64)),
        ("max_tokens", json!(4), Sampler(|p| p.max_tokens == 4)),
        ("max_completion_tokens", json!(4), Answer(|a| a["choices"][0]["message"]["content"] == "Hell")),
        ("stop", json!("lo"), Answer(|a| a["choices"][0]["message"]["content"] == "Hel")),
        ("n", json!(2), Answer(|a| a["choices"].as_array().unwrap().len() == 2)),
        ("logprobs", json!(true), Answer(|a| a["choices"][0]["logprobs"]["content"].is_array())),
        ("stream", json!(true), Answer(|a| a["object"] == "chat.completion.chunk")),
        ("user", json!("u"), Label(json!("x".repeat(513)))),
        ("safety_identifier", json!("s"), Label(json!("x".repeat(65)))),
        ("prompt_cache_key", json!("k"), Label(json!("x".repeat(513)))),
        ("metadata", json!({"k": "v"}), Label(json!({"k": "x".repeat(513)}))),
        // Only with another field: `logprobs`, `stream`, `tools`.
        ("top_logprobs", json!(3), Refused),
        ("stream_options", json!({"include_usage": true}), Refused),
        ("tool_choice", json!("required"), Refused),
        // What of them is served has tests of its own.
        ("tools", json!([{"type": "custom", "custom": {"name": "f"}}]), Refused),
        ("parallel_tool_calls", json!("yes"), Refused),
        ("response_format", json!({"type": "xml"}), Refused),
        ("functions", json!([{"name": "f"}]), Refused),
        ("function_call", json!({"name": "f"}), Refused),
        ("reasoning_effort", json!("high"), Refused),
        ("verbosity", json!("low"), Refused),
        ("modalities", json!(["audio"]), Refused),
        ("audio", json!({"voice": "x", "format": "wav"}), Refused),
        ("prediction", json!({"type": "content", "content": "x"}), Refused),
        ("web_search_options", json!({}), Refused),
        ("moderation", json!({}), Refused),
        ("store", json!(true), Refused),
        ("service_tier", json!("flex"), Refused),
        ("prompt_cache_retention", json!("24h"), Refused),
        ("prompt_cache_options", json!({"mode": "explicit", "ttl": "30m"}), Refused),
        // vLLM's.
        ("top_k", json!(5), Sampler(|p| p.top_k == 5)),
        ("min_p", json!(0.5), Sampler(|p| p.min_p == 0.5)),
        ("repetition_penalty", json!(1.5), Sampler(|p| p.repetition_penalty == 1.5)),
        ("min_tokens", json!(3), Sampler(|p| p.min_tokens == 3)),
        ("stop_token_ids", json!([44]), Sampler(|p| p.stop_token_ids == [257, 44])),
        ("ignore_eos", json!(true), Answer(|a| a["choices"][0]["finish_reason"] == "length")),
        ("prompt_logprobs", json!(1), Answer(|a| a["prompt_logprobs"].is_array())),
        ("skip_special_tokens", json!(false), Answer(|a| a["choices"][0]["finish_reason"] == "stop")),
        ("return_tokens_as_token_ids", json!("no"), Refused),
        ("priority", json!(-1), Refused),
        ("cache_salt", json!(""), Refused),
        ("chat_template_kwargs", json!({"messages": []}), Refused),
        ("add_generation_prompt", json!(false), Answer(|a| a["usage"]["prompt_tokens"] == "<user\nhi>\n".len())),
        ("continue_final_message", json!(true), Refused),
        ("echo", json!(true), Refused),
        ("add_special_tokens", json!(true), Refused),
        ("documents", json!([{"text": "a"}]), Refused),
        ("chat_template", json!("{{ 1 }}"), Refused),
        ("structured_outputs", json!({"regex": 3}), Refused),
        ("best_of", json!(2), Refused),
        ("no_such_field", json!(1), Refused),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_has_an_effect_or_is_refused() {
    let server = Server::default().await;
    for (name, value, effect) in table() {
        let response = server.post(json!({name: value})).await;
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        let refused = |status: u16, text: &str| {
            let error = serde_json::from_str::<Value>(text).unwrap()["error"].take();
            let param = error["param"].as_str().unwrap_or_default();
            assert_eq!((status, param.split(['.', '[']).next()), (400, Some(name)), "{name}: {error}");
        };
        match effect {
            Effect::Refused => refused(status, &text),
            Effect::Sampler(seen) => {
                assert_eq!(status, 200, "{name}: {text}");
                assert!(seen(server.control.begun().last().unwrap()), "{name}");
            }
            Effect::Answer(seen) => {
                let first = text.strip_prefix("data: ").and_then(|t| t.split_once('\n')).map_or(&*text, |(t, _)| t);
                assert!(status == 200 && seen(&serde_json::from_str(first).unwrap()), "{name}: {text}");
            }
            Effect::Label(long) => {
                assert_eq!(status, 200, "{name}: {text}");
                let response = server.post(json!({name: long})).await;
                refused(response.status().as_u16(), &response.text().await.unwrap());
            }
        }
        // Null is no request.
        let null = server.post(json!({name: null})).await;
        let unknown = ["best_of", "no_such_field"].contains(&name);
        assert_eq!(null.status().as_u16(), if unknown { 400 } else { 200 }, "{name}: null");
    }
}

/// The names of a schema's properties, those of the schemas it includes too.
fn properties(schemas: &Value, schema: &Value, names: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        properties(schemas, &schemas[name], names);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        properties(schemas, part, names);
    }
    names.extend(schema["properties"].as_object().into_iter().flat_map(|map| map.keys().cloned()));
}

#[test]
fn no_field_of_the_description_is_missing() {
    let Some(path) = std::env::var_os("LIMA_OPENAI_SPEC") else {
        println!("skipped: LIMA_OPENAI_SPEC does not name OpenAI's API description");
        return;
    };
    let bytes = match path.to_string_lossy().ends_with(".gz") {
        true => Command::new("gzip").arg("-dc").arg(&path).stderr(Stdio::inherit()).output().unwrap().stdout,
        false => {
            let mut bytes = Vec::new();
            std::fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        }
    };
    let spec: Value = serde_json::from_slice(&bytes).unwrap();
    let (schemas, mut described) = (&spec["components"]["schemas"], BTreeSet::new());
    properties(schemas, &schemas["CreateChatCompletionRequest"], &mut described);
    assert!(described.len() >= 35, "{described:?}");
    let table = table();
    let known = |name: &String| ["model", "messages"].contains(&name.as_str()) || table.iter().any(|(n, ..)| n == name);
    let missing: Vec<_> = described.into_iter().filter(|name| !known(name)).collect();
    assert!(missing.is_empty(), "fields that no test shows: {missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salt_separates_what_is_cached() {
    let server = Server::default().await;
    let long = json!([{"role": "user", "content": "x".repeat(100)}]);
    let cached = async |path: &str, salt: Value| {
        let mut body = match path {
            "/v1/completions" => json!({"model": "test/model", "prompt": "x".repeat(100)}),
            _ => body(json!({"messages": long})),
        };
        body["cache_salt"] = salt;
        let response = server.request(reqwest::Method::POST, path).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.json::<Value>().await.unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    for path in ["/v1/chat/completions", "/v1/completions"] {
        assert_eq!(cached(path, json!("a")).await, 0, "{path}");
        assert_eq!(cached(path, json!("b")).await, 0, "{path}");
        assert_eq!(cached(path, json!(null)).await, 0, "{path}");
        for salt in [json!("a"), json!("b"), json!(null)] {
            assert!(cached(path, salt.clone()).await >= 96, "{path} {salt}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lower_priorities_run_first() {
    let server = Server::start(Setup { max_num_seqs: 1, ..Setup::default() }).await;
    server.control.hold();
    let mut accepted = vec![server.post(json!({"stream": true, "seed": 1})).await];
    server.until("the first", |s| s.engine.stats().blocks_in_use.load(std::sync::atomic::Ordering::Relaxed) > 0).await;
    for (seed, priority) in [(2, 7), (3, 0), (4, 1000), (5, 1)] {
        accepted.push(server.post(json!({"stream": true, "seed": seed, "priority": priority})).await);
    }
    server.control.open();
    for response in accepted {
        assert!(super::events(&response.text().await.unwrap()).1);
    }
    let order: Vec<u64> = server.control.begun().iter().map(|p| p.seed).collect();
    assert_eq!(order, [1, 3, 5, 2, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn template_variables_are_bounded() {
    let server = Server::default().await;
    let nested = (0..17).fold(json!(1), |value, _| json!([value]));
    let many: serde_json::Map<_, _> = (0..65).map(|i| (format!("v{i}"), json!(1))).collect();
    for (kwargs, code, param) in [
        (json!({"add_generation_prompt": false}), "invalid_value", "chat_template_kwargs.add_generation_prompt"),
        (json!({"tools": []}), "invalid_value", "chat_template_kwargs.tools"),
        (json!({"bos_token": "x"}), "invalid_value", "chat_template_kwargs.bos_token"),
        (json!({"deep": nested}), "invalid_value", "chat_template_kwargs.deep"),
        (json!(many), "object_above_max_properties", "chat_template_kwargs"),
        (
            json!({"long": "x".repeat(60 << 10), "more": "x".repeat(3 << 10), "rest": ["x".repeat(2 << 10)]}),
            "string_above_max_length",
            "chat_template_kwargs",
        ),
        (json!([1]), "invalid_type", "chat_template_kwargs"),
    ] {
        for path in ["/v1/chat/completions", "/tokenize"] {
            let body = body(json!({"chat_template_kwargs": kwargs}));
            let response = server.request(reqwest::Method::POST, path).json(&body).send().await.unwrap();
            // The largest is beyond what this server takes as a body.
            if response.status() == 413 {
                continue;
            }
            let error = response.json::<Value>().await.unwrap()["error"].take();
            assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{path}");
        }
    }
    server.chat(json!({"chat_template_kwargs": {"enable_thinking": false, "any": {"thing": [1, null]}}})).await;
}

/// What is logged while there is something to write it to.
static LOG: Mutex<Option<Vec<u8>>> = Mutex::new(None);

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(log) = LOG.lock().unwrap().as_mut() {
            log.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn labels_are_told_to_the_span_and_forge_no_lines() {
    let subscriber = tracing_subscriber::fmt().with_writer(|| Log).with_ansi(false);
    // Of all threads: a place in the code that one without a subscriber is the first to pass could be silent for all.
    tracing::subscriber::set_global_default(subscriber.with_max_level(tracing::Level::DEBUG).finish()).unwrap();
    let server = Server::default().await;
    *LOG.lock().unwrap() = Some(Vec::new());
    let secret = "what is asked";
    let forged = "eve\n2026-01-01T00:00:00Z ERROR all is lost\u{1b}[2J\u{2028}";
    server
        .chat(json!({
            "user": forged, "safety_identifier": "sid", "prompt_cache_key": "pck", "metadata": {"team": "t\r\n1"},
            "messages": [{"role": "user", "content": secret}],
        }))
        .await;
    let log = String::from_utf8(LOG.lock().unwrap().take().unwrap()).unwrap();
    // Other tests' requests are there too.
    let line = log.lines().find(|line| line.contains("status=200") && line.contains("user=\"eve")).unwrap();
    for part in ["user=\"eve\\n2026", "safety_identifier=\"sid\"", "prompt_cache_key=\"pck\"", "team", "t\\r\\n1"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(line.contains("request_id=\"req_") && line.contains("/v1/chat/completions"), "{line}");
    assert!(!log.contains(secret) && !log.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR")));
    assert!(!log.contains('\u{1b}') && !log.contains('\u{2028}'), "{log}");
}
