//! Who does which share.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::{Communicator, Local, Solo};

/// How a model is spread over ranks: `tensor` ranks hold one model, and `data` such groups share the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Ranks that every matrix is cut over.
    pub tensor: usize,
    /// Groups, over which the optimizer's states are sharded (ZeRO-1).
    pub data: usize,
}

impl Layout {
    /// One rank.
    pub const ONE: Self = Self { tensor: 1, data: 1 };

    /// All ranks.
    pub fn ranks(self) -> usize {
        self.tensor * self.data
    }
}

/// One of equal owners of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Whose, from 0.
    pub rank: usize,
    /// Of how many; at least one.
    pub of: usize,
}

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self { rank: 0, of: 1 };

    /// This share of `len` things in a row: as even as can be, in rank order.
    pub fn of(self, len: usize) -> Range<usize> {
        let at = |rank: usize| (len as u128 * rank as u128 / self.of as u128) as usize;
        at(self.rank)..at(self.rank + 1)
    }
}

/// The groups that a rank is in. Rank `d · tensor + t` of the world is rank `t` of its tensor group, with which it shares
/// the matrices, and rank `d` of its data group, whose ranks have the same part of the matrices.
pub struct Ranks {
    /// Sizes.
    pub layout: Layout,
    /// Which of the ranks of this process, which share its threads.
    pub here: Share,
    /// All.
    pub world: Arc<dyn Communicator>,
    /// Those that hold one model together.
    pub tensor: Arc<dyn Communicator>,
    /// Those that hold the same part of it.
    pub data: Arc<dyn Communicator>,
}

impl Ranks {
    /// One rank.
    pub fn solo() -> Self {
        let solo: Arc<dyn Communicator> = Arc::new(Solo);
        Self {
            layout: Layout::ONE,
            here: Share::WHOLE,
            world: Arc::clone(&solo),
            tensor: Arc::clone(&solo),
            data: solo,
        }
    }

    /// Ranks for threads of this process, in order; each is to be moved into its own. A rank that another waits for longer
    /// than `deadline` is taken for lost; without one it is waited for until it answers, fails or ends.
    pub fn local(layout: Layout, deadline: Option<Duration>) -> Vec<Self> {
        if layout.ranks() == 1 {
            return vec![Self::solo()];
        }
        let (tensor, data) = (layout.tensor, layout.data);
        let world = vec![(0..layout.ranks()).collect::<Vec<_>>()];
        let tensors = (0..data).map(|d| (0..tensor).map(|t| d * tensor + t).collect());
        let datas = (0..tensor).map(|t| (0..data).map(|d| d * tensor + t).collect());
        let groups = world.into_iter().chain(tensors).chain(datas).collect();
        let rank = |(rank, mine): (usize, Vec<Local>)| {
            let here = Share { rank, of: layout.ranks() };
            let mut mine = mine.into_iter().map(|group| Arc::new(group) as Arc<dyn Communicator>);
            let mut next = || mine.next().expect("a rank is in one group of each kind");
            Self { layout, here, world: next(), tensor: next(), data: next() }
        };
        Local::groups(layout.ranks(), groups, deadline).into_iter().enumerate().map(rank).collect()
    }

    /// Which of the world.
    pub fn rank(&self) -> usize {
        self.world.rank()
    }

    /// Whether this is the one that speaks for all: rank 0 of the world.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }
}
