//! A promise that a process takes no more memory from its heap. The zygote gives it when its preparations are done, and
//! what it clones inherits it: a start can then neither fail nor wait for want of heap, and thousands of idle processes
//! share the pages that they never write to. Nothing enforces it but an allocator that looks at [`is_sealed`]; the
//! provider's tests have one that ends the process.

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
