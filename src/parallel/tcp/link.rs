//! Connections of a rank to all others: frames, signs of life, and how their end is noticed.
//!
//! A frame is a header of 32 bytes, little-endian, and a payload:
//!
//! ```text
//! 0 what   1 kind of call   2 root (u16)   4 group (u32)   8 number of the call   16 numbers of it   24 bytes that follow
//! ```

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::parallel::CommError;

/// Numbers of a frame, at most.
pub(super) const CHUNK: usize = 1 << 18;

const HEADER: usize = 32;

/// How often a process says that it lives, and when one that does not is taken for lost.
///
/// Silence is counted in ticks, not in time: when all processes are stopped for a while and go on, as machines do that
/// sleep, nobody is lost.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    /// Between two signs of life.
    pub tick: Duration,
    /// Ticks of silence after which a rank is lost.
    pub ticks: u32,
}

impl Default for Pulse {
    /// Lost after 15 seconds.
    fn default() -> Self {
        Self { tick: Duration::from_secs(1), ticks: 15 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast(u16),
    Barrier,
}

impl Kind {
    fn code(self) -> (u8, u16) {
        match self {
            Self::AllReduce => (0, 0),
            Self::AllGather => (1, 0),
            Self::ReduceScatter => (2, 0),
            Self::Broadcast(root) => (3, root),
            Self::Barrier => (4, 0),
        }
    }

    fn of(code: u8, root: u16) -> Option<Self> {
        let all = [Self::AllReduce, Self::AllGather, Self::ReduceScatter, Self::Broadcast(root), Self::Barrier];
        all.get(usize::from(code)).copied()
    }
}

/// A call of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub group: u32,
    /// How many were before it.
    pub number: u64,
    pub kind: Kind,
    /// Numbers of a rank's slices.
    pub len: u64,
}

const DATA: u8 = 0;
const ALIVE: u8 = 1;
const ABORT: u8 = 2;
const PANIC: u8 = 3;
const BYE: u8 = 4;

impl Call {
    const NONE: Self = Self { group: 0, number: 0, kind: Kind::Barrier, len: 0 };

    /// The beginning of a frame with so many numbers.
    pub fn frame(&self, numbers: usize) -> Vec<u8> {
        self.header(DATA, 4 * numbers)
    }

    fn header(&self, what: u8, bytes: usize) -> Vec<u8> {
        let (kind, root) = self.kind.code();
        let mut out = Vec::with_capacity(HEADER + bytes);
        out.extend([what, kind]);
        out.extend(root.to_le_bytes());
        out.extend(self.group.to_le_bytes());
        for n in [self.number, self.len, bytes as u64] {
            out.extend(n.to_le_bytes());
        }
        out
    }

