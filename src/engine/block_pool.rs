//! The pool of KV blocks and its prefix cache.
//!
//! A block is *in use* while a table holds it and *free* otherwise. Free blocks form one intrusive
//! list, taken from its head. A registered block (full, its content known) stays in the cache while
//! it waits there, and is forgotten when it is taken.
//!
//! The cache key is exact: a block's 32 tokens and the uid of its parent. A uid is never used twice,
//! so equal keys mean equal histories and a hit needs no verification.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::types::{AdapterSlot, BLOCK_SIZE, BlockId, TokenId};

/// Interned roots before they are dropped (what hangs below them can then no longer be found, and
/// ages out): bounds the memory that changing salts can take.
const MAX_ROOTS: usize = 1 << 16;

/// Identity of a cached prefix: a root (salt and adapter) or a registered block with all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixUid(u64);

type Tokens = [TokenId; BLOCK_SIZE];
type Key = (PrefixUid, Tokens);

/// The blocks of one sequence in position order. Must be handed to [`BlockPool::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// The blocks, one for each [`BLOCK_SIZE`] positions.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Positions the blocks hold.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_SIZE
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        debug_assert!(self.blocks.is_empty() || std::thread::panicking(), "a block table was dropped, not released");
    }
}

#[derive(Debug)]
struct Block {
    ref_count: u32,
    /// Neighbours in the free list; meaningful only while `ref_count` is 0.
    prev: Option<u32>,
    next: Option<u32>,
    cached: Option<Box<Cached>>,
}

#[derive(Debug)]
struct Cached {
    uid: PrefixUid,
    key: Key,
}

