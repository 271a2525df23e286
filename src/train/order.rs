//! In which order examples are learnt: epochs, batches, micro-batches.
//!
//! All of it is computed from seed and epoch, so that a resumed run goes on where it was without having kept anything.

use crate::ops::philox::philox4x32_10;
use crate::parallel::Share;

/// Sets the permutations apart from everything else that the seed draws.
const SHUFFLE: u32 = 0x5348_5546;

/// The order of `rows` rows in `epoch`: sorted by random numbers of (seed, epoch, row).
pub fn permutation(seed: u64, epoch: u32, rows: usize) -> Vec<usize> {
    let key = [seed as u32, (seed >> 32) as u32];
    let draw = |row: usize| philox4x32_10([row as u32, (row as u64 >> 32) as u32, epoch, SHUFFLE], key);
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by_cached_key(|&row| (draw(row), row));
    order
}

/// Steps of an epoch. The last takes the rows that are left: none is left out and none is learnt twice.
pub fn batches(rows: usize, batch_size: usize) -> usize {
    rows.div_ceil(batch_size)
}

/// Rows of step `batch` of an epoch.
pub fn batch(order: &[usize], batch_size: usize, batch: usize) -> &[usize] {
    order.chunks(batch_size).nth(batch).unwrap_or_default()
}

/// The rows of a batch that one of several data-parallel ranks computes, in the batch's order. `len` gives a row's tokens.
///
/// The longest rows come first, each to the rank that has the fewest tokens so far.
pub fn share(batch: &[usize], share: Share, len: impl Fn(usize) -> usize) -> Vec<usize> {
    if share.of == 1 {
        return batch.to_vec();
    }
    let mut places: Vec<usize> = (0..batch.len()).collect();
    places.sort_by_key(|&at| std::cmp::Reverse(len(batch[at])));
    let mut tokens = vec![0; share.of];
    places.retain(|&at| {
        let least = (0..share.of).min_by_key(|&rank| tokens[rank]).unwrap_or(0);
        tokens[least] += len(batch[at]);
        least == share.rank
    });
    places.sort_unstable();
    places.into_iter().map(|at| batch[at]).collect()
}

/// Divides a batch into micro-batches of at most `budget` tokens, or of one row that has more. `len` gives a row's
/// tokens.
///
/// The longest rows come first, each into the first micro-batch that has room: first-fit decreasing. Rows of equal
/// length keep their order.
pub fn micro_batches(batch: &[usize], budget: usize, len: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut rows = batch.to_vec();
    rows.sort_by_key(|&row| std::cmp::Reverse(len(row)));
    let mut out: Vec<(usize, Vec<usize>)> = Vec::new();
    for row in rows {
        match out.iter_mut().find(|(tokens, _)| tokens + len(row) <= budget) {
            Some((tokens, rows)) => {
                *tokens += len(row);
                rows.push(row);
            }
            None => out.push((len(row), vec![row])),
        }
    }
    out.into_iter().map(|(_, rows)| rows).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_row_once() {
        let orders: Vec<_> = (0..4).map(|epoch| permutation(7, epoch, 1000)).collect();
        for (i, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..1000));
            assert!(orders[..i].iter().all(|other| other != order));
            // Nothing but seed, epoch and number of rows matters.
            assert_eq!(*order, permutation(7, i as u32, 1000));
            let fixed = order.iter().enumerate().filter(|(at, row)| at == *row).count();
            assert!(fixed < 10, "{fixed} rows stayed where they were");
        }
        assert_ne!(permutation(8, 0, 1000), orders[0]);
        assert_ne!(permutation(7 + (1 << 32), 0, 1000), orders[0]);
    }

    #[test]
    fn the_last_batch_takes_what_is_left() {
        let order = permutation(1, 0, 1000);
        assert_eq!((batches(1000, 32), batches(1030, 32), batches(1, 64)), (32, 33, 1));
        assert_eq!(batch(&order, 32, 31).len(), 8);
        let all: Vec<usize> = (0..32).flat_map(|i| batch(&order, 32, i)).copied().collect();
        assert_eq!(all, order);
    }

    #[test]
    fn ranks_share_a_batch_evenly() {
        let lens: Vec<usize> = (0..200).map(|i| 1 + (i * 7919) % 300).collect();
        let order = permutation(3, 0, lens.len());
        for of in 1..6 {
            let shares: Vec<_> = (0..of).map(|rank| share(&order, Share { rank, of }, |row| lens[row])).collect();
            let mut rows = shares.concat();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..lens.len()));
            let tokens = |share: &Vec<usize>| share.iter().map(|&row| lens[row]).sum::<usize>();
            let (most, least) = (shares.iter().map(tokens).max().unwrap(), shares.iter().map(tokens).min().unwrap());
            assert!(most - least <= 300, "{of} ranks: {most} and {least} tokens");
        }
        assert_eq!(share(&order, Share::WHOLE, |_| 1), order);
        assert!(share(&[7], Share { rank: 1, of: 2 }, |_| 5).is_empty());
    }

    #[test]
    fn micro_batches_keep_to_their_budget() {
        let lens: Vec<usize> = (0..200).map(|i| 1 + (i * 7919) % 300).collect();
        for budget in [1, 100, 256, 299, 300, 1000, usize::MAX >> 1] {
            let order = permutation(3, 0, lens.len());
            let made = micro_batches(&order, budget, |row| lens[row]);
            let mut rows: Vec<usize> = made.concat();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..lens.len()));
            for micro in &made {
                let tokens: usize = micro.iter().map(|&row| lens[row]).sum();
                assert!(tokens <= budget || micro.len() == 1, "{tokens} of {budget}");
            }
            // First-fit decreasing needs at most 11/9 of the best, and one more.
            let best = lens.iter().sum::<usize>().div_ceil(budget.max(300));
            assert!(budget < 300 || made.len() <= best * 11 / 9 + 1, "{} for {best}", made.len());
        }
        assert_eq!(micro_batches(&[4, 2, 9], 10, |_| 5), [vec![4, 2], vec![9]]);
    }
}
