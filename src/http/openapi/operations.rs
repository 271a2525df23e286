//! What can be asked, and which answers there are.

use utoipa::ToSchema;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{Content, Ref, Required};

use super::requests::{
    ChatCompletionRequest, CompletionRequest, CountTokensRequest, DetokenizeRequest, EmbeddingRequest, LoadLoraAdapter,
    MessageRequest, ResponseRequest, TokenizeRequest, UnloadLoraAdapter,
};
use super::{Schemas, json};
use crate::http::anthropic::wire as messages;
use crate::http::error::ErrorBody;
use crate::http::responses::wire as responses;
use crate::http::wire::{ChatCompletion, Chunk, Completion, Detokenized, EmbeddingList, Model, ModelList, Tokenized};

/// What a POST may be refused with, wherever it goes.
const POST: [u16; 10] = [400, 401, 404, 408, 413, 415, 429, 431, 500, 503];
/// What anything but a probe may be refused with.
const GET: [u16; 3] = [401, 431, 500];

/// How errors are spelled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    OpenAi,
    Anthropic,
}

/// All of them.
pub fn paths(schemas: &mut Schemas) -> Paths {
    let mut paths = Paths::new();
    let mut add = |path: &str, method, operation: OperationBuilder| {
        paths.add_path_operation(path, vec![method], operation.build());
    };
    let post = HttpMethod::Post;
    add("/v1/chat/completions", post.clone(), chat(schemas));
    add("/v1/completions", post.clone(), completions(schemas));
    add("/v1/responses", post.clone(), response(schemas));
    add("/v1/messages", post.clone(), message(schemas));
    add("/v1/messages/count_tokens", post.clone(), count_tokens(schemas));
    add("/v1/embeddings", post.clone(), embeddings(schemas));
    add("/tokenize", post.clone(), tokenize(schemas));
    add("/detokenize", post.clone(), detokenize(schemas));
    add("/v1/models", HttpMethod::Get, models(schemas));
    add("/v1/models/{id}", HttpMethod::Get, model(schemas));
    add("/v1/load_lora_adapter", post.clone(), load(schemas));
    add("/v1/unload_lora_adapter", post, unload(schemas));
    for (path, operation) in probes() {
        add(path, HttpMethod::Get, operation);
    }
    paths
}

/// An operation and its refusals.
fn operation(id: &str, summary: &str, refusals: &[u16], dialect: Dialect) -> OperationBuilder {
    let mut operation = OperationBuilder::new().operation_id(Some(id)).summary(Some(summary));
    for status in refusals {
        let name = match (dialect, [408, 429, 503].contains(status)) {
            (Dialect::OpenAi, false) => "Error",
            (Dialect::OpenAi, true) => "Busy",
            (Dialect::Anthropic, false) => "AnthropicError",
            (Dialect::Anthropic, true) => "AnthropicBusy",
        };
        operation = operation.response(status.to_string(), Ref::from_response_name(name));
    }
    operation
}

/// A POST of such a body.
fn post<Body: ToSchema>(schemas: &mut Schemas, id: &str, summary: &str, dialect: Dialect) -> OperationBuilder {
    let content = Content::new(Some(schemas.of::<Body>()));
    let body = RequestBodyBuilder::new().required(Some(Required::True)).content("application/json", content);
    operation(id, summary, &POST, dialect).request_body(Some(body.build()))
}

/// The answer: one object or, if asked for, events of which each is one of these.
fn streamed(description: &str, whole: Ref, events: [Ref; 2]) -> ResponseBuilder {
    let event = events.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item);
    json(description, whole).content("text/event-stream", Content::new(Some(event)))
}

fn chat(schemas: &mut Schemas) -> OperationBuilder {
    let description = "The answer: one object or, with `stream: true`, server-sent events. Each event is `data: ` and \
                       a ChatCompletionChunk, the last one `data: [DONE]`. Comments (lines that begin with a colon) \
                       keep a silent stream open. An error after the first chunk is an event with an ErrorResponse, \
                       after which the stream ends without `[DONE]`.";
    let events = [schemas.of::<Chunk>(), schemas.of::<ErrorBody>()];
    let answer = streamed(description, schemas.of::<ChatCompletion>(), events);
    post::<ChatCompletionRequest>(schemas, "createChatCompletion", "Answer a conversation", Dialect::OpenAi)
        .response("200", answer)
}

fn completions(schemas: &mut Schemas) -> OperationBuilder {
    let events = [schemas.of::<Completion>(), schemas.of::<ErrorBody>()];
    let description = "One object or, with `stream: true`, server-sent events as for chats.";
    let answer = streamed(description, schemas.of::<Completion>(), events);
    post::<CompletionRequest>(schemas, "createCompletion", "Continue raw prompts", Dialect::OpenAi)
        .response("200", answer)
}

fn response(schemas: &mut Schemas) -> OperationBuilder {
    let description = "The response: one object or, with `stream: true`, server-sent events. Each is `event: ` and \
                       its type and `data: ` and a ResponseEvent. The first are response.created and \
                       response.in_progress, the last is one of response.completed, response.incomplete and \
                       response.failed; there is no `[DONE]`.";
    let event = schemas.of::<responses::Event>();
    let answer =
        json(description, schemas.of::<responses::Response>()).content("text/event-stream", Content::new(Some(event)));
    post::<ResponseRequest>(schemas, "createResponse", "Answer input items; nothing is kept", Dialect::OpenAi)
        .response("200", answer)
}

