//! What belongs to a request whoever handles it: set around every handler, read where work is accepted. So no handler
//! can forget to charge for what it does.

use std::future::Future;
use std::sync::Arc;

use super::tenant::{Slot, Tenant};

tokio::task_local! {
    static CALLER: Caller;
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// With a key: the request's place among those of its holder.
    pub slot: Option<Arc<Slot>>,
    /// Whether what is cached of its prompts is for the holder of the key alone.
    pub isolated: bool,
}

impl Caller {
    /// The caller of the request that is being handled; nobody in particular outside of a request.
    pub fn current() -> Self {
        CALLER.try_with(Self::clone).unwrap_or_default()
    }

    /// Handles a request of this caller.
    pub async fn scope<T>(self, handling: impl Future<Output = T>) -> T {
        CALLER.scope(self, handling).await
    }

    /// The holder of the key.
    pub fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.slot.as_deref().map(Slot::tenant)
    }
}
