//! What is judged, in which order, and what was decided: SQLite, of which a row is never changed but to be taken back.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::eval::EvalError;
use crate::eval::answers::{Answer, System};
use crate::eval::pairwise::Verdict;
use crate::eval::stats::{Outcome, Resampler};
use crate::eval::store::digest;

const SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS decision (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  person TEXT NOT NULL,
  prompt TEXT NOT NULL,
  a TEXT NOT NULL,
  b TEXT NOT NULL,
  digest TEXT NOT NULL,
  swapped INTEGER NOT NULL,
  choice TEXT NOT NULL,
  made_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
  taken_back INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS decided ON decision (person, prompt, a, b) WHERE taken_back = 0;";

/// Most characters of a person's name.
const MAX_NAME: usize = 64;

/// What a person says of two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The left one is significantly better.
    Left,
    /// The right one is.
    Right,
    /// Neither is.
    Neither,
}

/// Two answers to read. Nothing here tells whose they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// The prompt's.
    pub id: String,
    /// What was asked.
    pub turns: Vec<String>,
    /// Answers to each turn.
    pub left: Vec<String>,
    /// Likewise.
    pub right: Vec<String>,
    /// How many this person has decided.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// Two systems, their common prompts, and the decisions about them.
pub struct Study {
    path: PathBuf,
    names: [String; 2],
    items: Vec<(Answer, Answer)>,
    seed: u64,
    connection: Mutex<Connection>,
}

impl Study {
    /// Opens or begins the file of decisions.
    ///
    /// # Errors
    /// It cannot be used, or the systems have no prompt in common.
    pub fn open(path: &Path, a: &System, b: &System, seed: u64) -> Result<Self, EvalError> {
        let others = b.by_id();
        let firsts = a.answers.iter().filter(|answer| answer.sample == 0);
        let items: Vec<(Answer, Answer)> = firsts
            .filter_map(|one| {
                let other = others.get(one.id.as_str()).filter(|other| other.turns == one.turns)?;
                Some((one.clone(), (*other).clone()))
            })
            .collect();
        if items.is_empty() {
            return Err(EvalError::Usage(format!("'{}' and '{}' have no prompt in common", a.name, b.name)));
        }
        let connection = Connection::open(path).map_err(EvalError::at(path))?;
        // A decision is on the disk before the next one is shown.
        let setup =
            format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000; {SCHEMA}");
        connection.execute_batch(&setup).map_err(EvalError::at(path))?;
        let names = [a.name.clone(), b.name.clone()];
        Ok(Self { path: path.into(), names, items, seed, connection: Mutex::new(connection) })
    }