/// Blocks, reference counts, free list and prefix cache. Every operation on a block is O(1).
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    head: Option<u32>,
    tail: Option<u32>,
    num_free: usize,
    num_cached_free: usize,
    cache: HashMap<Key, BlockId>,
    roots: HashMap<(Option<Arc<str>>, Option<AdapterSlot>), PrefixUid>,
    next_uid: u64,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks. Panics above `u32::MAX` blocks.
    pub fn new(num_blocks: usize) -> Self {
        let count = u32::try_from(num_blocks).expect("block ids are 32 bits");
        let mut pool = Self {
            blocks: Vec::with_capacity(num_blocks),
            head: None,
            tail: None,
            num_free: 0,
            num_cached_free: 0,
            cache: HashMap::new(),
            roots: HashMap::new(),
            next_uid: 0,
        };
        for id in 0..count {
            pool.blocks.push(Block { ref_count: 0, prev: None, next: None, cached: None });
            pool.push_back(id);
        }
        pool
    }

    /// All blocks.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks no table holds, cached or not.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Blocks some table holds.
    pub fn num_in_use(&self) -> usize {
        self.blocks.len() - self.num_free
    }

    /// Free blocks whose content can still be found.
    pub fn num_cached_free(&self) -> usize {
        self.num_cached_free
    }

    /// The root under which prompts of this salt and adapter share blocks.
    pub fn root(&mut self, salt: Option<&Arc<str>>, adapter: Option<AdapterSlot>) -> PrefixUid {
        let key = (salt.cloned(), adapter);
        if let Some(&uid) = self.roots.get(&key) {
            return uid;
        }
        if self.roots.len() >= MAX_ROOTS {
            self.roots.clear();
        }
        let uid = self.fresh_uid();
        self.roots.insert(key, uid);
        uid
    }

    /// Appends to `hits` the cached blocks that hold the longest prefix of `tokens`, in whole
    /// blocks. Returns the uid of that prefix (`root` without a hit). Takes nothing.
    pub fn lookup(&self, root: PrefixUid, tokens: &[TokenId], hits: &mut Vec<BlockId>) -> PrefixUid {
        let mut uid = root;
        for chunk in tokens.as_chunks::<BLOCK_SIZE>().0 {
            let Some(&id) = self.cache.get(&(uid, *chunk)) else { break };
            let cached = self.blocks[id.0 as usize].cached.as_ref().expect("the cache names registered blocks only");
            uid = cached.uid;
            hits.push(id);
        }
        uid
    }

    /// How many of these blocks are free, that is, would leave the free list if adopted.
    pub fn count_free(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().filter(|b| self.blocks[b.0 as usize].ref_count == 0).count()
    }

    /// Appends cached blocks found by [`lookup`](Self::lookup) to a table, sharing them.
    pub fn adopt(&mut self, table: &mut BlockTable, hits: &[BlockId]) {
        for &id in hits {
            if self.blocks[id.0 as usize].ref_count == 0 {
                self.unlink(id.0);
            }
            self.blocks[id.0 as usize].ref_count += 1;
        }
        table.blocks.extend_from_slice(hits);
    }

    /// Appends `count` fresh blocks to a table, evicting the least recently freed cached ones if it
    /// must. With fewer free, changes nothing and returns false.
    #[must_use]
    pub fn allocate(&mut self, table: &mut BlockTable, count: usize) -> bool {
        if count > self.num_free {
            return false;
        }
        for _ in 0..count {
            let id = self.head.expect("num_free counts the list");
            self.unlink(id);
            let block = &mut self.blocks[id as usize];
            block.ref_count = 1;
            if let Some(cached) = block.cached.take() {
                self.cache.remove(&cached.key);
            }
            table.blocks.push(BlockId(id));
        }
        true
    }

    /// Makes a full block findable as the continuation of `parent`; returns the uid of the prefix it
    /// ends. If another block has this content already, that one stays and its uid is returned.
    ///
    /// Call it only after the step that wrote the block has succeeded.
    pub fn register(&mut self, id: BlockId, parent: PrefixUid, tokens: &Tokens) -> PrefixUid {
        let key = (parent, *tokens);
        let vacant = match self.cache.entry(key) {
            Entry::Occupied(known) => {
                let cached = self.blocks[known.get().0 as usize].cached.as_ref();
                return cached.expect("the cache names registered blocks only").uid;
            }
            Entry::Vacant(vacant) => vacant,
        };
        vacant.insert(id);
        let uid = self.fresh_uid();
        let block = &mut self.blocks[id.0 as usize];
        debug_assert!(block.ref_count > 0 && block.cached.is_none(), "only a new block in use is registered");
        block.cached = Some(Box::new(Cached { uid, key }));
        uid
    }

    /// Gives a table's blocks back: the last first, so that it is evicted before its ancestors.
    pub fn release(&mut self, mut table: BlockTable) {
        self.truncate(&mut table, 0);
    }

    /// Gives back what a table has beyond `count` blocks.
    pub fn truncate(&mut self, table: &mut BlockTable, count: usize) {
        while table.blocks.len() > count {
            let Some(id) = table.blocks.pop() else { return };
            let block = &mut self.blocks[id.0 as usize];
            block.ref_count = block.ref_count.checked_sub(1).expect("a block in a table is counted");
            if block.ref_count > 0 {
                continue;
            }
            if block.cached.is_some() {
                self.push_back(id.0);
            } else {
                self.push_front(id.0);
            }
        }
    }

    fn fresh_uid(&mut self) -> PrefixUid {
        self.next_uid += 1;
        PrefixUid(self.next_uid)
    }

    /// Blocks with content worth keeping wait at the back.
    fn push_back(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        (block.prev, block.next) = (self.tail, None);
        self.num_cached_free += usize::from(block.cached.is_some());
        match self.tail.replace(id) {
            Some(tail) => self.blocks[tail as usize].next = Some(id),
            None => self.head = Some(id),
        }
        self.num_free += 1;
    }

    /// Blocks with nothing in them are taken first.
    fn push_front(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        (block.prev, block.next) = (None, self.head);
        match self.head.replace(id) {
            Some(head) => self.blocks[head as usize].prev = Some(id),
            None => self.tail = Some(id),
        }
        self.num_free += 1;
    }

    fn unlink(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        let (prev, next) = (block.prev.take(), block.next.take());
        self.num_cached_free -= usize::from(block.cached.is_some());
        match prev {
            Some(prev) => self.blocks[prev as usize].next = next,
            None => self.head = next,
        }
        match next {
            Some(next) => self.blocks[next as usize].prev = prev,
            None => self.tail = prev,
        }
        self.num_free -= 1;
    }

    /// Panics unless list, counts and cache agree with each other and with `tables`, which must be
    /// all there are. Walks everything: for tests.
    pub fn assert_invariants<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut owners = vec![0u32; self.blocks.len()];
        for table in tables {
            for id in &table.blocks {
                owners[id.0 as usize] += 1;
            }
        }
        for (id, (block, &owners)) in self.blocks.iter().zip(&owners).enumerate() {
            assert_eq!(block.ref_count, owners, "reference count of block {id}");
            if let Some(cached) = &block.cached {
                assert_eq!(self.cache.get(&cached.key), Some(&BlockId(id as u32)), "cache entry of block {id}");
            }
        }
        let registered = self.blocks.iter().filter(|b| b.cached.is_some()).count();
        assert_eq!(self.cache.len(), registered, "every cache entry names a registered block");

        let (mut listed, mut cached, mut prev, mut at) = (0, 0, None, self.head);
        while let Some(id) = at {
            let block = &self.blocks[id as usize];
            assert_eq!(block.ref_count, 0, "block {id} is both free and owned");
            assert_eq!(block.prev, prev, "back link of block {id}");
            listed += 1;
            cached += usize::from(block.cached.is_some());
            assert!(listed <= self.blocks.len(), "the free list has a cycle");
            (prev, at) = (Some(id), block.next);
        }
        assert_eq!(prev, self.tail, "tail of the free list");
        assert_eq!((listed, cached), (self.num_free, self.num_cached_free), "free and cached-but-free counts");
        let owned = owners.iter().filter(|&&n| n > 0).count();
        assert_eq!(listed + owned, self.blocks.len(), "free and owned blocks are all blocks");
    }
}

#[cfg(test)]
mod tests;
