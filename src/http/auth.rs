//! API keys: which are known, and the check on every route but the probes and the chat page's files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::page;
use super::state::App;

/// Longest key, bytes.
const MAX_KEY: usize = 512;
/// Before the hexadecimal digest of a key, where a file does not have the key itself.
const DIGEST: &str = "sha256:";

/// Digests of keys; the keys themselves are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys(Vec<[u8; 32]>);

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Equal or not, in a time that does not depend on where they differ.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b))) == 0
}

impl Keys {
    fn add(&mut self, key: &str) -> Result<(), &'static str> {
        let digest = match key.strip_prefix(DIGEST) {
            Some(hex) => hexadecimal(hex).ok_or("what follows 'sha256:' is not 64 hexadecimal digits")?,
            None if key.len() > MAX_KEY => return Err("a key has at most 512 characters"),
            None if !key.bytes().all(|b| b.is_ascii_graphic()) => {
                return Err("a key has printable ASCII characters only, without spaces");
            }
            None => digest(key.as_bytes()),
        };
        self.0.push(digest);
        Ok(())
    }

    /// One key a line; empty lines and those that begin with `#` are left out.
    fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("'{shown}' cannot be read: {e}"))?;
        let mut keys = Self::default();
        for (i, line) in text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
            keys.add(line).map_err(|reason| format!("'{shown}' line {}: {reason}", i + 1))?;
        }
        // Without a key nobody could be let in, which is hardly what was meant.
        if keys.0.is_empty() { Err(format!("'{shown}' has no key")) } else { Ok(keys) }
    }

    /// Looks at all of them, so that the time does not tell which one it was.
    fn know(&self, key: &[u8]) -> bool {
        let asked = digest(key);
        self.0.iter().fold(false, |known, key| known | equal(key, &asked))
    }
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() == 64)?;
    out.iter_mut().zip(digits.chunks(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
    Some(out)
}

/// The keys a server accepts: some for its whole life, and those of a file, which may be read again.
#[derive(Debug)]
pub struct Auth {
    given: Keys,
    file: Option<PathBuf>,
    now: RwLock<Arc<Keys>>,
}

impl Auth {
    /// Takes keys, and reads the file; `None` if there are neither.
    ///
    /// # Errors
    /// What is wrong, naming flag or file and line, and never the key.
    pub fn new(keys: &[String], file: Option<&Path>) -> Result<Option<Self>, String> {
        let mut given = Keys::default();
        for key in keys {
            let added = if key.is_empty() { Err("a key is not empty") } else { given.add(key) };
            added.map_err(|reason| format!("--api-key: {reason}"))?;
        }
        if given.0.is_empty() && file.is_none() {
            return Ok(None);
        }
        let auth = Self { given, file: file.map(Path::to_owned), now: RwLock::default() };
        auth.reload()?;
        Ok(Some(auth))
    }

    /// Reads the file again. If that fails, the keys stay as they are.
    ///
    /// # Errors
    /// As [`Auth::new`].
    pub fn reload(&self) -> Result<usize, String> {
        let mut keys = self.given.clone();
        if let Some(file) = &self.file {
            keys.0.extend(Keys::read(file).map_err(|reason| format!("--api-key-file {reason}"))?.0);
        }
        let count = keys.0.len();
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(count)
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.now.read().unwrap_or_else(PoisonError::into_inner).0.len()
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let key = presented(headers).ok_or(ApiError::NoKey)?;
        let keys = Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner));
        if keys.know(key) { Ok(()) } else { Err(ApiError::WrongKey) }
    }
}

/// The bearer token, or `x-api-key`, as Anthropic's clients send it.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return headers.get("x-api-key").map(|v| v.as_bytes()).filter(|key| !key.is_empty());
    };
    let (scheme, key) = value.as_bytes().split_at_checked(7)?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !key.is_empty()).then_some(key)
}

/// Answered without a key: they hold no data, and whoever asks them has none.
const OPEN: [&str; 4] = ["/livez", "/startupz", "/readyz", "/health"];

fn is_open(app: &App, path: &str) -> bool {
    OPEN.contains(&path) || (app.limits.chat_page && page::has(path))
}

/// Refuses every request without a key, whatever its route, if the server has keys.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Some(auth) = &app.auth
        && !is_open(&app, request.uri().path())
        && let Err(error) = auth.check(request.headers())
    {
        return error.into_response();
    }
    next.run(request).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn keys_are_found_by_their_digest() {
        let auth = Auth::new(&["sesame".into(), format!("sha256:{}", "ab".repeat(32))], None).unwrap().unwrap();
        assert_eq!(auth.count(), 2);
        assert_eq!(auth.check(&headers("authorization", "Bearer sesame")), Ok(()));
        assert_eq!(auth.check(&headers("authorization", "bearer  sesame ")), Ok(()));
        assert_eq!(auth.check(&headers("x-api-key", "sesame")), Ok(()));
        for wrong in ["Bearer sesam", "Bearer sesamee", "Bearer \u{e9}", "Bearer sha256:abab"] {
            assert_eq!(auth.check(&headers("authorization", wrong)), Err(ApiError::WrongKey), "{wrong}");
        }
        for none in ["Bearer", "Bearer ", "Basic sesame", "sesame", ""] {
            assert_eq!(auth.check(&headers("authorization", none)), Err(ApiError::NoKey), "{none}");
        }
        assert_eq!(auth.check(&HeaderMap::new()), Err(ApiError::NoKey));
        assert!(!format!("{auth:?}").contains("sesame"));
    }

    #[test]
    fn a_file_is_read_again_and_a_wrong_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        let hex: String = digest(b"second").iter().map(|b| format!("{b:02x}")).collect();
        write(&format!("# team\n first \n\nsha256:{hex}\n"));
        let auth = Auth::new(&[], Some(&file)).unwrap().unwrap();
        let knows = |key: &str| auth.check(&headers("x-api-key", key)).is_ok();
        assert!(knows("first") && knows("second") && !knows("# team"));

        for (text, reason) in [
            ("first\nsecond key\n", "line 2: a key has printable"),
            ("sha256:12\n", "line 1: what follows"),
            ("# nobody\n", "has no key"),
        ] {
            write(text);
            let error = auth.reload().unwrap_err();
            assert!(error.contains(reason) && !error.contains("second key"), "{error}");
            assert!(knows("first") && knows("second"));
        }
        write("third\n");
        assert_eq!(auth.reload(), Ok(1));
        assert!(knows("third") && !knows("first"));
    }

    #[test]
    fn without_keys_there_is_no_guard() {
        assert!(Auth::new(&[], None).unwrap().is_none());
        assert!(Auth::new(&[String::new()], None).is_err());
        assert!(Auth::new(&[], Some(Path::new("/no/such/file"))).unwrap_err().contains("cannot be read"));
    }
}