fn message(schemas: &mut Schemas) -> OperationBuilder {
    let description = "The message: one object or, with `stream: true`, server-sent events: message_start, ping, then \
                       for each block content_block_start, content_block_delta and content_block_stop, then \
                       message_delta and message_stop. A ping keeps a silent stream open. After an error event nothing \
                       follows.";
    let events = [schemas.of::<messages::Event>(), schemas.of::<messages::ErrorBody>()];
    let answer = streamed(description, schemas.of::<messages::Message>(), events);
    let summary = "Answer a conversation, for Anthropic's clients";
    post::<MessageRequest>(schemas, "createMessage", summary, Dialect::Anthropic).response("200", answer)
}

fn count_tokens(schemas: &mut Schemas) -> OperationBuilder {
    let answer = json("The number", schemas.of::<messages::TokenCount>());
    let summary = "How many tokens a conversation has, for Anthropic's clients";
    post::<CountTokensRequest>(schemas, "countMessageTokens", summary, Dialect::Anthropic).response("200", answer)
}

fn embeddings(schemas: &mut Schemas) -> OperationBuilder {
    let answer = json("The vectors", schemas.of::<EmbeddingList>());
    post::<EmbeddingRequest>(schemas, "createEmbedding", "Vectors of texts", Dialect::OpenAi).response("200", answer)
}

fn tokenize(schemas: &mut Schemas) -> OperationBuilder {
    let answer = json("The ids", schemas.of::<Tokenized>());
    let summary = "Token ids of a text or a conversation";
    post::<TokenizeRequest>(schemas, "tokenize", summary, Dialect::OpenAi).response("200", answer)
}

fn detokenize(schemas: &mut Schemas) -> OperationBuilder {
    let answer = json("The text", schemas.of::<Detokenized>());
    post::<DetokenizeRequest>(schemas, "detokenize", "The text of token ids", Dialect::OpenAi).response("200", answer)
}

fn models(schemas: &mut Schemas) -> OperationBuilder {
    let answer = json("All names", schemas.of::<ModelList>());
    operation("listModels", "The names of the model", &GET, Dialect::OpenAi)
        .response("503", Ref::from_response_name("Busy"))
        .response("200", answer)
}

fn model(schemas: &mut Schemas) -> OperationBuilder {
    let id = ParameterBuilder::new()
        .name("id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("A model name; it may have slashes."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
    let answer = json("The model", schemas.of::<Model>());
    operation("retrieveModel", "One name of the model", &[400, 401, 404, 431, 500], Dialect::OpenAi)
        .parameter(id)
        .response("503", Ref::from_response_name("Busy"))
        .response("200", answer)
}

fn load(schemas: &mut Schemas) -> OperationBuilder {
    let summary = "Serve a LoRA adapter from a folder below --lora-root";
    post::<LoadLoraAdapter>(schemas, "loadLoraAdapter", summary, Dialect::OpenAi)
        .response("403", Ref::from_response_name("Error"))
        .response("200", plain("It is loaded"))
}

fn unload(schemas: &mut Schemas) -> OperationBuilder {
    post::<UnloadLoraAdapter>(schemas, "unloadLoraAdapter", "Serve a LoRA adapter no longer", Dialect::OpenAi)
        .response("403", Ref::from_response_name("Error"))
        .response("200", plain("New requests do not find it; running ones finish with it"))
}

fn plain(description: &str) -> ResponseBuilder {
    let text = ObjectBuilder::new().schema_type(Type::String);
    ResponseBuilder::new()
        .description(description)
        .header_ref("x-request-id", Ref::new("#/components/headers/RequestId"))
        .content("text/plain", Content::new(Some(text)))
}

/// What is answered whatever the model does.
fn probes() -> [(&'static str, OperationBuilder); 6] {
    let status = |id: &str, summary: &str| {
        operation(id, summary, &[431, 500], Dialect::OpenAi)
            .response("200", Ref::from_response_name("Status"))
            .response("503", Ref::from_response_name("Status"))
    };
    let ready = "Not while loading, draining, or when the engine has work and makes no steps.";
    let live = operation("live", "Whether the process answers", &[431, 500], Dialect::OpenAi);
    // Where it has a listener of its own, it is not here.
    let refusals = [401, 404, 431, 500];
    let metrics = operation("metrics", "Measurements in Prometheus' text format", &refusals, Dialect::OpenAi);
    let description = operation("describe", "This description", &GET, Dialect::OpenAi);
    let object = ObjectBuilder::new().schema_type(Type::Object);
    let json = ResponseBuilder::new()
        .description("OpenAPI 3.1")
        .header_ref("x-request-id", Ref::new("#/components/headers/RequestId"))
        .content("application/json", Content::new(Some(object)));
    [
        ("/livez", live.response("200", plain("It does"))),
        ("/startupz", status("startup", "Whether the model is loaded")),
        ("/readyz", status("ready", "Whether requests are welcome").description(Some(ready))),
        ("/health", status("health", "The same as /readyz")),
        ("/metrics", metrics.response("200", plain("The measurements"))),
        ("/openapi.json", description.response("200", json)),
    ]
}
