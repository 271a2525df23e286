//! Collectives against naive sums, and what becomes of ranks that others wait for.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{CommError, Communicator, Layout, Local, Ranks, Share, Solo};

/// Sizes that divide by no number of ranks, by all, and fewer numbers than ranks.
const SIZES: [usize; 8] = [0, 1, 2, 3, 7, 24, 1025, 4099];

fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + rank * 104_729) % 2003) as f32 / 97.0 - 10.0).collect()
}

/// What every rank gets from `job`, in rank order.
fn together<T: Send>(ranks: usize, job: impl Fn(&Local) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let job = &job;
        let all: Vec<_> = Local::group(ranks, None).into_iter().map(|local| scope.spawn(move || job(&local))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn shares_cover_all_and_are_even() {
    for of in 1..6 {
        for len in SIZES {
            let shares: Vec<_> = (0..of).map(|rank| Share { rank, of }.of(len)).collect();
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((shares[0].start, shares[of - 1].end), (0, len));
            assert!(shares.iter().all(|share| share.len() == len / of || share.len() == len.div_ceil(of)));
        }
    }
    assert_eq!(Share::WHOLE.of(9), 0..9);
}

#[test]
fn collectives_equal_naive_ones() {
    for ranks in 1..5 {
        for len in SIZES {
            // In rank order, as promised: bit for bit.
            let given: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(rank, len)).collect();
            let sums: Vec<f32> =
                (0..len).map(|i| given.iter().map(|values| values[i]).reduce(|a, b| a + b).unwrap()).collect();
            let part = |rank| Share { rank, of: ranks }.of(len);
            let gathered: Vec<f32> = (0..ranks).flat_map(|rank| given[rank][part(rank)].to_vec()).collect();
            let done = together(ranks, |local| {
                let rank = local.rank();
                assert_eq!((local.world_size(), local.share()), (ranks, Share { rank, of: ranks }));
                let own = || given[rank].clone();
                // Several rounds, so that a fast rank meets the slow ones of the round before.
                for round in 0..3 {
                    let (mut reduced, mut scattered, mut all) = (own(), own(), own());
                    local.all_reduce(&mut reduced).unwrap();
                    assert_eq!(reduced, sums);
                    local.reduce_scatter(&mut scattered).unwrap();
                    assert_eq!(scattered[part(rank)], sums[part(rank)]);
                    local.all_gather(&mut all).unwrap();
                    assert_eq!(all, gathered);
                    let root = round % ranks;
                    let mut told = own();
                    local.broadcast(root, &mut told).unwrap();
                    assert_eq!(told, given[root]);
                    local.barrier().unwrap();
                }
                let mut wide = [0.1 + rank as f64, -0.0, f64::MAX / 8.0];
                local.all_reduce_f64(&mut wide).unwrap();
                wide
            });
            let first = (0..ranks).map(|rank| 0.1 + rank as f64).reduce(|a, b| a + b).unwrap();
            assert!(done.iter().all(|wide| wide.map(f64::to_bits) == done[0].map(f64::to_bits)));
            assert_eq!(done[0], [first, 0.0, ranks as f64 * (f64::MAX / 8.0)]);
        }
    }
}

#[test]
fn one_rank_needs_nobody() {
    let mut values = numbers(0, 5);
    Solo.all_reduce(&mut values).unwrap();
    Solo.reduce_scatter(&mut values).unwrap();
    Solo.all_gather(&mut values).unwrap();
    Solo.broadcast(0, &mut values).unwrap();
    Solo.barrier().unwrap();
    let mut wide = [0.1];
    Solo.all_reduce_f64(&mut wide).unwrap();
    assert_eq!((values, wide), (numbers(0, 5), [0.1]));
    assert_eq!(Solo.share(), Share::WHOLE);
}

/// In a layout of two by three, groups are rows and columns.
#[test]
fn ranks_are_in_their_groups() {
    let layout = Layout { tensor: 2, data: 3 };
    let sums = thread::scope(|scope| {
        let sum = |ranks: Ranks| {
            let of = |group: &dyn Communicator| {
                let mut value = [10f32.powi(ranks.rank() as i32)];
                group.all_reduce(&mut value).unwrap();
                value[0]
            };
            (of(&*ranks.tensor), of(&*ranks.data), of(&*ranks.world), ranks.tensor.rank(), ranks.data.rank())
        };
        let all: Vec<_> = Ranks::local(layout, None).into_iter().map(|ranks| scope.spawn(move || sum(ranks))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for (rank, (tensor, data, world, t, d)) in sums.into_iter().enumerate() {
        assert_eq!((t, d), (rank % 2, rank / 2));
        assert_eq!(tensor, [11.0, 1100.0, 110_000.0][d]);
        assert_eq!((data, world), ([10_101.0, 101_010.0][t], 111_111.0));
    }
    let solo = Ranks::local(Layout::ONE, None).pop().unwrap();
    assert!(solo.is_first() && solo.world.world_size() == 1);
}

/// A rank that panics ends all groups, the ones it is not in too; the others hear who it was.
#[test]
fn a_lost_rank_ends_the_others() {
    let outcomes = thread::scope(|scope| {
        let job = |ranks: Ranks| -> Result<(), CommError> {
            let mut values = [0f32; 100];
            loop {
                ranks.tensor.all_reduce(&mut values)?;
                assert!(ranks.rank() != 3 || values.len() < 100, "rank 3 is killed");
                ranks.data.all_reduce(&mut values)?;
            }
        };
        let all = Ranks::local(Layout { tensor: 2, data: 2 }, None);
        let all: Vec<_> = all.into_iter().map(|r| scope.spawn(move || job(r))).collect();
        all.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(ended) => assert_eq!(ended, Err(CommError::Panicked { rank: 3 }), "rank {rank}"),
            Err(_) => assert_eq!(rank, 3),
        }
    }
}

#[test]
fn ranks_that_fail_leave_or_stall_are_named() {
    // Failed, with its reason; again and again.
    let said = together(3, |local| {
        if local.rank() == 1 {
            local.abort("there is no memory");
            return String::new();
        }
        let error = local.all_reduce(&mut [1.0]).unwrap_err();
        assert_eq!(local.barrier(), Err(error.clone()));
        error.to_string()
    });
    assert_eq!(said, ["rank 1 failed: there is no memory", "", "rank 1 failed: there is no memory"]);

    // Left, after all had what they needed of it.
    let mut pair = Local::group(2, None);
    let (second, first) = (pair.pop().unwrap(), pair.pop().unwrap());
    thread::scope(|scope| {
        scope.spawn(move || second.broadcast(1, &mut [7.0]).unwrap());
        let mut value = [0.0];
        first.broadcast(1, &mut value).unwrap();
        assert_eq!(value, [7.0]);
        assert_eq!(first.all_reduce(&mut value), Err(CommError::Left { rank: 1 }));
        assert_eq!(value, [7.0]);
    });

    // Stalled: it comes too late, and hears the same. A barrier has no deadline.
    let deadline = Duration::from_millis(20);
    let mut pair = Local::group(2, Some(deadline));
    let (second, first) = (pair.pop().unwrap(), pair.pop().unwrap());
    let (tell, wait) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(2 * deadline);
            second.barrier().unwrap();
            wait.recv().unwrap();
            assert_eq!(second.all_gather(&mut [0.0; 2]), Err(CommError::Stalled { rank: 1, deadline }));
        });
        first.barrier().unwrap();
        assert_eq!(first.all_gather(&mut [0.0; 2]), Err(CommError::Stalled { rank: 1, deadline }));
        tell.send(()).unwrap();
    });
}

#[test]
fn calls_that_differ_are_refused_on_all_ranks() {
    let said = together(2, |local| {
        let first = match local.rank() {
            0 => local.all_reduce(&mut [1.0; 3]),
            _ => local.all_reduce(&mut [1.0; 4]),
        };
        assert!(local.broadcast(2, &mut []).is_err());
        first.unwrap_err().to_string()
    });
    let expected = "ranks disagree: rank 0 calls AllReduce of 3 numbers, rank 1 AllReduce of 4";
    assert_eq!(said, [expected, expected]);
    let said = together(2, |local| match local.rank() {
        0 => local.barrier().unwrap_err(),
        _ => local.broadcast(0, &mut []).unwrap_err(),
    });
    assert!(said.iter().all(|e| matches!(e, CommError::Mismatch(_))), "{said:?}");
}
