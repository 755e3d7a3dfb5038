//! The time that one connection may have of its thread, however many tasks work for it.
//!
//! Every request of an HTTP/2 connection is a task, and tasks take turns. So a connection with a hundred requests would have a
//! hundred turns to one of somebody else's. Here the time of all its tasks is added up, and when they have had their
//! [`QUANTUM`] they wait until all others who have something to do were served: deficit round robin (Shreedhar and Varghese,
//! SIGCOMM 1995) with connections for flows and time for bytes. Where nobody else wants the thread they wait for nobody.
//!
//! What waits may have something that others wait for, as a connection that it is opening. So that takes as many rounds longer as
//! there are tasks before it, each no longer than a [`QUANTUM`] of everybody; it always ends. Not counted is the work of
//! connections to instances and peers, which many share.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use transport::Clock;

/// What a connection may have in one round.
const QUANTUM: Duration = Duration::from_micros(250);
/// The most that is counted of one turn: where the kernel took the processor away meanwhile, the time was not the connection's.
const TURN_MAX: Duration = Duration::from_micros(500);
/// Who had nothing to do for so long owes nothing any more.
const REST: Duration = Duration::from_millis(1);

thread_local! {
    /// Whose task runs now.
    static CURRENT: RefCell<Option<Arc<Share>>> = const { RefCell::new(None) };
}

/// The connections of one data thread that have had their quantum.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    waiting: Mutex<Vec<Arc<Share>>>,
    /// How many have ended.
    ended: AtomicU64,
}

/// What one connection has had, and which of its tasks wait for more.
pub(super) struct Share {
    rounds: Arc<Rounds>,
    clock: Arc<dyn Clock>,
    /// Nanoseconds above what the rounds so far have allowed.
    spent: AtomicU64,
    /// Rounds that are taken off `spent`.
    settled: AtomicU64,
    /// When one of its tasks had its last turn, in nanoseconds.
    last: AtomicU64,
    held: Mutex<Vec<Waker>>,
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("spent", &self.spent).finish_non_exhaustive()
    }
}

pin_project! {
    /// A task of a connection.
    pub(super) struct Metered<F> {
        share: Arc<Share>,
        #[pin]
        task: F,
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.share.is_over() {
            lock(&this.share.held).push(cx.waker().clone());
            return Poll::Pending;
        }
        let _turn = Turn::begin(this.share);
        this.task.poll(cx)
    }
}

/// A turn of one of a connection's tasks, until it is dropped: also where the task panics.
struct Turn<'a> {
    share: &'a Arc<Share>,
    begun: Duration,
    before: Option<Arc<Share>>,
}

impl<'a> Turn<'a> {
    fn begin(share: &'a Arc<Share>) -> Self {
        let begun = share.clock.now();
        share.settle(begun);
        Self { share, begun, before: CURRENT.replace(Some(Arc::clone(share))) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
        let now = self.share.clock.now();
        self.share.last.store(nanos(now), Ordering::Relaxed);
        self.share.spend(now.saturating_sub(self.begun));
    }
}

impl Share {
    /// That of a new connection.
    pub(super) fn new(rounds: &Arc<Rounds>, clock: &Arc<dyn Clock>) -> Arc<Self> {
        let (rounds, clock) = (Arc::clone(rounds), Arc::clone(clock));
        let [spent, settled, last] = [const { AtomicU64::new(0) }; 3];
        Arc::new(Self { rounds, clock, spent, settled, last, held: Mutex::default() })
    }

    /// A task of this connection.
    pub(super) fn meter<F: Future>(self: &Arc<Self>, task: F) -> Metered<F> {
        Metered { share: Arc::clone(self), task }
    }

    fn is_over(&self) -> bool {
        self.spent.load(Ordering::Relaxed) >= nanos(QUANTUM)
    }

    /// Takes off what the rounds since the last turn have allowed.
    fn settle(&self, now: Duration) {
        let ended = self.rounds.ended.load(Ordering::Relaxed);
        let rounds = ended.saturating_sub(self.settled.swap(ended, Ordering::Relaxed));
        let rested = nanos(now).saturating_sub(self.last.load(Ordering::Relaxed));
        let allowed = if rested >= nanos(REST) { u64::MAX } else { rounds.saturating_mul(nanos(QUANTUM)) };
        if allowed > 0 {
            self.spent.store(self.spent.load(Ordering::Relaxed).saturating_sub(allowed), Ordering::Relaxed);
        }
    }