    /// Prompts that both systems answered.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never: a study without prompts is not opened.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> impl FnOnce(rusqlite::Error) -> EvalError {
        EvalError::at(&self.path)
    }

    /// A person's own random numbers about something.
    fn draws(&self, person: &str, what: &str) -> Resampler {
        let drawn = digest(format!("{}/{person}/{what}", self.seed).as_bytes());
        Resampler::new(u64::from_str_radix(&drawn[..16], 16).unwrap_or(0))
    }

    /// Whether this person sees the second system's answer on the left.
    fn swapped(&self, person: &str, id: &str) -> bool {
        self.draws(person, id).draw() & 1 == 1
    }

    /// A name as it is kept.
    fn person(name: &str) -> Result<&str, EvalError> {
        let name = name.trim();
        match name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
            true => Err(EvalError::Usage(format!("a name of 1 to {MAX_NAME} characters is needed"))),
            false => Ok(name),
        }
    }

    /// Prompts that a person has decided.
    fn decided(&self, person: &str) -> Result<Vec<String>, EvalError> {
        let connection = self.connection();
        let query = "SELECT prompt FROM decision WHERE person = ?1 AND a = ?2 AND b = ?3 AND taken_back = 0";
        let mut statement = connection.prepare(query).map_err(self.failed())?;
        let rows = statement.query_map(params![person, self.names[0], self.names[1]], |row| row.get(0));
        rows.and_then(Iterator::collect).map_err(self.failed())
    }

    /// What this person should judge next; `None` when all is done.
    ///
    /// # Errors
    /// The name is none, or the file cannot be read.
    pub fn next(&self, person: &str) -> Result<Option<Item>, EvalError> {
        let person = Self::person(person)?;
        let decided = self.decided(person)?;
        let order = self.draws(person, "").permutation(self.items.len());
        let open = order.into_iter().map(|i| &self.items[i]).find(|(one, _)| !decided.contains(&one.id));
        Ok(open.map(|(one, other)| {
            let (left, right) = if self.swapped(person, &one.id) { (other, one) } else { (one, other) };
            let known = self.items.iter().filter(|(one, _)| decided.contains(&one.id)).count();
            Item {
                id: one.id.clone(),
                turns: one.turns.clone(),
                left: left.answers.clone(),
                right: right.answers.clone(),
                done: known,
                total: self.items.len(),
            }
        }))
    }

    /// Keeps a decision, on the disk before this returns; a second one about the same prompt replaces the first.
    ///
    /// # Errors
    /// There is no such prompt, the name is none, or the file cannot be written.
    pub fn decide(&self, person: &str, id: &str, choice: Choice) -> Result<(), EvalError> {
        let person = Self::person(person)?;
        let (one, other) = (self.items.iter().find(|(one, _)| one.id == id))
            .ok_or_else(|| EvalError::Usage("there is no such prompt".into()))?;
        let text = [one.answers.join("\0"), other.answers.join("\0")].join("\0\0");
        let word = match choice {
            Choice::Left => "left",
            Choice::Right => "right",
            Choice::Neither => "neither",
        };
        let mut connection = self.connection();
        let write = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            let about = params![person, id, self.names[0], self.names[1]];
            let replace = "UPDATE decision SET taken_back = 1 WHERE person = ?1 AND prompt = ?2 AND a = ?3 AND b = ?4 AND taken_back = 0";
            transaction.execute(replace, about)?;
            let insert = "INSERT INTO decision (person, prompt, a, b, digest, swapped, choice) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let swapped = self.swapped(person, id);
            transaction.execute(
                insert,
                params![person, id, self.names[0], self.names[1], digest(text.as_bytes()), swapped, word],
            )?;
            transaction.commit()
        };
        write(&mut connection).map_err(self.failed())
    }

    /// Takes a person's last decision back; the prompt it was about, if there was one.
    ///
    /// # Errors
    /// The name is none, or the file cannot be written.
    pub fn undo(&self, person: &str) -> Result<Option<String>, EvalError> {
        let person = Self::person(person)?;
        let query = "UPDATE decision SET taken_back = 1 WHERE number = (SELECT max(number) FROM decision WHERE person = ?1 \
                     AND a = ?2 AND b = ?3 AND taken_back = 0) RETURNING prompt";
        let connection = self.connection();
        let undone = connection.query_row(query, params![person, self.names[0], self.names[1]], |row| row.get(0));
        undone.optional().map_err(self.failed())
    }

    /// All decisions that stand, as verdicts about the first system.
    ///
    /// # Errors
    /// The file cannot be read, or has something else in it.
    pub fn verdicts(&self) -> Result<Vec<Verdict>, EvalError> {
        let connection = self.connection();
        let query = "SELECT person, prompt, swapped, choice FROM decision WHERE a = ?1 AND b = ?2 AND taken_back = 0 ORDER BY number";
        let mut statement = connection.prepare(query).map_err(self.failed())?;
        let rows = statement.query_map(params![self.names[0], self.names[1]], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, bool>(2)?, row.get::<_, String>(3)?))
        });
        let rows: Vec<_> = rows.and_then(Iterator::collect).map_err(self.failed())?;
        let mut out = Vec::with_capacity(rows.len());
        for (person, id, swapped, choice) in rows {
            let outcome = match (choice.as_str(), swapped) {
                ("left", false) | ("right", true) => Outcome::Win,
                ("right", false) | ("left", true) => Outcome::Lose,
                ("neither", _) => Outcome::Tie,
                (other, _) => {
                    return Err(EvalError::File {
                        path: self.path.clone(),
                        reason: format!("'{other}' is no decision"),
                    });
                }
            };
            let item = self.items.iter().find(|(one, _)| one.id == id);
            out.push(Verdict {
                category: item.and_then(|(one, _)| one.category.clone()),
                lengths: item.map_or([0, 0], |(one, other)| [one.length(), other.length()]),
                id,
                a: self.names[0].clone(),
                b: self.names[1].clone(),
                outcome: Some(outcome),
                judge: person,
                style: None,
                games: Vec::new(),
            });
        }
        Ok(out)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::eval::answers::Named;

    fn system(dir: &Path, name: &str, n: usize) -> System {
        let row = |i: usize| serde_json::json!({"id": i.to_string(), "prompt": format!("q{i}"), "answer": format!("{name}{i}")});
        let path = dir.join(name);
        std::fs::write(&path, (0..n).map(|i| row(i).to_string() + "\n").collect::<String>()).unwrap();
        System::read(&Named { name: name.into(), path }).unwrap()
    }

    /// Who prefers whatever the first system said wins everywhere, on whichever side it was.
    #[test]
    fn sides_are_drawn_and_mapped_back() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("study.sqlite");
        let (x, y) = (system(dir.path(), "x", 40), system(dir.path(), "y", 41));
        let study = Study::open(&db, &x, &y, 1).unwrap();
        let mut sides = BTreeMap::new();
        let mut order = Vec::new();
        while let Some(item) = study.next(" Ann ").unwrap() {
            assert_eq!((item.done, item.total), (order.len(), 40));
            let choice = if item.left[0].starts_with('x') { Choice::Left } else { Choice::Right };
            *sides.entry(format!("{choice:?}")).or_insert(0) += 1;
            order.push(item.id.clone());
            study.decide("Ann", &item.id, choice).unwrap();
        }
        assert!(sides.values().all(|n| *n > 8), "{sides:?}");
        assert_ne!(order, (0..40).map(|i| i.to_string()).collect::<Vec<_>>());
        let verdicts = study.verdicts().unwrap();
        assert!(verdicts.len() == 40 && verdicts.iter().all(|v| v.outcome == Some(Outcome::Win) && v.judge == "Ann"));

        // Another person begins from the start, with an order and sides of their own.
        let first = study.next("Bob").unwrap().unwrap();
        study.decide("Bob", &first.id, Choice::Neither).unwrap();
        study.decide("Bob", &first.id, Choice::Left).unwrap();
        assert_eq!(study.verdicts().unwrap().len(), 41);
        assert_eq!(study.undo("Bob").unwrap(), Some(first.id.clone()));
        assert_eq!(study.undo("Bob").unwrap(), None);
        assert_eq!(study.next("Bob").unwrap().unwrap(), first);

        // It is all there for the next process.
        drop(study);
        let study = Study::open(&db, &x, &y, 1).unwrap();
        assert_eq!((study.verdicts().unwrap().len(), study.next("Ann").unwrap()), (40, None));
        for (person, id) in [("", "1"), ("a\u{7}", "1"), ("Ann", "99")] {
            assert!(study.decide(person, id, Choice::Left).is_err());
        }
    }
}
