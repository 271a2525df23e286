//! How processes become ranks: they meet at the store, tell where each listens, and connect.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::link::Mesh;
use super::{Pulse, Tcp};
use crate::parallel::store::server::bind;
use crate::parallel::store::wire::{Greeting, Until, read_verdict, write_verdict};
use crate::parallel::store::{Hello, PATIENCE, Server, Store, StoreError};
use crate::parallel::{CommError, Communicator, Layout, Ranks, Share, World};

/// The first bytes of a connection between ranks; the last is the version.
const MAGIC: &[u8; 8] = b"LIMARK\0\x01";

/// Connections at once that are no rank's yet.
const STRANGERS: usize = 64;

impl Ranks {
    /// The ranks of this process, in order, connected to those of all others; each is to be moved into its own thread.
    /// Process `p` of `n` has the ranks from `p · ranks / n` on. Returns when all are there.
    ///
    /// # Errors
    /// The layout's ranks cannot be divided by the processes, or somebody is not there by `deadline`.
    pub fn join(world: &World, layout: Layout, deadline: Duration, pulse: Pulse) -> Result<Vec<Self>, CommError> {
        let (ranks, processes) = (layout.ranks(), world.world_size);
        if !ranks.is_multiple_of(processes) {
            return Err(CommError::Divide { ranks, processes });
        }
        let here = ranks / processes;
        let first = world.rank * here;
        let is_local = world.nodes == 1 || world.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let server = match world.rank {
            0 => Some(Server::listen(world.port, is_local, ranks, &world.job)?),
            _ => None,
        };
        let meet = |rank: usize| meet(world, Share { rank, of: ranks }, is_local, deadline, pulse);
        let meshes = thread::scope(|scope| {
            let meet = &meet;
            let all: Vec<_> = (first..first + here).map(|rank| scope.spawn(move || meet(rank))).collect();
            all.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect::<Vec<_>>()
        });
        let meshes = meshes.into_iter().collect::<Result<Vec<_>, _>>()?;
        if let Some(server) = server {
            server.close(PATIENCE);
        }
        let of = |(at, mesh)| Self::of_mesh(mesh, layout, Share { rank: at, of: here });
        Ok(meshes.into_iter().enumerate().map(of).collect())
    }

    fn of_mesh(mesh: Mesh, layout: Layout, here: Share) -> Self {
        let (tensor, data, mesh) = (layout.tensor, layout.data, Arc::new(mesh));
        let (t, d) = (mesh.rank % tensor, mesh.rank / tensor);
        let group = |id: u32, members: Vec<usize>| -> Arc<dyn Communicator> {
            Arc::new(Tcp::new(Arc::clone(&mesh), id, members).expect("a rank is in its own groups"))
        };
        Self {
            layout,
            here,
            world: group(0, (0..layout.ranks()).collect()),
            tensor: group(1, (0..tensor).map(|t| d * tensor + t).collect()),
            data: group(2, (0..data).map(|d| d * tensor + t).collect()),
        }
    }
}