    fn spend(self: &Arc<Self>, time: Duration) {
        let before = self.spent.fetch_add(nanos(time.min(TURN_MAX)), Ordering::Relaxed);
        if before < nanos(QUANTUM) && self.is_over() {
            self.rounds.wait(Arc::clone(self));
        }
    }

    /// A round is over; returns whether the connection has to wait for another.
    fn has_to_wait_on(&self) -> bool {
        self.settled.store(self.rounds.ended.load(Ordering::Relaxed), Ordering::Relaxed);
        let spent = self.spent.load(Ordering::Relaxed).saturating_sub(nanos(QUANTUM));
        self.spent.store(spent, Ordering::Relaxed);
        self.is_over()
    }

    fn go_on(&self) {
        for waker in std::mem::take(&mut *lock(&self.held)) {
            waker.wake();
        }
    }
}

impl Rounds {
    fn wait(self: &Arc<Self>, share: Arc<Share>) {
        let mut waiting = lock(&self.waiting);
        waiting.push(share);
        if waiting.len() == 1 {
            tokio::spawn(turn(Arc::clone(self)));
        }
    }
}

/// Ends one round after the other, until nobody waits.
async fn turn(rounds: Arc<Rounds>) {
    loop {
        // Comes back when those who were ready have been polled, and what has arrived meanwhile was looked for.
        tokio::task::yield_now().await;
        // The runtime wakes who yielded last first. Behind them, so that they queue up with the others of their connection.
        behind_all().await;
        rounds.ended.fetch_add(1, Ordering::Relaxed);
        let mut waiting = lock(&rounds.waiting);
        let (go_on, wait_on): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|share| !share.has_to_wait_on());
        *waiting = wait_on;
        let is_over = waiting.is_empty();
        drop(waiting);
        go_on.iter().for_each(|share| share.go_on());
        if is_over {
            return;
        }
    }
}

/// Comes back when all have been polled who are ready now.
async fn behind_all() {
    let mut is_behind = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Begins a task that belongs to the connection whose task asks for it, if it is one of a connection with a share.
pub(super) fn spawn<F>(task: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    match CURRENT.with_borrow(Clone::clone) {
        Some(share) => drop(tokio::spawn(share.meter(task))),
        None => drop(tokio::spawn(task)),
    }
}

/// Begins the tasks of a connection with a share.
#[derive(Debug, Clone)]
pub(super) struct Spawner {
    share: Arc<Share>,
}

impl Spawner {
    /// For the tasks of the connection that has this share.
    pub(super) fn of(share: &Arc<Share>) -> Self {
        Self { share: Arc::clone(share) }
    }
}

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(self.share.meter(task));
    }
}

