//! Tools: what a request offers the model, how the model is told, and how its calls are read.

mod answer;
mod grammar;
mod parser;
mod prompt;

use std::sync::Arc;

use serde_json::{Map, Value, json};

pub use self::answer::{Answered, deltas, finish_reason};
pub use self::parser::CallParser;
pub use self::prompt::{ToolFormat, ToolStyle};
use self::prompt::{with_tools, without_roles};
use super::error::{ApiError, quote};
use super::fields::{Fields, wrong_type};
use super::state::ServedModel;
use super::structured::{check_name, kind, refusal};
use crate::engine::Matcher;
use crate::text::{ChatMessage, Spec, enforced_schema};

/// Functions of one request.
const MAX_TOOLS: usize = 128;

/// A function the model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its name.
    name: Arc<str>,
    /// Whether its arguments match the schema even where the model is free to call or not.
    strict: bool,
    /// Schema of its arguments.
    parameters: Value,
    /// Path of the field with that schema.
    param: String,
    /// As the request has it.
    definition: Value,
}

/// Whether and what the model must call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    Auto,
    /// Something, or the only tool there is.
    Required,
}

/// The tools of a request that the model may call.
#[derive(Clone, Debug)]
pub struct Tools {
    tools: Vec<Tool>,
    choice: ToolChoice,
    parallel: bool,
}

impl Tools {
    /// Takes the fields out; `None` where nothing may be called.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(f: &mut Fields) -> Result<Option<Self>, ApiError> {
        let definitions = f.array("tools")?.unwrap_or_default();
        if definitions.len() > MAX_TOOLS {
            let message = format!("expected at most {MAX_TOOLS} tools");
            return Err(ApiError::value("tools", "array_above_max_length", message));
        }
        let tools = definitions.into_iter().enumerate().map(|(i, d)| tool(&format!("tools[{i}]"), d));
        let mut tools = tools.collect::<Result<Vec<_>, _>>()?;
        for (i, tool) in tools.iter().enumerate() {
            if tools[..i].iter().any(|t| t.name == tool.name) {
                let message = format!("there is more than one function named '{}'", tool.name);
                return Err(ApiError::value(format!("tools[{i}].function.name"), "invalid_value", message));
            }
        }
        let parallel = f.bool("parallel_tool_calls")?.unwrap_or(true);
        let chosen = f.take("tool_choice");
        if tools.is_empty() {
            return match chosen {
                None => Ok(None),
                Some(Value::String(mode)) if mode == "none" || mode == "auto" => Ok(None),
                Some(_) => Err(ApiError::value("tool_choice", "invalid_value", "it is only allowed with 'tools'")),
            };
        }
        let (choice, parallel) = match chosen {
            None => (Some(ToolChoice::Auto), parallel),
            Some(Value::String(mode)) => (mode_of("tool_choice", &mode, true)?, parallel),
            Some(Value::Object(map)) => {
                let mut f = Fields::new("tool_choice", Value::Object(map))?;
                let (choice, one) = chosen_tools(&mut f, &mut tools)?;
                f.finish()?;
                (Some(choice), parallel && !one)
            }
            Some(other) => return Err(wrong_type("tool_choice", "a string or an object", &other)),
        };
        Ok(choice.map(|choice| Self { tools, choice, parallel }))
    }

    /// Bytes of all definitions.
    pub fn bytes(&self) -> usize {
        self.tools.iter().map(|tool| tool.definition.to_string().len()).sum()
    }

    /// Whether what the model says is constrained.
    pub fn is_constrained(&self) -> bool {
        self.choice == ToolChoice::Required || self.tools.iter().any(|tool| tool.strict)
    }

    /// What the engine is told: calls that match their schemas, where that is asked for.
    ///
    /// # Errors
    /// 400: a schema is not valid, or cannot be kept to.
    fn constraint(&self, model: &ServedModel, style: ToolStyle) -> Result<Option<Box<dyn Matcher>>, ApiError> {
        if !self.is_constrained() {
            return Ok(None);
        }
        let enforced = |tool: &&Tool| self.choice == ToolChoice::Required || tool.strict;
        for tool in self.tools.iter().filter(enforced) {
            // Alone first: the error then says where it is.
            let spec = Spec::JsonSchema(tool.arguments());
            model.constraints.compile(&spec).map_err(|e| refusal(&tool.param, &e))?;
        }
        let schema = |tool: &Tool| match enforced(&tool) {
            true => enforced_schema(&tool.arguments()).map_err(|e| refusal(&tool.param, &e)),
            false => Ok(json!({"type": "object"})),
        };
        let calls = self.tools.iter().map(|tool| Ok((&*tool.name, schema(tool)?)));
        let calls = calls.collect::<Result<Vec<(&str, Value)>, ApiError>>()?;
        let lark = grammar::lark(&calls, style.format, self.choice, self.parallel, &model.tokenizer);
        model.constraints.compile(&Spec::Generated(lark)).map(Some).map_err(|e| refusal("tools", &e))
    }
}

/// A conversation as the model is told of it, and what is done about its calls.
pub struct Told {
    /// For the chat template.
    pub messages: Vec<ChatMessage>,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
    /// What the answer must be.
    pub constraint: Option<Box<dyn Matcher>>,
    /// What reads the calls of one answer.
    pub calls: Option<CallParser>,
}

