//! Collectives over sockets against those of threads, bit for bit; lost, silent and disagreeing ranks; strangers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::parallel::{Launcher, Layout, Local, Ranks, World};

const LONG: Duration = Duration::from_secs(60);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn world(rank: usize, world_size: usize, port: u16) -> World {
    World {
        rank,
        world_size,
        local_rank: rank,
        local_size: world_size,
        nodes: 1,
        host: "localhost".into(),
        port,
        job: "tests".into(),
        launcher: Launcher::Torchrun,
    }
}

fn quick() -> Pulse {
    Pulse { tick: Duration::from_millis(20), ticks: 10 }
}

/// What every rank gets from `job`, in rank order; "processes" are threads here.
fn over<T: Send>(processes: usize, layout: Layout, pulse: Pulse, job: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let port = free_port();
    thread::scope(|scope| {
        let job = &job;
        let process = move |rank: usize| {
            let ranks = Ranks::join(&world(rank, processes, port), layout, LONG, pulse).unwrap();
            let run = |ranks: Ranks| scope.spawn(move || job(ranks));
            ranks.into_iter().map(run).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        };
        let all: Vec<_> = (0..processes).map(|rank| scope.spawn(move || process(rank))).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn data(data: usize) -> Layout {
    Layout { tensor: 1, data }
}

fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + rank * 104_729) % 2003) as f32 / 97.0 - 10.0).collect()
}

/// Everything that a rank can ask, with lengths that divide by no number of ranks and more than a frame holds.
fn everything(group: &dyn Communicator) -> Vec<Vec<u32>> {
    let rank = group.rank();
    let mut out = Vec::new();
    let mut keep = |values: &[f32]| out.push(values.iter().map(|v| v.to_bits()).collect());
    for len in [0, 1, 3, 7, 4099, CHUNK + 5] {
        let mut values = numbers(rank, len);
        group.all_reduce(&mut values).unwrap();
        keep(&values);
        let (mut one, mut two) = (numbers(rank, len), numbers(rank + 1, len / 2));
        group.reduce_scatter_each(&mut [&mut one, &mut two]).unwrap();
        [&one, &two].iter().for_each(|values| keep(values));
        group.all_gather_each(&mut [&mut one, &mut two]).unwrap();
        [&one, &two].iter().for_each(|values| keep(values));
        let mut values = numbers(rank, len);
        group.reduce_scatter(&mut values).unwrap();
        group.all_gather(&mut values).unwrap();
        keep(&values);
        group.broadcast(len % group.world_size(), &mut values[..len / 3]).unwrap();
        keep(&values);
        group.barrier().unwrap();
    }
    let mut wide = [0.1 + rank as f64, f64::MAX / 8.0];
    group.all_reduce_f64(&mut wide).unwrap();
    out.push(wide.iter().flat_map(|v| [v.to_bits() as u32, (v.to_bits() >> 32) as u32]).collect());
    let text = b"any bytes, of any length";
    for len in 0..text.len() {
        assert_eq!(group.broadcast_bytes((rank == 0).then_some(&text[..len])).unwrap(), &text[..len]);
    }
    out
}

