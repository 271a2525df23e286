//! Requests to the hub.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::{Repo, RepoType};
use ureq::{Agent, Error, RedirectAuthHeaders, Request, Response};

use super::store::is_commit;
use super::{HfModel, HfSettings};
use crate::hub::HubError;

/// Largest description of a repository that is read.
const MAX_INFO: u64 = 32 << 20;

/// Seconds without a byte after which a server is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// What a revision is.
pub(super) struct Info {
    pub commit: String,
    /// Every file's path.
    pub files: Vec<String>,
}

/// What the hub says of a file before it is downloaded.
pub(super) struct FileInfo {
    /// Names the content: its SHA-256 for large files. Safe as a file name.
    pub etag: String,
    pub size: Option<u64>,
}

/// Why the hub gave no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody answered, or not to the end.
    Network(String),
    /// An answer that says what to do.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(text) | Self::Refused(text) => f.write_str(text),
        }
    }
}

pub(super) struct Client<'a> {
    settings: &'a HfSettings,
    model: &'a HfModel,
    /// Follows redirects; the token goes to the hub alone.
    agent: Agent,
    /// For the headers of the hub's own answer.
    direct: Agent,
}

impl<'a> Client<'a> {
    pub fn new(settings: &'a HfSettings, model: &'a HfModel) -> Result<Self, HubError> {
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
        if settings.token.as_deref().is_some_and(|t| !plain(t)) {
            return Err(model.error("HF_TOKEN has characters that no token has"));
        }
        let is_address = settings.endpoint.starts_with("https://") || settings.endpoint.starts_with("http://");
        if !is_address || !plain(&settings.endpoint) {
            return Err(model.error(format_args!("HF_ENDPOINT is {:?}, which is not an address", settings.endpoint)));
        }
        let builder = || {
            ureq::builder()
                .try_proxy_from_env(true)
                .user_agent(concat!("lima/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Duration::from_secs(15))
                .timeout_read(SILENCE)
        };
        let agent = builder().redirects(5).redirect_auth_headers(RedirectAuthHeaders::SameHost).build();
        Ok(Self { settings, model, agent, direct: builder().redirects(0).build() })
    }

    fn request(&self, request: Request) -> Request {
        // Compressed answers have other lengths and ranges.
        let request = request.set("Accept-Encoding", "identity");
        match &self.settings.token {
            Some(token) => request.set("Authorization", &format!("Bearer {token}")),
            None => request,
        }
    }

    /// Asks what the revision is.
    pub fn info(&self) -> Result<Info, Failure> {
        let repo = Repo::with_revision(self.model.repo.clone(), RepoType::Model, self.model.revision().to_owned());
        let url = format!("{}/api/{}", self.settings.endpoint, repo.api_url());
        let response = self.call(|| self.request(self.agent.get(&url)), "")?;
        let info: RepoInfo =
            serde_json::from_reader(response.into_reader().take(MAX_INFO)).map_err(|e| match e.is_io() {
                true => Failure::Network(format!("{url}: {e}")),
                false => Failure::Refused(format!("{url} is not the description of a model ({e})")),
            })?;
        if !is_commit(&info.sha) {
            return Err(Failure::Refused(format!("{url} names {:?} as the commit", brief(&info.sha))));
        }
        Ok(Info { commit: info.sha, files: info.siblings.into_iter().map(|s| s.rfilename).collect() })
    }

    fn url(&self, commit: &str, file: &str) -> String {
        let file = file.replace(' ', "%20");
        format!("{}/{}/resolve/{commit}/{file}", self.settings.endpoint, self.model.repo)
    }

    /// Asks for a file's hash and size.
    pub fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo, Failure> {
        let mut url = self.url(commit, file);
        let mut hops = 0;
        let response = loop {
            let response = self.call(|| self.request(self.direct.head(&url)), file)?;
            // Renamed repositories lead to another path of the hub; addresses elsewhere are for the download.
            match response.header("Location") {
                Some(path) if (300..400).contains(&response.status()) && path.starts_with('/') && hops < 5 => {
                    url = format!("{}{path}", self.settings.endpoint);
                    hops += 1;
                }
                _ => break response,
            }
        };
        let header = |name: &str| response.header(name);
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let is_safe = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(8..=128).contains(&etag.len()) || !etag.bytes().all(is_safe) {
            return Err(Failure::Refused(format!("the hub gives no usable ETag for {file}")));
        }
        let is_redirect = (300..400).contains(&response.status());
        let length = header("content-length").filter(|_| !is_redirect);
        let size = header("x-linked-size").or(length).and_then(|n| n.parse().ok());
        Ok(FileInfo { etag, size })
    }

    /// A file's content from byte `from` on.
    pub fn content(&self, commit: &str, file: &str, from: u64) -> Result<Response, Failure> {
        let url = self.url(commit, file);
        let range = format!("bytes={from}-");
        self.call(
            || {
                let request = self.request(self.agent.get(&url));
                if from > 0 { request.set("Range", &range) } else { request }
            },
            file,
        )
    }

    /// Sends it, and once more a moment later where the hub is only busy.
    fn call(&self, request: impl Fn() -> Request, file: &str) -> Result<Response, Failure> {
        const TRIES: u32 = 3;
        for attempt in 1.. {
            match request().call() {
                Ok(response) => return Ok(response),
                Err(Error::Status(429 | 500..=599, _)) if attempt < TRIES => {}
                Err(Error::Status(status, response)) => return Err(self.explain(status, &response, file)),
                Err(_) if attempt < TRIES => {}
                Err(Error::Transport(e)) => {
                    let reason = e.message().map_or_else(|| e.kind().to_string(), |m| format!("{}: {m}", e.kind()));
                    return Err(Failure::Network(format!(
                        "cannot reach {} ({}; {TRIES} attempts); check the network, or set HF_ENDPOINT to a mirror",
                        self.settings.endpoint,
                        brief(&reason)
                    )));
                }
            }
            std::thread::sleep(Duration::from_millis(100) * attempt);
        }
        unreachable!("the last attempt returns")
    }

    fn explain(&self, status: u16, response: &Response, file: &str) -> Failure {
        let said = response.header("x-error-message").map(brief).unwrap_or_default();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        let answer = format!("{} answers HTTP {status}{said}; try again later", self.settings.endpoint);
        if matches!(status, 429 | 500..=599) {
            return Failure::Network(answer);
        }
        let (repo, revision) = (&self.model.repo, self.model.revision());
        let page = format!("{}/{repo}", self.settings.endpoint);
        let code = response.header("x-error-code").unwrap_or_default();
        Failure::Refused(match (status, &self.settings.token) {
            (401, None) | (403, None) => format!(
                "the hub wants a token (HTTP {status}): the repository is private or gated, or does not exist; ask for \
                 access at {page} and set HF_TOKEN"
            ),
            (401 | 403, Some(_)) => format!(
                "the hub refuses the token (HTTP {status}): it is wrong, or has no access to the repository; ask for \
                 access at {page} and check HF_TOKEN"
            ),
            (404, _) if code == "RevisionNotFound" => format!("{repo} has no revision {revision:?} (HTTP 404)"),
            (404, _) if !file.is_empty() => format!("{repo} has no file {file:?} (HTTP 404)"),
            (404, _) => format!("there is no repository {repo} with revision {revision:?} (HTTP 404)"),
            _ => answer,
        })
    }
}

/// Words from elsewhere, one short line of them.
fn brief(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