/// Tells the model of its tools, and of calls made before.
///
/// # Errors
/// 400: the model's template writes tools in a way that is not read here, or a schema cannot be kept to.
pub fn tell(model: &ServedModel, mut messages: Vec<ChatMessage>, tools: Option<&Tools>) -> Result<Told, ApiError> {
    if let Some(style) = model.tool_style.filter(|style| !style.native) {
        messages = without_roles(style.format, messages);
    }
    let Some(tools) = tools else {
        return Ok(Told { messages, variables: Map::new(), constraint: None, calls: None });
    };
    let Some(style) = model.tool_style else {
        let message = "is not supported: the model's chat template has tools in a format that this server does not \
                       know; it can be started with --tool-call-parser";
        return Err(ApiError::unsupported("tools", message));
    };
    let constraint = tools.constraint(model, style)?;
    let definitions: Vec<Value> = tools.tools.iter().map(|tool| tool.definition.clone()).collect();
    let (messages, variables) = with_tools(style, messages, &definitions);
    let names = tools.tools.iter().map(|tool| Arc::clone(&tool.name)).collect();
    let calls = CallParser::new(style.format, names, tools.is_constrained(), tools.parallel);
    Ok(Told { messages, variables, constraint, calls: Some(calls) })
}

impl Tool {
    /// Schema of its arguments, which are an object in any case.
    fn arguments(&self) -> Value {
        let mut schema = self.parameters.clone();
        if let Value::Object(map) = &mut schema {
            map.entry("type").or_insert_with(|| "object".into());
        }
        schema
    }
}

fn tool(path: &str, definition: Value) -> Result<Tool, ApiError> {
    let mut f = Fields::new(path, definition.clone())?;
    match kind(&mut f)?.as_str() {
        "function" => {}
        "custom" => {
            return Err(ApiError::unsupported(f.param("type"), "'custom' is not supported: only functions are"));
        }
        other => {
            let message = format!("expected 'function', but got '{}'", quote(other));
            return Err(ApiError::value(f.param("type"), "invalid_value", message));
        }
    }
    let Some(mut function) = f.object("function")? else { return Err(ApiError::Missing(f.param("function"))) };
    let name = name(&mut function)?;
    function.string("description")?;
    let strict = function.bool("strict")?.unwrap_or(false);
    let param = function.param("parameters");
    let parameters = function.object("parameters")?.map(Fields::into_map);
    let parameters = Value::Object(parameters.unwrap_or_else(|| Map::from_iter([("type".into(), "object".into())])));
    function.finish()?;
    f.finish()?;
    Ok(Tool { name: name.into(), strict, parameters, param, definition })
}

/// The field `name` of a function.
fn name(f: &mut Fields) -> Result<String, ApiError> {
    match f.require("name")? {
        Value::String(name) => check_name(&f.param("name"), &name).map(|()| name),
        other => Err(wrong_type(f.param("name"), "a string", &other)),
    }
}

/// `none` (where it may be) is `None`.
fn mode_of(param: &str, mode: &str, or_none: bool) -> Result<Option<ToolChoice>, ApiError> {
    match mode {
        "none" if or_none => Ok(None),
        "auto" => Ok(Some(ToolChoice::Auto)),
        "required" => Ok(Some(ToolChoice::Required)),
        other => {
            let modes = if or_none { "'none', 'auto' or 'required'" } else { "'auto' or 'required'" };
            let message = format!("expected {modes}, but got '{}'", quote(other));
            Err(ApiError::value(param, "invalid_value", message))
        }
    }
}

/// A tool that must be called, once, or the tools that may be; the others are dropped.
fn chosen_tools(f: &mut Fields, tools: &mut Vec<Tool>) -> Result<(ToolChoice, bool), ApiError> {
    let (names, choice, one) = match kind(f)?.as_str() {
        "function" => (vec![function_named(f)?], ToolChoice::Required, true),
        "allowed_tools" => {
            let Some(mut allowed) = f.object("allowed_tools")? else {
                return Err(ApiError::Missing(f.param("allowed_tools")));
            };
            let param = allowed.param("mode");
            let Some(mode) = allowed.string("mode")? else { return Err(ApiError::Missing(param)) };
            let choice = mode_of(&param, &mode, false)?.unwrap_or(ToolChoice::Auto);
            let param = allowed.param("tools");
            let listed = allowed.array("tools")?.unwrap_or_default();
            if listed.is_empty() {
                return Err(ApiError::value(param, "empty_array", "expected at least one tool"));
            }
            let one = |(i, tool)| {
                let mut f = Fields::new(format!("{param}[{i}]"), tool)?;
                match kind(&mut f)?.as_str() {
                    "function" => {}
                    other => {
                        let message = format!("expected 'function', but got '{}'", quote(other));
                        return Err(ApiError::value(f.param("type"), "invalid_value", message));
                    }
                }
                let named = function_named(&mut f)?;
                f.finish()?;
                Ok(named)
            };
            let names = listed.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?;
            allowed.finish()?;
            (names, choice, false)
        }
        other => {
            let message = format!("expected 'function' or 'allowed_tools', but got '{}'", quote(other));
            return Err(ApiError::value(f.param("type"), "invalid_value", message));
        }
    };
    if let Some((name, param)) = names.iter().find(|(name, _)| !tools.iter().any(|tool| *tool.name == **name)) {
        let message = format!("'{}' is not among 'tools'", quote(name));
        return Err(ApiError::value(param, "invalid_value", message));
    }
    tools.retain(|tool| names.iter().any(|(name, _)| *tool.name == **name));
    Ok((choice, one))
}

/// The name in the field `function`, and its path.
fn function_named(f: &mut Fields) -> Result<(String, String), ApiError> {
    let Some(mut function) = f.object("function")? else { return Err(ApiError::Missing(f.param("function"))) };
    let param = function.param("name");
    let name = name(&mut function)?;
    function.finish()?;
    Ok((name, param))
}
