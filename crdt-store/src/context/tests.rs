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

    #[test]
    fn a_context_is_what_it_was_and_its_growth(old in dots(), new in dots()) {
        let (base, mut now) = (context(&old), context(&old));
        now.merge(&context(&new));
        let growth = now.growth(&base).expect("it only grew");
        prop_assert_eq!(Context::grown(&base, &growth), Ok(now.clone()));
        // What did not grow is not named.
        let grown: BTreeSet<u8> = new.iter().filter(|(n, c)| !base.contains(Dot::new(origin(*n), *c))).map(|(n, _)| *n).collect();
        let named = growth.clock.iter().map(|(n, _)| *n).chain(growth.cloud.iter().map(|(n, _, _)| *n));
        prop_assert_eq!(named.collect::<BTreeSet<_>>(), grown.into_iter().map(origin).collect::<BTreeSet<_>>());
        // And what is not an earlier state is no base.
        prop_assert_eq!(base.growth(&now).is_some(), now == base);
    }

    #[test]
    fn a_growth_that_is_accepted_is_the_one_of_what_it_leads_to(
        old in dots(),
        new in dots(),
        at in any::<usize>(),
        counter in 0..24_u64,
    ) {
        let base = context(&old);
        let mut growth = context(&new).image(usize::MAX);
        for _ in 0..2 {
            if let Ok(grown) = Context::grown(&base, &growth) {
                prop_assert!(grown.covers(&base));
                prop_assert_eq!(grown.growth(&base), Some(growth.clone()));
            }
            if !growth.clock.is_empty() {
                let index = at % growth.clock.len();
                growth.clock[index].1 = counter;
            }
        }
    }
}

#[test]
fn hostile_growths_are_refused() {
    // Of one origin 1 to 3, 6 to 7 and 9 were seen; of another 2.
    let base = context(&[(1, 1), (1, 2), (1, 3), (1, 6), (1, 7), (1, 9), (2, 2)]);
    let (a, b, c) = (origin(1), origin(2), origin(3));
    let growth = |clock: &[(Incarnation, u64)], cloud: &[(Incarnation, u64, u64)]| ContextImage {
        clock: clock.to_vec(),
        cloud: cloud.to_vec(),
    };
    let accepted = [
        growth(&[], &[]),
        growth(&[(a, 4)], &[(a, 6, 7), (a, 9, 9)]),
        growth(&[(a, 3)], &[(a, 5, 7), (a, 9, 9)]),
        growth(&[(a, 9)], &[]),
        growth(&[(b, 2)], &[]),
        growth(&[(c, 1)], &[(b, 2, 2), (b, 4, 4)]),
    ];
    for growth in accepted {
        let grown = Context::grown(&base, &growth).expect("honest");
        assert_eq!(grown.growth(&base), Some(growth));
    }
    let refused = [
        // Told before.
        base.image(usize::MAX),
        growth(&[(a, 3)], &[(a, 6, 7), (a, 9, 9)]),
        growth(&[], &[(b, 2, 2)]),
        growth(&[(c, 1)], &[(b, 2, 2)]),
        // Less than before.
        growth(&[(a, 2)], &[(a, 6, 7), (a, 9, 9)]),
        growth(&[(a, 4)], &[]),
        growth(&[(a, 4)], &[(a, 6, 7)]),
        growth(&[(a, 5)], &[(a, 9, 9)]),
        growth(&[(b, 1)], &[]),
        growth(&[], &[(b, 3, 3)]),
        growth(&[], &[(a, 6, 7), (a, 9, 9), (a, 11, 11)]),
        // Not in the form that an image has.
        growth(&[(c, 0)], &[]),
        growth(&[(c, COUNTER_END)], &[]),
        growth(&[(c, 1), (c, 2)], &[]),
        growth(&[(c, 1), (a, 9)], &[]),
        growth(&[(a, 5)], &[(a, 6, 7), (a, 9, 9)]),
        growth(&[], &[(c, 4, 4), (c, 3, 3)]),
        growth(&[], &[(c, 3, 4), (c, 4, 5)]),
    ];
    for growth in refused {
        assert_eq!(Context::grown(&base, &growth), Err(BadContext), "{growth:?}");
    }
}

/// Each part is within its bounds, and what they make together is not.
#[test]
fn a_growth_does_not_lead_beyond_the_bounds() {
    let name = |n: usize| {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&u64::try_from(n).expect("fits").to_be_bytes());
        Incarnation::from_bytes(bytes)
    };
    let dots = |from: usize, to: usize| {
        let mut context = Context::new();
        (from..to).for_each(|n| context.insert(Dot::new(name(n), 1)));
        context
    };
    let half = ORIGINS_MAX / 2;
    for (to, is_fine) in [(ORIGINS_MAX, true), (ORIGINS_MAX + 1, false)] {
        let grown = Context::grown(&dots(0, half), &dots(half, to).image(usize::MAX));
        assert_eq!(grown.is_ok(), is_fine, "{to} origins");
    }
    let ranges = |n: usize, count: usize| {
        let mut context = Context::new();
        (1..=count).for_each(|at| context.insert(Dot::new(name(n), u64::try_from(at).expect("fits") * 2)));
        context
    };
    let half = CLOUD_RANGES_MAX / 2;
    for (count, is_fine) in [(half, true), (half + 1, false)] {
        let grown = Context::grown(&ranges(0, half), &ranges(1, count).image(usize::MAX));
        assert_eq!(grown.is_ok(), is_fine, "{count} ranges on top of {half}");
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
