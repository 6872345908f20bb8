//! A promise that a process takes no more memory from its heap. The zygote gives it when its preparations are done, and
//! what it clones inherits it: a start can then neither fail nor wait for want of heap, and thousands of idle processes
//! share the pages that they never write to. Nothing enforces it but the
//! allocator of the provider's tests, [`Strict`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

static SEALED: AtomicBool = AtomicBool::new(false);

/// From here on the heap is left alone.
pub fn seal() {
    SEALED.store(true, Ordering::Relaxed);
}

/// Takes the promise back: something failed and is to be told in words.
pub fn lift() {
    SEALED.store(false, Ordering::Relaxed);
}

/// Whether the promise was given.
pub fn is_sealed() -> bool {
    SEALED.load(Ordering::Relaxed)
}

/// An allocator that ends a process which takes memory although it promised not to. For tests.
#[derive(Debug)]
pub struct Strict;

fn look() {
    if is_sealed() {
        crate::process::exit_now(134);
    }
}

// SAFETY: every call is handed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Strict {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        look();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        look();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
