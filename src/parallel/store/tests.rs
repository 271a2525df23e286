//! The store over real sockets: what it promises to ranks, and what strangers can do to it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

fn hello(rank: usize, world_size: usize) -> Hello {
    Hello { rank, world_size, token: "job 7".into() }
}

fn server(size: usize) -> Server {
    Server::listen(0, true, size, "job 7").unwrap()
}

fn client(server: &Server, rank: usize, size: usize, deadline: Duration) -> Result<Store, StoreError> {
    Store::connect("127.0.0.1", server.address().port(), hello(rank, size), deadline)
}

#[test]
fn values_ids_and_barriers() {
    let server = server(4);
    let at_once = Barrier::new(4);
    let ids = thread::scope(|scope| {
        let (server, at_once) = (&server, &at_once);
        let rank = |rank: usize| {
            let mut store = client(server, rank, 4, LONG).unwrap();
            assert_eq!(store.get("nothing").unwrap(), None);
            store.set(&format!("rank/{rank}"), &[rank as u8; 3]).unwrap();
            for other in 0..4 {
                assert_eq!(store.wait(&format!("rank/{other}"), "it").unwrap(), [other as u8; 3]);
            }
            let make = || [17u8; ID_BYTES];
            let id = store.group_id("data", (rank == 2).then_some(&make as &dyn Fn() -> _)).unwrap();
            store.set("last", &[rank as u8]).unwrap();
            store.barrier("all are there").unwrap();
            at_once.wait();
            assert_eq!(store.get("last").unwrap().unwrap().len(), 1);
            id
        };
        let all: Vec<_> = (0..4).map(|r| scope.spawn(move || rank(r))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(ids, [[17; ID_BYTES]; 4]);
    // All have gone.
    server.close(LONG);
}

#[test]
fn those_who_do_not_belong_are_told_why() {
    let server = server(2);
    let port = server.address().port();
    let refused = |hello: Hello| match Store::connect("127.0.0.1", port, hello, LONG).unwrap_err() {
        StoreError::Refused { reason, .. } => reason,
        other => panic!("{other}"),
    };
    let other = Hello { token: "job 8".into(), ..hello(0, 2) };
    assert_eq!(refused(other), "its job token is another one; two jobs may share a port");
    assert_eq!(refused(hello(1, 3)), "it is rank 1 of 3, and rank 0 is one of 2");
    assert_eq!(refused(hello(2, 2)), "it is rank 2 of 2, and rank 0 is one of 2");
    let first = client(&server, 1, 2, LONG).unwrap();
    assert_eq!(refused(hello(1, 2)), "another process is rank 1 already");
    // A place that was left can be taken again: a rank whose connection broke comes back.
    drop(first);
    let again = std::iter::repeat_with(|| client(&server, 1, 2, LONG)).find_map(Result::ok);
    assert!(again.is_some());
    let error = Server::listen(port, true, 2, "").unwrap_err().to_string();
    assert_eq!(error, format!("rank 0 cannot listen at 127.0.0.1:{port}: another process does; give --master-port"));
}

#[test]
fn what_does_not_come_is_named() {
    let server = server(2);
    let mut store = client(&server, 0, 2, SHORT).unwrap();
    let error = store.barrier("start").unwrap_err().to_string();
    assert_eq!(error, "rank 1 at the barrier \"start\" was not there within 100ms");
    let error = store.group_id("data", None).unwrap_err().to_string();
    assert_eq!(error, "the id of group \"data\" was not there within 100ms");
    assert!(matches!(store.set(&"k".repeat(300), &[]), Err(StoreError::TooLong { key: 300, value: 0 })));
    // Rank 0 ends: the others hear it and do not wait.
    drop(server);
    let error = store.set("key", &[1]).unwrap_err().to_string();
    assert!(error.starts_with("rank 0 was not reached at 127.0.0.1:"), "{error}");
    let error = Store::connect("no.such.host.invalid", 1, hello(1, 2), SHORT).unwrap_err().to_string();
    assert!(error.starts_with("rank 0 was not reached at no.such.host.invalid:1 within 100ms: "), "{error}");
}

/// A rank may be there before rank 0 is.
#[test]
fn early_ranks_wait() {
    let port = server(1).address().port();
    let joined = thread::spawn(move || Store::connect("localhost", port, hello(1, 2), LONG).map(drop));
    thread::sleep(SHORT);
    let _server = Server::listen(port, true, 2, "job 7").unwrap();
    joined.join().unwrap().unwrap();
}

/// Strangers that say nonsense, too much, or nothing at all: ranks meet all the same.
#[test]
fn strangers_do_no_harm() {
    let server = server(2);
    let connect = || TcpStream::connect(server.address()).unwrap();
    // More than may wait at a time; those beyond are closed.
    let silent: Vec<TcpStream> = (0..40).map(|_| connect()).collect();
    let greeting = |rank: u32, len: u32| {
        let mut bytes = MAGIC.to_vec();
        [rank, 2, len].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes
    };
    let mut state = 1u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(|_| byte()).collect()
    };
    let mut said: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        greeting(0, u32::MAX),
        [greeting(0, 5), vec![0xff; 5]].concat(),
        greeting(1, 3),
    ];
    said.extend((0..20).map(|i| noise(i * 13)));
    // A rank's own connection that goes on with nonsense is closed, and the rank may come again.
    let token = b"job 7";
    for after in [&b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0"[..], b"\x09\0\0\0\0\0\0\0\0\0\0\0\0", b"\x01"] {
        said.push([&greeting(1, token.len() as u32)[..], token, after].concat());
    }
    for bytes in said {
        let mut stream = connect();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut one = client(&server, 0, 2, LONG).unwrap();
    let mut two = std::iter::repeat_with(|| client(&server, 1, 2, LONG)).find_map(Result::ok).unwrap();
    one.set("key", b"value").unwrap();
    assert_eq!(two.wait("key", "it").unwrap(), b"value");
    drop(silent);
}