/// Whether what runs now is a task of a connection with a share.
#[cfg(test)]
pub(super) fn is_metered() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;

    use tokio::task::yield_now;

    use super::*;

    /// A clock that stands still, but for the work that is done.
    #[derive(Debug, Default)]
    struct Work(AtomicU64);

    impl Work {
        fn takes(&self, time: Duration) {
            self.0.fetch_add(nanos(time), Ordering::Relaxed);
        }
    }

    impl Clock for Work {
        fn now(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::Relaxed))
        }

        fn unix(&self) -> Duration {
            self.now()
        }
    }

    fn bench() -> (Arc<Work>, Arc<Rounds>, Arc<Share>) {
        let (work, rounds) = (Arc::<Work>::default(), Arc::default());
        let share = Share::new(&rounds, &(Arc::clone(&work) as Arc<dyn Clock>));
        (work, rounds, share)
    }

    /// A task that has `turns` turns of 100 us; each is counted.
    async fn task(work: Arc<Work>, turns: usize, had: Arc<AtomicUsize>) {
        for _ in 0..turns {
            work.takes(Duration::from_micros(100));
            had.fetch_add(1, Ordering::Relaxed);
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_connection_with_many_tasks_leaves_as_much_to_one_with_a_single_task() {
        let (work, rounds, many) = bench();
        let one = Share::new(&rounds, &many.clock);
        let had = Arc::<AtomicUsize>::default();
        for _ in 0..50 {
            tokio::spawn(many.meter(task(Arc::clone(&work), usize::MAX, Arc::clone(&had))));
        }
        let own = Arc::<AtomicUsize>::default();
        tokio::spawn(one.meter(task(Arc::clone(&work), 200, Arc::clone(&own)))).await.unwrap();
        let had = had.load(Ordering::Relaxed);
        // Three turns are what a quantum holds; 50 tasks without a share would have 10,000 turns meanwhile.
        assert!((200..=700).contains(&had), "{had} turns beside 200");
    }

    #[tokio::test]
    async fn tasks_that_had_to_wait_all_come_to_their_end_and_none_is_ahead_of_the_others() {
        let (work, _rounds, share) = bench();
        let counts: Vec<_> = (0..40).map(|_| Arc::<AtomicUsize>::default()).collect();
        let tasks: Vec<_> = counts
            .iter()
            .map(|count| tokio::spawn(share.meter(task(Arc::clone(&work), 20, Arc::clone(count)))))
            .collect();
        while counts.iter().any(|count| count.load(Ordering::Relaxed) < 20) {
            yield_now().await;
            let had = || counts.iter().map(|count| count.load(Ordering::Relaxed));
            assert!(had().max() <= had().min().map(|least| least + 2), "{:?}", had().collect::<Vec<_>>());
        }
        for task in tasks {
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_a_task_of_a_connection_begins_is_of_its_share() {
        let (work, rounds, share) = bench();
        let had = Arc::<AtomicUsize>::default();
        let (within, count) = (Arc::clone(&work), Arc::clone(&had));
        tokio::spawn(share.meter(async move {
            for _ in 0..50 {
                spawn(task(Arc::clone(&within), usize::MAX, Arc::clone(&count)));
            }
        }))
        .await
        .unwrap();
        let one = Share::new(&rounds, &share.clock);
        tokio::spawn(one.meter(task(work, 200, Arc::default()))).await.unwrap();
        let had = had.load(Ordering::Relaxed);
        assert!((200..=700).contains(&had), "{had} turns beside 200");
    }

    #[tokio::test]
    async fn a_processor_that_was_away_for_a_minute_is_soon_forgotten() {
        let (work, _rounds, share) = bench();
        work.takes(Duration::from_secs(1));
        let away = Arc::clone(&work);
        share.meter(async move { away.takes(Duration::from_secs(60)) }).await;
        let next = tokio::spawn(share.meter(async {}));
        let mut rounds = 0;
        while !next.is_finished() {
            rounds += 1;
            yield_now().await;
        }
        assert!((1..=6).contains(&rounds), "{rounds} rounds");
    }

    #[tokio::test]
    async fn who_takes_less_than_is_allowed_never_waits_beside_one_who_wants_all() {
        let (work, rounds, light) = bench();
        let heavy = Share::new(&rounds, &light.clock);
        for _ in 0..50 {
            tokio::spawn(heavy.meter(task(Arc::clone(&work), usize::MAX, Arc::default())));
        }
        let held = tokio::spawn({
            let (light, within) = (Arc::clone(&light), Arc::clone(&work));
            async move {
                let mut held = 0;
                for _ in 0..200 {
                    // A request of 60 us, and one round without any.
                    let within = Arc::clone(&within);
                    let mut request = pin!(light.meter(async move { within.takes(Duration::from_micros(60)) }));
                    poll_fn(|cx| {
                        let polled = request.as_mut().poll(cx);
                        held += usize::from(polled.is_pending());
                        polled
                    })
                    .await;
                    yield_now().await;
                }
                held
            }
        });
        assert_eq!(held.await.unwrap(), 0, "times that a request had to wait");
    }

    #[tokio::test]
    async fn each_round_takes_a_quantum_off_who_was_not_held_in_it() {
        let (_work, rounds, share) = bench();
        let now = share.clock.now();
        for (ended, left) in [(0, 100), (1, 0), (0, 100), (0, 200), (1, 50), (2, 0)] {
            share.spend(Duration::from_micros(100));
            rounds.ended.fetch_add(ended, Ordering::Relaxed);
            share.settle(now);
            assert_eq!(share.spent.load(Ordering::Relaxed), nanos(Duration::from_micros(left)));
        }
    }

    #[tokio::test]
    async fn who_rested_owes_nothing() {
        let (work, _rounds, share) = bench();
        for _ in 0..50 {
            let within = Arc::clone(&work);
            let mut request = pin!(share.meter(async move { within.takes(Duration::from_micros(200)) }));
            assert!(poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx))).await.is_ready());
            work.takes(REST);
        }
    }

    #[tokio::test]
    async fn a_task_that_panics_takes_its_share_along() {
        let (_work, _rounds, share) = bench();
        let panics = tokio::spawn(share.meter(async { panic!("on purpose") })).await;
        assert!(panics.is_err());
        assert!(!is_metered(), "what others begin is not of that share");
    }
}