    /// What a header says, and the bytes that follow.
    fn parse(header: &[u8; HEADER]) -> Option<(u8, Self, usize)> {
        let [what, kind, root @ ..] = header.first_chunk::<4>()?;
        let kind = Kind::of(*kind, u16::from_le_bytes(*root))?;
        let group = u32::from_le_bytes(*header[4..].first_chunk()?);
        let long = |at: usize| Some(u64::from_le_bytes(*header[at..].first_chunk()?));
        let bytes = long(24)?;
        let fits = bytes <= 4 * CHUNK as u64 && bytes.is_multiple_of(if *what == DATA { 4 } else { 1 });
        fits.then_some((*what, Self { group, number: long(8)?, kind, len: long(16)? }, bytes as usize))
    }
}

/// A rank's connections.
pub(super) struct Mesh {
    /// Of the world.
    pub rank: usize,
    /// By rank; none to itself.
    links: Vec<Option<Arc<Mutex<TcpStream>>>>,
    pulse: Pulse,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Ends all calls of all groups.
    failure: Option<CommError>,
    /// By rank: what has come and was not asked for yet, and whether nothing more will.
    inbox: Vec<VecDeque<(Call, Vec<u8>)>>,
    left: Vec<bool>,
    /// Threads that read.
    readers: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first failure is the one that is told.
    fn fail(&self, error: CommError) -> CommError {
        let first = self.lock().failure.get_or_insert(error).clone();
        self.changed.notify_all();
        first
    }
}

impl Mesh {
    /// Of streams to all other ranks, by their ranks.
    pub fn new(rank: usize, streams: Vec<Option<TcpStream>>, pulse: Pulse) -> io::Result<Self> {
        let size = streams.len();
        let inbox = (0..size).map(|_| VecDeque::new()).collect();
        let state = State { failure: None, inbox, left: vec![false; size], readers: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut mesh = Self { rank, links: Vec::with_capacity(size), pulse, shared };
        for (peer, stream) in streams.into_iter().enumerate() {
            let Some(stream) = stream else {
                mesh.links.push(None);
                continue;
            };
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(pulse.tick))?;
            stream.set_write_timeout(Some(pulse.tick))?;
            let writer = Arc::new(Mutex::new(stream.try_clone()?));
            mesh.links.push(Some(Arc::clone(&writer)));
            let reader = Reader { stream, peer, writer, pulse, shared: Arc::clone(&mesh.shared), said: Instant::now() };
            mesh.shared.lock().readers += 1;
            let spawned = thread::Builder::new().name(format!("rank {rank} from {peer}")).spawn(move || reader.run());
            if let Err(error) = spawned {
                mesh.shared.lock().readers -= 1;
                return Err(error);
            }
        }
        Ok(mesh)
    }

