//! What the text of an answer must be: `response_format` as OpenAI has it, `structured_outputs` as vLLM.

use serde_json::Value;

use super::error::{ApiError, quote};
use super::fields::{Fields, check_length, wrong_type};
use super::state::ServedModel;
use crate::engine::Matcher;
use crate::text::{ConstraintError, Spec};

/// Strings that an answer may be chosen from.
const MAX_CHOICES: usize = 1024;

/// A constraint on the text, and the field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Structured {
    /// The constraint.
    pub spec: Spec,
    /// `response_format` or `structured_outputs`.
    pub param: &'static str,
}

impl Structured {
    /// Takes the fields out.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(f: &mut Fields) -> Result<Option<Self>, ApiError> {
        let format = response_format(f)?.map(|spec| Self { spec, param: "response_format" });
        let outputs = structured_outputs(f)?.map(|spec| Self { spec, param: "structured_outputs" });
        if format.is_some() && outputs.is_some() {
            let message = "it cannot be combined with 'response_format'";
            return Err(ApiError::value("structured_outputs", "invalid_value", message));
        }
        Ok(format.or(outputs))
    }

    /// What the engine is told.
    ///
    /// # Errors
    /// 400: the constraint is not valid, or cannot be kept to.
    pub fn compile(&self, model: &ServedModel) -> Result<Box<dyn Matcher>, ApiError> {
        model.constraints.compile(&self.spec).map_err(|e| refusal(self.param, &e))
    }
}

/// What a client is told of a constraint that cannot be had.
pub fn refusal(param: impl Into<String>, error: &ConstraintError) -> ApiError {
    let code = match error {
        ConstraintError::Schema { .. } => "invalid_json_schema",
        ConstraintError::Grammar(_) => "invalid_grammar",
        ConstraintError::TooLarge { .. } | ConstraintError::TimedOut => "constraint_too_complex",
        ConstraintError::NoEnd => return ApiError::unsupported(param, format!("is not supported: {error}")),
    };
    ApiError::value(param, code, error.to_string())
}

fn response_format(f: &mut Fields) -> Result<Option<Spec>, ApiError> {
    let Some(mut format) = f.object("response_format")? else { return Ok(None) };
    let spec = match kind(&mut format)?.as_str() {
        "text" => None,
        "json_object" => Some(Spec::JsonObject),
        "json_schema" => {
            let Some(mut schema) = format.object("json_schema")? else {
                return Err(ApiError::Missing(format.param("json_schema")));
            };
            match schema.require("name")? {
                Value::String(name) => check_name(&schema.param("name"), &name)?,
                other => return Err(wrong_type(schema.param("name"), "a string", &other)),
            }
            // A label; and answers match the schema whether or not that is strictly asked for.
            schema.string("description")?;
            schema.bool("strict")?;
            let Some(body) = schema.object("schema")? else { return Err(ApiError::Missing(schema.param("schema"))) };
            schema.finish()?;
            Some(Spec::JsonSchema(Value::Object(body.into_map())))
        }
        other @ ("grammar" | "python") => {
            let message = format!("'{other}' is not supported; see 'structured_outputs'");
            return Err(ApiError::unsupported(format.param("type"), message));
        }
        other => {
            let message = format!("expected 'text', 'json_object' or 'json_schema', but got '{}'", quote(other));
            return Err(ApiError::value(format.param("type"), "invalid_value", message));
        }
    };
    format.finish()?;
    Ok(spec)
}

/// A required field `type`.
pub fn kind(f: &mut Fields) -> Result<String, ApiError> {
    match f.require("type")? {
        Value::String(kind) => Ok(kind),
        other => Err(wrong_type(f.param("type"), "a string", &other)),
    }
}

/// Names of schemas and of functions: up to 64 of `a-z`, `A-Z`, `0-9`, `_` and `-`.
pub fn check_name(param: &str, name: &str) -> Result<(), ApiError> {
    check_length(param, name, 64)?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        let message = "expected 1 to 64 letters, digits, underscores and dashes";
        return Err(ApiError::value(param, "invalid_value", message));
    }
    Ok(())
}

fn structured_outputs(f: &mut Fields) -> Result<Option<Spec>, ApiError> {
    let Some(mut outputs) = f.object("structured_outputs")? else { return Ok(None) };
    let mut specs = Vec::new();
    match outputs.take("json") {
        None => {}
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => specs.push(Spec::JsonSchema(schema)),
        // As vLLM has it: a schema may be given as text.
        Some(Value::String(text)) => {
            let schema = super::fields::parse(text.as_bytes())
                .map_err(|_| ApiError::value(outputs.param("json"), "invalid_json_schema", "it is not JSON"))?;
            specs.push(Spec::JsonSchema(schema));
        }
        Some(other) => return Err(wrong_type(outputs.param("json"), "an object or a string", &other)),
    }
    specs.extend(outputs.string("regex")?.map(Spec::Regex));
    specs.extend(outputs.string("grammar")?.map(Spec::Grammar));
    specs.extend(outputs.bool("json_object")?.filter(|wanted| *wanted).map(|_| Spec::JsonObject));
    if let Some(choices) = outputs.array("choice")? {
        specs.push(choice(&outputs.param("choice"), choices)?);
    }
    for name in ["structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"] {
        if outputs.take(name).is_some_and(|value| value != false) {
            return Err(ApiError::unsupported(outputs.param(name), "is not supported by this server"));
        }
    }
    outputs.finish()?;
    if specs.len() > 1 {
        let message = "expected one of 'json', 'regex', 'choice', 'grammar' and 'json_object', but got several";
        return Err(ApiError::value("structured_outputs", "invalid_value", message));
    }
    Ok(specs.pop())
}

fn choice(param: &str, choices: Vec<Value>) -> Result<Spec, ApiError> {
    if choices.is_empty() {
        return Err(ApiError::value(param, "empty_array", "expected at least one string"));
    }
    if choices.len() > MAX_CHOICES {
        let message = format!("expected at most {MAX_CHOICES} strings");
        return Err(ApiError::value(param, "array_above_max_length", message));
    }
    let string = |(i, value)| match value {
        Value::String(s) if s.is_empty() => {
            Err(ApiError::value(format!("{param}[{i}]"), "string_below_min_length", "a choice must not be empty"))
        }
        Value::String(s) => Ok(s),
        other => Err(wrong_type(format!("{param}[{i}]"), "a string", &other)),
    };
    choices.into_iter().enumerate().map(string).collect::<Result<_, _>>().map(Spec::Choice)
}
