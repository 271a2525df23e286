//! How processes that know only where rank 0 listens find each other: a small store of keys and values in rank 0.
//!
//! A connection begins with a greeting (who, of how many, the job's token), which the store accepts or refuses with a
//! reason. Then come requests, one at a time: set, or wait for a key for a moment. All of them may be repeated, so a
//! client whose connection breaks makes a new one. What a stranger sends, or does not send, costs a thread for some
//! seconds and nothing else: greetings have a deadline, sizes have limits, and strangers may not fill all places.
//!
//! The token keeps jobs apart that meet by mistake. It is sent as it is: the network between the nodes is trusted, as it
//! must be for what ranks exchange.

pub(super) mod server;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub(super) mod wire;

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

pub use self::server::Server;
use self::wire::{Greeting, MAGIC, Request};

/// Bytes of what a group of ranks is told once: what NCCL calls a unique id.
pub const ID_BYTES: usize = 128;

/// How long one step of a conversation may take that involves no waiting.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A wait is asked for again after this time, so that a client that is gone is noticed.
const POLL: Duration = Duration::from_secs(2);

/// Ranks cannot meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Rank 0 cannot listen.
    #[error("rank 0 cannot listen at {address}: {reason}")]
    Listen {
        /// Where.
        address: String,
        /// The system's reason.
        reason: String,
    },
    /// Rank 0 is not there.
    #[error("rank 0 was not reached at {address} within {waited:?}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// How long it was tried.
        waited: Duration,
        /// Why the last attempt failed.
        reason: String,
    },
    /// Rank 0 does not want this one.
    #[error("rank 0 at {address} refuses this process: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// In its words.
        reason: String,
    },
    /// Nobody has said it.
    #[error("{what} was not there within {waited:?}")]
    Missing {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// Too long for the store.
    #[error("a key of {key} bytes or a value of {value} is too long for the store")]
    TooLong {
        /// Bytes of the key.
        key: usize,
        /// Bytes of the value.
        value: usize,
    },
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Which rank.
    pub rank: usize,
    /// Of how many.
    pub world_size: usize,
    /// The job's.
    pub token: String,
}

/// A rank's connection to the store.
#[derive(Debug)]
pub struct Store {
    hello: Hello,
    host: String,
    port: u16,
    deadline: Duration,
    stream: TcpStream,
}

impl Store {
    /// Connects to rank 0, again and again until `deadline`: it may be started later. No wait lasts longer either.
    ///
    /// # Errors
    /// Nobody is there by then, or this process is refused.
    pub fn connect(host: &str, port: u16, hello: Hello, deadline: Duration) -> Result<Self, StoreError> {
        let stream = reach(host, port, &hello, deadline)?;
        Ok(Self { hello, host: host.to_owned(), port, deadline, stream })
    }

    /// This host's address, as seen from rank 0.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn local_address(&self) -> io::Result<std::net::IpAddr> {
        Ok(self.stream.local_addr()?.ip())
    }

    /// The address at which rank 0 answered.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn peer_address(&self) -> io::Result<std::net::IpAddr> {
        Ok(self.stream.peer_addr()?.ip())
    }

    /// Sets a key. A value that is there is replaced.
    ///
    /// # Errors
    /// Rank 0 is lost.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.ask(&Request::set(key, value)?).map(drop)
    }

    /// What a key has now.
    ///
    /// # Errors
    /// Rank 0 is lost.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask(&Request::wait(key, Duration::ZERO)?)
    }

    /// Waits until someone has set a key. `what` is what an error calls it.
    ///
    /// # Errors
    /// Nobody has by the deadline, or rank 0 is lost.
    pub fn wait(&mut self, key: &str, what: &str) -> Result<Vec<u8>, StoreError> {
        let begun = Instant::now();
        loop {
            let left = self.deadline.saturating_sub(begun.elapsed());
            if let Some(value) = self.ask(&Request::wait(key, left.min(POLL))?)? {
                return Ok(value);
            }
            if left.is_zero() {
                return Err(StoreError::Missing { what: what.to_owned(), waited: self.deadline });
            }
        }
    }

    /// Waits until all ranks have come to the barrier of this name, which is used once.
    ///
    /// # Errors
    /// One has not by the deadline, and is named; or rank 0 is lost.
    pub fn barrier(&mut self, name: &str) -> Result<(), StoreError> {
        self.set(&format!("barrier/{name}/{}", self.hello.rank), &[])?;
        for rank in 0..self.hello.world_size {
            self.wait(&format!("barrier/{name}/{rank}"), &format!("rank {rank} at the barrier {name:?}"))?;
        }
        Ok(())
    }

    /// One opaque id for all ranks of a group: its first makes it, the others wait for it.
    ///
    /// # Errors
    /// The first has not by the deadline, or rank 0 is lost.
    pub fn group_id(
        &mut self,
        group: &str,
        make: Option<&dyn Fn() -> [u8; ID_BYTES]>,
    ) -> Result<[u8; ID_BYTES], StoreError> {
        let key = format!("id/{group}");
        if let Some(make) = make {
            let id = make();
            self.set(&key, &id)?;
            return Ok(id);
        }
        let what = format!("the id of group {group:?}");
        let value = self.wait(&key, &what)?;
        <[u8; ID_BYTES]>::try_from(value).map_err(|_| StoreError::Missing { what, waited: self.deadline })
    }

    /// Asks; when the connection breaks, on a new one.
    fn ask(&mut self, request: &Request<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        let begun = Instant::now();
        loop {
            match request.exchange(&mut self.stream) {
                Ok(answer) => return Ok(answer),
                Err(_) => {
                    let left = self.deadline.saturating_sub(begun.elapsed());
                    self.stream = reach(&self.host, self.port, &self.hello, left)?;
                }
            }
        }
    }
}

/// A connection that rank 0 has accepted.
fn reach(host: &str, port: u16, hello: &Hello, deadline: Duration) -> Result<TcpStream, StoreError> {
    /// Between attempts, at first and at most.
    const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
    let (begun, mut pause) = (Instant::now(), PAUSES[0]);
    let address = || format!("{host}:{port}");
    loop {
        let reason = match attempt(host, port, hello) {
            Ok(Greeted::Accepted(stream)) => return Ok(stream),
            Ok(Greeted::Refused(reason)) => return Err(StoreError::Refused { address: address(), reason }),
            Err(error) => error.to_string(),
        };
        let left = deadline.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(StoreError::Unreachable { address: address(), waited: deadline, reason });
        }
        thread::sleep(pause.min(left));
        pause = (2 * pause).min(PAUSES[1]);
    }
}

enum Greeted {
    Accepted(TcpStream),
    Refused(String),
}

fn attempt(host: &str, port: u16, hello: &Hello) -> io::Result<Greeted> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            // A port that nobody listens on may be given to the very connection that asks for it.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = io::Error::from(io::ErrorKind::ConnectionRefused);
            }
            Ok(stream) => return greet(stream, hello),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn greet(mut stream: TcpStream, hello: &Hello) -> io::Result<Greeted> {
    stream.set_nodelay(true)?;
    // Longer than the store makes anyone wait for a key.
    stream.set_read_timeout(Some(PATIENCE + POLL))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let greeting = Greeting { rank: hello.rank as u32, size: hello.world_size as u32, token: hello.token.clone() };
    greeting.write(&mut stream, MAGIC)?;
    match wire::read_verdict(&mut stream)? {
        None => Ok(Greeted::Accepted(stream)),
        Some(reason) => Ok(Greeted::Refused(reason)),
    }
}
