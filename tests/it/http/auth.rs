//! API keys: every route but the probes wants one.

use lima::http::Auth;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, Setup, body};

const ROUTES: [(Method, &str); 13] = [
    (Method::POST, "/v1/chat/completions"),
    (Method::POST, "/v1/completions"),
    (Method::POST, "/v1/responses"),
    (Method::POST, "/v1/embeddings"),
    (Method::POST, "/tokenize"),
    (Method::POST, "/detokenize"),
    (Method::GET, "/v1/models"),
    (Method::GET, "/v1/models/alias"),
    (Method::POST, "/v1/load_lora_adapter"),
    (Method::POST, "/v1/unload_lora_adapter"),
    (Method::GET, "/metrics"),
    // What is not there and what is not allowed is told to those who may know.
    (Method::GET, "/no/such/route"),
    (Method::DELETE, "/v1/models"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_route_but_the_probes_wants_a_key() {
    let auth = Auth::new(&["secret".into()], None).unwrap();
    let server = Server::start(Setup { auth, ..Setup::default() }).await;
    for (method, path) in ROUTES {
        let ask = |key: Option<(&'static str, &'static str)>| {
            let request = server.request(method.clone(), path).json(&json!({}));
            let request = if let Some((name, value)) = key { request.header(name, value) } else { request };
            async { request.send().await.unwrap() }
        };
        for (key, code) in [
            (None, "missing_api_key"),
            (Some(("authorization", "Bearer wrong")), "invalid_api_key"),
            (Some(("x-api-key", "secre")), "invalid_api_key"),
        ] {
            let response = ask(key).await;
            assert_eq!(response.status(), 401, "{path}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert!(response.headers().contains_key("x-request-id"));
            let body: Value = response.json().await.unwrap();
            let error = &body["error"];
            assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request_error"), &json!(code)), "{path}");
            assert!(error["param"].is_null() && !error["message"].as_str().unwrap().contains("secre"));
        }
        for key in [("authorization", "Bearer secret"), ("x-api-key", "secret")] {
            assert_ne!(ask(Some(key)).await.status(), 401, "{path}");
        }
    }
    for path in ["/livez", "/startupz", "/readyz", "/health"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    let request = server.request(Method::POST, "/v1/chat/completions").bearer_auth("secret").json(&body(json!({})));
    assert_eq!(request.send().await.unwrap().status(), 200);
    // Refused before the body is looked at.
    let request = server.request(Method::POST, "/v1/chat/completions").body("{");
    assert_eq!(request.send().await.unwrap().status(), 401);
}
