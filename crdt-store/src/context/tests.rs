use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn origin(n: u8) -> Incarnation {
    Incarnation::from_bytes([n; 16])
}

fn context(dots: &[(u8, u64)]) -> Context {
    let mut context = Context::new();
    dots.iter().for_each(|(n, counter)| context.insert(Dot::new(origin(*n), *counter)));
    context
}

fn dots() -> impl Strategy<Value = Vec<(u8, u64)>> {
    proptest::collection::vec((0..4_u8, 1..24_u64), 0..40)
}

proptest! {
    #[test]
    fn a_context_is_the_set_of_its_dots(dots in dots()) {
        let set: BTreeSet<(u8, u64)> = dots.iter().copied().collect();
        let context = context(&dots);
        for n in 0..4 {
            for counter in 0..26 {
                prop_assert_eq!(context.contains(Dot::new(origin(n), counter)), set.contains(&(n, counter)));
            }
            let highest = set.iter().filter(|(o, _)| *o == n).map(|(_, c)| *c).max().unwrap_or(0);
            prop_assert_eq!(context.highest(&origin(n)), highest);
        }
        prop_assert_eq!(context.origin_count(), set.iter().map(|(o, _)| o).collect::<BTreeSet<_>>().len());
    }

    #[test]
    fn merge_is_union_in_any_order(a in dots(), b in dots(), c in dots()) {
        let all: Vec<_> = a.iter().chain(&b).chain(&c).copied().collect();
        let (ca, cb, cc) = (context(&a), context(&b), context(&c));
        let mut left = ca.clone();
        left.merge(&cb);
        left.merge(&cc);
        let mut right = cc.clone();
        right.merge(&cb);
        right.merge(&ca);
        right.merge(&ca);
        prop_assert_eq!(&left, &right);
        prop_assert_eq!(&left, &context(&all));
        prop_assert_eq!(left.hash(), right.hash());
    }

    #[test]
    fn covering_is_containing_every_dot(a in dots(), b in dots()) {
        let expected = b.iter().all(|(n, counter)| context(&a).contains(Dot::new(origin(*n), *counter)));
        prop_assert_eq!(context(&a).covers(&context(&b)), expected);
    }

    #[test]
    fn an_image_reads_back_and_nothing_else_does(dots in dots(), at in any::<usize>(), counter in any::<u64>()) {
        let context = context(&dots);
        let image = context.image(usize::MAX);
        prop_assert_eq!(Context::from_image(&image), Ok(context.clone()));
        let mut other = image.clone();
        if !other.clock.is_empty() {
            let index = at % other.clock.len();
            other.clock[index].1 = counter;
        }
        // Whatever is accepted is canonical, so that it reads back as itself.
        if let Ok(accepted) = Context::from_image(&other) {
            prop_assert_eq!(accepted.image(usize::MAX), other);
        }
    }
}

#[test]
fn hostile_images_are_refused() {
    let (a, b) = (origin(1), origin(2));
    let images = [
        ContextImage { clock: vec![(a, 0)], cloud: vec![] },
        ContextImage { clock: vec![(a, u64::MAX)], cloud: vec![] },
        ContextImage { clock: vec![(a, COUNTER_END)], cloud: vec![] },
        ContextImage { clock: vec![(b, 1), (a, 1)], cloud: vec![] },
        ContextImage { clock: vec![(a, 1), (a, 2)], cloud: vec![] },
        ContextImage { clock: vec![], cloud: vec![(a, 1, 4)] },
        ContextImage { clock: vec![], cloud: vec![(a, 5, 4)] },
        ContextImage { clock: vec![], cloud: vec![(a, 0, 0)] },
        ContextImage { clock: vec![], cloud: vec![(a, 3, u64::MAX)] },
        ContextImage { clock: vec![(a, 3)], cloud: vec![(a, 3, 9)] },
        ContextImage { clock: vec![(a, 3)], cloud: vec![(a, 4, 9)] },
        ContextImage { clock: vec![], cloud: vec![(a, 3, 5), (a, 6, 9)] },
        ContextImage { clock: vec![], cloud: vec![(a, 9, 9), (a, 3, 5)] },
    ];
    for image in images {
        assert_eq!(Context::from_image(&image), Err(BadContext), "{image:?}");
    }
}

#[test]
fn the_largest_counters_do_not_overflow() {
    let mut context = Context::new();
    context.insert(Dot::new(origin(1), u64::MAX));
    context.insert(Dot::new(origin(1), COUNTER_END));
    assert_eq!(context, Context::new());
    context.insert(Dot::new(origin(1), COUNTER_END - 1));
    context.insert(Dot::new(origin(1), COUNTER_END - 2));
    assert_eq!(context.range_count(), 1);
    assert_eq!(context.highest(&origin(1)), COUNTER_END - 1);
}
