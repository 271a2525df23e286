//! Zeroed memory aligned to cache lines.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A fixed-size slice of plain numbers, zeroed, aligned to 64 bytes; large ones ask for huge pages.
pub struct Buffer<T: Copy> {
    data: NonNull<T>,
    len: usize,
}

// SAFETY: it owns plain data, like a boxed slice.
unsafe impl<T: Copy + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for Buffer<T> {}

impl<T: Copy> Buffer<T> {
    /// `len` zero elements (`T` is an integer or float, for which zero bytes are zero).
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let data = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(data.cast::<T>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.size() >= 4 << 20 {
            let page = 4096;
            let from = (data.as_ptr() as usize).next_multiple_of(page);
            let bytes = (data.as_ptr() as usize + layout.size() - from) / page * page;
            // SAFETY: whole pages inside the allocation; the advice changes no content, and failure is harmless.
            unsafe { libc::madvise(from as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE) };
        }
        Self { data, len }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer fits the address space").max(64);
        Layout::from_size_align(bytes, 64).expect("a buffer fits the address space")
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
        unsafe { dealloc(self.data.as_ptr().cast(), Self::layout(self.len)) }
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
