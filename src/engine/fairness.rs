//! Fair order between tenants: virtual token counters, after Sheng et al., "Fairness in Serving Large Language
//! Models" (OSDI 2024).
//!
//! Each tenant has a counter of the service it has had, in tokens by its weight. The least served comes first, so
//! tenants that always want more get equal shares, whatever the size of their requests. Two things differ from the
//! paper. Tokens of a prompt are charged when they are computed, not when the sequence is admitted, so that chunks
//! of a long prompt take turns with others. And who comes back from an idle time is lifted to the least active
//! counter less a credit (as Linux' scheduler does with sleepers): whoever asks for less than its share is served at
//! once, and those who flood wait.

use std::collections::{BTreeSet, HashMap};

use super::types::Tenant;

/// What a token of a prompt costs a tenant of weight 1. Many, so that weights divide it.
const TOKEN: u64 = 1 << 16;
/// A generated token costs this many tokens of a prompt, as in the paper.
const OUTPUT: u64 = 2;
/// How far behind the others a tenant may be that comes back: it has priority for so many tokens of a prompt.
const CREDIT: u64 = 4096 * TOKEN;
/// Who has had no sequence for so many steps is not reckoned with.
const RECENT: u64 = 4096;

/// A waiting sequence: priority, arrival, slot.
pub(super) type Waiting = (i32, u64, usize);

/// A tenant's sequences and service.
#[derive(Debug)]
pub(super) struct Account {
    weight: u64,
    counter: u64,
    /// The last step before which it had a sequence.
    seen: u64,
    /// In the order in which they are admitted.
    pub waiting: BTreeSet<Waiting>,
    /// How many run.
    pub running: usize,
}

impl Account {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }

    /// Service so far.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Charges for computed tokens of a prompt.
    pub fn charge_prompt(&mut self, tokens: usize) {
        self.counter = self.counter.saturating_add((tokens as u64).saturating_mul(TOKEN) / self.weight);
    }

    /// Charges for generated tokens.
    pub fn charge_output(&mut self, tokens: usize) {
        self.counter = self.counter.saturating_add((tokens as u64).saturating_mul(OUTPUT * TOKEN) / self.weight);
    }
}

/// All tenants there have been. They are few: one for each key, or one in all.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    all: Vec<Account>,
    by_id: HashMap<u64, usize>,
    /// The least counter among those with sequences, as far as it ever came.
    clock: u64,
    /// Steps so far.
    steps: u64,
    /// Whether several have had sequences of late.
    are_several: bool,
}

impl Accounts {
    /// The account of a tenant who has a new sequence.
    pub fn enter(&mut self, tenant: Tenant) -> usize {
        let all = &mut self.all;
        let index = *self.by_id.entry(tenant.id).or_insert_with(|| {
            all.push(Account { weight: 1, counter: 0, seen: 0, waiting: BTreeSet::new(), running: 0 });
            all.len() - 1
        });
        let account = &mut self.all[index];
        account.weight = u64::from(tenant.weight.max(1));
        if !account.is_active() {
            account.counter = account.counter.max(self.clock.saturating_sub(CREDIT));
        }
        index
    }

    /// Whether more than one has had sequences of late, as of the last [`order`](Self::order).
    pub fn are_several(&self) -> bool {
        self.are_several
    }

    /// Before a step, fills `order` with the accounts that have sequences, the least served first.
    pub fn order(&mut self, order: &mut Vec<usize>) {
        self.steps += 1;
        order.clear();
        let mut recent = 0;
        for (i, account) in self.all.iter_mut().enumerate() {
            if account.is_active() {
                account.seen = self.steps;
                order.push(i);
            }
            recent += usize::from(account.seen > 0 && account.seen + RECENT > self.steps);
        }
        self.are_several = recent > 1;
        order.sort_by_key(|&i| self.all[i].counter);
        if let Some(&least) = order.first() {
            self.clock = self.clock.max(self.all[least].counter);
        }
    }

    /// All waiting sequences.
    pub fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.all.iter().flat_map(|account| &account.waiting)
    }

    /// How many run, by their accounts.
    pub fn num_running(&self) -> usize {
        self.all.iter().map(|account| account.running).sum()
    }
}

impl std::ops::Index<usize> for Accounts {
    type Output = Account;

    fn index(&self, index: usize) -> &Account {
        &self.all[index]
    }
}

impl std::ops::IndexMut<usize> for Accounts {
    fn index_mut(&mut self, index: usize) -> &mut Account {
        &mut self.all[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: u64, weight: u32) -> Tenant {
        Tenant { id, weight }
    }

    /// Lets the least served of those who always want more compute chunks of `tokens`.
    fn serve(accounts: &mut Accounts, rounds: usize, tokens: usize) -> HashMap<usize, usize> {
        let (mut order, mut served) = (Vec::new(), HashMap::new());
        for _ in 0..rounds {
            accounts.order(&mut order);
            accounts[order[0]].charge_prompt(tokens);
            *served.entry(order[0]).or_default() += tokens;
        }
        served
    }

    #[test]
    fn those_who_always_want_more_share_by_weight() {
        let mut accounts = Accounts::default();
        for (id, weight) in [(7, 1), (9, 3)] {
            let index = accounts.enter(tenant(id, weight));
            accounts[index].waiting.insert((0, id, 0));
        }
        let served = serve(&mut accounts, 4000, 100);
        assert!(served[&0].abs_diff(100_000) <= 200 && served[&1].abs_diff(300_000) <= 200, "{served:?}");
        let before = accounts[1].counter();
        accounts[1].charge_output(3);
        assert_eq!(accounts[1].counter() - before, 2 * TOKEN);
    }

    #[test]
    fn idle_time_is_no_more_than_a_credit() {
        let mut accounts = Accounts::default();
        let busy = accounts.enter(tenant(1, 1));
        accounts[busy].waiting.insert((0, 0, 0));
        serve(&mut accounts, 100, 1000);
        let late = accounts.enter(tenant(2, 1));
        accounts[late].waiting.insert((0, 1, 1));
        let served = serve(&mut accounts, 40, 128);
        // The credit first, then turns.
        let expected = 4096 + (40 * 128 - 4096) / 2;
        assert!(served[&late].abs_diff(expected) <= 1000, "{served:?}");
        // Others who come now get no further than the one before did.
        let clock = accounts.clock;
        let third = accounts.enter(tenant(3, 1));
        assert_eq!(accounts[third].counter(), clock - CREDIT);
        // Whoever stays away for a moment keeps what it has had.
        let had = accounts[busy].counter();
        accounts[busy].waiting.clear();
        assert_eq!(accounts.enter(tenant(1, 1)), busy);
        assert_eq!(accounts[busy].counter(), had);
    }
}
