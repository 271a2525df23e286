//! Ranks that are processes, and exchange numbers over TCP.
//!
//! Every rank has a connection to every other. A thread a connection reads what comes, so a rank that sends is never
//! waited for by one that sends too; it also tells the other side now and then that this process lives. Sums are made by
//! the owner of a part, in rank order: the same bits as [`Local`](super::Local)'s, over whatever network.
//!
//! Messages between two ranks come in the order of their calls, which is the same on both; each says which call it is of,
//! so that ranks that have gone apart find out.

mod join;
mod link;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::link::{CHUNK, Call, Kind, Mesh};
use super::{CommError, Communicator, Share};

pub use self::link::Pulse;

/// A rank's place in a group of processes. It belongs to one thread; when the last place of a rank is dropped, the others
/// hear that it has left, and if that is because its thread panics, they all end too.
pub struct Tcp {
    mesh: Arc<Mesh>,
    group: u32,
    /// Ranks of the world, in the group's order.
    members: Vec<usize>,
    /// Which of them.
    rank: usize,
    calls: AtomicU64,
}

/// What becomes of numbers that come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Into {
    Place,
    Sum,
}

impl Tcp {
    fn new(mesh: Arc<Mesh>, group: u32, members: Vec<usize>) -> Option<Self> {
        let rank = members.iter().position(|member| *member == mesh.rank)?;
        Some(Self { mesh, group, members, rank, calls: AtomicU64::new(0) })
    }

    fn begin(&self, kind: Kind, len: usize) -> Result<Call, CommError> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        self.mesh.check()?;
        Ok(Call { group: self.group, number, kind, len: len as u64 })
    }

    fn part(&self, member: usize, len: usize) -> Range<usize> {
        Share { rank: member, of: self.members.len() }.of(len)
    }

    /// The others, each rank beginning with the next: not all with the same.
    fn others(&self) -> impl Iterator<Item = usize> + '_ {
        let size = self.members.len();
        (1..size).map(move |step| (self.rank + step) % size)
    }

    /// Sends numbers, in pieces.
    fn send(&self, call: &Call, to: usize, pieces: &[&[f32]]) -> Result<(), CommError> {
        let mut left: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut frame = call.frame(left.min(CHUNK));
        let mut room = CHUNK;
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                if room == 0 {
                    self.mesh.send(self.members[to], &frame)?;
                    frame = call.frame(left.min(CHUNK));
                    room = CHUNK;
                }
                let (now, later) = piece.split_at(room.min(piece.len()));
                now.iter().for_each(|v| frame.extend_from_slice(&v.to_le_bytes()));
                (room, left, piece) = (room - now.len(), left - now.len(), later);
            }
        }
        // Of nothing too: that a rank has come is known by it.
        self.mesh.send(self.members[to], &frame)
    }

    /// Takes in as many numbers as the pieces have.
    fn receive(&self, call: &Call, from: usize, pieces: &mut [&mut [f32]], into: Into) -> Result<(), CommError> {
        let expected: usize = pieces.iter().map(|piece| piece.len()).sum();
        let (mut done, mut places) = (0, pieces.iter_mut().map(|piece| &mut **piece));
        let mut place: &mut [f32] = places.next().unwrap_or_default();
        loop {
            let bytes = self.mesh.receive(self.members[from], call)?;
            let come = bytes.len() / 4;
            if come > expected - done || (come == 0 && expected > 0) {
                return Err(self.mesh.disagree(format!("rank {} sends other numbers", self.members[from])));
            }
            let mut bytes = &bytes[..];
            while !bytes.is_empty() {
                if place.is_empty() {
                    // There is one: no more come than were expected.
                    place = places.next().unwrap_or_default();
                    continue;
                }
                let now = place.len().min(bytes.len() / 4);
                let (to, later) = std::mem::take(&mut place).split_at_mut(now);
                let values = bytes[..4 * now].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                match into {
                    Into::Place => to.iter_mut().zip(values).for_each(|(to, value)| *to = value),
                    Into::Sum => to.iter_mut().zip(values).for_each(|(to, value)| *to += value),
                }
                (place, bytes) = (later, &bytes[4 * now..]);
            }
            done += come;
            if done == expected {
                return Ok(());
            }
        }
    }

    /// Makes this rank's part of each slice the sum of all ranks'.
    fn sum_parts(&self, call: &Call, slices: &mut [&mut [f32]]) -> Result<(), CommError> {
        for to in self.others() {
            let pieces: Vec<&[f32]> = slices.iter().map(|s| &s[self.part(to, s.len())]).collect();
            self.send(call, to, &pieces)?;
        }
        let parts: Vec<Range<usize>> = slices.iter().map(|s| self.part(self.rank, s.len())).collect();
        let mut sums: Vec<Vec<f32>> = parts.iter().map(|part| vec![0.0; part.len()]).collect();
        for member in 0..self.members.len() {
            let into = if member == 0 { Into::Place } else { Into::Sum };
            if member != self.rank {
                let mut pieces: Vec<&mut [f32]> = sums.iter_mut().map(Vec::as_mut_slice).collect();
                self.receive(call, member, &mut pieces, into)?;
                continue;
            }
            for ((sum, slice), part) in sums.iter_mut().zip(slices.iter()).zip(&parts) {
                match into {
                    Into::Place => sum.copy_from_slice(&slice[part.clone()]),
                    Into::Sum => sum.iter_mut().zip(&slice[part.clone()]).for_each(|(sum, value)| *sum += value),
                }
            }
        }
        for ((slice, part), sum) in slices.iter_mut().zip(parts).zip(sums) {
            slice[part].copy_from_slice(&sum);
        }
        Ok(())
    }

    /// Gives all this rank's part of each slice, and takes theirs.
    fn gather_parts(&self, call: &Call, slices: &mut [&mut [f32]]) -> Result<(), CommError> {
        for to in self.others() {
            let pieces: Vec<&[f32]> = slices.iter().map(|s| &s[self.part(self.rank, s.len())]).collect();
            self.send(call, to, &pieces)?;
        }
        for from in self.others() {
            let mut pieces: Vec<&mut [f32]> = Vec::with_capacity(slices.len());
            for slice in slices.iter_mut() {
                let part = self.part(from, slice.len());
                pieces.push(&mut slice[part]);
            }
            self.receive(call, from, &mut pieces, Into::Place)?;
        }
        Ok(())
    }

    fn is_alone(&self) -> bool {
        self.members.len() == 1
    }
}

