//! What is known of the members' values, and what changed in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::id::NodeId;

/// One value of one member was set, replaced or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose value.
    pub node: NodeId,
    /// In which life of that node.
    pub generation: u64,
    /// Its name.
    pub key: String,
    /// What it is now; `None` when it is gone.
    pub value: Option<Arc<str>>,
}

/// Every member with its newest life and its values in order of their keys.
pub type Snapshot = Vec<(NodeId, u64, Vec<(String, String)>)>;

/// The newest life of every member, as last compared.
#[derive(Debug, Default)]
pub(super) struct View {
    members: BTreeMap<NodeId, MemberValues>,
}

/// One state as chitchat holds it.
pub(super) struct State<'a> {
    pub(super) node: NodeId,
    pub(super) generation: u64,
    /// Last collected and maximum version: when both are as before, nothing changed.
    pub(super) versions: (u64, u64),
    pub(super) values: Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a>,
}

#[derive(Debug)]
struct MemberValues {
    generation: u64,
    versions: (u64, u64),
    values: BTreeMap<String, Arc<str>>,
}

impl View {
    /// Takes in all states now held and tells what changed. Of each node the newest life that holds anything counts.
    /// While `catching_up` after a restart of gossip, states that are missing or behind are taken for not yet heard
    /// again, rather than for removed.
    pub(super) fn update<'a>(&mut self, states: impl Iterator<Item = State<'a>>, catching_up: bool) -> Vec<Change> {
        let mut newest: BTreeMap<NodeId, State<'a>> = BTreeMap::new();
        for state in states.filter(|state| state.versions.1 > 0) {
            if newest.get(&state.node).is_none_or(|other| other.generation < state.generation) {
                newest.insert(state.node, state);
            }
        }
        let mut changes = Vec::new();
        if !catching_up {
            self.drop_missing(&newest.keys().copied().collect(), &mut changes);
        }
        for state in newest.into_values() {
            self.take(state, catching_up, &mut changes);
        }
        changes
    }

    /// All values of all members: node, life, keys and values in order.
    pub(super) fn snapshot(&self) -> Snapshot {
        let values =
            |member: &MemberValues| member.values.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
        self.members.iter().map(|(node, member)| (*node, member.generation, values(member))).collect()
    }

    fn drop_missing(&mut self, present: &BTreeSet<NodeId>, changes: &mut Vec<Change>) {
        self.members.retain(|node, member| {
            let stays = present.contains(node);
            if !stays {
                let removed = |key: &String| removal(*node, member.generation, key);
                changes.extend(member.values.keys().map(removed));
            }
            stays
        });
    }

    fn take(&mut self, state: State<'_>, catching_up: bool, changes: &mut Vec<Change>) {
        let State { node, generation, versions, values } = state;
        let known = self.members.entry(node).or_insert_with(|| MemberValues {
            generation,
            versions: (0, 0),
            values: BTreeMap::new(),
        });
        let is_same_life = known.generation == generation;
        let is_behind = known.generation > generation || is_same_life && known.versions.1 > versions.1;
        if is_same_life && known.versions == versions || catching_up && is_behind {
            return;
        }
        let now: BTreeMap<String, Arc<str>> =
            values.map(|(key, value)| (key.to_owned(), known.shared(key, value))).collect();
        let gone = known.values.keys().filter(|key| !now.contains_key(*key));
        changes.extend(gone.map(|key| removal(node, generation, key)));
        let is_new = |(key, value): &(&String, &Arc<str>)| !is_same_life || known.values.get(*key) != Some(*value);
        changes.extend(now.iter().filter(is_new).map(|(key, value)| Change {
            node,
            generation,
            key: key.clone(),
            value: Some(value.clone()),
        }));
        *known = MemberValues { generation, versions, values: now };
    }
}

impl MemberValues {
    /// The value as already held where it did not change.
    fn shared(&self, key: &str, value: &str) -> Arc<str> {
        match self.values.get(key) {
            Some(held) if **held == *value => held.clone(),
            _ => Arc::from(value),
        }
    }
}

fn removal(node: NodeId, generation: u64, key: &str) -> Change {
    Change { node, generation, key: key.to_owned(), value: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    fn state<'a>(number: u8, generation: u64, version: u64, values: &'a [(&'a str, &'a str)]) -> State<'a> {
        State { node: node(number), generation, versions: (0, version), values: Box::new(values.iter().copied()) }
    }

    fn brief(changes: Vec<Change>) -> Vec<(u64, String, Option<String>)> {
        changes.into_iter().map(|c| (c.generation, c.key, c.value.map(|value| value.to_string()))).collect()
    }

    fn set(generation: u64, key: &str, value: &str) -> (u64, String, Option<String>) {
        (generation, key.to_owned(), Some(value.to_owned()))
    }

    fn gone(generation: u64, key: &str) -> (u64, String, Option<String>) {
        (generation, key.to_owned(), None)
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut view = View::default();
        let first = view.update([state(1, 5, 2, &[("a", "1"), ("b", "2")])].into_iter(), false);
        assert_eq!(brief(first), vec![set(5, "a", "1"), set(5, "b", "2")]);
        assert_eq!(view.update([state(1, 5, 2, &[("a", "1"), ("b", "2")])].into_iter(), false), vec![]);
        let second = view.update([state(1, 5, 4, &[("a", "9")])].into_iter(), false);
        assert_eq!(brief(second), vec![gone(5, "b"), set(5, "a", "9")]);
    }

    #[test]
    fn the_newest_life_that_holds_anything_counts() {
        let mut view = View::default();
        let states = [state(1, 5, 2, &[("a", "old"), ("b", "2")]), state(1, 6, 0, &[])];
        assert_eq!(brief(view.update(states.into_iter(), false)).len(), 2);
        let states = [state(1, 6, 1, &[("a", "new")]), state(1, 5, 2, &[("a", "old"), ("b", "2")])];
        assert_eq!(brief(view.update(states.into_iter(), false)), vec![gone(6, "b"), set(6, "a", "new")]);
        // The earlier life is forgotten later; nothing of the present one goes with it.
        assert_eq!(view.update([state(1, 6, 1, &[("a", "new")])].into_iter(), false), vec![]);
        assert_eq!(view.snapshot(), vec![(node(1), 6, vec![("a".to_owned(), "new".to_owned())])]);
    }

    #[test]
    fn a_member_that_is_forgotten_loses_its_values() {
        let mut view = View::default();
        view.update([state(1, 5, 2, &[("a", "1")])].into_iter(), false);
        assert_eq!(brief(view.update(std::iter::empty(), false)), vec![gone(5, "a")]);
        assert_eq!(view.snapshot(), vec![]);
    }

    #[test]
    fn a_restart_of_gossip_removes_nothing_while_it_catches_up() {
        let mut view = View::default();
        view.update([state(1, 5, 7, &[("a", "1"), ("b", "2")]), state(2, 1, 1, &[("c", "3")])].into_iter(), false);
        assert_eq!(view.update(std::iter::empty(), true), vec![]);
        assert_eq!(view.update([state(1, 5, 3, &[("a", "0")])].into_iter(), true), vec![]);
        assert_eq!(view.snapshot().len(), 2);
        let caught_up = view.update([state(1, 5, 8, &[("a", "1")])].into_iter(), true);
        assert_eq!(brief(caught_up), vec![gone(5, "b")]);
    }
}
