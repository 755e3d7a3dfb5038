use super::*;

/// When the death is heard of. Nothing here waits: each test says what time it is.
const NOW: Duration = Duration::from_secs(100);
const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

/// A node that answered a second ago is said to be dead; it is not believed.
fn doubted() -> Doubts {
    let mut doubts = Doubts::default();
    assert!(!doubts.believes(node(1), Liveness::Dead, Some(NOW - SECOND), NOW));
    doubts
}

#[test]
fn a_death_of_a_node_that_answered_lately_is_not_believed() {
    for (ago, is_believed) in [
        (Duration::ZERO, false),
        (SECOND, false),
        (HEARD_LATELY, false),
        (HEARD_LATELY + MOMENT, true),
        (Duration::from_secs(60), true),
    ] {
        let mut doubts = Doubts::default();
        let believes = doubts.believes(node(1), Liveness::Dead, Some(NOW - ago), NOW);
        assert_eq!(believes, is_believed, "it answered {ago:?} ago");
    }
}

#[test]
fn a_death_of_a_node_that_never_answered_us_is_believed_at_once() {
    let mut doubts = Doubts::default();
    assert!(doubts.believes(node(1), Liveness::Dead, None, NOW));
    assert_eq!(doubts.take_due(NOW + 60 * SECOND), [], "and there is nothing to look at again");
}

#[test]
fn a_doubted_death_is_believed_when_the_node_stays_silent() {
    let mut doubts = doubted();
    assert_eq!(doubts.take_due(NOW), []);
    assert_eq!(doubts.take_due(NOW + HEARD_LATELY), [], "not before the time is over");
    let later = NOW + HEARD_LATELY + MOMENT;
    assert_eq!(doubts.take_due(later), [node(1)]);
    assert!(doubts.believes(node(1), Liveness::Dead, Some(NOW - SECOND), later), "it has not answered since");
    assert_eq!(doubts.take_due(later + 60 * SECOND), [], "it is looked at once");
}

/// Its last answer came with the very word of its death: at the second look that is out of date too.
#[test]
fn no_death_is_doubted_twice_without_an_answer_in_between() {
    let mut doubts = Doubts::default();
    assert!(!doubts.believes(node(1), Liveness::Dead, Some(NOW), NOW));
    let later = NOW + HEARD_LATELY + MOMENT;
    assert_eq!(doubts.take_due(later), [node(1)]);
    assert!(doubts.believes(node(1), Liveness::Dead, Some(NOW), later));
}

#[test]
fn a_doubted_death_is_forgotten_when_the_node_objects() {
    for liveness in [Liveness::Alive, Liveness::Suspect, Liveness::Left] {
        let mut doubts = doubted();
        assert!(doubts.believes(node(1), liveness, Some(NOW), NOW + SECOND), "{liveness} is never doubted");
        assert_eq!(doubts.take_due(NOW + 60 * SECOND), [], "{liveness}");
    }
}

/// The prober has it dead and then back, not yet asked; requests that go there must not stop for that.
#[test]
fn a_node_that_objects_to_a_doubted_death_does_not_have_to_come_back() {
    let mut doubts = doubted();
    assert!(!doubts.believes(node(1), Liveness::Joining, Some(NOW - SECOND), NOW + MOMENT));
    assert_eq!(doubts.take_due(NOW + 60 * SECOND), [], "its objection ends the doubt");
    assert!(doubts.believes(node(1), Liveness::Alive, Some(NOW), NOW + SECOND));
    assert!(doubts.believes(node(1), Liveness::Joining, Some(NOW), NOW + SECOND), "nothing was left aside of it now");
}

#[test]
fn a_node_that_goes_on_answering_is_doubted_to_be_dead_anew() {
    let mut doubts = doubted();
    let later = NOW + HEARD_LATELY + MOMENT;
    assert_eq!(doubts.take_due(later), [node(1)]);
    assert!(!doubts.believes(node(1), Liveness::Dead, Some(later - SECOND), later));
    assert_eq!(doubts.take_due(later + HEARD_LATELY + MOMENT), [node(1)]);
}

/// Gossip repeats itself: what counts is the last word.
#[test]
fn a_death_told_again_is_looked_at_from_then_on() {
    let mut doubts = doubted();
    assert!(!doubts.believes(node(1), Liveness::Dead, Some(NOW), NOW + SECOND));
    assert_eq!(doubts.take_due(NOW + HEARD_LATELY + MOMENT), []);
    assert_eq!(doubts.take_due(NOW + HEARD_LATELY + SECOND + MOMENT), [node(1)]);
}

#[test]
fn each_node_is_doubted_by_itself() {
    let mut doubts = doubted();
    assert!(!doubts.believes(node(2), Liveness::Dead, Some(NOW), NOW + SECOND));
    assert!(doubts.believes(node(3), Liveness::Dead, Some(NOW - 10 * SECOND), NOW + SECOND));
    assert_eq!(doubts.take_due(NOW + HEARD_LATELY + MOMENT), [node(1)]);
    assert_eq!(doubts.take_due(NOW + 60 * SECOND), [node(2)]);
}

#[test]
fn what_comes_over_a_link_counts_as_long_as_no_probe_has_failed() {
    let (early, late) = (Some(NOW - 9 * SECOND), Some(NOW - MOMENT));
    assert_eq!(last_answer(early, false, late), late);
    assert_eq!(last_answer(None, false, late), late);
    assert_eq!(last_answer(late, false, early), late);
    assert_eq!(
        last_answer(early, true, late),
        early,
        "its control side may stand still while packets are acknowledged"
    );
    assert_eq!(last_answer(None, true, late), None);
}
