//! `response_format` and `structured_outputs`.

use reqwest::Method;
use serde_json::{Value, json};

use super::errors::error;
use super::streaming::text;
use super::{Server, Setup, body, events};
use crate::constraints::schemas::{Rng, matches, schema};
use lima::http::Limits;

/// A server whose model says anything.
async fn rambling() -> Server {
    let limits = Limits { max_body: 1 << 20, ..Limits::default() };
    Server::start(Setup { answer: "\0", limits, ..Setup::default() }).await
}

fn format(schema: Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}})
}

fn content(answer: &Value, index: usize) -> String {
    answer["choices"][index]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_match_their_schemas_streamed_or_not() {
    let server = rambling().await;
    let mut ended = 0;
    for case in 0..12 {
        let schema = schema(&mut Rng::new(1000 + case), 0);
        let ask = json!({"response_format": format(schema.clone()), "n": 3, "seed": case, "temperature": 1});
        let answer = server.chat(ask.clone()).await;
        let chunks = server.stream(ask).await;
        for index in 0..3 {
            let said = content(&answer, index);
            assert_eq!(text(&chunks, index as u64), said);
            if answer["choices"][index]["finish_reason"] == "stop" {
                ended += 1;
                let value: Value = serde_json::from_str(&said).unwrap();
                assert!(matches(&schema, &value), "{said} does not match {schema}");
            }
        }
    }
    assert!(ended > 20, "only {ended} of 36 answers came to an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_model_would_say_is_kept_where_it_may() {
    // It wants to say this; where it may not, it says what comes next in the alphabet.
    let server = Server::start(Setup { answer: r#"{"name": "Ann", "age": 33}"#, ..Setup::default() }).await;
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                        "required": ["name", "age"], "additionalProperties": false});
    let asks = [
        json!({"response_format": format(schema.clone())}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"json": schema}}),
        json!({"structured_outputs": {"json": schema.to_string()}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"structured_outputs": {"regex": r".*\}"}}),
        json!({"structured_outputs": {"choice": ["no", r#"{"name": "Ann", "age": 33}"#]}}),
        json!({"structured_outputs": {"grammar": "start: /[^}]*/ \"}\""}}),
        json!({"response_format": {"type": "text"}, "structured_outputs": {}}),
    ];
    for ask in asks {
        let answer = server.chat(ask.clone()).await;
        assert_eq!(content(&answer, 0), r#"{"name": "Ann", "age": 33}"#, "{ask}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let choice = server.chat(json!({"structured_outputs": {"choice": ["red", "green"]}})).await;
    assert!(["red", "green"].contains(&&*content(&choice, 0)));
    // min_tokens cannot put off the only end there is.
    let ask = json!({"structured_outputs": {"choice": ["red"]}, "min_tokens": 20});
    assert_eq!(content(&server.chat(ask).await, 0), "red");
    // Log-probabilities are of what the model thought.
    let ask = json!({"structured_outputs": {"choice": ["red"]}, "logprobs": true});
    let answer = server.chat(ask).await;
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 3);
    let ask = json!({"model": "alias", "prompt": "x", "structured_outputs": {"regex": "[ab]{4}"}});
    let response = server.request(Method::POST, "/v1/completions").json(&ask).send().await.unwrap();
    let answer: Value = response.json().await.unwrap();
    let said = answer["choices"][0]["text"].as_str().unwrap();
    assert!(said.len() == 4 && said.bytes().all(|b| b == b'a' || b == b'b'), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_that_cannot_be_had_are_refused() {
    let server = rambling().await;
    let (format_of, outputs) = ("response_format", "structured_outputs");
    let (invalid, missing, kind, schema_code) =
        ("invalid_value", "missing_required_parameter", "invalid_type", "invalid_json_schema");
    let named =
        |name: &str| json!({"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": {}}}});
    let outs = |value: Value| json!({"structured_outputs": value});
    #[rustfmt::skip]
    let table: Vec<(Value, &str, &str, &str)> = vec![
        (json!({"response_format": {}}), missing, "response_format.type", ""),
        (json!({"response_format": {"type": 1}}), kind, "response_format.type", ""),
        (json!({"response_format": {"type": "xml"}}), invalid, "response_format.type", "json_schema"),
        (json!({"response_format": {"type": "grammar", "grammar": "x"}}), "unsupported_parameter", "response_format.type", ""),
        (json!({"response_format": {"type": "json_object", "schema": {}}}), "unknown_parameter", "response_format.schema", ""),
        (json!({"response_format": {"type": "json_schema"}}), missing, "response_format.json_schema", ""),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}), missing, "response_format.json_schema.name", ""),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}), missing, "response_format.json_schema.schema", ""),
        (named(""), invalid, "response_format.json_schema.name", ""),
        (named("a b"), invalid, "response_format.json_schema.name", ""),
        (named(&"x".repeat(65)), "string_above_max_length", "response_format.json_schema.name", ""),
        (json!({"response_format": format(json!({"not": {}}))}), schema_code, format_of, "'#/not' is not supported"),
        (json!({"response_format": format(json!({"properties": {"a": {"oneOf": [{}, {}]}}}))}), schema_code, format_of, "'#/properties/a' has options in oneOf"),
        (json!({"response_format": format(json!({"type": "string", "pattern": "x".repeat(300_000)}))}), "constraint_too_complex", format_of, "262144 bytes"),
        (json!({"response_format": format(json!({})), "ignore_eos": true}), invalid, "ignore_eos", "response_format"),
        (json!({"response_format": format(json!({})), "structured_outputs": {"regex": "a"}}), invalid, outputs, "response_format"),
        (json!({"guided_json": {}}), "unknown_parameter", "guided_json", ""),
        (outs(json!("x")), kind, outputs, ""),
        (outs(json!({"regex": "a", "choice": ["b"]})), invalid, outputs, "several"),
        (outs(json!({"regex": 1})), kind, "structured_outputs.regex", ""),
        (outs(json!({"regex": "(a"})), "invalid_grammar", outputs, ""),
        (outs(json!({"regex": "a".repeat(20_000)})), "constraint_too_complex", outputs, "16384 bytes"),
        (outs(json!({"grammar": "start: ("})), "invalid_grammar", outputs, ""),
        (outs(json!({"json": "{"})), schema_code, "structured_outputs.json", ""),
        (outs(json!({"json": 1})), kind, "structured_outputs.json", ""),
        (outs(json!({"json": false})), schema_code, outputs, "nothing matches"),
        (outs(json!({"choice": []})), "empty_array", "structured_outputs.choice", ""),
        (outs(json!({"choice": ["a", ""]})), "string_below_min_length", "structured_outputs.choice[1]", ""),
        (outs(json!({"choice": ["a", 1]})), kind, "structured_outputs.choice[1]", ""),
        (outs(json!({"structural_tag": "x"})), "unsupported_parameter", "structured_outputs.structural_tag", ""),
        (outs(json!({"pattern": "x"})), "unknown_parameter", "structured_outputs.pattern", ""),
    ];
    for (changes, code, param, said) in table {
        let (status, error) = error(server.post(changes.clone()).await).await;
        let got = (status, error["code"].as_str(), error["param"].as_str());
        assert_eq!(got, (400, Some(code), Some(param)), "{changes:.200} → {error}");
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
    }
    // 60,000 deep, and a canary.
    for grammar in [format!("start: {}\"a\"", "(".repeat(60_000)), "(".repeat(60_000)] {
        let (status, error) = error(server.post(json!({"structured_outputs": {"grammar": grammar}})).await).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(outputs)), "{error}");
        let canary = server.chat(json!({"structured_outputs": {"choice": ["alive"]}})).await;
        assert_eq!(content(&canary, 0), "alive");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_go_on_ends_with_an_error() {
    let server = rambling().await;
    // A special token that the model does not have follows "a".
    let ask = json!({"structured_outputs": {"grammar": "start: \"a\" BAD\nBAD: /b/ & /c/"}});
    let response = server.post(ask).await;
    // Whether the compiler sees it or the sequence runs into it: an error of the request.
    let (status, error) = error(response).await;
    assert_eq!(status, 400, "{error}");
    let ask = body(json!({"stream": true, "structured_outputs": {"regex": "a{3}"}}));
    let response = server.request(Method::POST, "/v1/chat/completions").json(&ask).send().await.unwrap();
    let (chunks, done) = events(&response.text().await.unwrap());
    assert!(done && text(&chunks, 0) == "aaa");
}