/// One rank's way to its connections.
fn meet(world: &World, place: Share, is_local: bool, deadline: Duration, pulse: Pulse) -> Result<Mesh, CommError> {
    let begun = Instant::now();
    let left = || deadline.saturating_sub(begun.elapsed());
    let Share { rank, of: ranks } = place;
    let failed = |what: &str| {
        let what = format!("rank {rank}: {what}");
        move |error: io::Error| CommError::Network(format!("{what}: {error}"))
    };
    let hello = Hello { rank, world_size: ranks, token: world.job.clone() };
    let mut store = Store::connect(&world.host, world.port, hello, deadline)?;
    let listener = bind(0, is_local).map_err(failed("cannot listen"))?;
    let address = listener.local_addr().map_err(failed("cannot listen"))?;
    // How others reach the host of rank 0 they know; a host does not know how it is seen from elsewhere.
    let own = store.local_address().map_err(failed("the connection to rank 0 is lost"))?;
    let own = if world.rank == 0 { String::new() } else { own.to_string() };
    store.set(&format!("rank/{rank}"), format!("{own} {}", address.port()).as_bytes())?;
    let greeting = Greeting { rank: rank as u32, size: ranks as u32, token: world.job.clone() };
    let acceptor = Acceptor::start(listener, greeting.clone()).map_err(failed("cannot listen"))?;
    let mut streams: Vec<Option<TcpStream>> = (0..ranks).map(|_| None).collect();
    for peer in 0..rank {
        let said = store.wait(&format!("rank/{peer}"), &format!("rank {peer}"))?;
        let first = store.peer_address().map_err(failed("the connection to rank 0 is lost"))?;
        let wrong = || CommError::Network(format!("rank {peer} says no address where it listens"));
        let to = address_of(&said, first).ok_or_else(wrong)?;
        let stream = connect(to, &greeting, left());
        streams[peer] = Some(stream.map_err(failed(&format!("rank {peer} is not reached at {to}")))?);
    }
    while let Some(missing) = (rank + 1..ranks).find(|peer| streams[*peer].is_none()) {
        // Its own word goes first: a process that was never there has none.
        match acceptor.streams.recv_timeout(left()) {
            Ok((peer, stream)) => streams[peer] = Some(stream),
            Err(_) => return Err(StoreError::Missing { what: format!("rank {missing}"), waited: deadline }.into()),
        }
    }
    drop(acceptor);
    store.barrier("connected")?;
    Mesh::new(rank, streams, pulse).map_err(failed("a connection cannot be used"))
}

/// Where a rank listens; one of rank 0's process does at the address where the store is.
fn address_of(said: &[u8], first: IpAddr) -> Option<SocketAddr> {
    let (ip, port) = std::str::from_utf8(said).ok()?.split_once(' ')?;
    let ip = if ip.is_empty() { first } else { ip.parse().ok()? };
    Some(SocketAddr::new(ip, port.parse().ok()?))
}

fn connect(to: SocketAddr, greeting: &Greeting, deadline: Duration) -> io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        let attempt = || -> io::Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(2 * PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            greeting.write(&mut stream, MAGIC)?;
            match read_verdict(&mut stream)? {
                None => Ok(stream),
                Some(reason) => Err(io::Error::other(reason)),
            }
        };
        match attempt() {
            Ok(stream) => return Ok(stream),
            Err(error) if begun.elapsed() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Takes connections of higher ranks.
struct Acceptor {
    streams: mpsc::Receiver<(usize, TcpStream)>,
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Acceptor {
    fn start(listener: TcpListener, own: Greeting) -> io::Result<Self> {
        let (sender, streams) = mpsc::channel();
        let (is_over, address) = (Arc::new(AtomicBool::new(false)), listener.local_addr()?);
        let over = Arc::clone(&is_over);
        thread::Builder::new().name("accept".into()).spawn(move || {
            let strangers = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else {
                    thread::sleep(Duration::from_millis(50));
                    continue;
                };
                if strangers.fetch_add(1, Ordering::SeqCst) >= STRANGERS {
                    strangers.fetch_sub(1, Ordering::SeqCst);
                    continue;
                }
                let (sender, own, count) = (sender.clone(), own.clone(), Arc::clone(&strangers));
                let admit = move || {
                    if let Some(admitted) = admit(stream, &own) {
                        let _ = sender.send(admitted);
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                };
                if thread::Builder::new().name("accept".into()).spawn(admit).is_err() {
                    strangers.fetch_sub(1, Ordering::SeqCst);
                }
            }
        })?;
        Ok(Self { streams, address, is_over })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.address.port())), PATIENCE);
    }
}

/// A connection of a higher rank of the same job.
fn admit(mut stream: TcpStream, own: &Greeting) -> Option<(usize, TcpStream)> {
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let end = Instant::now() + PATIENCE;
    let other = Greeting::read(&mut Until { stream: &stream, end }, MAGIC).ok()?;
    let belongs = other.token == own.token && other.size == own.size && other.rank > own.rank && other.rank < own.size;
    let refused = (!belongs).then_some("it is of another job");
    write_verdict(&mut stream, refused).and_then(|()| stream.flush()).ok()?;
    belongs.then_some((other.rank as usize, stream))
}
