//! Every response that tests see is as the API's description says: `checked` goes around each request.
//!
//! Stricter than a client needs to be: a field, a status or a media type that is not described is a failure.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};

use axum::body::Bytes;
use futures_core::Stream;
use jsonschema::Validator;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

/// The description, its objects closed.
static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| {
    let mut description = serde_json::to_value(lima::http::openapi::document()).unwrap();
    close(&mut description["components"]["schemas"]);
    description
});

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".into(), json!(false));
            }
            map.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// What is described by `{"$ref": …}`, or by itself.
fn resolved(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(path) => DESCRIPTION.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("no {path}")),
        None => value,
    }
}

/// The schema of a body, `None` where it is not JSON; or what is wrong with there being such a response.
fn schema(method: &Method, path: &str, status: u16, media: &str) -> Result<Option<&'static Value>, String> {
    let paths = &DESCRIPTION["paths"];
    let path = path.split('?').next().unwrap_or_default();
    let known = if path.starts_with("/v1/models/") { "/v1/models/{id}" } else { path };
    let operation = &paths[known][method.as_str().to_lowercase()];
    if operation.is_null() {
        let page = path == "/" || path.starts_with("/page/");
        if page && media != "application/json" {
            return Ok(None);
        }
        if ![401, 404, 405, 431].contains(&status) {
            return Err(format!("{method} {path} is not described, and answers {status}"));
        }
        if media != "application/json" {
            return Err(format!("{method} {path}, {status}: an error of type {media}"));
        }
        let anthropic = path == "/v1/messages" || path.starts_with("/v1/messages/");
        let name = if anthropic { "AnthropicError" } else { "Error" };
        return Ok(Some(&DESCRIPTION["components"]["responses"][name]["content"][media]["schema"]));
    }
    let response = resolved(&operation["responses"][status.to_string()]);
    if response.is_null() {
        return Err(format!("{method} {path}: {status} is not described"));
    }
    // Headers that are larger than what the connection reads are refused without a word.
    if status == 431 && media.is_empty() {
        return Ok(None);
    }
    let content = &response["content"][media];
    if content.is_null() {
        return Err(format!("{method} {path}, {status}: {media} is not described"));
    }
    Ok(["application/json", "text/event-stream"].contains(&media).then_some(&content["schema"]))
}

fn validator(schema: &Value) -> Arc<Validator> {
    static KNOWN: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let key = schema.to_string();
    if let Some(known) = KNOWN.lock().unwrap().get(&key) {
        return Arc::clone(known);
    }
    let mut root = schema.clone();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["components"] = DESCRIPTION["components"].clone();
    let validator = Arc::new(jsonschema::validator_for(&root).unwrap_or_else(|e| panic!("{key}: {e}")));
    KNOWN.lock().unwrap().insert(key, Arc::clone(&validator));
    validator
}

fn conforms(validator: &Validator, body: &Value) -> Result<(), String> {
    match validator.iter_errors(body).next() {
        None => Ok(()),
        Some(error) => Err(format!("at '{}': {error}\nin {body}", error.instance_path())),
    }
}

/// What is wrong with a whole JSON body.
pub fn check(method: &Method, path: &str, status: u16, body: &Value) -> Result<(), String> {
    match schema(method, path, status, "application/json")? {
        Some(schema) => conforms(&validator(schema), body).map_err(|e| format!("{method} {path}, {status}: {e}")),
        None => Ok(()),
    }
}

/// Passes a response on that is as described; panics at any other. Events are looked at as they are read.
async fn checked(method: Method, path: String, response: Response) -> Response {
    let media = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let media = media.and_then(|v| v.split(';').next()).unwrap_or_default().trim().to_owned();
    // Without a body, there is nothing to describe.
    if [Method::HEAD, Method::OPTIONS].contains(&method) {
        return response;
    }
    let schema = schema(&method, &path, response.status().as_u16(), &media).unwrap_or_else(|e| panic!("{e}"));
    let Some(schema) = schema else { return response };
    let validator = validator(schema);
    let mut rebuilt = axum::http::Response::builder().status(response.status());
    rebuilt.headers_mut().unwrap().extend(response.headers().clone());
    if media == "text/event-stream" {
        let events = Events { inner: Box::pin(response.bytes_stream()), buffer: Vec::new(), validator, path };
        return rebuilt.body(reqwest::Body::wrap_stream(events)).unwrap().into();
    }
    let bytes = response.bytes().await.unwrap();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
    conforms(&validator, &body).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
    rebuilt.body(reqwest::Body::from(bytes)).unwrap().into()
}

/// A stream of events on its way to the test.
struct Events {
    inner: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    buffer: Vec<u8>,
    validator: Arc<Validator>,
    path: String,
}

impl Events {
    fn look(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let event = String::from_utf8(event).unwrap();
            let data = event.lines().find_map(|line| line.strip_prefix("data: "));
            if let Some(data) = data.filter(|data| *data != "[DONE]") {
                let body: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{}: {e}: {data}", self.path));
                conforms(&self.validator, &body).unwrap_or_else(|e| panic!("an event of {}: {e}", self.path));
            }
        }
    }
}

impl Stream for Events {
    type Item = reqwest::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.inner.as_mut().poll_next(context);
        if let Poll::Ready(Some(Ok(bytes))) = &next {
            self.look(bytes);
        }
        next
    }
}

/// A request whose response is checked.
pub struct Ask {
    client: Client,
    request: RequestBuilder,
}

impl Ask {
    pub fn new(client: &Client, method: Method, url: String) -> Self {
        Self { client: client.clone(), request: client.request(method, url) }
    }

    fn map(self, change: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Self {
        Self { request: change(self.request), ..self }
    }

    pub fn json(self, body: &Value) -> Self {
        self.map(|request| request.json(body))
    }

    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        self.map(|request| request.body(body))
    }

    pub fn header<V>(self, name: impl Into<String>, value: V) -> Self
    where
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: std::fmt::Debug,
    {
        let name = HeaderName::try_from(name.into()).unwrap();
        let value = HeaderValue::try_from(value).unwrap();
        self.map(|request| request.header::<HeaderName, HeaderValue>(name, value))
    }

    pub fn bearer_auth(self, key: &str) -> Self {
        self.map(|request| request.bearer_auth(key))
    }

    pub fn try_clone(&self) -> Option<Self> {
        Some(Self { client: self.client.clone(), request: self.request.try_clone()? })
    }

    pub async fn send(self) -> reqwest::Result<Response> {
        let request = self.request.build()?;
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let response = self.client.execute(request).await?;
        Ok(checked(method, path, response).await)
    }
}
