//! Who reaches the server and how: browsers of other origins, HTTPS, a listener for the metrics.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lima::http::{Auth, Tls, serve_metrics};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{Server, Setup, body};

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_ask_only_where_they_may() {
    let preflight = async |server: &Server, origin: &str| {
        let request = server.request(Method::OPTIONS, "/v1/chat/completions").header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization,content-type").send().await.unwrap()
    };
    let allowed = |response: &reqwest::Response| {
        response.headers().get("access-control-allow-origin").map(|v| v.to_str().unwrap().to_owned())
    };
    let page = "https://page.example";
    let server = Server::default().await;
    let response = preflight(&server, page).await;
    assert_eq!((response.status().as_u16(), allowed(&response)), (405, None));

    let auth = Auth::new(&["secret".into()], None).unwrap();
    let server = Server::start(Setup { auth, allowed_origins: vec![page.into()], ..Setup::default() }).await;
    // A browser asks without the key.
    let response = preflight(&server, page).await;
    assert_eq!((response.status().as_u16(), allowed(&response).as_deref()), (200, Some(page)));
    assert_eq!(response.headers()["access-control-allow-headers"], "authorization,content-type");
    assert_eq!(allowed(&preflight(&server, "https://other.example").await), None);
    let request = server.request(Method::POST, "/v1/chat/completions").header("origin", page).json(&body(json!({})));
    let refused = request.try_clone().unwrap().send().await.unwrap();
    assert_eq!((refused.status().as_u16(), allowed(&refused).as_deref()), (401, Some(page)), "the page reads why");
    let response = request.bearer_auth("secret").send().await.unwrap();
    assert_eq!((response.status().as_u16(), allowed(&response).as_deref()), (200, Some(page)));

    let server = Server::start(Setup { allowed_origins: vec!["*".into()], ..Setup::default() }).await;
    assert_eq!(allowed(&preflight(&server, page).await).as_deref(), Some("*"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_a_listener_of_their_own_if_that_is_wanted() {
    let auth = Auth::new(&["secret".into()], None).unwrap();
    let server = Server::start(Setup { auth, metrics_apart: true, ..Setup::default() }).await;
    let response = server.request(Method::GET, "/metrics").bearer_auth("secret").send().await.unwrap();
    assert_eq!(response.status(), 404);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_metrics(Arc::clone(&server.app), listener));
    let get = async |path: &str| reqwest::get(format!("http://{address}{path}")).await.unwrap();
    let response = get("/metrics").await;
    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().contains("vllm:num_requests_running"));
    assert_eq!(get("/livez").await.status(), 200);
    assert_eq!(get("/v1/models").await.status(), 404);
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/http/tls").join(name)
}

/// Asks over HTTPS, trusting the certificate alone.
async fn ask(server: &Server, certificate: &Path) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let socket = TcpStream::connect(server.address).await?;
    let mut socket = connector.connect(ServerName::try_from("localhost").unwrap(), socket).await?;
    socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    // The end without a farewell is an error to rustls.
    let _ = socket.read_to_string(&mut text).await;
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn https() {
    let tls = Tls::new(&fixture("cert.pem"), &fixture("key.pem")).unwrap();
    let server = Server::start(Setup { tls: Some(tls), ..Setup::default() }).await;
    let text = ask(&server, &fixture("cert.pem")).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    // Plain HTTP gets no answer.
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"));
    server.app.tls.as_ref().unwrap().reload().unwrap();
    assert!(ask(&server, &fixture("cert.pem")).await.is_ok());

    let of = |certificate, key| Tls::new(&fixture(certificate), &fixture(key)).err().unwrap();
    assert!(of("none.pem", "key.pem").starts_with("--ssl-certfile '"));
    assert!(of("key.pem", "key.pem").contains("has no certificate"));
    assert!(of("cert.pem", "cert.pem").starts_with("--ssl-keyfile '"));
}
