//! Long-lived tasks that come back: a panic is counted, logged and followed by a restart, never by a process that
//! serves but no longer gossips.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{debug, error};

/// Wait before the first restart; doubles up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_millis(100);
/// Longest wait between two restarts.
const RESTART_MAX: Duration = Duration::from_secs(10);

/// Runs the future that `make` gives, again whenever it panics, until it returns.
///
/// Aborting the returned handle aborts the task that runs. Each panic counts in `marram_task_restarts_total{task}`.
pub fn supervised<F, Fut>(name: &'static str, mut make: F) -> JoinHandle<()>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        let mut wait = RESTART_MIN;
        loop {
            let task = AbortOnDrop(tokio::spawn(make()));
            match task.await {
                Ok(()) => {
                    debug!(task = name, "task ended");
                    return;
                }
                Err(fault) if fault.is_panic() => {
                    error!(
                        task = name,
                        restart_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                        "task panicked"
                    );
                    metrics::counter!("marram_task_restarts_total", "task" => name).increment(1);
                }
                Err(_cancelled) => return,
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RESTART_MAX);
        }
    })
}

/// A task that does not outlive the one that waits for it.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Future for AbortOnDrop {
    type Output = Result<(), tokio::task::JoinError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context)
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_runs_again_until_it_returns() {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        let task = supervised("test", move || {
            let runs = Arc::clone(&counted);
            async move {
                assert!(runs.fetch_add(1, Ordering::Relaxed) >= 2, "the first two runs panic on purpose");
            }
        });
        task.await.unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 3);
    }
}
