//! Memory that was freed goes back to the system although nothing happens.
//!
//! jemalloc keeps freed pages for the time it was built with (one second here, `.cargo/config.toml`) and looks at them only
//! in passing: about once in a thousand large allocations of the arena in question. An agent that has taken in documents
//! and has nothing more to do makes none. So its threads make some now and then. With what the store does about sled's
//! pages that left 17 MB anonymous instead of 20 after 2,000 routes, and 30 instead of 42 after six times as many writes. Other allocators need nothing of the kind.

use std::hint::black_box;
use std::time::Duration;

/// Time between two rounds.
const EVERY: Duration = Duration::from_secs(2);
/// Large allocations of one round.
const ALLOCATIONS: usize = 400;
/// Larger than what jemalloc keeps per thread (32 KiB), so that each is counted by the arena.
const BYTES: usize = 64 << 10;

/// Has jemalloc look for pages to give back every now and then, for ever.
pub async fn now_and_then() {
    loop {
        tokio::time::sleep(EVERY).await;
        once();
    }
}

fn once() {
    for _ in 0..ALLOCATIONS {
        // Never touched, so no page becomes resident for it.
        drop(black_box(Vec::<u8>::with_capacity(BYTES)));
    }
}
