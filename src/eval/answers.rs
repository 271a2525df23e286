//! Answers of a system to prompts: written by `generate`, or brought from elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::EvalError;
use super::prompts;
use super::store::read_rows;

/// The file of answers in a directory of `generate`.
pub const FILE: &str = "answers.jsonl";

/// One answer to one prompt; to each turn, if there are several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The prompt's.
    pub id: String,
    /// As the file of prompts groups them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub category: Option<String>,
    /// What the user said.
    pub turns: Vec<String>,
    /// What the model said to each turn.
    pub answers: Vec<String>,
    /// From 0, of several answers to the same prompt.
    #[serde(default)]
    pub sample: u32,
    /// Who answered.
    #[serde(default)]
    pub model: String,
    /// How each answer ended, where the server tells.
    #[serde(default)]
    pub finish_reasons: Vec<Option<String>>,
    /// Tokens of each answer, where the server tells.
    #[serde(default)]
    pub completion_tokens: Vec<Option<u64>>,
    /// Sampling parameters.
    #[serde(default)]
    pub params: Map<String, Value>,
}

impl Answer {
    /// Characters of all answers together.
    pub fn length(&self) -> usize {
        self.answers.iter().map(|answer| answer.chars().count()).sum()
    }

    /// The last turn's answer.
    pub fn last(&self) -> &str {
        self.answers.last().map_or("", String::as_str)
    }

    /// What was said before the last answer: the prompt, or the dialogue so far with who said what.
    pub fn task(&self) -> String {
        self.up_to(self.turns.len().saturating_sub(1))
    }

    /// The dialogue up to the question of turn `at`, from 0.
    pub fn up_to(&self, at: usize) -> String {
        if at == 0 {
            return self.turns.first().cloned().unwrap_or_default();
        }
        let mut out = String::new();
        for (turn, answer) in self.turns.iter().zip(&self.answers).take(at) {
            out += &format!("User: {turn}\n\nAssistant: {answer}\n\n");
        }
        out + "User: " + self.turns.get(at).map_or("", String::as_str)
    }
}

/// A system: its name, and its answers in their order.
#[derive(Clone, Debug)]
pub struct System {
    /// As the user calls it.
    pub name: String,
    /// At least one; each with as many answers as turns.
    pub answers: Vec<Answer>,
}

/// `NAME=PATH`, or a path whose last part is the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Not empty.
    pub name: String,
    /// A file, or a directory of `generate`.
    pub path: PathBuf,
}

impl std::str::FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name.to_owned(), path),
            None => (Path::new(text).file_stem().unwrap_or_default().to_string_lossy().into_owned(), text),
        };
        match name.is_empty() || path.is_empty() {
            true => Err("NAME=PATH is needed".into()),
            false => Ok(Self { name, path: path.into() }),
        }
    }
}

impl System {
    /// Reads answers: `generate`'s, conversations with both sides, or rows with a prompt and its `answer`, `response` or
    /// `output`.
    ///
    /// # Errors
    /// It cannot be read, a row has no answer, or there is none at all.
    pub fn read(named: &Named) -> Result<Self, EvalError> {
        let path = if named.path.is_dir() { named.path.join(FILE) } else { named.path.clone() };
        let mut answers = Vec::new();
        // Of prompts that occur twice, the second has a name of its own, as in a file of prompts.
        let mut seen: HashMap<(String, u32), u32> = HashMap::new();
        for (line, row) in read_rows(&path)? {
            let mut answer = of_row(row).map_err(|reason| EvalError::Line { path: path.clone(), line, reason })?;
            let times = seen.entry((answer.id.clone(), answer.sample)).or_default();
            *times += 1;
            if *times > 1 {
                answer.id = format!("{}-{times}", answer.id);
            }
            answers.push(answer);
        }
        match answers.is_empty() {
            true => Err(EvalError::File { path, reason: "there are no answers in it".into() }),
            false => Ok(Self { name: named.name.clone(), answers }),
        }
    }

    /// First answers by prompt.
    pub fn by_id(&self) -> BTreeMap<&str, &Answer> {
        self.answers.iter().filter(|answer| answer.sample == 0).map(|answer| (answer.id.as_str(), answer)).collect()
    }
}

/// Systems of different names.
///
/// # Errors
/// As [`System::read`], or two have one name.
pub fn read_all(named: &[Named]) -> Result<Vec<System>, EvalError> {
    for (i, one) in named.iter().enumerate() {
        if named[..i].iter().any(|other| other.name == one.name) {
            return Err(EvalError::Usage(format!("two systems are called '{}'; write NAME=PATH", one.name)));
        }
    }
    named.iter().map(System::read).collect()
}

fn of_row(row: Map<String, Value>) -> Result<Answer, String> {
    let answer = if row.contains_key("answers") {
        serde_json::from_value(Value::Object(row)).map_err(|e| e.to_string())?
    } else {
        let prompt = prompts::of_row(&row)?;
        let answers = match prompts::said(&row)? {
            Some(said) => said.into_iter().filter(|(user, _)| !user).map(|(_, text)| text).collect(),
            None => {
                let answer = ["answer", "response", "output"].into_iter().find_map(|name| row.get(name)?.as_str());
                vec![answer.ok_or("the row has no \"answer\", \"response\" or \"output\"")?.to_owned()]
            }
        };
        let model = row.get("model").or_else(|| row.get("generator")).and_then(Value::as_str).unwrap_or_default();
        Answer {
            id: prompt.id,
            category: prompt.category,
            turns: prompt.turns,
            answers,
            sample: 0,
            model: model.to_owned(),
            finish_reasons: Vec::new(),
            completion_tokens: Vec::new(),
            params: Map::new(),
        }
    };
    match answer.answers.is_empty() || answer.answers.len() != answer.turns.len() {
        true => Err(format!("{} answers to {} turns", answer.answers.len(), answer.turns.len())),
        false => Ok(answer),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_of_all_layouts_have_the_prompts_name() {
        let of = |row: Value| of_row(row.as_object().unwrap().clone());
        let a = of(json!({"prompt": "q", "answer": "a"})).unwrap();
        let b = of(json!({"conversations": ["q", "a"]})).unwrap();
        let c = of(json!({"instruction": "q", "output": "a", "generator": "g"})).unwrap();
        assert_eq!((&a.id, &a.answers), (&b.id, &b.answers));
        assert_eq!((&a.id, c.model.as_str()), (&c.id, "g"));
        let talk = of(json!({"conversations": ["q", "a", "r", "b"]})).unwrap();
        assert_eq!((talk.task().as_str(), talk.last()), ("User: q\n\nAssistant: a\n\nUser: r", "b"));
        assert_eq!((talk.up_to(0).as_str(), talk.length()), ("q", 2));
        assert!(of(json!({"conversations": ["q", "a", "r"]})).is_err());
        assert!(of(json!({"prompt": "q"})).is_err());
        assert!(of(json!({"id": "x", "turns": ["q"], "answers": []})).is_err());
    }

    #[test]
    fn names_of_systems() {
        let named = |text: &str| text.parse::<Named>();
        assert_eq!(named("a=b/c").unwrap(), Named { name: "a".into(), path: "b/c".into() });
        assert_eq!(named("out/tuned").unwrap().name, "tuned");
        assert!(named("=x").is_err() && named("x=").is_err() && named("").is_err());
        let same = [named("a=x").unwrap(), named("a=y").unwrap()];
        assert!(read_all(&same).unwrap_err().to_string().contains("two systems are called 'a'"));
    }
}
