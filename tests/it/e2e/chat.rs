//! What one client sees.

use serde_json::{Value, json};

use crate::support::server::{Server, ask, said, spelled};

#[tokio::test]
async fn a_client_is_served() {
    let server = Server::start(&["--kv-cache-memory", "128MiB", "--max-model-len", "1024"]).await;
    streamed_and_not(&server).await;
    turns(&server).await;
    stop_strings(&server).await;
    choices(&server).await;
    logprobs(&server).await;
    structured(&server).await;
    tools(&server).await;
    bad_requests(&server).await;
}

async fn streamed_and_not(server: &Server) {
    let mut body = ask("Name three colours of the rainbow.", 32, 1);
    let whole = server.chat(&body).await;
    let (text, reason) = said(&whole, 0);
    assert!(!text.trim().is_empty());
    let usage = &whole["usage"];
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 10);
    assert!((1..=32).contains(&usage["completion_tokens"].as_u64().unwrap()));
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    body["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(&body).await.rest().await;
    assert_eq!(spelled(&chunks, 0), (text, reason));
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][key], usage[key]);
    }
    // Greedy needs no seed.
    let greedy = json!({"model": "lima", "messages": body["messages"], "temperature": 0, "max_tokens": 12});
    assert_eq!(said(&server.chat(&greedy).await, 0), said(&server.chat(&greedy).await, 0));
}

async fn turns(server: &Server) {
    let mut body = ask("Tell me about the river Nile in some detail, please.", 24, 2);
    let first = server.chat(&body).await;
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({"role": "user", "content": "And the Danube?"}));
    let second = server.chat(&body).await;
    assert!(cached(&second) >= 32, "{second}");
    assert!(cached(&second) < second["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(said(&second, 0), said(&server.chat(&body).await, 0), "an answer does not depend on the cache");
}

/// Answers of the real model match their schema, streamed or not.
async fn structured(server: &Server) {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "colours"],
        "additionalProperties": false,
    });
    let mut body = ask("Describe a person called Ann, who is 33 and likes red and blue.", 120, 5);
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": true}});
    body["n"] = json!(2);
    let answer = server.chat(&body).await;
    let chunks = server.stream(&body).await.rest().await;
    for index in 0..2 {
        let (text, reason) = said(&answer, index);
        assert_eq!(reason.as_deref(), Some("stop"), "{text}");
        let person: Value = serde_json::from_str(&text).unwrap();
        assert!(person["name"].as_str().unwrap().chars().count() <= 30, "{person}");
        assert!((0..=150).contains(&person["age"].as_i64().unwrap()), "{person}");
        let colours = person["colours"].as_array().unwrap();
        assert!(colours.len() <= 3 && colours.iter().all(|c| ["red", "green", "blue"].contains(&c.as_str().unwrap())));
        assert_eq!(person.as_object().unwrap().len(), 3);
        assert_eq!(spelled(&chunks, index as u64), (text, reason));
    }
    // Nobody spoke of JSON.
    let mut body = ask("What is the capital of France?", 200, 6);
    body["response_format"] = json!({"type": "json_object"});
    let (text, reason) = said(&server.chat(&body).await, 0);
    assert!(reason.as_deref() == Some("length") || serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
    body["response_format"] = Value::Null;
    body["structured_outputs"] = json!({"choice": ["Paris", "Rome"]});
    let (text, reason) = said(&server.chat(&body).await, 0);
    assert!(["Paris", "Rome"].contains(&&*text) && reason.as_deref() == Some("stop"), "{text} {reason:?}");
}

/// The real model calls what it must call, and arguments are right.
async fn tools(server: &Server) {
    let mut body = ask("What is the weather in Paris?", 100, 7);
    body["tools"] = json!([{"type": "function", "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}},
                       "required": ["city"], "additionalProperties": false},
    }}]);
    body["tool_choice"] = json!("required");
    body["parallel_tool_calls"] = json!(false);
    let answer = server.chat(&body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"].is_string(), "{arguments}");
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(choice["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "{\"celsius\": 21}"}));
    body["tool_choice"] = json!("none");
    let (text, _) = said(&server.chat(&body).await, 0);
    assert!(!text.trim().is_empty());
}

async fn stop_strings(server: &Server) {
    let mut body = ask("Count from one to ten in digits: 1, 2, 3 and so on.", 32, 3);
    body["temperature"] = json!(0);
    let (text, _) = said(&server.chat(&body).await, 0);
    // Something that it says for certain, cutting through the middle of words.
    let characters: Vec<char> = text.chars().collect();
    assert!(characters.len() > 20, "{text:?}");
    let stop: String = characters[10..14].iter().collect();
    body["stop"] = json!([stop, "never said"]);
    let (cut, reason) = said(&server.chat(&body).await, 0);
    assert_eq!((cut.as_str(), reason.as_deref()), (text.split(&stop).next().unwrap(), Some("stop")));
    let chunks = server.stream(&body).await.rest().await;
    assert_eq!(spelled(&chunks, 0), (cut, reason));
}

async fn choices(server: &Server) {
    let mut body = ask("Invent a name for a small boat.", 16, 4);
    body["n"] = json!(2);
    let answer = server.chat(&body).await;
    let both = [said(&answer, 0), said(&answer, 1)];
    assert_ne!(both[0].0, both[1].0, "two choices of one seed differ");
    let again = server.chat(&body).await;
    assert_eq!(both, [said(&again, 0), said(&again, 1)]);
    let chunks = server.stream(&body).await.rest().await;
    assert_eq!(both, [spelled(&chunks, 0), spelled(&chunks, 1)]);
    body["n"] = json!(1);
    assert_eq!(both[0], said(&server.chat(&body).await, 0), "the first choice does not depend on the second");
}

async fn logprobs(server: &Server) {
    let mut body = ask("Is water wet?", 16, 5);
    (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(3));
    let answer = server.chat(&body).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len() as u64, answer["usage"]["completion_tokens"].as_u64().unwrap());
    for token in content {
        let value = token["logprob"].as_f64().unwrap();
        let top: Vec<f64> =
            token["top_logprobs"].as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(value <= 0.0 && top.len() == 3 && top.is_sorted_by(|a, b| a >= b) && value <= top[0], "{token}");
        assert!(top.iter().map(|p| p.exp()).sum::<f64>() <= 1.0 + 1e-5);
    }
}

async fn bad_requests(server: &Server) {
    let body = ask("Hello", 4, 6);
    let with = |key: &str, value: Value| {
        let mut body = body.clone();
        body[key] = value;
        body
    };
    for (body, status, param) in [
        (with("temperature", json!(3)), 400, json!("temperature")),
        (with("model", json!("no-such-model")), 404, json!("model")),
        (with("messages", json!([{"role": "user", "content": "word ".repeat(3000)}])), 400, json!("messages")),
        (with("max_tokens", json!("many")), 400, json!("max_tokens")),
    ] {
        let response = server.post(&body).await;
        assert_eq!(response.status(), status);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{error}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string());
    }
}