    /// # Errors
    /// Ranks have failed already.
    pub fn check(&self) -> Result<(), CommError> {
        self.shared.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Sends a frame.
    pub fn send(&self, to: usize, frame: &[u8]) -> Result<(), CommError> {
        let Some(link) = &self.links[to] else { return Ok(()) };
        let sent = write(link, frame, self.pulse.ticks, || self.shared.lock().failure.is_some());
        sent.map_err(|error| {
            let gone = self.shared.lock().left[to];
            self.shared.fail(if gone { CommError::Left { rank: to } } else { lost(to, &error) })
        })
    }

    /// The next frame of a rank, which must be of this call.
    pub fn receive(&self, from: usize, call: &Call) -> Result<Vec<u8>, CommError> {
        let mut state = self.shared.lock();
        let (other, bytes) = loop {
            if let Some(message) = state.inbox[from].pop_front() {
                break message;
            }
            if let Some(error) = &state.failure {
                return Err(error.clone());
            }
            if state.left[from] {
                return Err(CommError::Left { rank: from });
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        if other == *call {
            return Ok(bytes);
        }
        Err(self.disagree(format!(
            "rank {} calls {:?} of {} numbers, rank {from} {:?} of {}",
            self.rank, call.kind, call.len, other.kind, other.len
        )))
    }

    /// Ends all: calls do not belong together.
    pub fn disagree(&self, what: String) -> CommError {
        let error = self.shared.fail(CommError::Mismatch(what));
        self.tell(ABORT, &error.to_string());
        error
    }

    /// Tells all others that this rank ends with an error.
    pub fn abort(&self, reason: &str) {
        self.shared.fail(CommError::Failed { rank: self.rank, reason: reason.to_owned() });
        self.tell(ABORT, reason);
    }

    fn tell(&self, what: u8, text: &str) {
        const MOST: usize = 4096;
        let text = &text.as_bytes()[..text.len().min(MOST)];
        let mut frame = Call::NONE.header(what, text.len());
        frame.extend_from_slice(text);
        for link in self.links.iter().flatten() {
            // Who does not take it does not live.
            let _ = write(link, &frame, 2, || false);
        }
    }
}

impl Drop for Mesh {
    /// Says goodbye, and leaves the connections a moment, so that what was sent arrives.
    fn drop(&mut self) {
        self.tell(if thread::panicking() { PANIC } else { BYE }, "");
        for link in self.links.iter().flatten() {
            let _ = link.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Write);
        }
        let (mut state, mut left) = (self.shared.lock(), self.pulse.ticks.min(2));
        while state.readers > 0 && left > 0 {
            let (next, waited) =
                self.shared.changed.wait_timeout(state, self.pulse.tick).unwrap_or_else(PoisonError::into_inner);
            state = next;
            left -= u32::from(waited.timed_out());
        }
    }
}

fn is_tick(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn lost(rank: usize, error: &io::Error) -> CommError {
    CommError::Lost { rank, reason: error.to_string() }
}

/// Writes all, unless nothing at all is taken for so many ticks, or the caller has a reason to stop.
fn write(link: &Mutex<TcpStream>, mut bytes: &[u8], ticks: u32, stop: impl Fn() -> bool) -> io::Result<()> {
    let mut stream = link.lock().unwrap_or_else(PoisonError::into_inner);
    let mut silent = 0;
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => (bytes, silent) = (&bytes[n..], 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_tick(&error) => {
                silent += 1;
                if silent >= ticks || stop() {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes nothing any more"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The thread that reads one connection.
struct Reader {
    stream: TcpStream,
    peer: usize,
    writer: Arc<Mutex<TcpStream>>,
    pulse: Pulse,
    shared: Arc<Shared>,
    /// When this process last said that it lives.
    said: Instant,
}

impl Reader {
    fn run(mut self) {
        let ended = self.read();
        if let Err(error) = ended {
            self.shared.fail(error);
        }
        let mut state = self.shared.lock();
        state.left[self.peer] = true;
        state.readers -= 1;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Reads until the other side says goodbye.
    fn read(&mut self) -> Result<(), CommError> {
        loop {
            let mut header = [0; HEADER];
            self.fill(&mut header)?;
            let frame = Call::parse(&header);
            let (what, call, len) = frame.ok_or_else(|| self.lost("what it sends is not of this protocol"))?;
            let mut payload = vec![0; len];
            self.fill(&mut payload)?;
            let text = || String::from_utf8_lossy(&payload).into_owned();
            match what {
                DATA => {
                    self.shared.lock().inbox[self.peer].push_back((call, payload));
                    self.shared.changed.notify_all();
                }
                ALIVE => {}
                ABORT => return Err(CommError::Failed { rank: self.peer, reason: text() }),
                PANIC => return Err(CommError::Panicked { rank: self.peer }),
                BYE => return Ok(()),
                _ => return Err(self.lost("what it sends is not of this protocol")),
            }
        }
    }

    fn lost(&self, reason: &str) -> CommError {
        CommError::Lost { rank: self.peer, reason: reason.to_owned() }
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), CommError> {
        let mut silent = 0;
        while !bytes.is_empty() {
            match self.stream.read(bytes) {
                Ok(0) => return Err(self.lost("its connection was closed")),
                Ok(n) => {
                    bytes = &mut std::mem::take(&mut bytes)[n..];
                    silent = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_tick(&error) => {
                    silent += 1;
                    if silent >= self.pulse.ticks {
                        let silence = self.pulse.tick * self.pulse.ticks;
                        return Err(self.lost(&format!("nothing was heard of it for {silence:?}")));
                    }
                }
                Err(error) => return Err(lost(self.peer, &error)),
            }
            self.live();
        }
        Ok(())
    }

    /// Says that this process lives, when it is time. While numbers are being sent they say so.
    fn live(&mut self) {
        if self.said.elapsed() < self.pulse.tick {
            return;
        }
        self.said = Instant::now();
        if self.writer.try_lock().is_ok() {
            // That it cannot be written is noticed by reading.
            let _ = write(&self.writer, &Call::NONE.header(ALIVE, 0), self.pulse.ticks, || false);
        }
    }
}
