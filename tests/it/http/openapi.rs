//! The API's description: the file, the route, and that tests hold responses against it.

use lima::http::{Auth, Limits, openapi};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, Setup, body};
use crate::support::description::check;

#[test]
fn the_file_is_what_the_types_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
    let file = std::fs::read_to_string(path).unwrap();
    assert!(file == openapi::yaml(), "openapi.yaml is stale: `cargo run --release -- openapi > openapi.yaml`");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_served_to_those_who_have_a_key() {
    let auth = Auth::new(&["secret".into()], None).unwrap();
    let server = Server::start(Setup { auth, ..Setup::default() }).await;
    assert_eq!(server.get("/openapi.json").await.status(), 401);
    let request = server.request(Method::GET, "/openapi.json").bearer_auth("secret");
    let served: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(served, serde_json::to_value(openapi::document()).unwrap());
    assert_eq!((&served["openapi"], &served["info"]["title"]), (&json!("3.1.0"), &json!("lima")));
}

/// Every `$ref` leads somewhere, every object of a request is closed, and no schema is there for nothing.
#[test]
fn the_description_is_whole() {
    fn walk(value: &Value, refs: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                refs.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                assert!(!map.contains_key("allOf"), "{value}");
                map.values().for_each(|value| walk(value, refs));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, refs)),
            _ => {}
        }
    }
    let document = serde_json::to_value(openapi::document()).unwrap();
    let mut refs = Vec::new();
    walk(&document, &mut refs);
    for path in &refs {
        assert!(document.pointer(path.trim_start_matches('#')).is_some(), "{path} leads nowhere");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(refs.contains(&format!("#/components/schemas/{name}")), "{name} is not used");
    }
    for operation in operations(&document, "post") {
        let schema = request_schema(&document, operation.1);
        assert_eq!(schema["additionalProperties"], false, "{}", operation.0);
    }
}

fn operations<'a>(document: &'a Value, method: &'static str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().filter_map(move |(path, item)| Some((path, item.get(method)?)))
}

fn request_schema<'a>(document: &'a Value, operation: &'a Value) -> &'a Value {
    let path = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str().unwrap();
    document.pointer(path.trim_start_matches('#')).unwrap()
}

/// Whatever the value: a described field is never an unknown one, and a described path is never an unknown one.
#[tokio::test(flavor = "multi_thread")]
async fn every_described_field_is_known() {
    let server = Server::default().await;
    let document = serde_json::to_value(openapi::document()).unwrap();
    let mut fields = 0;
    for (path, operation) in operations(&document, "post") {
        if path.ends_with("_lora_adapter") {
            continue;
        }
        let minimal = match path.as_str() {
            "/v1/completions" => json!({"model": "alias", "prompt": "a", "max_tokens": 1}),
            "/v1/responses" | "/v1/embeddings" => json!({"model": "alias", "input": "a"}),
            "/v1/messages" => body(json!({"max_tokens": 1})),
            "/detokenize" => json!({"tokens": [1]}),
            // Some fields are those of messages alone.
            "/tokenize" => json!({"messages": body(json!({}))["messages"]}),
            _ => body(json!({})),
        };
        let response = server.request(Method::POST, path).json(&minimal).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}: {}", response.text().await.unwrap());
        for name in request_schema(&document, operation)["properties"].as_object().unwrap().keys() {
            let mut asked = minimal.clone();
            asked[name] = json!({"no_such_thing": [1]});
            let response = server.request(Method::POST, path).json(&asked).send().await.unwrap();
            let (status, text) = (response.status(), response.text().await.unwrap());
            let unknown = format!("Unknown parameter: '{name}'.");
            assert!(status.as_u16() < 500 && !text.contains(&unknown), "{path}: {text}");
            fields += 1;
        }
    }
    for (path, _) in operations(&document, "get") {
        assert_ne!(server.get(&path.replace("{id}", "alias")).await.status(), 404, "{path}");
    }
    assert!(fields > 150, "{fields}");
}

#[test]
fn what_is_not_described_is_noticed() {
    let (post, get) = (Method::POST, Method::GET);
    let tokenized = json!({"count": 1, "max_model_len": 2, "tokens": [3], "token_strs": null});
    assert_eq!(check(&post, "/tokenize", 200, &tokenized), Ok(()));
    let with = |name: &str, value: Value| {
        let mut body = tokenized.clone();
        body[name] = value;
        body
    };
    for (method, path, status, body) in [
        (&post, "/tokenize", 200, with("more", json!(1))),
        (&post, "/tokenize", 200, with("count", json!("1"))),
        (&post, "/tokenize", 200, json!({"count": 1})),
        (&post, "/tokenize", 418, tokenized.clone()),
        (&get, "/tokenize", 200, tokenized.clone()),
        (&post, "/tokenise", 200, tokenized.clone()),
        (&post, "/tokenize", 400, tokenized.clone()),
        (&post, "/v1/messages", 400, json!({"error": {"message": "", "type": "", "param": null, "code": ""}})),
    ] {
        assert!(check(method, path, status, &body).is_err(), "{path} {status} {body}");
    }
}

/// `LIMA_TEST_SCHEMATHESIS` names the program (`scripts/schemathesis install`); `LIMA_TEST_SCHEMATHESIS_SECONDS` how
/// long it may look, beside what it does in any case.
#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing() {
    let Some(program) = std::env::var_os("LIMA_TEST_SCHEMATHESIS") else {
        println!("skipped: LIMA_TEST_SCHEMATHESIS does not name schemathesis");
        return;
    };
    let seconds = std::env::var("LIMA_TEST_SCHEMATHESIS_SECONDS");
    // Texts that are a little too long for their fields are to be read.
    let limits = Limits { max_body: 1 << 20, ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    let mut command = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/schemathesis"));
    command.args(["run", &server.url("")]).env("LIMA_TEST_SCHEMATHESIS", program);
    match &seconds {
        Ok(seconds) => command.args(["--max-time", seconds, "--max-examples", "1000000"]),
        Err(_) => command.args(["--max-examples", "20", "--seed", "1"]),
    };
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    println!("{printed}");
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
}
