//! Schemas of values that are always the same, or one of a few words; functions, as `schema_with` wants them.

use serde_json::{Value, json};
use utoipa::openapi::schema::{Object, Schema, SchemaType, Type};

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $($word:tt)|+;)*) => {$(
        $(#[$doc])*
        pub fn $name() -> Schema {
            one_of(vec![$(json!($word)),+])
        }
    )*};
}

words! {
    /// `null`.
    null = null;
    /// `false`.
    never = false;
    /// `false`, or nothing.
    never_or_null = false | null;
    /// Kind of a whole chat.
    chat_completion = "chat.completion";
    /// Kind of a chat's chunk.
    chat_completion_chunk = "chat.completion.chunk";
    /// Kind of a completion.
    text_completion = "text_completion";
    /// Kind of a list.
    list = "list";
    /// Kind of a model.
    model = "model";
    /// Owner of the models.
    lima = "lima";
    /// Kind of a vector.
    embedding = "embedding";
    /// Kind of a tool and of a call.
    function = "function";
    /// Kind of a tool choice that names several.
    allowed_tools = "allowed_tools";
    /// What allowed tools are allowed to be.
    auto_or_required = "auto" | "required";
    /// Role of an answer.
    assistant = "assistant";
    /// Why a chat ended.
    finish_reason = "stop" | "length" | "tool_calls";
    /// Why a chat ended, once it has.
    finish_reason_or_null = "stop" | "length" | "tool_calls" | null;
    /// Why a text ended, once it has.
    end_of_text_or_null = "stop" | "length" | null;
    /// Kind of a response.
    response = "response";
    /// How far a response is.
    response_status = "in_progress" | "completed" | "incomplete" | "failed";
    /// How far an item is.
    item_status = "in_progress" | "completed" | "incomplete";
    /// Kind of a text in an item.
    output_text = "output_text";
    /// Why a response failed.
    failure = "server_error";
    /// Why a response is incomplete.
    incomplete = "max_output_tokens";
    /// How requests are served.
    default_tier = "default";
    /// What is left out of a long input.
    disabled = "disabled";
    /// Events of a response.
    response_event = "response.created" | "response.in_progress" | "response.output_item.added"
        | "response.content_part.added" | "response.output_text.delta" | "response.output_text.done"
        | "response.content_part.done" | "response.function_call_arguments.delta"
        | "response.function_call_arguments.done" | "response.output_item.done" | "response.completed"
        | "response.incomplete" | "response.failed";
    /// Kind of Anthropic's message.
    message = "message";
    /// Why a message ended, once it has.
    stop_reason_or_null = "end_turn" | "max_tokens" | "stop_sequence" | "tool_use" | "model_context_window_exceeded"
        | null;
    /// Kind of Anthropic's error.
    error = "error";
    /// What kind of error, to Anthropic's clients.
    anthropic_error_type = "invalid_request_error" | "authentication_error" | "permission_error" | "not_found_error"
        | "timeout_error" | "request_too_large" | "rate_limit_error" | "overloaded_error" | "api_error";
    /// What kind of error.
    error_type = "invalid_request_error" | "rate_limit_error" | "server_error";
    /// Which error.
    error_code = "adapter_limit_reached" | "adapter_updates_disabled" | "array_above_max_length"
        | "constraint_too_complex" | "constraint_unsatisfiable" | "context_length_exceeded" | "decimal_above_max_value"
        | "decimal_below_min_value" | "empty_array" | "engine_error" | "engine_stopped" | "headers_too_large"
        | "incomplete_body" | "integer_above_max_value" | "integer_below_min_value" | "internal_error"
        | "invalid_api_key" | "invalid_grammar" | "invalid_json" | "invalid_json_schema" | "invalid_type"
        | "invalid_value" | "method_not_allowed" | "missing_api_key" | "missing_required_parameter" | "model_loading"
        | "model_not_found" | "object_above_max_properties" | "queue_full" | "queue_timeout" | "rate_limit_exceeded"
        | "request_timeout" | "request_too_large" | "server_shutting_down" | "string_above_max_length"
        | "string_below_min_length" | "timeout" | "too_many_connections" | "unknown_parameter" | "unknown_url"
        | "unsupported_media_type" | "unsupported_parameter";
    /// What the server does.
    phase = "starting" | "fetching the model" | "downloading" | "extracting" | "reading the tokenizer"
        | "loading weights" | "ready" | "draining" | "stalled" | "stopped";
    /// Who speaks in a chat, beside the model.
    speaker = "developer" | "system" | "user";
    /// Role of what a call gave.
    tool = "tool";
    /// Who speaks to Anthropic's models.
    turn_role = "user" | "assistant";
    /// Kind of a text part.
    text = "text";
    /// What chats can be asked to answer in.
    text_or_json = "text" | "json_object";
    /// An answer by a schema.
    json_schema = "json_schema";
    /// Of tools of the client's own, or nothing.
    custom_or_null = "custom" | null;
    /// How calls are chosen.
    mode = "none" | "auto" | "required";
    /// How functions, as they were called, are chosen.
    function_call_or_null = "none" | "auto" | null;
    /// How Anthropic's tools are chosen, if none is named.
    any_tool = "auto" | "any" | "none";
    /// Kind of a call in a message.
    tool_use = "tool_use";
    /// Kind of what a call gave, in a message.
    tool_result = "tool_result";
    /// Kind of a message among items, which may be left out.
    message_or_null = "message" | null;
    /// Who speaks in an item.
    input_role = "user" | "assistant" | "system" | "developer";
    /// How far an item was, or nothing.
    item_status_or_null = "in_progress" | "completed" | "incomplete" | null;
    /// What a message was, or nothing.
    phase_or_null = "commentary" | "final_answer" | null;
    /// Kinds of text in an item.
    input_text = "input_text" | "output_text" | "text";
    /// Kind of a call among items.
    function_call = "function_call";
    /// Kind of what a call gave, among items.
    function_call_output = "function_call_output";
    /// No reasoning, or nothing.
    no_effort_or_null = "none" | null;
    /// The only verbosity, or nothing.
    verbosity_or_null = "medium" | null;
    /// The only tiers, or nothing.
    tier_or_null = "auto" | "default" | null;
    /// Anthropic's tiers, or nothing.
    anthropic_tier_or_null = "auto" | "standard_only" | null;
    /// The only speed, or nothing.
    speed_or_null = "standard" | null;
    /// Where prompts are kept, or nothing.
    retention_or_null = "in_memory" | "in-memory" | null;
    /// How vectors are written, or nothing.
    encoding_or_null = "float" | "base64" | null;
    /// What vectors are made of, or nothing.
    pooling_or_null = "mean" | "last" | null;
    /// What is left out of a long input, or nothing.
    disabled_or_null = "disabled" | null;
    /// What may be included in a response.
    include = "message.output_text.logprobs" | "file_search_call.results" | "web_search_call.results"
        | "web_search_call.action.sources" | "message.input_image.image_url" | "computer_call_output.output.image_url"
        | "code_interpreter_call.outputs" | "reasoning.encrypted_content";
    /// What is cached, and how.
    ephemeral = "ephemeral";
    /// For how long, or nothing.
    ttl_or_null = "5m" | "1h" | null;
}

/// A value of a few, all of one type or `null`.
fn one_of(words: Vec<Value>) -> Schema {
    let mut types = Vec::new();
    for word in &words {
        let kind = match word {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Boolean,
            _ => Type::String,
        };
        if !types.contains(&kind) {
            types.push(kind);
        }
    }
    let schema_type = match types.len() {
        1 => SchemaType::from(types.remove(0)),
        _ => types.into_iter().collect(),
    };
    // `null` has its type alone; the enumeration would say it again.
    let only_null = words == [Value::Null];
    let object = Object::builder().schema_type(schema_type);
    Schema::Object(if only_null { object.build() } else { object.enum_values(Some(words)).build() })
}
