//! Ranks that are threads of one process.
//!
//! A rank publishes where its slice is, waits until all others have, and then reads theirs: nothing is copied on the way.
//!
//! What makes this sound: a call can fail only while it waits for others to *enter*, when nobody reads its slice yet. Once
//! all have entered, every rank runs straight through copies and additions that cannot fail, and none returns before all
//! are done reading. In each phase a rank writes only parts of its own slice that no other reads in that phase.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{CommError, Communicator, Share};

/// A rank's place in a group of threads. It belongs to one thread; when the last place of a rank is dropped, the rank has
/// left, and if that is because its thread panics, all others end too.
pub struct Local {
    seat: Arc<Seat>,
    group: usize,
    rank: usize,
    size: usize,
}

/// A rank's presence.
struct Seat {
    world: Arc<World>,
    /// Of the world.
    rank: usize,
}

struct World {
    deadline: Option<Duration>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Ends all calls of all groups.
    failure: Option<CommError>,
    /// By rank of the world.
    gone: Vec<bool>,
    groups: Vec<Group>,
}

struct Group {
    /// Ranks of the world, in the group's order.
    members: Vec<usize>,
    /// What each rank has published, from its entering until all are done.
    calls: Vec<Option<Call>>,
    /// Counts calls that all have entered.
    entered: u64,
    /// Ranks that have reached the end of the phase, and a count of phases that have ended.
    arrived: usize,
    phases: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast(usize),
    Barrier,
}

#[derive(Clone, Copy)]
struct Call {
    kind: Kind,
    at: *mut f32,
    len: usize,
}

// SAFETY: the pointer is used between the entering of all ranks and the end of the last phase, while the rank that
// published it keeps the slice borrowed.
unsafe impl Send for Call {}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first failure is the one that is told.
    fn fail(&self, error: CommError) {
        self.lock().failure.get_or_insert(error);
        self.changed.notify_all();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if thread::panicking() {
            self.world.fail(CommError::Panicked { rank: self.rank });
        }
        self.world.lock().gone[self.rank] = true;
        self.world.changed.notify_all();
    }
}

impl State {
    /// Why group `at` can make no call.
    fn broken(&self, at: usize) -> Option<CommError> {
        let left = || self.groups[at].members.iter().find(|rank| self.gone[**rank]);
        self.failure.clone().or_else(|| left().map(|&rank| CommError::Left { rank }))
    }
}

impl Group {
    /// Checks that all calls belong together.
    fn agree(&self) -> Result<(), CommError> {
        let all = || self.members.iter().zip(self.calls.iter().flatten());
        let Some((first, call)) = all().next() else { return Ok(()) };
        match all().find(|(_, other)| (other.kind, other.len) != (call.kind, call.len)) {
            None => Ok(()),
            Some((rank, other)) => Err(CommError::Mismatch(format!(
                "rank {first} calls {:?} of {} numbers, rank {rank} {:?} of {}",
                call.kind, call.len, other.kind, other.len
            ))),
        }
    }
}

impl Local {
    /// A group of `size` ranks.
    pub fn group(size: usize, deadline: Option<Duration>) -> Vec<Self> {
        let of = Self::groups(size, vec![(0..size).collect()], deadline);
        of.into_iter().flatten().collect()
    }

    /// For each of `ranks` ranks its places in `groups`, in their order. A failure anywhere ends all groups.
    pub(super) fn groups(ranks: usize, groups: Vec<Vec<usize>>, deadline: Option<Duration>) -> Vec<Vec<Self>> {
        let state = |members: &Vec<usize>| Group {
            members: members.clone(),
            calls: vec![None; members.len()],
            entered: 0,
            arrived: 0,
            phases: 0,
        };
        let state = State { failure: None, gone: vec![false; ranks], groups: groups.iter().map(state).collect() };
        let world = Arc::new(World { deadline, state: Mutex::new(state), changed: Condvar::new() });
        let places = |rank: usize| {
            let seat = Arc::new(Seat { world: Arc::clone(&world), rank });
            let place = |(group, members): (usize, &Vec<usize>)| {
                let at = members.iter().position(|member| *member == rank)?;
                Some(Self { seat: Arc::clone(&seat), group, rank: at, size: members.len() })
            };
            groups.iter().enumerate().filter_map(place).collect()
        };
        (0..ranks).map(places).collect()
    }

