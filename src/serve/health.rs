//! `lima health`: asks a server whether it is ready, for health checks of images without curl.

use std::time::Duration;

use anyhow::{anyhow, bail};

/// Longer than a ready server needs, shorter than an orchestrator waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// Succeeds if the server at `url` answers `/readyz` with 200.
///
/// # Errors
/// Nobody answers, or it is not ready.
pub fn health(url: &str) -> anyhow::Result<()> {
    let url = format!("{}/readyz", url.trim_end_matches('/'));
    match ureq::builder().timeout(PATIENCE).redirects(0).build().get(&url).call() {
        Ok(response) if response.status() == 200 => Ok(()),
        Ok(response) | Err(ureq::Error::Status(_, response)) => bail!("{url} answers {}", response.status()),
        Err(ureq::Error::Transport(e)) => {
            Err(anyhow!("{url} cannot be reached: {}", e.message().map_or_else(|| e.kind().to_string(), str::to_owned)))
        }
    }
}
