//! The one map from what went wrong to status, `type`, `code` and `param`, on every path.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::words;
use super::wire::Usage;

/// A limit of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// Requests in a minute.
    Requests,
    /// Tokens in a minute.
    Tokens,
    /// Requests at once.
    Concurrency,
}

impl std::fmt::Display for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests per minute",
            Self::Tokens => "tokens per minute",
            Self::Concurrency => "requests at once",
        })
    }
}

/// Anything a client can be told. Messages never hold prompts, paths or keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON.
    #[error("We could not parse the JSON body of your request: {0}.")]
    Json(String),
    /// The body could not be read to its end.
    #[error("The request body could not be read to its end.")]
    BodyRead,
    /// The body did not arrive in time.
    #[error("The request body did not arrive within {0} seconds.")]
    BodyTimeout(u64),
    /// No `content-type: application/json`.
    #[error("The Content-Type of the request must be application/json.")]
    ContentType,
    /// The body is longer than the server takes.
    #[error("The request body is larger than the limit of {0} bytes.")]
    TooLarge(usize),
    /// A required field is absent.
    #[error("Missing required parameter: '{0}'.")]
    Missing(String),
    /// A field that the API does not have.
    #[error("Unknown parameter: '{0}'.")]
    Unknown(String),
    /// A field of the API that this server does not implement.
    #[error("Unsupported parameter: '{param}' {message}.")]
    Unsupported {
        /// Path of the field.
        param: String,
        /// What is not supported about it.
        message: String,
    },
    /// A field has the wrong JSON type.
    #[error("Invalid type for '{param}': expected {expected}, but got {got} instead.")]
    Type {
        /// Path of the field.
        param: String,
        /// With its article.
        expected: &'static str,
        /// With its article.
        got: &'static str,
    },
    /// A field has the right type and a wrong value.
    #[error("Invalid '{param}': {message}.")]
    Value {
        /// Path of the field.
        param: String,
        /// What is wrong, without a final period.
        message: String,
        /// The machine-readable kind.
        code: &'static str,
    },
    /// Prompt, or prompt and completion, do not fit.
    #[error("{message}")]
    ContextLength {
        /// The field that holds the prompt.
        param: Cow<'static, str>,
        /// Whole sentences.
        message: String,
    },
    /// The text came to a point where its constraint allows nothing.
    #[error("The answer cannot go on as its structure demands: {0}.")]
    Constraint(String),
    /// No such model here.
    #[error("The model '{0}' does not exist.")]
    ModelNotFound(String),
    /// The request brings no key, and the server wants one.
    #[error("You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")]
    NoKey,
    /// The request brings a key that the server does not know.
    #[error("Incorrect API key provided.")]
    WrongKey,
    /// Adapters are not loaded at a client's word.
    #[error("This server does not load or unload adapters at run time; start it with --lora-root.")]
    AdapterUpdates,
    /// No such route.
    #[error("Unknown request URL: {method} {path}.")]
    NotFound {
        /// Request method.
        method: String,
        /// Request path.
        path: String,
    },
    /// The route exists, the method does not.
    #[error("Method {0} is not allowed for this URL.")]
    Method(String),
    /// Admission refused: the queue is full, or the key's share of it.
    #[error("The server's request queue is full; try again later.")]
    QueueFull {
        /// Seconds until it has room again, as fast as it went lately.
        retry_after: u32,
    },
    /// The key has used up one of its limits.
    #[error("Rate limit reached: at most {most} {limit} with this API key. Try again in {retry_after} seconds.")]
    RateLimit {
        /// Which.
        limit: RateLimit,
        /// How many.
        most: u64,
        /// Seconds until it has room again.
        retry_after: u32,
    },
    /// The request was not taken up in time.
    #[error("The request waited for {waited} seconds and was not begun; try again later.")]
    QueueTimeout {
        /// Seconds.
        waited: u64,
    },
    /// The request took too long, and there is nothing of its answer yet.
    #[error("The request was not answered within {0} seconds.")]
    Timeout(u64),
    /// Too much before the body.
    #[error("The request's headers are larger than the limit of {bytes} bytes, or more than {count}.")]
    Headers {
        /// Of names and values together.
        bytes: usize,
        /// Of headers.
        count: usize,
    },
    /// As many connections as there may be.
    #[error("The server has too many connections; try again later.")]
    Connections,
    /// The model is still loading.
    #[error("The model is still loading; try again later.")]
    Loading,
    /// The server is shutting down.
    #[error("The server is shutting down; no new requests are accepted.")]
    Draining,
    /// The drain deadline passed before the request was complete.
    #[error("The server shut down before the request was complete.")]
    DrainDeadline,
    /// The engine has stopped.
    #[error("The inference engine has stopped.")]
    EngineStopped,
    /// The engine failed this request.
    #[error("The inference engine failed the request.")]
    Engine,
    /// A fault of the server.
    #[error("The server had an error while processing your request.")]
    Internal,
}

impl ApiError {
    /// A wrong value; `message` without a final period.
    pub fn value(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self::Value { param: param.into(), message: message.into(), code }
    }

