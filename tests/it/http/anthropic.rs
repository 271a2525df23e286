//! `/v1/messages`: content blocks in and out, events in order, and errors in Anthropic's shape.

use lima::engine::fake::Fault;
use lima::http::Auth;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, Setup, named_events};

const TEXT: &str = "Hello, wörld!";

fn body(changes: Value) -> Value {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let mut body = json!({"model": "test/model", "max_tokens": 100, "messages": messages});
    for (key, value) in changes.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn post(server: &Server, changes: Value) -> reqwest::Response {
    let request = server.request(Method::POST, "/v1/messages?beta=true").header("anthropic-version", "2023-06-01");
    request.json(&body(changes)).send().await.unwrap()
}

async fn ok(server: &Server, changes: Value) -> Value {
    let response = post(server, changes.clone()).await;
    let status = response.status();
    assert_eq!(response.headers()["request-id"], response.headers()["x-request-id"]);
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{changes}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Status and error of a response, whose shape is checked.
async fn error(response: reqwest::Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(response.headers()["request-id"], id);
    let body: Value = response.json().await.unwrap();
    let text = |key: &str| body["error"][key].as_str().unwrap().to_owned();
    let expected = json!({
        "type": "error", "error": {"type": text("type"), "message": text("message")}, "request_id": id,
    });
    assert_eq!(body, expected);
    (status, text("type"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shape_of_a_message() {
    let server = Server::default().await;
    let message = ok(&server, json!({"system": "Be kind."})).await;
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    let prompt = "<system\nBe kind.>\n<user\nhi>\n<assistant\n".len();
    assert_eq!(
        message,
        json!({
            "id": message["id"], "type": "message", "role": "assistant", "model": "test/model",
            "content": [{"type": "text", "text": TEXT, "citations": null}],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {
                "input_tokens": prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                "output_tokens": TEXT.len() + 1,
            },
        })
    );
    // What was cached is counted apart.
    let again = ok(&server, json!({"system": "Be kind."})).await["usage"].take();
    assert_eq!((&again["cache_read_input_tokens"], &again["input_tokens"]), (&json!(32), &json!(prompt - 32)));
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_to_stop() {
    let server = Server::default().await;
    for (changes, text, reason, sequence) in [
        (json!({"max_tokens": 4}), "Hell", "max_tokens", json!(null)),
        (json!({"stop_sequences": ["x", "lo"]}), "Hel", "stop_sequence", json!("lo")),
        (json!({"stop_sequences": []}), TEXT, "end_turn", json!(null)),
    ] {
        let message = ok(&server, changes.clone()).await;
        assert_eq!(message["content"][0]["text"], text, "{changes}");
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!(reason), &sequence), "{changes}");
    }
    let all = ok(&server, json!({"max_tokens": 100_000, "ignore_eos": true})).await;
    assert_eq!(all["stop_reason"], "model_context_window_exceeded");
    let usage = &all["usage"];
    let read = usage["cache_read_input_tokens"].as_u64().unwrap() + usage["input_tokens"].as_u64().unwrap();
    assert_eq!(read + usage["output_tokens"].as_u64().unwrap(), super::MAX_LEN as u64);
    assert_eq!(ok(&server, json!({"stop_sequences": ["H"]})).await["content"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_order_and_add_up_to_the_message() {
    let server = Server::default().await;
    let response = post(&server, json!({"stream": true, "stop_sequences": ["!"]})).await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let events = named_events(&response.text().await.unwrap());
    let names: Vec<&str> = events.iter().map(|(n, _)| n.as_str()).filter(|n| *n != "content_block_delta").collect();
    let expected =
        ["message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop"];
    assert_eq!(names, expected);
    let message = &events[0].1["message"];
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    let prompt = "<user\nhi>\n<assistant\n".len();
    assert_eq!((&message["usage"]["input_tokens"], &message["usage"]["output_tokens"]), (&json!(prompt), &json!(0)));
    assert_eq!(events[2].1["content_block"]["text"], "");
    let deltas = events.iter().filter(|(n, _)| n == "content_block_delta").map(|(_, e)| e);
    let text: String = deltas.map(|e| e["delta"]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "Hello, wörld");
    let delta = &events[events.len() - 2].1;
    assert_eq!(delta["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": "!"}));
    assert_eq!(delta["usage"]["output_tokens"], TEXT.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_the_messages_of_a_chat() {
    let server = Server::default().await;
    let count = async |changes: Value| {
        let mut body = body(changes);
        body.as_object_mut().unwrap().remove("max_tokens");
        let response = server.request(Method::POST, "/v1/messages/count_tokens").json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer.as_object().unwrap().len(), 1);
        answer["input_tokens"].as_u64().unwrap() as usize
    };
    let text = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let turns = json!([
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": [{"type": "text", "text": "c", "citations": null}]},
        {"role": "user", "content": "d"},
    ]);
    let expected = "<system\nS\nT>\n<user\na\nb>\n<assistant\nc>\n<user\nd>\n<assistant\n".len();
    assert_eq!(count(json!({"system": [text("S"), text("T")], "messages": turns})).await, expected);
    assert_eq!(count(json!({})).await, "<user\nhi>\n<assistant\n".len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_an_error_event() {
    let server = Server::default().await;
    server.control.inject(3, Fault::Forward);
    let response = post(&server, json!({"stream": true})).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let events = named_events(&response.text().await.unwrap());
    let (name, event) = events.last().unwrap();
    assert_eq!((name.as_str(), &event["error"]["type"]), ("error", &json!("api_error")));
    assert_eq!(event["request_id"], id);
    assert!(events.iter().all(|(name, _)| name != "message_stop"));
    let server = Server::default().await;
    server.control.inject(3, Fault::Forward);
    assert_eq!(error(post(&server, json!({})).await).await.0, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_ask_for_nothing() {
    let server = Server::default().await;
    let nothing = json!({
        "thinking": {"type": "disabled"}, "tools": [], "tool_choice": {"type": "auto"}, "stop_sequences": [],
        "metadata": {"user_id": "u"}, "service_tier": "standard_only", "temperature": 0, "top_p": 1, "top_k": 5,
        "cache_control": {"type": "ephemeral", "ttl": "1h"}, "speed": "standard", "mcp_servers": [], "system": "S",
        "output_config": {"effort": null}, "stream": false, "seed": 3, "min_p": 0,
    });
    ok(&server, nothing.clone()).await;
    let mut nulls: serde_json::Map<_, _> =
        nothing.as_object().unwrap().keys().map(|key| (key.clone(), Value::Null)).collect();
    nulls.insert("container".into(), Value::Null);
    ok(&server, Value::Object(nulls)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_field_as_the_request_does() {
    let server = Server::default().await;
    let turn = |content: Value| json!({"messages": [{"role": "user", "content": content}], "system": "S"});
    let block = |kind: &str| json!([{"type": "text", "text": "a"}, {"type": kind}]);
    let tool = |tool: Value| json!({"tools": [tool]});
    #[rustfmt::skip]
    let table: Vec<(Value, &str)> = vec![
        (json!({"messages": null}), "'messages'"),
        (json!({"messages": []}), "'messages'"),
        (json!({"messages": [{"role": "system", "content": "S"}]}), "'messages[0].role'"),
        (json!({"messages": [{"role": "assistant", "content": "Well,"}]}), "'messages[0].role'"),
        (json!({"messages": [{"role": "user"}]}), "'messages[0].content'"),
        (turn(json!([])), "'messages[0].content'"),
        (turn(json!(7)), "'messages[0].content'"),
        (turn(json!([{"text": "a"}])), "'messages[0].content[0].type'"),
        (turn(json!([{"type": "text", "text": 7}])), "'messages[0].content[0].text'"),
        (turn(block("image")), "'messages[0].content[1].type'"),
        (turn(block("document")), "'messages[0].content[1].type'"),
        (turn(block("thinking")), "'messages[0].content[1].type'"),
        (turn(block("video")), "'messages[0].content[1].type'"),
        (turn(json!([{"type": "tool_result"}])), "'messages[0].content[0].tool_use_id'"),
        (turn(json!([{"type": "text", "text": "a", "cache_control": {"type": "forever"}}])), "'messages[0].content[0].cache_control.type'"),
        (json!({"system": 7}), "'system'"),
        (json!({"system": [{"type": "image"}]}), "'system[0].type'"),
        (json!({"max_tokens": null}), "'max_tokens'"),
        (json!({"max_tokens": 0}), "'max_tokens'"),
        (json!({"max_tokens": 5, "min_tokens": 6}), "'min_tokens'"),
        (json!({"temperature": 1.5}), "'temperature'"),
        (json!({"top_k": -2}), "'top_k'"),
        (json!({"stop_sequences": "x"}), "'stop_sequences'"),
        (json!({"stop_sequences": [""]}), "'stop_sequences'"),
        (json!({"stop_sequences": ["a", "b", "c", "d", "e"]}), "'stop_sequences'"),
        (json!({"metadata": {"user_id": "x".repeat(600)}}), "'metadata.user_id'"),
        (json!({"metadata": {"k": "v"}}), "'metadata.k'"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "'thinking'"),
        (json!({"output_config": {"effort": "high"}}), "'output_config.effort'"),
        (json!({"service_tier": "flex"}), "'service_tier'"),
        (json!({"container": "c"}), "'container'"),
        (json!({"mcp_servers": [{"type": "url"}]}), "'mcp_servers'"),
        (tool(json!({"type": "web_search_20250305", "name": "web_search"})), "'tools[0].type'"),
        (tool(json!({"name": "f"})), "'tools[0].input_schema'"),
        (tool(json!({"name": "f", "input_schema": {}, "size": 1})), "'tools[0].size'"),
        (json!({"tool_choice": {"type": "some"}}), "'tool_choice.type'"),
        (json!({"tool_choice": {"type": "tool"}}), "'tool_choice.name'"),
        (json!({"n": 2}), "'n'"),
        (json!({"stop": "x"}), "'stop'"),
    ];
    for (changes, param) in table {
        let (status, kind, message) = error(post(&server, changes.clone()).await).await;
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{changes:.200}");
        assert!(message.contains(param), "{changes:.200}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_all_kinds_have_anthropics_shape() {
    let server = Server::default().await;
    let (status, kind, _) = error(post(&server, json!({"model": "none"})).await).await;
    assert_eq!((status, kind.as_str()), (404, "not_found_error"));
    for (method, path, status, kind) in [
        (Method::GET, "/v1/messages", 405, "invalid_request_error"),
        (Method::POST, "/v1/messages/batches", 404, "not_found_error"),
        (Method::GET, "/v1/messages/count_tokens", 405, "invalid_request_error"),
        (Method::POST, "/v1/messages", 415, "invalid_request_error"),
    ] {
        let response = server.request(method.clone(), path).send().await.unwrap();
        let allow = response.headers().contains_key("allow");
        let (got, got_kind, _) = error(response).await;
        assert_eq!((got, got_kind.as_str()), (status, kind), "{method} {path}");
        assert_eq!(allow, status == 405);
    }
    let huge = body(json!({"system": "x".repeat(100 << 10)}));
    let response = server.request(Method::POST, "/v1/messages").json(&huge).send().await.unwrap();
    let (status, kind, _) = error(response).await;
    assert_eq!((status, kind.as_str()), (413, "request_too_large"));
    let auth = Auth::new(&["secret".into()], None).unwrap();
    let guarded = Server::start(Setup { auth, ..Setup::default() }).await;
    let (status, kind, _) = error(post(&guarded, json!({})).await).await;
    assert_eq!((status, kind.as_str()), (401, "authentication_error"));
    let request = guarded.request(Method::POST, "/v1/messages").header("x-api-key", "secret").json(&body(json!({})));
    assert_eq!(request.send().await.unwrap().status(), 200);
    let loading = Server::start(Setup { load: false, ..Setup::default() }).await;
    let response = post(&loading, json!({})).await;
    assert!(response.headers().contains_key("retry-after"));
    let (status, kind, _) = error(response).await;
    assert_eq!((status, kind.as_str()), (503, "overloaded_error"));
    // Other paths keep theirs.
    let other: Value = server.get("/v1/messagesque").await.json().await.unwrap();
    assert_eq!(other["error"]["code"], "unknown_url");
}

/// What a model answers that calls two functions.
const CALLS: &str = "See.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_blocks_and_their_results_go_back() {
    let server = Server::start(Setup { answer: CALLS, max_model_len: 2048, ..Setup::default() }).await;
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = json!([
        {"name": "weather", "description": "The weather.", "input_schema": city, "cache_control": {"type": "ephemeral"}},
        {"type": "custom", "name": "now", "input_schema": {"type": "object"}},
    ]);
    let message = ok(&server, json!({"tools": tools, "max_tokens": 300})).await;
    let content = message["content"].as_array().unwrap();
    let kinds: Vec<_> = content.iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!((kinds, &message["stop_reason"]), (vec!["text", "tool_use", "tool_use"], &json!("tool_use")));
    assert_eq!((&content[0]["text"], &content[1]["input"]), (&json!("See."), &json!({"city": "Köln"})));
    assert_eq!((&content[2]["name"], &content[2]["input"]), (&json!("now"), &json!({})));

    let response = post(&server, json!({"tools": tools, "max_tokens": 300, "stream": true})).await;
    let events = named_events(&response.text().await.unwrap());
    let starts: Vec<_> = events.iter().filter(|(n, _)| n == "content_block_start").map(|(_, e)| e).collect();
    assert_eq!(starts.iter().map(|e| e["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(
        (&starts[1]["content_block"]["name"], &starts[1]["content_block"]["input"]),
        (&json!("weather"), &json!({}))
    );
    for index in [1, 2] {
        let of = events.iter().filter(|(n, e)| n == "content_block_delta" && e["index"] == index).map(|(_, e)| e);
        let input: String = of.map(|e| e["delta"]["partial_json"].as_str().unwrap()).collect();
        assert_eq!(serde_json::from_str::<Value>(&input).unwrap(), content[index]["input"]);
    }

    // What was said as it came, and what the functions gave.
    let result = |i: usize, content: Value| json!({"type": "tool_result", "tool_use_id": content_id(&message, i), "content": content});
    let mut failed = result(2, json!("no clock"));
    failed["is_error"] = json!(true);
    let results =
        json!([result(1, json!([{"type": "text", "text": "sunny"}])), failed, {"type": "text", "text": "So?"}]);
    let messages = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": content}, {"role": "user", "content": results},
    ]);
    let none = json!({"type": "none"});
    let again =
        ok(&server, json!({"messages": messages, "tools": tools, "tool_choice": none, "max_tokens": 300})).await;
    let call = |i: usize, arguments: &str| json!({"id": content_id(&message, i), "type": "function", "function": {"name": content[i]["name"], "arguments": arguments}});
    let calls = json!([call(1, "{\"city\": \"Köln\"}"), call(2, "{}")]);
    let chat = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "See.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": content_id(&message, 1), "content": "sunny"},
        {"role": "tool", "tool_call_id": content_id(&message, 2), "content": "Error:\nno clock"},
        {"role": "user", "content": "So?"},
    ]);
    let chat = server.chat(json!({"messages": chat, "max_tokens": 300})).await;
    let usage = &again["usage"];
    let read = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(read, chat["usage"]["prompt_tokens"]);

    for (changes, param) in [
        (json!({"tools": [{"name": "no spaces", "input_schema": {}}]}), "'tools[0].name'"),
        (json!({"tools": [{"name": "f", "input_schema": 3}]}), "'tools[0].input_schema'"),
        (json!({"tools": tools, "tool_choice": {"type": "tool", "name": "then"}}), "'tool_choice.name'"),
        (
            json!({"messages": [{"role": "user", "content": [result(1, json!("x"))]}]}),
            "'messages[0].content[0].tool_use_id'",
        ),
        (json!({"output_config": {"format": {"type": "json_schema", "schema": 3}}}), "'output_config.format.schema'"),
        (
            json!({"tools": tools, "messages": [
                {"role": "user", "content": "hi"}, {"role": "assistant", "content": content},
                {"role": "user", "content": [result(1, json!("x")), {"type": "text", "text": 7}]},
            ]}),
            "'messages[2].content[1].text'",
        ),
    ] {
        let (status, _, message) = error(post(&server, changes.clone()).await).await;
        assert!(status == 400 && message.contains(param), "{changes}: {message}");
    }
}

fn content_id(message: &Value, index: usize) -> Value {
    let id = message["content"][index]["id"].clone();
    assert!(id.as_str().unwrap().starts_with("call_"));
    id
}
