//! Tools: requests, calls in answers and streams, and conversations that hold them.

use serde_json::{Value, json};

use super::errors::error;
use super::{Server, Setup, TEMPLATE};

/// A template that writes tools as Hermes' models have them.
const HERMES: &str = "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools>\
    <|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": \
    {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// And one as LLaMA 3.1 has them.
const LLAMA: &str = "{% if tools %}{{ tools | tojson }} \"parameters\" <|python_tag|>{% endif %}{% for m in messages %}\
    <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}\
    <|im_start|>assistant\n{% endif %}";

fn tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
                      "required": ["city"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": city}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

async fn start(template: &'static str, answer: &'static str) -> Server {
    Server::start(Setup { answer, template, max_model_len: 2048, ..Setup::default() }).await
}

/// Content, calls as name and arguments, and finish reason of a choice.
type Said = (Option<String>, Vec<(String, String)>, String);

fn said(answer: &Value, index: usize) -> Said {
    let choice = &answer["choices"][index];
    let message = &choice["message"];
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        let function = &call["function"];
        (function["name"].as_str().unwrap().to_owned(), function["arguments"].as_str().unwrap().to_owned())
    };
    assert!(message.get("tool_calls").is_none_or(|calls| calls != &json!([])), "absent where there are none");
    let content = message["content"].as_str().map(str::to_owned);
    (content, calls.iter().map(call).collect(), choice["finish_reason"].as_str().unwrap().to_owned())
}

/// The same of chunks, which are checked.
fn streamed(chunks: &[Value], index: u64) -> Said {
    let (mut content, mut reason) = (String::new(), None);
    let mut calls: Vec<(String, String)> = Vec::new();
    for choice in chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index) {
        let delta = &choice["delta"];
        content.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let at = call["index"].as_u64().unwrap() as usize;
            let arguments = call["function"]["arguments"].as_str().unwrap();
            if at == calls.len() {
                assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function");
                calls.push((call["function"]["name"].as_str().unwrap().to_owned(), arguments.to_owned()));
            } else {
                assert_eq!(at + 1, calls.len(), "calls come one after the other");
                assert!(call.get("id").is_none() && call["function"].get("name").is_none(), "told once: {call}");
                calls[at].1.push_str(arguments);
            }
        }
        assert!(reason.is_none(), "nothing follows the finish reason");
        reason = choice["finish_reason"].as_str().map(str::to_owned);
    }
    ((!content.is_empty()).then_some(content), calls, reason.unwrap())
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn free_text_is_read_for_calls() {
    let two = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>\n\
               <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let llama = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\"}}";
    let weather = || call("get_weather", "{\"city\": \"Köln\"}");
    let see = || Some("Let me see.".to_owned());
    for (template, answer, expected) in [
        (TEMPLATE, two, (see(), vec![weather(), call("now", "{}")], "tool_calls")),
        (HERMES, two, (see(), vec![weather(), call("now", "{}")], "tool_calls")),
        (LLAMA, llama, (None, vec![weather()], "tool_calls")),
        (LLAMA, two, (Some(two.to_owned()), vec![], "stop")),
        (HERMES, "Just <text>.", (Some("Just <text>.".to_owned()), vec![], "stop")),
    ] {
        let expected: Said = (expected.0, expected.1, expected.2.to_owned());
        let server = start(template, answer).await;
        assert_eq!(said(&server.chat(json!({"tools": tools()})).await, 0), expected, "{answer}");
        let chunks = server.stream(json!({"tools": tools(), "n": 2})).await;
        assert_eq!((streamed(&chunks, 0), streamed(&chunks, 1)), (expected.clone(), expected));
        // Without tools it is text.
        for without in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
            assert_eq!(said(&server.chat(without).await, 0), (Some(answer.to_owned()), vec![], "stop".to_owned()));
        }
    }
    let server = start(HERMES, two).await;
    let one = server.chat(json!({"tools": tools(), "parallel_tool_calls": false})).await;
    assert_eq!(said(&one, 0), (see(), vec![weather()], "tool_calls".to_owned()));
    // Cut off within a call it is none.
    let (content, calls, reason) = said(&server.chat(json!({"tools": tools(), "max_tokens": 40})).await, 0);
    assert!(content.unwrap().contains("<tool_call>") && calls.is_empty() && reason == "length");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_must_be_are_and_match_their_schemas() {
    for template in [TEMPLATE, HERMES, LLAMA] {
        let server = start(template, "\0").await;
        for seed in 0..4 {
            for (choice, names) in [
                (json!("required"), &["get_weather", "now"][..]),
                (json!({"type": "function", "function": {"name": "get_weather"}}), &["get_weather"]),
                (
                    json!({"type": "allowed_tools", "allowed_tools": {"mode": "required",
                           "tools": [{"type": "function", "function": {"name": "now"}}]}}),
                    &["now"],
                ),
            ] {
                let ask = json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false, "seed": seed,
                                 "temperature": 1, "max_tokens": 200, "logprobs": true});
                let whole = said(&server.chat(ask.clone()).await, 0);
                assert_eq!(streamed(&server.stream(ask).await, 0), whole);
                let (content, calls, reason) = whole;
                assert_eq!((content, calls.len()), (None, 1));
                assert!(names.contains(&&*calls[0].0), "{calls:?}");
                if reason == "tool_calls" {
                    let arguments: Value = serde_json::from_str(&calls[0].1).unwrap();
                    assert!(arguments.is_object());
                    if calls[0].0 == "get_weather" {
                        let city = arguments["city"].as_str().unwrap();
                        assert!(city.chars().count() <= 8 && arguments.as_object().unwrap().len() == 1);
                    }
                } else {
                    // Any object may be long.
                    assert_eq!((reason.as_str(), &*calls[0].0), ("length", "now"));
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_arguments_match_where_the_model_is_free_to_call() {
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    // It wants to say what the schema does not allow.
    let wrong = "Well.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"town\": \"Köln\"}}\n</tool_call>";
    for template in [TEMPLATE, HERMES] {
        let server = start(template, wrong).await;
        let ask = json!({"tools": strict, "max_tokens": 300});
        let whole = said(&server.chat(ask.clone()).await, 0);
        assert_eq!(streamed(&server.stream(ask).await, 0), whole);
        let (content, calls, _) = whole;
        assert_eq!(content.as_deref(), Some("Well."));
        let arguments: Value = serde_json::from_str(&calls[0].1).unwrap_or_else(|e| panic!("{e}: {calls:?}"));
        assert!(arguments["city"].is_string(), "{arguments}");
        // Text without calls stays as it is.
        let server = start(template, "Nothing < to call.").await;
        let (content, calls, reason) = said(&server.chat(json!({"tools": strict})).await, 0);
        assert_eq!((content.as_deref(), calls.len(), &*reason), (Some("Nothing < to call."), 0, "stop"));
    }
    let server = start(LLAMA, "{\"name\": \"get_weather\", \"parameters\": {\"town\": 1}}").await;
    let (content, calls, _) = said(&server.chat(json!({"tools": strict, "max_tokens": 300})).await, 0);
    assert_eq!((content, &*calls[0].0), (None, "get_weather"));
    let server = start(LLAMA, "Sunny {today}.").await;
    assert_eq!(said(&server.chat(json!({"tools": strict})).await, 0).0.as_deref(), Some("Sunny {today}."));
}

/// Tokens of a request's prompt.
async fn prompt_tokens(server: &Server, changes: Value) -> u64 {
    server.chat(changes).await["usage"]["prompt_tokens"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_with_calls_reach_the_template() {
    let messages = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            {"id": "call_2", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"X\"}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "12:00"}]},
    ]);
    let server = start(HERMES, "ok").await;
    let calls = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\
                 <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"X\"}}\n</tool_call>";
    let rendered = format!("<user\nWeather?>\n<assistant\n{calls}>\n<tool\nrain>\n<tool\n12:00>\n<assistant\n");
    assert_eq!(prompt_tokens(&server, json!({"messages": messages})).await, rendered.len() as u64);
    // Tools are told of by the template, as Python writes JSON.
    let definition = "{\"type\": \"function\", \"function\": {\"name\": \"now\"}}";
    let asked = "<user\nhi>\n<assistant\n";
    let told = format!("<system\n<tools>{definition}</tools>>\n{asked}");
    assert_eq!(prompt_tokens(&server, json!({"tools": [tools()[1]]})).await, told.len() as u64);
    assert_eq!(prompt_tokens(&server, json!({"tools": [tools()[1]], "tool_choice": "none"})).await, asked.len() as u64);

    // A template that knows of none: the system message tells of them, and results are a user's.
    let server = start(TEMPLATE, "ok").await;
    let calls = calls.replace("</tool_call><", "</tool_call>\n<");
    let results = "<tool_response>\nrain\n</tool_response>\n<tool_response>\n12:00\n</tool_response>";
    let rendered = format!("<user\nWeather?>\n<assistant\n{calls}>\n<user\n{results}>\n<assistant\n");
    assert_eq!(prompt_tokens(&server, json!({"messages": messages})).await, rendered.len() as u64);
    let system = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]);
    let more = prompt_tokens(&server, json!({"tools": [tools()[1]], "messages": system})).await
        - prompt_tokens(&server, json!({"messages": system})).await;
    let alone = prompt_tokens(&server, json!({"tools": [tools()[1]]})).await - prompt_tokens(&server, json!({})).await;
    // Beside what is there: two line breaks; else a message of its own.
    assert_eq!(more + "<system\n>\n".len() as u64, alone + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_cannot_be_had_are_refused() {
    let server = start(HERMES, "ok").await;
    let (invalid, missing, kind) = ("invalid_value", "missing_required_parameter", "invalid_type");
    let (unsupported, unknown) = ("unsupported_parameter", "unknown_parameter");
    let function = |f: Value| json!({"tools": [{"type": "function", "function": f}]});
    let choice = |c: Value| json!({"tools": tools(), "tool_choice": c});
    let bad = json!({"type": "object", "properties": {"a": {"not": {}}}});
    let calls = |calls: Value| json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": calls}]});
    let f = |name: &str, arguments: Value| json!([{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]);
    #[rustfmt::skip]
    let table: Vec<(Value, &str, &str)> = vec![
        (json!({"tools": {}}), kind, "tools"),
        (json!({"tools": ["x"]}), kind, "tools[0]"),
        (json!({"tools": [{}]}), missing, "tools[0].type"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]}), unsupported, "tools[0].type"),
        (json!({"tools": [{"type": "web_search"}]}), invalid, "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), missing, "tools[0].function"),
        (function(json!({})), missing, "tools[0].function.name"),
        (function(json!({"name": "a b"})), invalid, "tools[0].function.name"),
        (function(json!({"name": "x".repeat(65)})), "string_above_max_length", "tools[0].function.name"),
        (function(json!({"name": "a", "parameters": []})), kind, "tools[0].function.parameters"),
        (function(json!({"name": "a", "strict": 1})), kind, "tools[0].function.strict"),
        (function(json!({"name": "a", "returns": {}})), unknown, "tools[0].function.returns"),
        (function(json!({"name": "a", "strict": true, "parameters": bad})), "invalid_json_schema", "tools[0].function.parameters"),
        (json!({"tools": [tools()[0], tools()[0]]}), invalid, "tools[1].function.name"),
        (json!({"tools": vec![tools()[0].clone(); 129]}), "array_above_max_length", "tools"),
        (json!({"tool_choice": "required"}), invalid, "tool_choice"),
        (choice(json!("any")), invalid, "tool_choice"),
        (choice(json!(1)), kind, "tool_choice"),
        (choice(json!({})), missing, "tool_choice.type"),
        (choice(json!({"type": "custom", "custom": {"name": "x"}})), invalid, "tool_choice.type"),
        (choice(json!({"type": "function"})), missing, "tool_choice.function"),
        (choice(json!({"type": "function", "function": {"name": "other"}})), invalid, "tool_choice.function.name"),
        (choice(json!({"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}})), invalid, "tool_choice.allowed_tools.mode"),
        (choice(json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}})), "empty_array", "tool_choice.allowed_tools.tools"),
        (choice(json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]}})), invalid, "tool_choice.allowed_tools.tools[0].function.name"),
        (json!({"tools": tools(), "parallel_tool_calls": "no"}), kind, "parallel_tool_calls"),
        (json!({"tools": tools(), "tool_choice": "required", "ignore_eos": true}), invalid, "ignore_eos"),
        (json!({"tools": tools(), "response_format": {"type": "json_object"}}), invalid, "response_format"),
        (json!({"functions": [{"name": "f"}]}), unsupported, "functions"),
        (json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}), invalid, "messages[0].tool_call_id"),
        (json!({"messages": [{"role": "tool", "tool_call_id": "1"}]}), missing, "messages[0].content"),
        (calls(json!([{"type": "function", "function": {"name": "f", "arguments": "{}"}}])), missing, "messages[1].tool_calls[0].id"),
        (calls(json!([{"id": "1", "type": "custom", "custom": {}}])), unsupported, "messages[1].tool_calls[0].type"),
        (calls(f("f", json!({}))), kind, "messages[1].tool_calls[0].function.arguments"),
        (calls(f("f", json!("[]"))), invalid, "messages[1].tool_calls[0].function.arguments"),
        (calls(f("f", json!("{\"a\": }"))), invalid, "messages[1].tool_calls[0].function.arguments"),
        (calls(f("f g", json!("{}"))), invalid, "messages[1].tool_calls[0].function.name"),
        (json!({"messages": [{"role": "user", "content": "hi", "tool_call_id": "1"}]}), unknown, "messages[0].tool_call_id"),
    ];
    for (changes, code, param) in table {
        let (status, error) = error(server.post(changes.clone()).await).await;
        let got = (status, error["code"].as_str(), error["param"].as_str());
        assert_eq!(got, (400, Some(code), Some(param)), "{changes:.200} → {error}");
    }
    // A format that is not known.
    let server = start("{% for t in tools %}[AVAILABLE_TOOLS]{{ t }}{% endfor %}hi", "ok").await;
    let (status, error) = error(server.post(json!({"tools": tools()})).await).await;
    assert_eq!((status, error["code"].as_str(), error["param"].as_str()), (400, Some(unsupported), Some("tools")));
    assert!(error["message"].as_str().unwrap().contains("--tool-call-parser"));
    server.chat(json!({"tools": tools(), "tool_choice": "none"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_be_sent_back_as_it_was() {
    let text = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let server = start(HERMES, text).await;
    let answer = server.chat(json!({"tools": tools()})).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    let id = &message["tool_calls"][0]["id"];
    let messages =
        json!([{"role": "user", "content": "hi"}, message, {"role": "tool", "content": "1", "tool_call_id": id}]);
    server.chat(json!({"tools": tools(), "messages": messages})).await;
}
