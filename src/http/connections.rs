//! How many connections there are, and which of them may go: idle ones make room for new ones.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;

/// All connections.
#[derive(Debug)]
pub struct Connections {
    limit: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: usize,
    /// Idle ones by the order in which they became so.
    idle: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

impl Connections {
    /// None yet, and never more than `limit`.
    pub fn new(limit: usize) -> Self {
        Self { limit, table: Mutex::default() }
    }

    /// Open connections.
    pub fn count(&self) -> usize {
        self.table().open
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a new connection, which is idle. At the limit the one that has been idle for longest is told to
    /// close; `None` if all are busy.
    pub fn open(self: &Arc<Self>) -> Option<Connection> {
        let mut table = self.table();
        if table.open >= self.limit {
            let (_, evicted) = table.idle.pop_first()?;
            evicted.notify_one();
        }
        table.open += 1;
        let evicted = Arc::new(Notify::new());
        let place = table.rest(&evicted);
        drop(table);
        Some(Connection { all: Arc::clone(self), evicted, place: Mutex::new(place) })
    }
}

impl Table {
    fn rest(&mut self, evicted: &Arc<Notify>) -> u64 {
        let place = self.next;
        self.next += 1;
        self.idle.insert(place, Arc::clone(evicted));
        place
    }
}

/// One connection, as long as it is open.
#[derive(Debug)]
pub struct Connection {
    all: Arc<Connections>,
    evicted: Arc<Notify>,
    /// Its last place among the idle ones.
    place: Mutex<u64>,
}

impl Connection {
    /// Completes when the connection is to close.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// It has a request, as long as the guard is there. (HTTP/1: one at a time.)
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.all.table().idle.remove(&*self.place());
        Busy(Arc::clone(self))
    }

    fn place(&self) -> MutexGuard<'_, u64> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let place = *self.place();
        let mut table = self.all.table();
        table.idle.remove(&place);
        table.open -= 1;
    }
}

/// A request on a connection.
#[derive(Debug)]
pub struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        let place = self.0.all.table().rest(&self.0.evicted);
        *self.0.place() = place;
    }
}

/// A response's body, during which its connection is busy.
pub struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl BusyBody {
    /// The body, and the guard that goes with it.
    pub fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_makes_room() {
        let all = Arc::new(Connections::new(2));
        let [first, second] = [(); 2].map(|()| Arc::new(all.open().unwrap()));
        let busy = first.busy();
        // The first has become idle after the second.
        drop(busy);
        let third = Arc::new(all.open().unwrap());
        second.evicted().await;
        assert_eq!(all.count(), 3);
        drop(second);
        let (_first, _third) = (first.busy(), third.busy());
        assert!(all.open().is_none(), "all are busy");
        drop(_first);
        drop(first);
        assert_eq!(all.count(), 1);
        let fourth = all.open().unwrap();
        drop(fourth);
        drop((_third, third));
        assert_eq!((all.count(), all.table().idle.len()), (0, 0));
    }
}
