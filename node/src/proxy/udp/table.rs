//! Flows by their key, with a limit at which the one that was idle for longest makes room. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When a flow was last used, by either direction; shared by all who use it.
#[derive(Debug, Clone)]
pub(super) struct LastUse(Arc<AtomicU64>);

impl LastUse {
    /// Used at `now`, monotonic.
    pub(super) fn new(now: Duration) -> Self {
        let last = Self(Arc::default());
        last.touch(now);
        last
    }

    pub(super) fn touch(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long nobody has used it.
    pub(super) fn idle_for(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
}

/// Flows, at most so many.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    flows: HashMap<K, (LastUse, V)>,
    most: usize,
}

impl<K: Hash + Eq + Copy, V> Table<K, V> {
    /// An empty one with room for `most`, at least one.
    pub(super) fn new(most: usize) -> Self {
        Self { flows: HashMap::new(), most: most.max(1) }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.flows.get(key).map(|(_, flow)| flow)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.flows.get_mut(key).map(|(_, flow)| flow)
    }

    /// Adds a flow; returns the one that made room for it, idle for longest at `now`. To look for that one takes a walk
    /// over all, which is cheaper than to keep them in order with every datagram.
    pub(super) fn insert(&mut self, key: K, last: LastUse, flow: V, now: Duration) -> Option<V> {
        let is_new = !self.flows.contains_key(&key);
        let oldest = (is_new && self.flows.len() >= self.most)
            .then(|| self.flows.iter().max_by_key(|(_, (last, _))| last.idle_for(now)).map(|(key, _)| *key))
            .flatten();
        let evicted = oldest.and_then(|oldest| self.remove(&oldest));
        self.flows.insert(key, (last, flow));
        evicted
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.flows.remove(key).map(|(_, flow)| flow)
    }

    /// Takes out what nobody has used for `timeout` at `now`.
    pub(super) fn expire(&mut self, now: Duration, timeout: Duration) -> Vec<V> {
        self.flows.extract_if(|_, (last, _)| last.idle_for(now) >= timeout).map(|(_, (_, flow))| flow).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn at_the_limit_the_flow_that_was_idle_for_longest_makes_room() {
        let mut table = Table::new(2);
        let first = LastUse::new(Duration::ZERO);
        assert_eq!(table.insert(1, first.clone(), "first", Duration::ZERO), None);
        assert_eq!(table.insert(2, LastUse::new(SECOND), "second", SECOND), None);
        first.touch(SECOND * 2);
        assert_eq!(table.insert(3, LastUse::new(SECOND * 3), "third", SECOND * 3), Some("second"));
        assert_eq!(table.insert(3, LastUse::new(SECOND * 4), "again", SECOND * 4), None, "the same one needs no room");
        assert_eq!((table.get(&1), table.get(&2), table.get(&3)), (Some(&"first"), None, Some(&"again")));
    }

    #[test]
    fn what_nobody_uses_for_its_time_is_taken_out() {
        let mut table = Table::new(8);
        let used = LastUse::new(Duration::ZERO);
        table.insert(1, used.clone(), 1, Duration::ZERO);
        table.insert(2, LastUse::new(Duration::ZERO), 2, Duration::ZERO);
        used.touch(SECOND * 30);
        assert_eq!(table.expire(SECOND * 59, SECOND * 60), Vec::<i32>::new());
        assert_eq!(table.expire(SECOND * 60, SECOND * 60), [2]);
        assert_eq!(table.expire(SECOND * 90, SECOND * 60), [1]);
    }
}