    /// Publishes a slice and waits until all ranks have; returns where theirs are.
    fn enter(&self, kind: Kind, values: &mut [f32]) -> Result<Vec<*mut f32>, CommError> {
        let world = &*self.seat.world;
        let mut state = world.lock();
        if let Some(error) = state.broken(self.group) {
            return Err(error);
        }
        let State { failure, groups, .. } = &mut *state;
        let group = &mut groups[self.group];
        if group.calls[self.rank].is_some() {
            return Err(CommError::Mismatch(format!("two threads call as rank {}", self.seat.rank)));
        }
        group.calls[self.rank] = Some(Call { kind, at: values.as_mut_ptr(), len: values.len() });
        let round = group.entered;
        if group.calls.iter().all(Option::is_some) {
            match group.agree() {
                Ok(()) => group.entered += 1,
                Err(error) => _ = failure.get_or_insert(error),
            }
            world.changed.notify_all();
        }
        let deadline = world.deadline.filter(|_| kind != Kind::Barrier);
        let begun = Instant::now();
        // That all have entered goes before any failure: then the others count on this rank.
        while state.groups[self.group].entered == round {
            let mut broken = state.broken(self.group);
            let left = deadline.map(|deadline| deadline.saturating_sub(begun.elapsed()));
            if broken.is_none() && left == Some(Duration::ZERO) {
                let group = &state.groups[self.group];
                let missing = group.members.iter().zip(&group.calls).find(|(_, call)| call.is_none());
                let stalled = missing.zip(deadline).map(|((&rank, _), deadline)| CommError::Stalled { rank, deadline });
                state.failure = stalled.clone();
                broken = stalled;
                world.changed.notify_all();
            }
            if let Some(error) = broken {
                state.groups[self.group].calls[self.rank] = None;
                return Err(error);
            }
            state = match left {
                None => world.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => world.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        Ok(state.groups[self.group].calls.iter().flatten().map(|call| call.at).collect())
    }

    /// Waits until all ranks have come to the end of a phase; they all do. After the last phase nothing is published.
    fn phase(&self, is_last: bool) {
        let world = &*self.seat.world;
        let mut state = world.lock();
        let group = &mut state.groups[self.group];
        let phase = group.phases;
        group.arrived += 1;
        if group.arrived == self.size {
            (group.arrived, group.phases) = (0, phase + 1);
            if is_last {
                group.calls.fill(None);
            }
            world.changed.notify_all();
        }
        while state.groups[self.group].phases == phase {
            state = world.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn part(&self, rank: usize, len: usize) -> Range<usize> {
        Share { rank, of: self.size }.of(len)
    }

    /// Copies the parts of other ranks into this rank's slice.
    ///
    /// # Safety
    /// All have entered with slices of `len`; each rank's own part is not written in this phase.
    unsafe fn fetch(&self, slices: &[*mut f32], len: usize) {
        for (rank, from) in slices.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            let part = self.part(rank, len);
            // SAFETY: inside both slices, which are different ones; nobody else touches this part of ours, and nobody
            // writes that of the other.
            unsafe {
                std::ptr::copy_nonoverlapping(from.add(part.start), slices[self.rank].add(part.start), part.len());
            }
        }
    }

    /// Makes this rank's part the sum of all ranks'.
    ///
    /// # Safety
    /// All have entered with slices of `len`; in this phase each rank writes only its own part of its own slice.
    unsafe fn add(&self, slices: &[*mut f32], len: usize) {
        /// Numbers that are added at once.
        const BLOCK: usize = 512;
        let part = self.part(self.rank, len);
        let mut sums = [0f32; BLOCK];
        for from in part.clone().step_by(BLOCK) {
            let sums = &mut sums[..BLOCK.min(part.end - from)];
            for (rank, slice) in slices.iter().enumerate() {
                // SAFETY: inside the slice. Of others' slices nobody writes this part, and ours is written below.
                let values = unsafe { std::slice::from_raw_parts(slice.add(from), sums.len()) };
                match rank {
                    0 => sums.copy_from_slice(values),
                    _ => sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
                }
            }
            // SAFETY: inside our own part of our own slice, which no one else reads in this phase.
            unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), slices[self.rank].add(from), sums.len()) };
        }
    }
}

impl Communicator for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        let (len, slices) = (values.len(), self.enter(Kind::AllReduce, values)?);
        // SAFETY: all have entered with this length; parts are summed, and fetched once all are.
        unsafe { self.add(&slices, len) };
        self.phase(false);
        // SAFETY: as above.
        unsafe { self.fetch(&slices, len) };
        self.phase(true);
        Ok(())
    }

    fn all_gather(&self, values: &mut [f32]) -> Result<(), CommError> {
        let (len, slices) = (values.len(), self.enter(Kind::AllGather, values)?);
        // SAFETY: all have entered with this length, and none writes its own part.
        unsafe { self.fetch(&slices, len) };
        self.phase(true);
        Ok(())
    }

    fn reduce_scatter(&self, values: &mut [f32]) -> Result<(), CommError> {
        let (len, slices) = (values.len(), self.enter(Kind::ReduceScatter, values)?);
        // SAFETY: all have entered with this length, and each writes its own part.
        unsafe { self.add(&slices, len) };
        self.phase(true);
        Ok(())
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), CommError> {
        if root >= self.size {
            return Err(CommError::Mismatch(format!("rank {root} of {} is to broadcast", self.size)));
        }
        let (len, slices) = (values.len(), self.enter(Kind::Broadcast(root), values)?);
        if root != self.rank {
            // SAFETY: all have entered with this length; the root's slice is not written, and ours not read.
            unsafe { std::ptr::copy_nonoverlapping(slices[root], slices[self.rank], len) };
        }
        self.phase(true);
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.enter(Kind::Barrier, &mut [])?;
        self.phase(true);
        Ok(())
    }

    fn abort(&self, reason: &str) {
        self.seat.world.fail(CommError::Failed { rank: self.seat.rank, reason: reason.to_owned() });
    }
}
