//! Prompts from files, in the layouts that evaluations come in.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::EvalError;
use super::store::{digest, read_rows};

/// What is asked: one turn, or the user's side of a dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// From the file, else a digest of the turns, so that the same prompt has the same name everywhere.
    pub id: String,
    /// At least one, none of them empty.
    pub turns: Vec<String>,
    /// As the file groups them.
    pub category: Option<String>,
}

/// Prompts of a file. Plain text has one a line; jsonl rows are recognised one by one:
/// `{"prompt"}`, MT-Bench's `{"question_id", "category", "turns"}`, alpaca's `{"instruction", "input"}`, and the user's
/// side of `{"conversations"}` (LIMA's, ShareGPT's) and `{"messages"}`.
///
/// # Errors
/// The file cannot be read, is empty, or has a row that is none of these.
pub fn read(path: &Path) -> Result<Vec<Prompt>, EvalError> {
    let text = std::fs::read_to_string(path).map_err(EvalError::at(path))?;
    let text = text.trim_start_matches('\u{feff}');
    let first = text.trim_start().chars().next();
    let mut prompts = Vec::new();
    if first == Some('{') {
        for (line, row) in read_rows(path)? {
            let prompt = of_row(&row).map_err(|reason| EvalError::Line { path: path.into(), line, reason })?;
            prompts.push(prompt);
        }
    } else {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        prompts.extend(lines.map(|line| Prompt {
            id: name(&[line.to_owned()]),
            turns: vec![line.into()],
            category: None,
        }));
    }
    if prompts.is_empty() {
        return Err(EvalError::File { path: path.into(), reason: "there are no prompts in it".into() });
    }
    Ok(distinct(prompts))
}

/// The name of a prompt that has none.
pub(super) fn name(turns: &[String]) -> String {
    digest(turns.join("\0").as_bytes())[..12].to_owned()
}

/// A second prompt of the same name is told apart.
fn distinct(mut prompts: Vec<Prompt>) -> Vec<Prompt> {
    let mut seen = HashSet::new();
    for prompt in &mut prompts {
        let base = prompt.id.clone();
        let mut n = 2;
        while !seen.insert(prompt.id.clone()) {
            prompt.id = format!("{base}-{n}");
            n += 1;
        }
    }
    prompts
}

/// The prompt that a row has.
pub(super) fn of_row(row: &Map<String, Value>) -> Result<Prompt, String> {
    let turns: Vec<String> = if let Some(said) = said(row)? {
        said.into_iter().filter(|(user, _)| *user).map(|(_, text)| text).collect()
    } else if let Some(turns) = row.get("turns") {
        let turns = turns.as_array().ok_or("\"turns\" is not a list")?;
        turns.iter().map(|t| t.as_str().map(str::to_owned).ok_or("a turn is not a string")).collect::<Result<_, _>>()?
    } else if let Some(prompt) = row.get("prompt") {
        vec![prompt.as_str().ok_or("\"prompt\" is not a string")?.to_owned()]
    } else if let Some(instruction) = row.get("instruction") {
        let instruction = instruction.as_str().ok_or("\"instruction\" is not a string")?;
        match row.get("input").and_then(Value::as_str).filter(|input| !input.trim().is_empty()) {
            Some(input) => vec![format!("{instruction}\n\n{input}")],
            None => vec![instruction.to_owned()],
        }
    } else {
        return Err(
            "the row has none of \"prompt\", \"turns\", \"conversations\", \"messages\", \"instruction\"".into()
        );
    };
    if turns.is_empty() || turns.iter().any(|turn| turn.trim().is_empty()) {
        return Err("the row asks nothing, or has an empty turn".into());
    }
    let text = |name: &str| match row.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let id = text("id").or_else(|| text("question_id")).unwrap_or_else(|| name(&turns));
    Ok(Prompt { id, turns, category: text("category") })
}

/// Who says what in a conversation, the user or not; `None` if the row is none. System messages are left out.
pub(super) fn said(row: &Map<String, Value>) -> Result<Option<Vec<(bool, String)>>, String> {
    let Some(items) = row.get("conversations").or_else(|| row.get("messages")) else { return Ok(None) };
    let items = items.as_array().ok_or("the conversation is not a list")?;
    let mut out = Vec::new();
    for (i, item) in items.iter().enumerate() {
        if let Some(text) = item.as_str() {
            out.push((i % 2 == 0, text.to_owned()));
            continue;
        }
        let role = item["role"].as_str().or(item["from"].as_str());
        let text = item["content"].as_str().or(item["value"].as_str());
        match (role, text) {
            (Some("system" | "developer"), _) => {}
            (Some("user" | "human"), Some(text)) => out.push((true, text.to_owned())),
            (Some("assistant" | "gpt" | "chatgpt"), Some(text)) => out.push((false, text.to_owned())),
            _ => return Err(format!("message {} is neither the user's nor the assistant's text", i + 1)),
        }
    }
    let alternates = out.iter().enumerate().all(|(i, (user, _))| *user == (i % 2 == 0));
    if out.is_empty() || !alternates { Err("user and assistant do not speak by turns".into()) } else { Ok(Some(out)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(row: Value) -> Result<Prompt, String> {
        of_row(row.as_object().unwrap())
    }

    #[test]
    fn rows_of_all_layouts() {
        let lima = of(json!({"conversations": ["How?"], "source": ""})).unwrap();
        assert_eq!(lima.turns, ["How?"]);
        assert_eq!(lima.id, of(json!({"prompt": "How?"})).unwrap().id);
        let mt = of(json!({"question_id": 81, "category": "writing", "turns": ["a", "b"]})).unwrap();
        assert_eq!(
            mt,
            Prompt { id: "81".into(), turns: vec!["a".into(), "b".into()], category: Some("writing".into()) }
        );
        let talk = [json!({"role": "system", "content": "s"}), json!({"role": "user", "content": "q"})];
        assert_eq!(of(json!({"messages": talk})).unwrap().turns, ["q"]);
        let talk = [json!({"from": "human", "value": "q"}), json!({"from": "gpt", "value": "a"})];
        assert_eq!(of(json!({"conversations": talk})).unwrap().turns, ["q"]);
        assert_eq!(of(json!({"instruction": "Sum", "input": "1 2"})).unwrap().turns, ["Sum\n\n1 2"]);
        for row in [
            json!({}),
            json!({"prompt": " "}),
            json!({"prompt": 1}),
            json!({"turns": []}),
            json!({"turns": [1]}),
            json!({"conversations": []}),
            json!({"conversations": "x"}),
            json!({"messages": [{"role": "assistant", "content": "a"}]}),
            json!({"messages": [{"role": "tool", "content": "a"}]}),
        ] {
            assert!(of(row.clone()).is_err(), "{row}");
        }
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "\u{feff}one\n\n two \none\n").unwrap();
        let prompts = read(&path).unwrap();
        assert_eq!(prompts.iter().map(|p| p.turns[0].as_str()).collect::<Vec<_>>(), ["one", "two", "one"]);
        std::fs::write(&path, "{\"prompt\":\"a\"}\n{\"prompt\":\"a\"}\n").unwrap();
        let prompts = read(&path).unwrap();
        assert_eq!(prompts[1].id, format!("{}-2", prompts[0].id));
        std::fs::write(&path, "{\"prompt\":\"a\"}\n{\"x\":1}\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("p:2: the row has none of"));
        std::fs::write(&path, " \n").unwrap();
        assert!(read(&path).unwrap_err().to_string().ends_with("there are no prompts in it"));
    }
}