    /// A feature that is not there; `message` continues "Unsupported parameter: 'x' …".
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), message: message.into() }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Json(_)
            | Self::BodyRead
            | Self::Missing(_)
            | Self::Unknown(_)
            | Self::Unsupported { .. }
            | Self::Type { .. }
            | Self::Value { .. }
            | Self::Constraint(_)
            | Self::ContextLength { .. } => StatusCode::BAD_REQUEST,
            Self::BodyTimeout(_) | Self::QueueTimeout { .. } | Self::Timeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ModelNotFound(_) | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoKey | Self::WrongKey => StatusCode::UNAUTHORIZED,
            Self::AdapterUpdates => StatusCode::FORBIDDEN,
            Self::Headers { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::QueueFull { .. } | Self::RateLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Loading | Self::Draining | Self::DrainDeadline | Self::EngineStopped | Self::Connections => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Engine | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// `error.type`.
    pub fn kind(&self) -> &'static str {
        match self.status().as_u16() {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `error.code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "invalid_json",
            Self::BodyRead => "incomplete_body",
            Self::BodyTimeout(_) => "request_timeout",
            Self::ContentType => "unsupported_media_type",
            Self::TooLarge(_) => "request_too_large",
            Self::Missing(_) => "missing_required_parameter",
            Self::Unknown(_) => "unknown_parameter",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::Type { .. } => "invalid_type",
            Self::Value { code, .. } => code,
            Self::Constraint(_) => "constraint_unsatisfiable",
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::ModelNotFound(_) => "model_not_found",
            Self::NoKey => "missing_api_key",
            Self::WrongKey => "invalid_api_key",
            Self::AdapterUpdates => "adapter_updates_disabled",
            Self::NotFound { .. } => "unknown_url",
            Self::Method(_) => "method_not_allowed",
            Self::QueueFull { .. } => "queue_full",
            Self::RateLimit { .. } => "rate_limit_exceeded",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::Timeout(_) => "timeout",
            Self::Headers { .. } => "headers_too_large",
            Self::Connections => "too_many_connections",
            Self::Loading => "model_loading",
            Self::Draining | Self::DrainDeadline => "server_shutting_down",
            Self::EngineStopped => "engine_stopped",
            Self::Engine => "engine_error",
            Self::Internal => "internal_error",
        }
    }

    /// `error.param`.
    pub fn param(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Missing(param)
            | Self::Unknown(param)
            | Self::Unsupported { param, .. }
            | Self::Type { param, .. }
            | Self::Value { param, .. } => Some(Cow::Borrowed(param)),
            Self::ContextLength { param, .. } => Some(Cow::Borrowed(param)),
            Self::ModelNotFound(_) => Some(Cow::Borrowed("model")),
            _ => None,
        }
    }

    /// Seconds after which trying again makes sense.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::QueueFull { retry_after } | Self::RateLimit { retry_after, .. } => Some(*retry_after),
            Self::QueueTimeout { .. } | Self::Connections => Some(1),
            Self::Loading | Self::Draining | Self::DrainDeadline | Self::EngineStopped => Some(5),
            _ => None,
        }
    }

    /// The same error of a request whose fields have other names: `rename` turns the path of a field.
    pub fn renamed(mut self, rename: impl FnOnce(&str) -> String) -> Self {
        match &mut self {
            Self::Missing(param)
            | Self::Unknown(param)
            | Self::Unsupported { param, .. }
            | Self::Type { param, .. }
            | Self::Value { param, .. } => *param = rename(param),
            Self::ContextLength { param, message } => {
                let renamed = rename(param);
                *message = message.replace(&**param, &renamed);
                *param = renamed.into();
            }
            _ => {}
        }
        self
    }

    /// `{"error":{…}}`, the same in a body and in a stream.
    pub fn to_json(&self) -> String {
        self.json(None)
    }

    /// The same with what had been generated and is charged for: the last word of a stream.
    pub fn to_json_with(&self, usage: Usage) -> String {
        self.json(Some(usage))
    }

    fn json(&self, usage: Option<Usage>) -> String {
        let param = self.param();
        let body = ErrorBody {
            error: ErrorObject {
                message: &self.to_string(),
                kind: self.kind(),
                param: param.as_deref(),
                code: self.code(),
            },
            usage,
        };
        serde_json::to_string(&body).expect("strings serialise")
    }
}

/// Every error, whatever its status, but of Anthropic's dialect.
#[derive(Serialize, ToSchema)]
#[schema(as = ErrorResponse)]
pub struct ErrorBody<'a> {
    /// What is wrong.
    error: ErrorObject<'a>,
    /// What had been generated, in an error that ends a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    usage: Option<Usage>,
}

/// What is wrong with the request, or went wrong.
#[derive(Serialize, ToSchema)]
struct ErrorObject<'a> {
    /// A sentence.
    message: &'a str,
    /// By the status.
    #[serde(rename = "type")]
    #[schema(schema_with = words::error_type)]
    kind: &'a str,
    /// Path of the field, such as `messages[0].content`.
    #[schema(required)]
    param: Option<&'a str>,
    /// For programs.
    #[schema(schema_with = words::error_code)]
    code: &'a str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::NoKey | Self::WrongKey) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::TooLarge(_) | Self::BodyRead | Self::BodyTimeout(_) | Self::Headers { .. }) {
            // The rest of the body is unread: the connection cannot carry another request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // For the metrics, and for an API that spells errors in another way.
        response.extensions_mut().insert(self);
        response
    }
}

/// Shortens client text before it goes into a message, and makes control characters visible.
pub(crate) fn quote(text: &str) -> String {
    const MAX: usize = 100;
    let visible = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let mut out: String = visible.take(MAX).collect();
    if text.chars().nth(MAX).is_some() {
        out.push('…');
    }
    out
}
