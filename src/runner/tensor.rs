//! [`Executor`] of several ranks that hold a model together, a thread each.
//!
//! The engine's thread is the first rank. It hands every step, as the scheduler made it, to the others, and all compute it:
//! block tables are the same on every rank, whose pools hold its own heads under the same block ids. Ranks meet in the
//! collectives of the operations underneath. Only the first has logits, samples and answers, so the others need nothing of a
//! step but its input.
//!
//! A rank that fails, panics or stays away breaks the communicator: the calls of all others fail, and with them the step.
//! Nothing can be computed from then on, which [`Standing`] says.

mod load;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

pub use load::{RankExecutors, load, load_on};

use super::adapters::Parts;
use crate::engine::{AdapterSlot, AdapterWeights, Executor, ExecutorError, SampleInput, StepInput, StepOutput, Ticket};
use crate::parallel::Communicator;

/// One rank: what computes, and its place among the others.
pub struct Rank {
    /// Of [`Executor`]'s calls, all but the first rank get `forward` and those about adapters.
    pub executor: Box<dyn Executor>,
    /// The one that the executor's operations meet the others by.
    pub comm: Arc<dyn Communicator>,
}

/// Whether a group of ranks can still compute. Shared by all who must know.
#[derive(Clone, Default)]
pub struct Standing(Arc<(Mutex<Option<String>>, Condvar)>);

impl Standing {
    /// It cannot, for this reason; the first that is given stays.
    fn fall(&self, reason: &str) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        self.0.1.notify_all();
    }

    /// Why it cannot; `None` while it can.
    pub fn lost(&self) -> Option<String> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits, maybe for ever, until it cannot.
    pub fn wait(&self) -> String {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*state {
                Some(reason) => return reason.clone(),
                None => state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// What the other ranks are told.
enum Order {
    Forward(Arc<StepInput>),
    Load(AdapterSlot, Arc<AdapterWeights>),
    Unload(AdapterSlot),
}

/// A model over several ranks. Answers synchronously.
pub struct TensorParallel {
    first: Rank,
    /// To the others, in rank order.
    orders: Vec<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
    standing: Standing,
}

impl TensorParallel {
    /// Starts a thread for each rank but the first.
    ///
    /// # Panics
    /// If there is no rank.
    pub fn start(ranks: Vec<Rank>) -> Self {
        let standing = Standing::default();
        let mut ranks = ranks.into_iter();
        let first = ranks.next().expect("a model has a rank");
        let (mut orders, mut threads) = (Vec::new(), Vec::new());
        for rank in ranks {
            let (sender, receiver) = channel();
            let (name, standing) = (format!("rank-{}", rank.comm.rank()), standing.clone());
            let thread = Builder::new().name(name).spawn(move || follow(rank, &receiver, &standing));
            orders.push(sender);
            threads.push(thread.expect("the system can start a thread"));
        }
        Self { first, orders, threads, standing }
    }

    /// Whether the ranks can compute.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    fn tell(&self, order: impl Fn(usize) -> Order) {
        for (i, rank) in self.orders.iter().enumerate() {
            // One that has ended has broken the communicator, which the first collective tells.
            let _ = rank.send(order(i));
        }
    }
}

/// The life of a rank that is not the first.
fn follow(mut rank: Rank, orders: &Receiver<Order>, standing: &Standing) {
    let executor = &mut rank.executor;
    let obey = || {
        orders.iter().try_for_each(|order| match order {
            Order::Forward(step) => executor.forward(&step),
            Order::Load(slot, weights) => executor.load_adapter(slot, weights),
            Order::Unload(slot) => {
                executor.unload_adapter(slot);
                Ok(())
            }
        })
    };
    if let Err(reason) = reason_of(rank.comm.rank(), catch_unwind(AssertUnwindSafe(obey))) {
        end(&rank, &reason, standing);
    }
}

/// What a rank's work came to.
fn reason_of<T>(rank: usize, ended: Result<Result<T, ExecutorError>, Box<dyn Any + Send>>) -> Result<T, String> {
    let text = |panic: &Box<dyn Any + Send>| {
        panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned())
    };
    match ended {
        Ok(done) => done.map_err(|error| error.0),
        Err(panic) => Err(format!("rank {rank} panicked: {}", text(&panic).unwrap_or_else(|| "no message".to_owned()))),
    }
}

/// This rank goes no further, and so no other.
fn end(rank: &Rank, reason: &str, standing: &Standing) {
    rank.comm.abort(reason);
    standing.fall(reason);
}

impl Executor for TensorParallel {
    fn max_sampled(&self) -> usize {
        self.first.executor.max_sampled()
    }

    fn max_adapters(&self) -> usize {
        self.first.executor.max_adapters()
    }

    fn load_adapter(&mut self, slot: AdapterSlot, weights: Arc<AdapterWeights>) -> Result<(), ExecutorError> {
        let parts = weights.downcast::<Parts>().ok().filter(|parts| parts.0.len() == 1 + self.orders.len());
        let parts = parts.ok_or_else(|| ExecutorError("the adapter is for other ranks".into()))?;
        // What one refuses, all would.
        self.first.executor.load_adapter(slot, Arc::clone(&parts.0[0]))?;
        self.tell(|i| Order::Load(slot, Arc::clone(&parts.0[i + 1])));
        Ok(())
    }

    fn unload_adapter(&mut self, slot: AdapterSlot) {
        self.first.executor.unload_adapter(slot);
        self.tell(|_| Order::Unload(slot));
    }

    fn adapters(&self) -> (usize, usize) {
        self.first.executor.adapters()
    }

    fn forward(&mut self, step: &StepInput) -> Result<(), ExecutorError> {
        if let Some(reason) = self.standing.lost() {
            return Err(ExecutorError(reason));
        }
        let shared = Arc::new(step.clone());
        self.tell(|_| Order::Forward(Arc::clone(&shared)));
        let executor = &mut self.first.executor;
        let done = catch_unwind(AssertUnwindSafe(|| executor.forward(step)));
        reason_of(0, done).map_err(|reason| {
            end(&self.first, &reason, &self.standing);
            ExecutorError(self.standing.lost().unwrap_or(reason))
        })
    }

    fn sample(&mut self, request: &SampleInput<'_>) -> Result<Ticket, ExecutorError> {
        self.first.executor.sample(request)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        self.first.executor.collect(ticket)
    }

    fn lost(&self) -> Option<String> {
        self.standing.lost()
    }
}

impl Drop for TensorParallel {
    fn drop(&mut self) {
        self.orders.clear();
        // Where a rank is lost, it or another may never end.
        if self.standing.lost().is_none() {
            // A rank's panic ends in its own thread.
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        }
    }
}
