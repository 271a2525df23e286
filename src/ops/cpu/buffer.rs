//! Zeroed memory aligned to cache lines.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A fixed-size slice of plain numbers, zeroed, aligned to 64 bytes; large ones ask for huge pages.
///
/// Memory that is never touched is never taken: the allocator's zeroed pages are used as they come.
pub struct Buffer<T: Copy> {
    data: NonNull<T>,
    len: usize,
    /// What the allocator returned; `data` is the first aligned address in it.
    base: NonNull<u8>,
}

// SAFETY: it owns plain data, like a boxed slice.
unsafe impl<T: Copy + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for Buffer<T> {}

const ALIGN: usize = 64;

impl<T: Copy> Buffer<T> {
    /// `len` zero elements (`T` is an integer or float, for which zero bytes are zero).
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        let aligned = base.as_ptr().wrapping_add(base.as_ptr().align_offset(ALIGN));
        let data = NonNull::new(aligned.cast::<T>()).expect("an address above a valid one is not null");
        #[cfg(target_os = "linux")]
        if layout.size() >= 4 << 20 {
            let page = 4096;
            let from = (aligned as usize).next_multiple_of(page);
            let bytes = (base.as_ptr() as usize + layout.size() - from) / page * page;
            // SAFETY: whole pages inside the allocation; the advice changes no content, and failure is harmless.
            unsafe { libc::madvise(from as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE) };
        }
        Self { data, len, base }
    }

    /// A larger alignment than the allocator's own would make it clear the memory by hand, page by page.
    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|b| b.checked_add(ALIGN));
        let bytes = bytes.expect("a buffer fits the address space");
        Layout::from_size_align(bytes, 16).expect("a buffer fits the address space")
    }

    /// Start of the memory, for kernels that share it between workers. Writing through it while a
    /// slice borrowed from `self` lives is the writer's fault.
    pub fn as_ptr_shared(&self) -> *mut T {
        self.data.as_ptr()
    }
}

impl<T: Copy> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.len)) }
    }
}

impl<T: Copy> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements owned by self.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Copy> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}
