//! `/v1/responses`: items in and out, events in order, and the names of what is wrong.

use lima::engine::fake::Fault;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, Setup, named_events};

const TEXT: &str = "Hello, wörld!";

async fn post(server: &Server, changes: Value) -> reqwest::Response {
    let mut body = json!({"model": "test/model", "input": "hi"});
    for (key, value) in changes.as_object().unwrap() {
        body[key] = value.clone();
    }
    server.request(Method::POST, "/v1/responses").json(&body).send().await.unwrap()
}

async fn ok(server: &Server, changes: Value) -> Value {
    let response = post(server, changes.clone()).await;
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{changes}: {text}");
    serde_json::from_str(&text).unwrap()
}

async fn stream(server: &Server, mut changes: Value) -> Vec<(String, Value)> {
    changes["stream"] = json!(true);
    let response = post(server, changes).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let events = named_events(&response.text().await.unwrap());
    for (i, (_, event)) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shape_of_a_response() {
    let server = Server::default().await;
    let response = ok(&server, json!({"instructions": "Be kind.", "metadata": {"k": "v"}, "user": "u"})).await;
    let (id, item) = (&response["id"], &response["output"][0]["id"]);
    assert!(id.as_str().unwrap().starts_with("resp_") && item.as_str().unwrap().starts_with("msg_"));
    let prompt = "<system\nBe kind.>\n<user\nhi>\n<assistant\n".len();
    let tokens = TEXT.len() + 1;
    assert_eq!(
        response,
        json!({
            "id": id, "object": "response", "created_at": response["created_at"].as_u64().unwrap(),
            "completed_at": response["completed_at"].as_u64().unwrap(), "status": "completed", "background": false,
            "error": null, "incomplete_details": null, "instructions": "Be kind.", "max_output_tokens": null,
            "max_tool_calls": null, "model": "test/model",
            "output": [{
                "type": "message", "id": item, "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}],
            }],
            "parallel_tool_calls": true, "previous_response_id": null, "prompt_cache_key": null, "reasoning": null,
            "safety_identifier": null, "service_tier": "default", "store": false, "temperature": 1.0,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0,
            "truncation": "disabled",
            "usage": {
                "input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + tokens,
            },
            "user": "u", "metadata": {"k": "v"},
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_order_and_add_up_to_the_response() {
    let server = Server::default().await;
    let events = stream(&server, json!({"seed": 1})).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).filter(|n| !n.ends_with(".delta")).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, expected);
    let of = |name: &str| &events.iter().find(|(n, _)| n == name).unwrap().1;
    for name in &expected[..2] {
        let response = &of(name)["response"];
        assert_eq!((&response["status"], &response["output"]), (&json!("in_progress"), &json!([])));
        assert!(response.get("usage").is_none());
    }
    let deltas: Vec<&Value> = events.iter().filter(|(n, _)| n.ends_with("text.delta")).map(|(_, e)| e).collect();
    assert!(deltas.len() > 5, "it came in pieces");
    assert_eq!(deltas.iter().map(|e| e["delta"].as_str().unwrap()).collect::<String>(), TEXT);
    assert_eq!((of("response.output_text.done"))["text"], TEXT);
    let added = of("response.output_item.added");
    assert_eq!((&added["item"]["status"], &added["item"]["content"]), (&json!("in_progress"), &json!([])));
    for event in deltas {
        assert_eq!((&event["item_id"], &event["output_index"]), (&added["item"]["id"], &json!(0)));
        assert_eq!((&event["content_index"], &event["logprobs"]), (&json!(0), &json!([])));
    }
    let last = &of("response.completed")["response"];
    assert_eq!(last["output"][0], of("response.output_item.done")["item"]);
    let whole = ok(&server, json!({"seed": 1})).await;
    for key in ["status", "usage", "model", "text", "temperature"] {
        if key != "usage" {
            assert_eq!(last[key], whole[key], "{key}");
        }
    }
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_is_incomplete() {
    let server = Server::default().await;
    let response = ok(&server, json!({"max_output_tokens": 4})).await;
    assert_eq!((&response["status"], &response["max_output_tokens"]), (&json!("incomplete"), &json!(4)));
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["completed_at"], Value::Null);
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["output"][0]["content"][0]["text"], "Hell");
    let events = stream(&server, json!({"max_output_tokens": 4})).await;
    let ends = events.iter().filter(|(n, _)| n == "response.completed" || n == "response.failed").count();
    assert_eq!((events.last().unwrap().0.as_str(), ends), ("response.incomplete", 0));
    // An answer without text is a message all the same.
    let empty = ok(&server, json!({"stop": "H"})).await;
    assert_eq!((&empty["status"], &empty["output"][0]["content"][0]["text"]), (&json!("completed"), &json!("")));
}

#[tokio::test(flavor = "multi_thread")]
async fn items_are_the_messages_of_a_chat() {
    let server = Server::default().await;
    let prompt = async |input: Value| ok(&server, json!({"input": input})).await["usage"]["input_tokens"].clone();
    let text = |role: &str, kind: &str, text: &str| json!({"type": "message", "role": role, "content": [{"type": kind, "text": text}]});
    let one = prompt(json!([text("developer", "input_text", "S"), text("user", "input_text", "a")])).await;
    assert_eq!(one, "<system\nS>\n<user\na>\n<assistant\n".len());
    assert_eq!(prompt(json!([{"role": "system", "content": "S"}, {"role": "user", "content": "a"}])).await, one);
    // What was answered is sent back as it came.
    let mut said = ok(&server, json!({})).await["output"].take();
    let items = said.as_array_mut().unwrap();
    items.insert(0, json!({"role": "user", "content": "hi"}));
    items.push(json!({"role": "user", "content": "more"}));
    let expected = "<user\nhi>\n<assistant\nHello, wörld!>\n<user\nmore>\n<assistant\n".len();
    assert_eq!(prompt(said).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_are_told_if_included() {
    let server = Server::default().await;
    let ask = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let response = ok(&server, ask.clone()).await;
    let logprobs = response["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &response["top_logprobs"]), (TEXT.len(), &json!(2)));
    for token in logprobs {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(token["logprob"].is_number() && token["bytes"].is_array() && token["token"].is_string());
    }
    let events = stream(&server, ask).await;
    let deltas = events.iter().filter(|(n, _)| n.ends_with("text.delta"));
    let told: Vec<&Value> = deltas.flat_map(|(_, e)| e["logprobs"].as_array().unwrap()).collect();
    assert_eq!(told, logprobs.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_the_last_event() {
    let server = Server::default().await;
    server.control.inject(3, Fault::Forward);
    let events = stream(&server, json!({})).await;
    let (name, event) = events.last().unwrap();
    assert_eq!(name, "response.failed");
    let response = &event["response"];
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert_eq!(events.iter().filter(|(n, _)| n == "response.completed" || n == "response.incomplete").count(), 0);
    ok(&server, json!({})).await;
    // While nothing is sent yet, it is a status.
    let server = Server::default().await;
    server.control.inject(3, Fault::Forward);
    let response = post(&server, json!({})).await;
    assert_eq!(response.status(), 500);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "engine_error");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_ask_for_nothing() {
    let server = Server::start(Setup::default()).await;
    let nothing = json!({
        "background": false, "store": false, "truncation": "disabled", "tools": [], "tool_choice": "auto",
        "include": ["reasoning.encrypted_content"], "parallel_tool_calls": false, "service_tier": "auto",
        "reasoning": {"effort": null, "summary": null}, "text": {"format": {"type": "text"}}, "max_tool_calls": 3,
        "stream_options": {"include_obfuscation": false}, "top_logprobs": 0, "metadata": {}, "prompt_cache_key": "k",
        "safety_identifier": "s", "temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "stream": false,
    });
    let response = ok(&server, nothing.clone()).await;
    assert_eq!((&response["parallel_tool_calls"], &response["temperature"]), (&json!(false), &json!(0.0)));
    assert_eq!((&response["prompt_cache_key"], &response["safety_identifier"]), (&json!("k"), &json!("s")));
    let mut nulls: serde_json::Map<_, _> =
        nothing.as_object().unwrap().keys().map(|key| (key.clone(), Value::Null)).collect();
    for name in ["previous_response_id", "conversation", "prompt", "instructions", "user", "moderation"] {
        nulls.insert(name.into(), Value::Null);
    }
    ok(&server, Value::Object(nulls)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_field_as_the_request_does() {
    let server = Server::default().await;
    let (unsupported, invalid, kind) = ("unsupported_parameter", "invalid_value", "invalid_type");
    let (missing, unknown) = ("missing_required_parameter", "unknown_parameter");
    let user = |content: Value| json!({"instructions": "S", "input": [{"role": "user", "content": content}]});
    let tool = |tool: Value| json!({"tools": [tool]});
    let image = json!({"type": "input_image", "image_url": "data:"});
    #[rustfmt::skip]
    let table: Vec<(Value, &str, &str)> = vec![
        (json!({"input": null}), kind, "input"),
        (json!({"input": 3}), kind, "input"),
        (json!({"input": []}), "empty_array", "input"),
        (json!({"input": ["hi"]}), kind, "input[0]"),
        (json!({"input": [{"content": "hi"}]}), missing, "input[0].role"),
        (json!({"input": [{"role": "tool", "content": "hi"}]}), invalid, "input[0].role"),
        (json!({"input": [{"role": "user"}]}), missing, "input[0].content"),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), unsupported, "input[0].type"),
        (json!({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}), unsupported, "input[0].type"),
        (json!({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}), missing, "input[0].call_id"),
        (json!({"input": [{"type": "function_call_output", "call_id": "c"}]}), missing, "input[0].output"),
        (json!({"input": "x".repeat(40_000)}), "context_length_exceeded", "input"),
        (user(json!(7)), kind, "input[0].content"),
        (user(json!([{"type": "input_text", "text": 7}])), kind, "input[0].content[0].text"),
        (user(json!([{"type": "input_text", "text": "a"}, image])), unsupported, "input[0].content[1].type"),
        (user(json!([{"type": "text", "text": "a", "b": 1}])), unknown, "input[0].content[0].b"),
        (user(json!([{"type": "video"}])), invalid, "input[0].content[0].type"),
        (json!({"instructions": 7}), kind, "instructions"),
        (json!({"max_output_tokens": 0}), "integer_below_min_value", "max_output_tokens"),
        (json!({"max_output_tokens": super::MAX_LEN}), "context_length_exceeded", "input"),
        (json!({"temperature": 3}), "decimal_above_max_value", "temperature"),
        (json!({"top_logprobs": 2}), invalid, "top_logprobs"),
        (json!({"top_logprobs": 21}), "integer_above_max_value", "top_logprobs"),
        (json!({"include": ["all"]}), invalid, "include[0]"),
        (json!({"store": true}), unsupported, "store"),
        (json!({"background": true}), unsupported, "background"),
        (json!({"previous_response_id": "resp_1"}), unsupported, "previous_response_id"),
        (json!({"conversation": "conv_1"}), unsupported, "conversation"),
        (json!({"prompt": {"id": "p"}}), unsupported, "prompt"),
        (json!({"truncation": "auto"}), unsupported, "truncation"),
        (json!({"truncation": "some"}), invalid, "truncation"),
        (json!({"reasoning": {"effort": "high"}}), unsupported, "reasoning.effort"),
        (json!({"reasoning": {"summary": "auto"}}), unsupported, "reasoning.summary"),
        (json!({"text": {"verbosity": "low"}}), unsupported, "text.verbosity"),
        (json!({"text": {"mood": "low"}}), unknown, "text.mood"),
        (json!({"service_tier": "flex"}), unsupported, "service_tier"),
        (json!({"moderation": {}}), unsupported, "moderation"),
        (json!({"stream": true, "stream_options": {"include_obfuscation": true}}), unsupported, "stream_options.include_obfuscation"),
        (tool(json!({"type": "web_search"})), unsupported, "tools[0].type"),
        (tool(json!({"name": "f"})), missing, "tools[0].type"),
        (tool(json!({"type": "function"})), missing, "tools[0].name"),
        (tool(json!({"type": "function", "name": "f", "size": 1})), unknown, "tools[0].size"),
        (json!({"tool_choice": {"type": "web_search"}}), unsupported, "tool_choice.type"),
        (json!({"tool_choice": {"type": "function"}}), missing, "tool_choice.name"),
        (json!({"user": 5}), kind, "user"),
        (json!({"metadata": {"k": 1}}), kind, "metadata.k"),
        (json!({"cache_salt": ""}), "string_below_min_length", "cache_salt"),
        (json!({"n": 2}), unknown, "n"),
        (json!({"messages": []}), unknown, "messages"),
        (json!({"max_tokens": 3}), unknown, "max_tokens"),
    ];
    for (changes, code, param) in table {
        let response = post(&server, changes.clone()).await;
        let status = response.status();
        let error = response.json::<Value>().await.unwrap()["error"].take();
        let got = (status.as_u16(), error["code"].as_str(), error["param"].as_str());
        assert_eq!(got, (400, Some(code), Some(param)), "{changes:.200} → {error}");
        if code == "context_length_exceeded" {
            assert!(!error["message"].as_str().unwrap().contains("messages"), "{error}");
        }
    }
    let none = post(&server, json!({"model": "none"})).await;
    assert_eq!(
        (none.status().as_u16(), none.json::<Value>().await.unwrap()["error"]["code"].as_str()),
        (404, Some("model_not_found"))
    );
}

/// What a model answers that calls two functions.
const CALLS: &str = "See.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

fn functions() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!([
        {"type": "function", "name": "weather", "description": "The weather.", "parameters": city, "strict": null},
        {"type": "function", "name": "now"},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_items_and_their_outputs_go_back() {
    let server = Server::start(Setup { answer: CALLS, max_model_len: 2048, ..Setup::default() }).await;
    let response = ok(&server, json!({"tools": functions()})).await;
    let output = response["output"].as_array().unwrap();
    let kinds: Vec<_> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message", "function_call", "function_call"]);
    assert_eq!(output[0]["content"][0]["text"], "See.");
    for (item, name, arguments) in [(&output[1], "weather", "{\"city\": \"Köln\"}"), (&output[2], "now", "{}")] {
        assert!(
            item["id"].as_str().unwrap().starts_with("fc_") && item["call_id"].as_str().unwrap().starts_with("call_")
        );
        assert_eq!((&item["name"], &item["arguments"]), (&json!(name), &json!(arguments)));
        assert_eq!(item["status"], "completed");
    }
    assert_eq!((&response["status"], &response["tools"][1]["strict"]), (&json!("completed"), &json!(false)));

    let events = stream(&server, json!({"tools": functions()})).await;
    let names: Vec<&str> = events.iter().map(|(n, _)| n.as_str()).filter(|n| !n.ends_with(".delta")).collect();
    let call = ["output_item.added", "function_call_arguments.done", "output_item.done"];
    let text = ["output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done"];
    let expected: Vec<_> = ["created", "in_progress"].into_iter().chain(text).chain(call).chain(call).collect();
    let expected: Vec<_> = expected.into_iter().chain(["completed"]).map(|name| format!("response.{name}")).collect();
    assert_eq!(names, expected);
    for (index, name) in [(1, "weather"), (2, "now")] {
        let of = |kind: &'static str| {
            events.iter().filter(move |(n, e)| n.ends_with(kind) && e["output_index"] == index).map(|(_, e)| e)
        };
        let arguments: String = of("arguments.delta").map(|e| e["delta"].as_str().unwrap()).collect();
        let done = of("arguments.done").next().unwrap();
        assert_eq!((&done["name"], &done["arguments"]), (&json!(name), &json!(arguments)));
        assert_eq!(of("item.added").next().unwrap()["item"]["arguments"], "");
        assert_eq!(of("item.done").next().unwrap()["item"]["arguments"], json!(arguments));
        assert_eq!(json!(arguments), output[index]["arguments"]);
    }

    // Items as they came, and what the functions gave.
    let mut input = vec![json!({"role": "user", "content": "hi"})];
    input.extend(output.iter().cloned());
    let outputs = [json!("sunny"), json!([{"type": "input_text", "text": "noon"}])];
    for (item, result) in output[1..].iter().zip(outputs) {
        input.push(json!({"type": "function_call_output", "call_id": item["call_id"], "output": result}));
    }
    let again = ok(&server, json!({"input": input, "tools": functions(), "tool_choice": "none"})).await;
    // Nothing but the conversation is in the prompt: it is that of the chat.
    let calls: Vec<_> = output[1..].iter().map(|item| {
        json!({"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}})
    }).collect();
    let chat = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "See.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": "sunny"},
        {"role": "tool", "tool_call_id": calls[1]["id"], "content": "noon"},
    ]);
    let chat = server.chat(json!({"messages": chat})).await;
    assert_eq!(again["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);

    for (changes, param) in [
        (json!({"tools": [{"type": "function", "name": "no spaces"}]}), "tools[0].name"),
        (json!({"tools": functions(), "tool_choice": {"type": "function", "name": "then"}}), "tool_choice.name"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}), "input[0].call_id"),
        (
            json!({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}),
            "input[0].arguments",
        ),
        (json!({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}), "text.format.name"),
        (json!({"text": {"format": {"type": "json_schema", "name": "a"}}}), "text.format.schema"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
    ] {
        let response = post(&server, changes.clone()).await;
        let error = response.json::<Value>().await.unwrap()["error"].take();
        assert_eq!(error["param"], param, "{changes} → {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_hold_as_in_a_chat() {
    // It wants to say this, and the number is too large.
    let server = Server::start(Setup { answer: r#"{"a": 70}"#, ..Setup::default() }).await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
                        "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "answer", "strict": true, "schema": schema});
    let response = ok(&server, json!({"text": {"format": format}})).await;
    let text = response["output"][0]["content"][0]["text"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(value, json!({"a": 7}), "{text}");
    assert_eq!(response["text"]["format"], format);
}