#[test]
fn numbers_are_those_of_threads() {
    for ranks in 1..5 {
        let local = thread::scope(|scope| {
            let all: Vec<_> =
                Local::group(ranks, None).into_iter().map(|l| scope.spawn(move || everything(&l))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let tcp = over(ranks, data(ranks), Pulse::default(), |ranks| everything(&*ranks.world));
        assert!(tcp == local, "{ranks} ranks");
    }
}

/// Groups are rows and columns, whether ranks are processes or threads of fewer ones.
#[test]
fn ranks_are_in_their_groups() {
    for processes in [6, 3, 2, 1] {
        let sums = over(processes, Layout { tensor: 2, data: 3 }, Pulse::default(), |ranks| {
            let of = |group: &dyn Communicator| {
                let mut value = [10f32.powi(ranks.rank() as i32)];
                group.all_reduce(&mut value).unwrap();
                value[0]
            };
            let sums = (of(&*ranks.tensor), of(&*ranks.data), of(&*ranks.world));
            (sums, ranks.tensor.rank(), ranks.data.rank(), ranks.here)
        });
        for (rank, ((tensor, data, world), t, d, here)) in sums.into_iter().enumerate() {
            assert_eq!((t, d), (rank % 2, rank / 2));
            assert_eq!(tensor, [11.0, 1100.0, 110_000.0][d]);
            assert_eq!((data, world), ([10_101.0, 101_010.0][t], 111_111.0));
            assert_eq!(here, Share { rank: rank % (6 / processes), of: 6 / processes });
        }
    }
    let error = Ranks::join(&world(0, 2, 1), data(3), LONG, quick()).err().unwrap().to_string();
    assert_eq!(error, "3 ranks cannot be shared evenly by 2 processes");
}

#[test]
fn ranks_that_fail_panic_or_leave_are_named() {
    let said = over(3, data(3), Pulse::default(), |ranks| {
        if ranks.rank() == 1 {
            ranks.world.abort("there is no memory");
        }
        let error = ranks.world.all_reduce(&mut [1.0]).unwrap_err();
        assert_eq!(ranks.data.barrier(), Err(error.clone()));
        error.to_string()
    });
    assert_eq!(said, ["rank 1 failed: there is no memory"; 3]);

    let said = over(2, data(2), Pulse::default(), |ranks| {
        let job = std::panic::AssertUnwindSafe(|| {
            let mut values = [0.0; 10];
            loop {
                if let Err(error) = ranks.data.all_reduce(&mut values) {
                    return error.to_string();
                }
                // As a rank's thread ends: what it holds is dropped on the way.
                let held = (ranks.rank() == 1).then(|| ranks.world.clone());
                assert!(held.is_none(), "rank 1 is killed");
            }
        });
        let ended = std::panic::catch_unwind(job);
        if ended.is_err() {
            ranks.world.abort("it panicked");
        }
        ended.unwrap_or_default()
    });
    assert_eq!(said, ["rank 1 failed: it panicked", ""]);

    // One leaves, after all had what they needed of it.
    let said = over(2, data(2), Pulse::default(), |ranks| {
        let mut value = [ranks.rank() as f32 * 7.0];
        ranks.world.broadcast(1, &mut value).unwrap();
        assert_eq!(value, [7.0]);
        if ranks.rank() == 1 {
            return None;
        }
        Some(ranks.world.all_reduce(&mut value).unwrap_err())
    });
    assert_eq!(said, [Some(CommError::Left { rank: 1 }), None]);
}

#[test]
fn calls_that_differ_are_refused_on_all_ranks() {
    let said = over(2, data(2), Pulse::default(), |ranks| {
        let len = 3 + ranks.rank();
        ranks.world.all_reduce(&mut vec![1.0; len]).unwrap_err().to_string()
    });
    for said in said {
        assert!(said.contains("ranks disagree: rank "), "{said}");
        assert!(said.contains("AllReduce of 3") && said.contains("AllReduce of 4"), "{said}");
    }
    let said = over(2, data(2), Pulse::default(), |ranks| match ranks.rank() {
        0 => ranks.world.barrier().unwrap_err().to_string(),
        _ => ranks.world.broadcast(0, &mut []).unwrap_err().to_string(),
    });
    assert!(said.iter().all(|e| e.contains("ranks disagree: ")), "{said:?}");
}

/// Two connected streams.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// Rank 0 of two; the other end of its connection is the test's.
fn facing(pulse: Pulse) -> (Tcp, TcpStream) {
    let (ours, theirs) = pair();
    let mesh = Mesh::new(0, vec![None, Some(ours)], pulse).unwrap();
    (Tcp::new(Arc::new(mesh), 0, vec![0, 1]).unwrap(), theirs)
}

/// A process that is killed, one that is stopped or cut off, one that sends nonsense: a clear error each, and no hang.
#[test]
fn lost_ranks_are_noticed() {
    let lost = |reason: &str| CommError::Lost { rank: 1, reason: reason.into() };
    let (rank, other) = facing(quick());
    drop(other);
    let error = rank.all_reduce(&mut [1.0; 4]).unwrap_err();
    assert!(matches!(&error, CommError::Lost { rank: 1, .. }), "{error}");
    assert_eq!(rank.barrier().unwrap_err(), error);

    let (rank, other) = facing(quick());
    assert_eq!(rank.broadcast(1, &mut [1.0]), Err(lost("nothing was heard of it for 200ms")));
    drop(other);

    // It reads no more: what is sent finds no room.
    let (rank, other) = facing(quick());
    let error = rank.all_reduce(&mut vec![1.0; 16 << 20]).unwrap_err().to_string();
    assert!(error.starts_with("rank 1 is lost: "), "{error}");
    drop(other);

    for nonsense in [&b"HTTP/1.1 400 Bad Request\r\n\r\nwhat do you mean"[..], &[0xff; 64], &[0, 0, 0, 0]] {
        let (rank, mut other) = facing(quick());
        other.write_all(nonsense).unwrap();
        let error = rank.broadcast(1, &mut [1.0]).unwrap_err().to_string();
        assert!(error.starts_with("rank 1 is lost: "), "{error}");
    }
}

/// A rank that computes for long is not lost: it says that it lives, and is heard.
#[test]
fn a_rank_at_work_is_waited_for() {
    let (tell, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let pulse = Pulse { tick: Duration::from_millis(10), ticks: 300 };
    let sums = over(2, data(2), pulse, |ranks| {
        let mut value = [1.0];
        match ranks.rank() {
            // Signs of life come while nothing else does.
            0 => {
                let (mine, mut theirs) = facing(pulse);
                theirs.set_read_timeout(Some(LONG)).unwrap();
                for _ in 0..5 {
                    theirs.read_exact(&mut [0; 32]).unwrap();
                }
                tell.send(()).unwrap();
                drop((theirs, mine));
            }
            _ => wait.lock().unwrap().recv().unwrap(),
        }
        ranks.world.all_reduce(&mut value).unwrap();
        value[0]
    });
    assert_eq!(sums, [2.0, 2.0]);
}

/// Who is missing is said by name, and strangers at the ports do not hinder those who belong.
#[test]
fn meeting() {
    let port = free_port();
    let short = Duration::from_millis(300);
    let alone = world(0, 2, port);
    let error = Ranks::join(&alone, data(2), short, quick()).err().unwrap().to_string();
    assert_eq!(error, "rank 1 was not there within 300ms");
    let error = Ranks::join(&world(1, 2, port), data(2), short, quick()).err().unwrap().to_string();
    assert!(error.starts_with(&format!("rank 0 was not reached at localhost:{port} within 300ms: ")), "{error}");

    let strangers: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..2)
            .map(|rank| {
                scope.spawn(move || Ranks::join(&world(rank, 2, port), data(2), LONG, Pulse::default()).unwrap())
            })
            .collect();
        let strangers = (0..10).filter_map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok()?;
            Some(stream)
        });
        let strangers = strangers.collect();
        let mut joined: Vec<Ranks> = all.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let (second, first) = (joined.pop().unwrap(), joined.pop().unwrap());
        let other = scope.spawn(move || second.world.barrier());
        first.world.barrier().unwrap();
        other.join().unwrap().unwrap();
        strangers
    });
    drop(strangers);

    // As on several machines: on all interfaces.
    let port = free_port();
    let other = |rank| World { nodes: 2, local_size: 1, ..world(rank, 2, port) };
    let ends = thread::scope(|scope| {
        let all: Vec<_> = (0..2)
            .map(|rank| {
                scope.spawn(move || {
                    let ranks = Ranks::join(&other(rank), data(2), LONG, Pulse::default()).unwrap();
                    ranks[0].world.barrier()
                })
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(ends, [Ok(()), Ok(())]);

    // Two jobs on one port.
    let port = free_port();
    thread::scope(|scope| {
        let first = scope.spawn(move || Ranks::join(&world(0, 2, port), data(2), Duration::from_secs(2), quick()));
        let other = World { job: "another".into(), ..world(1, 2, port) };
        let error = Ranks::join(&other, data(2), LONG, quick()).err().unwrap().to_string();
        let expected = "refuses this process: its job token is another one; two jobs may share a port";
        assert!(error.ends_with(expected), "{error}");
        assert!(first.join().unwrap().is_err());
    });
}