fn count(slices: &[&mut [f32]]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.members.len()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        if self.is_alone() {
            return Ok(());
        }
        let call = self.begin(Kind::AllReduce, values.len())?;
        self.sum_parts(&call, &mut [values])?;
        self.gather_parts(&call, &mut [values])
    }

    fn all_gather(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.all_gather_each(&mut [values])
    }

    fn reduce_scatter(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.reduce_scatter_each(&mut [values])
    }

    fn all_gather_each(&self, slices: &mut [&mut [f32]]) -> Result<(), CommError> {
        if self.is_alone() {
            return Ok(());
        }
        let call = self.begin(Kind::AllGather, count(slices))?;
        self.gather_parts(&call, slices)
    }

    fn reduce_scatter_each(&self, slices: &mut [&mut [f32]]) -> Result<(), CommError> {
        if self.is_alone() {
            return Ok(());
        }
        let call = self.begin(Kind::ReduceScatter, count(slices))?;
        self.sum_parts(&call, slices)
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), CommError> {
        if root >= self.members.len() {
            let size = self.members.len();
            return Err(CommError::Mismatch(format!("rank {root} of {size} is to broadcast")));
        }
        let call = self.begin(Kind::Broadcast(root as u16), values.len())?;
        match root == self.rank {
            true => self.others().try_for_each(|to| self.send(&call, to, &[values])),
            false => self.receive(&call, root, &mut [values], Into::Place),
        }
    }

    fn barrier(&self) -> Result<(), CommError> {
        let call = self.begin(Kind::Barrier, 0)?;
        self.others().try_for_each(|to| self.send(&call, to, &[]))?;
        self.others().try_for_each(|from| self.receive(&call, from, &mut [], Into::Place))
    }

    fn abort(&self, reason: &str) {
        self.mesh.abort(reason);
    }
}
