//! Accepting connections, and the way out: refuse new work, finish the old, then leave.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::connections::{BusyBody, Connection};
use super::error::ApiError;
use super::listener::{self, TimedStream};
use super::router::{metrics_router, router};
use super::state::{App, Stage};

/// How long last bytes may take to reach the clients.
const FLUSH: Duration = Duration::from_secs(5);
/// Room for the request line and the spaces between headers, beside the headers themselves.
const HEAD_MARGIN: usize = 16 << 10;

/// Serves until `stop` completes, then drains: new requests are refused while those accepted have
/// `drain_timeout` to finish, after which they end with an error. Returns whether all finished.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
    drain_timeout: Duration,
) -> io::Result<bool> {
    let (close, closed) = watch::channel(false);
    let mut server = tokio::spawn(accept(Arc::clone(&app), listener, router(Arc::clone(&app)), closed));
    tokio::select! {
        // It ends when it is told to, or panics.
        ended = &mut server => return ended.map(|()| true).map_err(io::Error::other),
        () = stop => {}
    }
    app.advance(Stage::Draining);
    let clean = timeout(drain_timeout, idle(&app)).await.is_ok();
    if !clean {
        tracing::warn!("{} requests did not finish within {drain_timeout:?}", app.active());
        app.advance(Stage::Deadline);
        let _ = timeout(FLUSH, idle(&app)).await;
    }
    if let Some(model) = app.model() {
        model.engine.shutdown();
    }
    // Closes idle connections and waits for the rest to be written out.
    let _ = close.send(true);
    let _ = timeout(FLUSH, close.closed()).await;
    server.abort();
    Ok(clean)
}

/// Serves the metrics alone, without keys, until the runtime ends.
pub async fn serve_metrics(app: Arc<App>, listener: TcpListener) {
    // Never sends.
    let (_close, closed) = watch::channel(false);
    accept(Arc::clone(&app), listener, metrics_router(app), closed).await;
}

/// Takes connections until `closed`, which its connections hold too.
async fn accept(app: Arc<App>, listener: TcpListener, router: Router, mut closed: watch::Receiver<bool>) {
    loop {
        let stream = tokio::select! {
            stream = listener::accept(&listener) => stream,
            _ = closed.wait_for(|closed| *closed) => return,
        };
        match app.connections.open() {
            Some(connection) => {
                tokio::spawn(serve_stream(Arc::clone(&app), stream, connection, router.clone(), closed.clone()));
            }
            None => refuse(&app, &stream),
        }
    }
}

/// All connections are busy. The answer fits the socket's empty buffer, so nothing is waited for.
fn refuse(app: &App, stream: &TcpStream) {
    if app.tls.is_some() {
        // The client could not read it.
        return;
    }
    let body = ApiError::Connections.to_json();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    // What is unread when a socket closes resets the connection, and the answer with it.
    let _ = stream.try_read(&mut [0; 4096]);
    let _ = stream.try_write(answer.as_bytes());
    app.metrics.response("unmatched", 503, Some(ApiError::Connections.code()));
}

async fn serve_stream(
    app: Arc<App>,
    stream: TcpStream,
    connection: Connection,
    router: Router,
    closed: watch::Receiver<bool>,
) {
    let connection = Arc::new(connection);
    let stream = TimedStream::new(stream, app.limits.write_timeout);
    let Some(tls) = &app.tls else { return serve_http(&app, stream, connection, router, closed).await };
    let shaken = tokio::select! {
        shaken = timeout(app.limits.idle_timeout, tls.acceptor().accept(stream)) => shaken,
        () = connection.evicted() => return,
    };
    match shaken {
        Ok(Ok(stream)) => serve_http(&app, stream, connection, router, closed).await,
        Ok(Err(e)) => tracing::debug!("no TLS connection: {e}"),
        Err(_) => tracing::debug!("no TLS connection: the client is silent"),
    }
}

async fn serve_http<S>(
    app: &App,
    stream: S,
    connection: Arc<Connection>,
    router: Router,
    mut closed: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let one = Arc::clone(&connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = one.busy();
        let answer = router.call(request);
        async move { answer.await.map(|response| response.map(|body| BusyBody::new(body, busy))) }
    });
    let limits = &app.limits;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        // Behind our own limits, which are told in words: these bound what is read at all.
        .max_headers(2 * limits.max_headers)
        .max_buf_size(2 * limits.max_header_bytes + HEAD_MARGIN);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        result = serving.as_mut() => {
            if let Err(e) = result {
                tracing::debug!("a connection ended: {e}");
            }
            return;
        }
        () = connection.evicted() => return,
        _ = closed.wait_for(|closed| *closed) => {}
    }
    serving.as_mut().graceful_shutdown();
    if let Err(e) = serving.await {
        tracing::debug!("a connection ended: {e}");
    }
}

/// Waits until no request is running.
async fn idle(app: &App) {
    while app.active() > 0 {
        sleep(Duration::from_millis(20)).await;
    }
}
