//! Replies by what was asked: a file of JSON lines that is only appended to.
//!
//! Invariant: a line that ends in a line feed is whole. A process that is killed may leave a last line without one,
//! which the next one cuts off; so nothing is lost but the calls that were in flight.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::EvalError;

/// One question to a model, and what it said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Digest of everything that decides the reply: who is asked, what, with which parameters, for the how-manieth time.
    pub key: String,
    /// Who is asked: an address, or a model on this machine with a digest of its files.
    pub who: String,
    /// The model's name there.
    pub model: String,
    /// Digest of the messages alone.
    pub prompt_hash: String,
    /// What was asked.
    pub messages: Vec<Value>,
    /// Sampling parameters as they were sent.
    pub params: Map<String, Value>,
    /// From 0, of several calls that are otherwise equal.
    pub sample: u32,
    /// What the model said, untouched.
    pub text: Option<String>,
    /// Why it ended.
    pub finish_reason: Option<String>,
    /// Tokens as the server counts them.
    pub completion_tokens: Option<u64>,
    /// What the server said instead, where it refused this question for good, as one that is too long.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

/// SHA-256 in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

impl Call {
    /// A call that is yet to be made.
    pub fn new(who: &str, model: &str, messages: Vec<Value>, params: &Map<String, Value>, sample: u32) -> Self {
        let (messages_json, params_json) = (Value::from(messages.clone()), Value::Object(params.clone()));
        let all = Value::from(vec![
            Value::from(who),
            Value::from(model),
            messages_json.clone(),
            params_json,
            Value::from(sample),
        ]);
        Self {
            key: digest(all.to_string().as_bytes()),
            who: who.to_owned(),
            model: model.to_owned(),
            prompt_hash: digest(messages_json.to_string().as_bytes()),
            messages,
            params: params.clone(),
            sample,
            text: None,
            finish_reason: None,
            completion_tokens: None,
            refused: None,
        }
    }
}

/// The file, and what is in it. One process at a time.
pub struct Store {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Locked as long as it is open.
    file: File,
    calls: HashMap<String, Call>,
}

impl Store {
    /// Opens or begins the file.
    ///
    /// # Errors
    /// It cannot be read or written, another process has it, or a whole line of it is not a call.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir).map_err(EvalError::at(dir))?;
        }
        let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = opened.map_err(EvalError::at(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(EvalError::File { path: path.into(), reason: "another process writes it".into() });
            }
            Err(TryLockError::Error(e)) => return Err(EvalError::at(path)(e)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(EvalError::at(path))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(EvalError::at(path))?;
        }
        let mut calls = HashMap::new();
        for (i, line) in bytes[..whole].split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let call: Call = serde_json::from_slice(line).map_err(|e| EvalError::Line {
                path: path.into(),
                line: i + 1,
                reason: format!("not a call that was kept: {e}"),
            })?;
            // What was refused may be asked again: the server may have been set up otherwise since.
            if call.refused.is_none() {
                calls.entry(call.key.clone()).or_insert(call);
            }
        }
        Ok(Self { path: path.into(), inner: Mutex::new(Inner { file, calls }) })
    }

    /// What is known of a key.
    pub fn get(&self, key: &str) -> Option<Call> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).calls.get(key).cloned()
    }

    /// Keeps a call, on the disk before this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn append(&self, call: &Call) -> Result<(), EvalError> {
        let mut line = serde_json::to_vec(call).map_err(EvalError::at(&self.path))?;
        line.push(b'\n');
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.file.write_all(&line).and_then(|()| inner.file.sync_data()).map_err(EvalError::at(&self.path))?;
        if call.refused.is_none() {
            inner.calls.insert(call.key.clone(), call.clone());
        }
        Ok(())
    }

    /// How many replies there are.
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).calls.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Replaces a file by another as a whole.
///
/// # Errors
/// It cannot be written; then the old one is as it was.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), EvalError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let other = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&other)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&other, path)
    };
    write().map_err(EvalError::at(path))
}

/// Rows as lines of JSON, in place of what was in the file.
///
/// # Errors
/// As [`replace`].
pub fn write_rows<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), EvalError> {
    let mut bytes = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut bytes, row).map_err(EvalError::at(path))?;
        bytes.push(b'\n');
    }
    replace(path, &bytes)
}

/// An object of a file of JSON lines, and the number of its line.
pub type Row = (usize, Map<String, Value>);

/// The objects of a file of JSON lines, with the number of each line; empty lines are left out.
///
/// # Errors
/// It cannot be read, or a line is no object.
pub fn read_rows(path: &Path) -> Result<Vec<Row>, EvalError> {
    let text = fs::read_to_string(path).map_err(EvalError::at(path))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| match serde_json::from_str(line) {
            Ok(Value::Object(row)) => Ok((i + 1, row)),
            Ok(_) => Err(EvalError::Line { path: path.into(), line: i + 1, reason: "not an object".into() }),
            Err(e) => Err(EvalError::Line { path: path.into(), line: i + 1, reason: format!("not JSON: {e}") }),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(text: &str, sample: u32) -> Call {
        let messages = vec![json!({"role": "user", "content": "hi"})];
        Call { text: Some(text.into()), ..Call::new("there", "m", messages, &Map::new(), sample) }
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/calls.jsonl");
        let store = Store::open(&path).unwrap();
        store.append(&call("a", 0)).unwrap();
        store.append(&call("b", 1)).unwrap();
        assert!(Store::open(&path).err().unwrap().to_string().ends_with("another process writes it"));
        drop(store);
        let whole = fs::read(&path).unwrap();
        for cut in 1..20 {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let store = Store::open(&path).unwrap();
            assert_eq!((store.len(), store.get(&call("", 0).key).unwrap()), (1, call("a", 0)));
            store.append(&call("c", 1)).unwrap();
            drop(store);
            assert_eq!(Store::open(&path).unwrap().get(&call("", 1).key).unwrap().text.unwrap(), "c");
        }
        fs::write(&path, b"{}\n").unwrap();
        assert!(Store::open(&path).err().unwrap().to_string().contains("calls.jsonl:1: not a call"));
    }

    #[test]
    fn refusals_are_recorded_and_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("calls.jsonl");
        let refused = Call { text: None, refused: Some("too long".into()), ..call("", 0) };
        let store = Store::open(&path).unwrap();
        store.append(&refused).unwrap();
        drop(store);
        assert!(Store::open(&path).unwrap().is_empty());
        assert!(fs::read_to_string(&path).unwrap().contains("too long"));
    }

    #[test]
    fn keys_tell_apart_whatever_decides_the_reply() {
        let messages = |text: &str| vec![json!({"role": "user", "content": text})];
        let with = |seed: u64| json!({ "seed": seed }).as_object().unwrap().clone();
        let base = Call::new("a", "m", messages("x"), &with(1), 0);
        let others = [
            Call::new("b", "m", messages("x"), &with(1), 0),
            Call::new("a", "n", messages("x"), &with(1), 0),
            Call::new("a", "m", messages("y"), &with(1), 0),
            Call::new("a", "m", messages("x"), &with(2), 0),
            Call::new("a", "m", messages("x"), &with(1), 1),
        ];
        assert!(others.iter().all(|other| other.key != base.key));
        assert_eq!(others.iter().filter(|other| other.prompt_hash == base.prompt_hash).count(), 4);
    }
}
