use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag for the work of other threads: set when this is dropped, so that it ends with the future that waits for it.
#[derive(Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Deref for Stop {
    type Target = Arc<AtomicBool>;

    fn deref(&self) -> &Arc<AtomicBool> {
        &self.0
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
