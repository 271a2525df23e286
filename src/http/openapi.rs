//! The API's description, made of the types of bodies: `openapi.yaml`, `lima openapi` and `GET /openapi.json`.

mod flatten;
mod operations;
pub mod requests;
pub mod shapes;
pub mod words;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::response::{Response as Described, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    Components, ComponentsBuilder, Content, Info, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr,
    Server,
};

use super::{anthropic, error, probes};

const DESCRIPTION: &str = "Inference server for LLaMA models with an OpenAI-compatible API. Every field is honoured \
or refused by name; null counts as absent, except where a field is required. Every error, whatever its status, is an \
ErrorResponse (below /v1/messages an AnthropicErrorResponse); so are 404 for a path that is not listed here \
(`unknown_url`), 405 for a method (`method_not_allowed`), 429 for a limit of the API key and 431 for headers that are \
too large.";

/// Schemas by name, as types are described.
#[derive(Default)]
struct Schemas {
    all: Vec<(String, RefOr<Schema>)>,
    /// Those that operations name.
    roots: Vec<String>,
}

impl Schemas {
    /// Describes a type and those in it; what stands for it.
    fn of<T: ToSchema>(&mut self) -> Ref {
        let name = T::name().into_owned();
        self.all.push((name.clone(), T::schema()));
        T::schemas(&mut self.all);
        self.roots.push(name.clone());
        Ref::from_schema_name(name)
    }
}

/// The whole description.
pub fn document() -> OpenApi {
    let mut schemas = Schemas::default();
    let paths = operations::paths(&mut schemas);
    let mut components = responses(&mut schemas);
    components.schemas.extend(schemas.all);
    flatten::flatten(&mut components.schemas, &schemas.roots);
    let no_scopes = [""; 0];
    let security = [
        SecurityRequirement::default(),
        SecurityRequirement::new("bearer", no_scopes),
        SecurityRequirement::new("key", no_scopes),
    ];
    OpenApiBuilder::new()
        .info(info())
        .servers(Some([Server::new("http://127.0.0.1:8000")]))
        .security(Some(security))
        .paths(paths)
        .components(Some(components))
        .build()
}

/// As it stands in `openapi.yaml`.
pub fn yaml() -> String {
    let yaml = document().to_yaml().expect("plain data serialises");
    format!("# Made of the types of bodies by `lima openapi > openapi.yaml`.\n{yaml}")
}

/// `GET /openapi.json`.
pub async fn get() -> Response {
    static JSON: LazyLock<String> = LazyLock::new(|| document().to_json().expect("plain data serialises"));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], JSON.as_str()).into_response()
}

fn info() -> Info {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    InfoBuilder::new()
        .title("lima")
        .description(Some(DESCRIPTION))
        .version(env!("CARGO_PKG_VERSION"))
        .license(Some(license))
        .build()
}

/// What responses have in common, and keys.
fn responses(schemas: &mut Schemas) -> Components {
    let error = schemas.of::<error::ErrorBody>();
    let anthropic = schemas.of::<anthropic::wire::ErrorBody>();
    let status = schemas.of::<probes::Status>();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("Needed if the server was started with `--api-key` or `--api-key-file`"));
    let key = ApiKeyValue::with_description("x-api-key", "The same key, as Anthropic's clients send it");
    let mut components = ComponentsBuilder::new()
        .security_scheme("bearer", SecurityScheme::Http(bearer.build()))
        .security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(key)))
        .build();
    components.headers.extend(headers());
    let wrong = "What is wrong with the request, or went wrong";
    let all = [
        ("Error", failure(wrong, error.clone(), false)),
        ("Busy", failure("Not now", error, true)),
        ("AnthropicError", failure(wrong, anthropic.clone(), false)),
        ("AnthropicBusy", failure("Not now", anthropic, true)),
        ("Status", json("What the server is doing", status).build()),
    ];
    components.responses.extend(all.map(|(name, response)| (name.to_owned(), RefOr::T(response))));
    components
}

fn headers() -> [(String, RefOr<Header>); 3] {
    let header = |name: &str, schema: ObjectBuilder, description: &str| {
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build();
        (name.to_owned(), RefOr::T(header))
    };
    let text = || ObjectBuilder::new().schema_type(Type::String);
    [
        header(
            "RequestId",
            text(),
            "The request's own id if it sent a harmless one (up to 128 of A-Z a-z 0-9 - _ . :), else a new one. On \
             every response.",
        ),
        header("RetryAfter", ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)), "Seconds"),
        header(
            "RateLimit",
            text(),
            "Where the API key has such a limit, on every response to a POST. `limit` and `remaining` are numbers, \
             `reset` is the time until all is back, as in `120ms`, `1.5s` or `6m0s`.",
        ),
    ]
}

/// A response in JSON, with the request's id.
fn json(description: &str, schema: Ref) -> ResponseBuilder {
    ResponseBuilder::new()
        .description(description)
        .header_ref("x-request-id", Ref::new("#/components/headers/RequestId"))
        .content("application/json", Content::new(Some(schema)))
}

fn failure(description: &str, schema: Ref, busy: bool) -> Described {
    let mut response = json(description, schema);
    if busy {
        response = response.header_ref("retry-after", Ref::new("#/components/headers/RetryAfter"));
        for (what, of) in ["limit", "remaining", "reset"].iter().flat_map(|w| ["requests", "tokens"].map(|of| (w, of)))
        {
            let name = format!("x-ratelimit-{what}-{of}");
            response = response.header_ref(name, Ref::new("#/components/headers/RateLimit"));
        }
    }
    response.build()
}
