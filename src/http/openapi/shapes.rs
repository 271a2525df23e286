//! Schemas that no Rust type spells: maps with limits on their names, and unions with limits on their parts.

use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};

fn or_null(kind: Type) -> SchemaType {
    [kind, Type::Null].into_iter().collect()
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn null() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Null)
}

fn token_ids() -> ArrayBuilder {
    let id = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    ArrayBuilder::new().items(id).min_items(Some(1))
}

/// Stop strings.
pub fn stop() -> Schema {
    let one = || text().min_length(Some(1)).max_length(Some(4096));
    let several = ArrayBuilder::new().items(one()).max_items(Some(4));
    let stop = OneOfBuilder::new().item(null()).item(one()).item(several);
    Schema::OneOf(stop.description(Some("Up to four strings before which the answer ends.")).build())
}

/// Biases by token id.
pub fn logit_bias() -> Schema {
    let bias = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(-100)).maximum(Some(100));
    let id: Schema = text().pattern(Some("^[0-9]+$")).build().into();
    let bias = ObjectBuilder::new()
        .schema_type(or_null(Type::Object))
        .description(Some("Token ids, below the size of the vocabulary, and what is added to their logits."))
        .max_properties(Some(1024))
        .property_names(Some(id))
        .additional_properties(Some(bias));
    Schema::Object(bias.build())
}

/// Labels by name.
pub fn metadata() -> Schema {
    let name: Schema = text().max_length(Some(64)).build().into();
    let labels = ObjectBuilder::new()
        .schema_type(or_null(Type::Object))
        .description(Some("Labels."))
        .max_properties(Some(16))
        .property_names(Some(name))
        .additional_properties(Some(text().max_length(Some(512))));
    Schema::Object(labels.build())
}

/// Variables of the chat template.
pub fn variables() -> Schema {
    let variables = ObjectBuilder::new()
        .schema_type(or_null(Type::Object))
        .description(Some(
            "Further variables of the chat template: at most 64, 64 KiB as JSON, 16 arrays and objects within each \
             other; none that the request has a field for.",
        ))
        .max_properties(Some(64));
    Schema::Object(variables.build())
}

/// Prompts: text or token ids, one or many.
pub fn prompts() -> Schema {
    let several = |items: RefOr<Schema>| ArrayBuilder::new().items(items).min_items(Some(1)).max_items(Some(2048));
    let prompts = OneOfBuilder::new()
        .item(text())
        .item(token_ids())
        .item(several(Schema::from(text().build()).into()))
        .item(several(Schema::Array(token_ids().build()).into()));
    let description = "One prompt or up to 2048, each text or token ids below the size of the vocabulary; none empty.";
    Schema::OneOf(prompts.description(Some(description)).build())
}

/// A schema, or its text.
pub fn schema_or_text() -> Schema {
    let types: SchemaType = [Type::Object, Type::String, Type::Boolean, Type::Null].into_iter().collect();
    let schema = ObjectBuilder::new().schema_type(types).description(Some("A JSON Schema, or its text."));
    Schema::Object(schema.build())
}

/// What text is asked for at once.
pub fn modalities() -> Schema {
    let text = text().enum_values(Some([json!("text")]));
    let modalities = ArrayBuilder::new().schema_type(or_null(Type::Array)).items(text);
    Schema::Array(modalities.min_items(Some(1)).max_items(Some(1)).build())
}

/// Text that must be empty.
pub fn empty_text() -> Schema {
    let text = ObjectBuilder::new().schema_type(or_null(Type::String)).max_length(Some(0));
    Schema::Object(text.build())
}
