//! Rank 0's side of the store.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Asked, Greeting, MAGIC, Until, write_answer, write_verdict};
use super::{PATIENCE, POLL, StoreError};

/// Connections at once that have not been accepted as a rank's.
const STRANGERS: usize = 64;

/// Keys at once.
const KEYS: usize = 1 << 16;

/// A store that listens. Dropping it closes all connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    size: usize,
    token: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    values: HashMap<String, Vec<u8>>,
    /// Connections of ranks.
    ranks: HashMap<u32, TcpStream>,
    strangers: usize,
    is_closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener on the loopback interface alone, or on all, for both versions of IP.
pub fn bind(port: u16, is_local: bool) -> io::Result<TcpListener> {
    match is_local {
        true => TcpListener::bind((Ipv4Addr::LOCALHOST, port)),
        false => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
    }
}

impl Server {
    /// Listens for `size` ranks with this token, on the loopback interface alone or on all.
    ///
    /// # Errors
    /// The port is taken, or forbidden.
    pub fn listen(port: u16, is_local: bool, size: usize, token: &str) -> Result<Self, StoreError> {
        let failed = |error: io::Error| {
            let reason = match error.kind() {
                io::ErrorKind::AddrInUse => "another process does; give --master-port".to_owned(),
                _ => error.to_string(),
            };
            let host = if is_local { "127.0.0.1" } else { "*" };
            StoreError::Listen { address: format!("{host}:{port}"), reason }
        };
        let listener = bind(port, is_local).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared =
            Arc::new(Shared { size, token: token.to_owned(), state: Mutex::default(), changed: Condvar::new() });
        let of = Arc::clone(&shared);
        thread::Builder::new().name("store".into()).spawn(move || accept(&listener, &of)).map_err(failed)?;
        Ok(Self { address, shared })
    }

    /// Where.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until all ranks have gone, but no longer than `at_most`; then closes.
    pub fn close(self, at_most: Duration) {
        let begun = Instant::now();
        let mut state = self.shared.lock();
        while !state.ranks.is_empty() {
            let left = at_most.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        for stream in state.ranks.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.address.port())), PATIENCE);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let mut state = shared.lock();
        if state.is_closed {
            return;
        }
        // Too many files, say: it passes.
        let Ok(stream) = stream else {
            drop(state);
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        if state.strangers >= STRANGERS {
            continue;
        }
        state.strangers += 1;
        drop(state);
        let of = Arc::clone(shared);
        let spawned = thread::Builder::new().name("store".into()).spawn(move || serve(stream, &of));
        if spawned.is_err() {
            shared.lock().strangers -= 1;
        }
    }
}

/// One connection.
fn serve(mut stream: TcpStream, shared: &Shared) {
    let admitted = admit(&mut stream, shared);
    shared.lock().strangers -= 1;
    let Some(rank) = admitted else { return };
    let _ = write_verdict(&mut stream, None).and_then(|()| answer(&mut stream, shared));
    shared.lock().ranks.remove(&rank);
    shared.changed.notify_all();
}

/// The rank that a greeting is of; the one who is refused hears why.
fn admit(stream: &mut TcpStream, shared: &Shared) -> Option<u32> {
    stream.set_nodelay(true).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let greeting = Greeting::read(&mut Until { stream, end: Instant::now() + PATIENCE }, MAGIC).ok()?;
    // A wait for a key takes time, and so does a rank that has nothing to ask.
    stream.set_read_timeout(None).ok()?;
    let clone = stream.try_clone().ok()?;
    let refused = {
        let mut state = shared.lock();
        let refused = refusal(&greeting, shared, &state);
        if refused.is_none() {
            state.ranks.insert(greeting.rank, clone);
        }
        refused
    };
    match refused {
        None => Some(greeting.rank),
        Some(reason) => {
            let _ = write_verdict(stream, Some(&reason));
            None
        }
    }
}

fn refusal(greeting: &Greeting, shared: &Shared, state: &State) -> Option<String> {
    let Greeting { rank, size, token } = greeting;
    if *token != shared.token {
        return Some("its job token is another one; two jobs may share a port".into());
    }
    if *size as usize != shared.size || rank >= size {
        return Some(format!("it is rank {rank} of {size}, and rank 0 is one of {}", shared.size));
    }
    if state.is_closed {
        return Some("the job has ended".into());
    }
    state.ranks.contains_key(rank).then(|| format!("another process is rank {rank} already"))
}

fn answer(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        match Asked::read(stream)? {
            Asked::Set { key, value } => {
                let mut state = shared.lock();
                if state.values.len() < KEYS || state.values.contains_key(&key) {
                    state.values.insert(key, value);
                }
                drop(state);
                shared.changed.notify_all();
                write_answer(stream, None)?;
            }
            Asked::Wait { key, at_most } => {
                let value = wait(shared, &key, at_most.min(POLL));
                write_answer(stream, value.as_deref())?;
            }
        }
    }
}

fn wait(shared: &Shared, key: &str, at_most: Duration) -> Option<Vec<u8>> {
    let begun = Instant::now();
    let mut state = shared.lock();
    loop {
        if let Some(value) = state.values.get(key) {
            return Some(value.clone());
        }
        let left = at_most.saturating_sub(begun.elapsed());
        if left.is_zero() || state.is_closed {
            return None;
        }
        state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}
