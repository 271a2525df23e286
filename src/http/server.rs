//! Accepting connections, and the way out: refuse new work, finish the old, then leave.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::listener::TimedListener;
use super::router::router;
use super::state::{App, Stage};

/// How long last bytes may take to reach the clients.
const FLUSH: Duration = Duration::from_secs(5);

/// Serves until `stop` completes, then drains: new requests are refused while those accepted have
/// `drain_timeout` to finish, after which they end with an error. Returns whether all finished.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
    drain_timeout: Duration,
) -> io::Result<bool> {
    let listener = TimedListener::new(listener, app.limits.write_timeout);
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let closed = async {
        let _ = closed.await;
    };
    let server = axum::serve(listener, router(Arc::clone(&app))).with_graceful_shutdown(closed);
    let mut server = tokio::spawn(async move { server.await });

    tokio::select! {
        result = &mut server => return result.unwrap_or_else(|e| Err(io::Error::other(e))).map(|()| true),
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
    drop(close);
    match timeout(FLUSH, &mut server).await {
        Ok(result) => result.unwrap_or_else(|e| Err(io::Error::other(e)))?,
        Err(_) => server.abort(),
    }
    Ok(clean)
}

/// Waits until no request is running.
async fn idle(app: &App) {
    while app.active() > 0 {
        sleep(Duration::from_millis(20)).await;
    }
}
