use super::*;

fn block(fill: u32) -> Tokens {
    [fill; BLOCK_SIZE]
}

fn take(pool: &mut BlockPool, count: usize) -> BlockTable {
    let mut table = BlockTable::default();
    assert!(pool.allocate(&mut table, count));
    table
}

/// A table of registered blocks filled with these values.
fn cached(pool: &mut BlockPool, root: PrefixUid, fills: &[u32]) -> BlockTable {
    let table = take(pool, fills.len());
    let mut uid = root;
    for (&id, &fill) in table.blocks().iter().zip(fills) {
        uid = pool.register(id, uid, &block(fill));
    }
    table
}

fn hits(pool: &BlockPool, root: PrefixUid, fills: &[u32]) -> Vec<BlockId> {
    let tokens: Vec<_> = fills.iter().flat_map(|&f| block(f)).collect();
    let mut hits = Vec::new();
    pool.lookup(root, &tokens, &mut hits);
    hits
}

#[test]
fn allocation_is_all_or_nothing() {
    let mut pool = BlockPool::new(3);
    let mut table = take(&mut pool, 2);
    assert!(!pool.allocate(&mut table, 2));
    assert_eq!((table.blocks().len(), table.capacity(), pool.num_free()), (2, 64, 1));
    pool.assert_invariants([&table].into_iter());
    pool.release(table);
    assert_eq!((pool.num_free(), pool.num_in_use()), (3, 0));
    pool.assert_invariants([].into_iter());
}

#[test]
fn prefixes_are_found_by_their_whole_history() {
    let mut pool = BlockPool::new(8);
    let root = pool.root(None, None);
    let table = cached(&mut pool, root, &[1, 2, 3]);
    assert_eq!(hits(&pool, root, &[1, 2, 3]), table.blocks());
    assert_eq!(hits(&pool, root, &[1, 2, 9]), &table.blocks()[..2]);
    assert_eq!(hits(&pool, root, &[2, 3]), []);
    let salted = pool.root(Some(&"a".into()), None);
    let adapted = pool.root(None, Some(AdapterSlot { index: 0, generation: 1 }));
    assert_eq!(hits(&pool, salted, &[1, 2, 3]), []);
    assert_eq!(hits(&pool, adapted, &[1, 2, 3]), []);
    assert_eq!(pool.root(None, None), root);
    pool.release(table);
    assert_eq!((pool.num_free(), pool.num_cached_free()), (8, 3));
    pool.assert_invariants([].into_iter());
}

#[test]
fn equal_content_continues_the_chain_of_the_first() {
    let mut pool = BlockPool::new(4);
    let root = pool.root(None, None);
    let (a, b) = (take(&mut pool, 1), take(&mut pool, 2));
    let first = pool.register(a.blocks()[0], root, &block(7));
    assert_eq!(pool.register(b.blocks()[0], root, &block(7)), first);
    pool.register(b.blocks()[1], first, &block(8));
    assert_eq!(hits(&pool, root, &[7, 8]), [a.blocks()[0], b.blocks()[1]]);
    pool.assert_invariants([&a, &b].into_iter());
    pool.release(a);
    pool.release(b);
    pool.assert_invariants([].into_iter());
}

#[test]
fn empty_blocks_go_first_then_tails_before_their_ancestors() {
    let mut pool = BlockPool::new(4);
    let root = pool.root(None, None);
    let table = cached(&mut pool, root, &[1, 2, 3]);
    let ids = table.blocks().to_vec();
    pool.release(table);
    let empty = take(&mut pool, 1);
    assert!(!ids.contains(&empty.blocks()[0]));
    let evicted = take(&mut pool, 1);
    assert_eq!(evicted.blocks(), [ids[2]]);
    assert_eq!(hits(&pool, root, &[1, 2, 3]), ids[..2]);
    pool.assert_invariants([&empty, &evicted].into_iter());
    pool.release(empty);
    pool.release(evicted);
}

#[test]
fn shared_blocks_are_freed_with_their_last_table() {
    let mut pool = BlockPool::new(4);
    let root = pool.root(None, None);
    let table = cached(&mut pool, root, &[1, 2]);
    let found = hits(&pool, root, &[1, 2]);
    assert_eq!(pool.count_free(&found), 0);
    let mut other = BlockTable::default();
    pool.adopt(&mut other, &found);
    pool.release(table);
    assert_eq!((pool.num_in_use(), pool.num_cached_free()), (2, 0));
    pool.release(other);
    assert_eq!((pool.num_in_use(), pool.num_cached_free(), pool.count_free(&found)), (0, 2, 2));
}

#[test]
fn roots_are_bounded() {
    let mut pool = BlockPool::new(1);
    let first = pool.root(None, None);
    for salt in 0..MAX_ROOTS {
        pool.root(Some(&salt.to_string().into()), None);
    }
    assert!(pool.roots.len() <= MAX_ROOTS);
    assert_ne!(pool.root(None, None), first);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "not released")]
fn a_dropped_table_is_a_bug() {
    drop(take(&mut BlockPool::new(1), 1));
}
