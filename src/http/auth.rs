//! API keys: which are known, whose they are, and the check on every route but the probes and the chat page's files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::caller::Caller;
use super::error::ApiError;
use super::page;
use super::state::App;
use super::tenant::{Quota, Tenant};

/// Longest key, bytes.
const MAX_KEY: usize = 512;
/// Before the hexadecimal digest of a key, where a file does not have the key itself.
const DIGEST: &str = "sha256:";

/// A line of the file, or a key of the command line. The key itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    digest: [u8; 32],
    name: Option<String>,
    quota: Quota,
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Equal or not, in a time that does not depend on where they differ.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b))) == 0
}

impl Entry {
    /// A key without a name or limits.
    fn key(key: &str) -> Result<Self, &'static str> {
        let digest = match key.strip_prefix(DIGEST) {
            Some(hex) => hexadecimal(hex).ok_or("what follows 'sha256:' is not 64 hexadecimal digits")?,
            None if key.len() > MAX_KEY => return Err("a key has at most 512 characters"),
            None if !key.bytes().all(|b| b.is_ascii_graphic()) => {
                return Err("a key has printable ASCII characters only, without spaces");
            }
            None => digest(key.as_bytes()),
        };
        Ok(Self { digest, name: None, quota: Quota::default() })
    }

    /// A key, and after it what is set for it, as `name=value`. Nothing of the line is repeated: what looks like a
    /// setting may be part of a key.
    fn line(line: &str) -> Result<Self, &'static str> {
        let mut words = line.split_ascii_whitespace();
        let mut entry = Self::key(words.next().unwrap_or_default())?;
        for word in words {
            let (setting, value) = word.split_once('=').unwrap_or((word, ""));
            let number = |most: u64| value.parse().ok().filter(|n| (1..=most).contains(n));
            let quota = &mut entry.quota;
            match setting {
                "name" if is_name(value) => entry.name = Some(value.to_owned()),
                "name" => return Err("a name has 1 to 64 letters, digits and '-_.'"),
                "requests-per-minute" => {
                    let n = number(1 << 32).ok_or("requests-per-minute is a number from 1")?;
                    quota.requests_per_minute = Some(n);
                }
                "tokens-per-minute" => {
                    let n = number(1 << 40).ok_or("tokens-per-minute is a number from 1")?;
                    quota.tokens_per_minute = Some(n);
                }
                "max-concurrency" => {
                    let n = number(1 << 20).ok_or("max-concurrency is a number from 1")?;
                    quota.max_concurrency = Some(n as usize);
                }
                "weight" => quota.weight = number(1000).ok_or("weight is a number from 1 to 1000")? as u32,
                _ => {
                    return Err("a key has printable ASCII characters only, without spaces; it may be followed by \
                                name=, requests-per-minute=, tokens-per-minute=, max-concurrency= and weight=");
                }
            }
        }
        Ok(entry)
    }

    /// One key a line; empty lines and those that begin with `#` are left out.
    fn read(path: &Path) -> Result<Vec<Self>, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("'{shown}' cannot be read: {e}"))?;
        let mut entries: Vec<Self> = Vec::new();
        for (i, line) in text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
            let wrong = |reason: &str| format!("'{shown}' line {}: {reason}", i + 1);
            let entry = Self::line(line).map_err(wrong)?;
            let same = entries.iter().find(|e| e.name.is_some() && e.name == entry.name);
            if same.is_some_and(|e| e.quota != entry.quota) {
                return Err(wrong("keys of the same name share their limits, and an earlier line sets others"));
            }
            entries.push(entry);
        }
        // Without a key nobody could be let in, which is hardly what was meant.
        if entries.is_empty() { Err(format!("'{shown}' has no key")) } else { Ok(entries) }
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() == 64)?;
    out.iter_mut().zip(digits.chunks(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
    Some(out)
}

/// Digests of keys, and whose they are.
#[derive(Debug, Default)]
struct Keys(Vec<([u8; 32], Arc<Tenant>)>);

impl Keys {
    /// Looks at all of them, so that the time does not tell which one it was.
    fn holder(&self, key: &[u8]) -> Option<&Arc<Tenant>> {
        let asked = digest(key);
        let mut holder = None;
        for (key, tenant) in &self.0 {
            holder = if equal(key, &asked) { Some(tenant) } else { holder };
        }
        holder
    }

    /// Who has held this key, or one of this name.
    fn known(&self, entry: &Entry) -> Option<&Arc<Tenant>> {
        let found = self.0.iter().find(|(digest, tenant)| match &entry.name {
            Some(name) => tenant.name() == Some(name),
            None => tenant.name().is_none() && *digest == entry.digest,
        });
        found.map(|(_, tenant)| tenant)
    }
}

/// The keys a server accepts: some for its whole life, and those of a file, which may be read again.
#[derive(Debug)]
pub struct Auth {
    given: Vec<Entry>,
    file: Option<PathBuf>,
    now: RwLock<Arc<Keys>>,
    /// Of the next holder.
    next_id: AtomicU64,
}

impl Auth {
    /// Takes keys, and reads the file; `None` if there are neither.
    ///
    /// # Errors
    /// What is wrong, naming flag or file and line, and never the key.
    pub fn new(keys: &[String], file: Option<&Path>) -> Result<Option<Self>, String> {
        let mut given = Vec::new();
        for key in keys {
            let entry = if key.is_empty() { Err("a key is not empty") } else { Entry::key(key) };
            given.push(entry.map_err(|reason| format!("--api-key: {reason}"))?);
        }
        if given.is_empty() && file.is_none() {
            return Ok(None);
        }
        let auth = Self { given, file: file.map(Path::to_owned), now: RwLock::default(), next_id: AtomicU64::new(1) };
        auth.reload()?;
        Ok(Some(auth))
    }

    /// Reads the file again. What keys and names that stay have used of their limits stays too. If it fails, the keys
    /// stay as they are.
    ///
    /// # Errors
    /// As [`Auth::new`].
    pub fn reload(&self) -> Result<usize, String> {
        let mut entries = self.given.clone();
        if let Some(file) = &self.file {
            entries.extend(Entry::read(file).map_err(|reason| format!("--api-key-file {reason}"))?);
        }
        let (before, now) = (self.keys(), Instant::now());
        let mut keys = Keys::default();
        for entry in entries {
            let holder = match before.known(&entry).or_else(|| keys.known(&entry)) {
                Some(tenant) => {
                    tenant.set_quota(entry.quota, now);
                    Arc::clone(tenant)
                }
                None => {
                    let id = self.next_id.fetch_add(1, Relaxed);
                    Arc::new(Tenant::new(id, entry.name, entry.quota, now))
                }
            };
            keys.0.push((entry.digest, holder));
        }
        let count = keys.0.len();
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(count)
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.keys().0.len()
    }

    /// Everyone who holds a key, once.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        let mut tenants: Vec<Arc<Tenant>> = Vec::new();
        for (_, tenant) in &self.keys().0 {
            if !tenants.iter().any(|t| Arc::ptr_eq(t, tenant)) {
                tenants.push(Arc::clone(tenant));
            }
        }
        tenants
    }

    fn check(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, ApiError> {
        let key = presented(headers).ok_or(ApiError::NoKey)?;
        self.keys().holder(key).cloned().ok_or(ApiError::WrongKey)
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

/// Refuses every request without a key, whatever its route, if the server has keys; and those beyond the limits of
/// their key, as far as they are known before the body is read.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(auth) = app.auth.as_ref().filter(|_| !is_open(&app, request.uri().path())) else {
        return next.run(request).await;
    };
    let tenant = match auth.check(request.headers()) {
        Ok(tenant) => tenant,
        Err(error) => return error.into_response(),
    };
    tracing::Span::current().record("key", tenant.name());
    // Reading what there is takes nothing of the engine.
    let works = request.method() == Method::POST;
    let slot = match works.then(|| tenant.enter(Instant::now())).transpose() {
        Ok(slot) => slot.map(Arc::new),
        Err(error) => return told(&tenant, error.into_response()),
    };
    let caller = Caller { slot, isolated: app.limits.isolate_prefix_cache };
    let response = caller.scope(next.run(request)).await;
    if works { told(&tenant, response) } else { response }
}

/// Adds the headers about limits.
fn told(tenant: &Tenant, mut response: Response) -> Response {
    tenant.tell(Instant::now(), response.headers_mut());
    response
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
        let check = |headers: &HeaderMap| auth.check(headers).map(|_| ());
        assert_eq!(check(&headers("authorization", "Bearer sesame")), Ok(()));
        assert_eq!(check(&headers("authorization", "bearer  sesame ")), Ok(()));
        assert_eq!(check(&headers("x-api-key", "sesame")), Ok(()));
        for wrong in ["Bearer sesam", "Bearer sesamee", "Bearer \u{e9}", "Bearer sha256:abab"] {
            assert_eq!(check(&headers("authorization", wrong)), Err(ApiError::WrongKey), "{wrong}");
        }
        for none in ["Bearer", "Bearer ", "Basic sesame", "sesame", ""] {
            assert_eq!(check(&headers("authorization", none)), Err(ApiError::NoKey), "{none}");
        }
        assert_eq!(check(&HeaderMap::new()), Err(ApiError::NoKey));
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
    fn keys_have_names_and_limits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("old name=team requests-per-minute=2\nnew  name=team requests-per-minute=2\nother weight=4\n");
        let auth = Auth::new(&["given".into()], Some(&file)).unwrap().unwrap();
        let holder = |key: &str| auth.check(&headers("x-api-key", key)).unwrap();
        assert!(Arc::ptr_eq(&holder("old"), &holder("new")));
        assert_eq!((holder("old").name(), holder("other").name()), (Some("team"), None));
        let accounts = ["old", "other", "given"].map(|key| holder(key).account());
        assert_eq!(accounts.map(|a| a.weight), [1, 4, 1]);
        assert!(accounts[0].id != accounts[1].id && accounts[1].id != accounts[2].id && accounts[0].id > 0);
        assert_eq!(auth.tenants().len(), 3);

        // What was used stays used.
        let now = Instant::now();
        for key in ["old", "new"] {
            holder(key).enter(now).unwrap();
        }
        write("new name=team requests-per-minute=2\nother weight=5\n");
        auth.reload().unwrap();
        assert!(holder("new").enter(now).is_err());
        assert_eq!(["new", "other"].map(|key| holder(key).account().id), [accounts[0].id, accounts[1].id]);
        assert_eq!(holder("other").account().weight, 5);

        for (text, reason) in [
            ("a name=\n", "line 1: a name has"),
            ("a name=x y\n", "line 1: a key has printable"),
            ("a weight=0\n", "line 1: weight is"),
            ("a max-concurrency=-1\n", "line 1: max-concurrency is"),
            ("a tokens-per-minute=many\n", "line 1: tokens-per-minute is"),
            ("a name=x\nb name=x weight=2\n", "line 2: keys of the same name"),
        ] {
            write(text);
            let error = auth.reload().unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn without_keys_there_is_no_guard() {
        assert!(Auth::new(&[], None).unwrap().is_none());
        assert!(Auth::new(&[String::new()], None).is_err());
        assert!(Auth::new(&[], Some(Path::new("/no/such/file"))).unwrap_err().contains("cannot be read"));
    }
}
