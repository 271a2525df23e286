//! HTTPS: a certificate and its key, which may be read again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What the server shows of itself.
pub struct Tls {
    certificates: PathBuf,
    key: PathBuf,
    now: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// One line that names flag and file.
    pub fn new(certificates: &Path, key: &Path) -> Result<Self, String> {
        let now = RwLock::new(Arc::new(read(certificates, key)?));
        Ok(Self { certificates: certificates.to_owned(), key: key.to_owned(), now })
    }

    /// Reads them again, for new connections. If that fails, they stay as they are.
    ///
    /// # Errors
    /// As [`Tls::new`].
    pub fn reload(&self) -> Result<(), String> {
        let config = Arc::new(read(&self.certificates, &self.key)?);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// For a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "certificate {}", self.certificates.display())
    }
}

fn read(certificates: &Path, key: &Path) -> Result<ServerConfig, String> {
    let wrong = |flag, path: &Path, reason: String| format!("{flag} '{}': {reason}", path.display());
    let chain = CertificateDer::pem_file_iter(certificates).and_then(|all| all.collect::<Result<Vec<_>, _>>());
    let chain = chain.map_err(|e| wrong("--ssl-certfile", certificates, e.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("--ssl-certfile", certificates, "it has no certificate".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("--ssl-keyfile", key, e.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret));
    let mut config = config.map_err(|e| wrong("--ssl-keyfile", key, e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
