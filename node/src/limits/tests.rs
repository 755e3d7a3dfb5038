use std::thread;

use futures_util::FutureExt as _;

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn ms(ms: u64) -> Duration {
    NOW + Duration::from_millis(ms)
}

#[test]
fn a_quiet_service_has_ten_second_tries_a_second() {
    let (budget, rule) = (RetryBudget::default(), RetryConstraint::default());
    assert_eq!((0..50).filter(|_| budget.take(&rule, ms(50))).count(), 10);
    assert!(!budget.take(&rule, ms(900)));
    assert_eq!((0..50).filter(|_| budget.take(&rule, ms(1100))).count(), 10, "a second later there are ten more");
}

#[test]
fn a_busy_service_has_one_second_try_in_five_and_not_ten_more() {
    let (budget, rule) = (RetryBudget::default(), RetryConstraint::default());
    for request in 0..4000 {
        budget.begun(&rule, ms(request));
    }
    let allowed = (0..4000).filter(|_| budget.take(&rule, ms(4000))).count();
    assert_eq!(allowed, 1000, "1,000 of 5,000 sent are one in five");
    assert!(!budget.take(&rule, ms(4100)));
    assert!(budget.take(&rule, ms(5050)), "the least number is of each second");
}

#[test]
fn what_is_older_than_the_interval_does_not_count() {
    let (budget, rule) = (RetryBudget::default(), RetryConstraint { min_count: 0, ..RetryConstraint::default() });
    for _ in 0..400 {
        budget.begun(&rule, ms(0));
    }
    assert_eq!((0..500).filter(|_| budget.take(&rule, ms(500))).count(), 100);
    assert!(!budget.take(&rule, ms(8900)));
    // Both are forgotten together: nothing was sent lately, so a percentage of it is nothing.
    assert!(!budget.take(&rule, ms(11_000)));
    for _ in 0..4 {
        budget.begun(&rule, ms(11_000));
    }
    assert!(budget.take(&rule, ms(11_000)));
}

#[test]
fn a_budget_is_shared_by_threads_without_losing_a_count() {
    let (budget, rule) = (RetryBudget::default(), RetryConstraint { min_count: 0, ..RetryConstraint::default() });
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..10_000).for_each(|_| budget.begun(&rule, NOW)));
        }
    });
    assert_eq!((0..20_000).filter(|_| budget.take(&rule, NOW)).count(), 10_000);
}

#[test]
fn a_bucket_lets_the_burst_through_and_then_the_rate() {
    let (bucket, rule) = (Bucket::default(), RateLimit { requests: 10, interval: Duration::from_secs(1), burst: 5 });
    let passed = |from_ms: u64, until_ms: u64| {
        (from_ms..until_ms).filter(|at| bucket.take(Fill::of(&rule), ms(*at)).is_ok()).count()
    };
    assert_eq!(passed(0, 1), 1);
    assert_eq!((0..100).filter(|_| bucket.take(Fill::of(&rule), NOW).is_ok()).count(), 4);
    assert_eq!(bucket.take(Fill::of(&rule), NOW), Err(Duration::from_millis(100)), "when the next token is there");
    assert_eq!(bucket.take(Fill::of(&rule), ms(40)), Err(Duration::from_millis(60)));
    assert_eq!(passed(1, 1001), 10, "one each 100 ms");
    assert_eq!(
        passed(10_000, 10_001) + (0..100).filter(|_| bucket.take(Fill::of(&rule), ms(10_000)).is_ok()).count(),
        5
    );
}

#[test]
fn a_bucket_made_smaller_does_not_owe_what_the_larger_one_gave() {
    let bucket = Bucket::default();
    let large = RateLimit { requests: 1, interval: Duration::from_secs(3600), burst: 100 };
    assert_eq!((0..100).filter(|_| bucket.take(Fill::of(&large), NOW).is_ok()).count(), 100);
    let small = RateLimit { requests: 10, interval: Duration::from_secs(1), burst: 1 };
    assert_eq!(bucket.take(Fill::of(&small), NOW), Err(Duration::from_millis(100)));
    let later = |ms| NOW + Duration::from_millis(ms);
    assert_eq!(bucket.take(Fill::of(&small), later(60)), Err(Duration::from_millis(40)), "asking does not put it off");
    assert_eq!(bucket.take(Fill::of(&small), later(100)), Ok(()));
}

#[test]
fn a_share_has_its_part_of_the_rate_and_of_the_burst_and_room_for_one_request() {
    let limit = RateLimit { requests: 100, interval: Duration::from_secs(1), burst: 50 };
    let passed = |stats: &ServiceStats, share: &FleetShare, from_ms: u64, until_ms: u64| {
        (from_ms..until_ms).flat_map(|at| [at; 4]).filter(|at| stats.pass_fleet(share, ms(*at)).is_ok()).count()
    };
    for (per_second, at_once) in [(100.0, 50), (20.0, 10), (0.5, 1)] {
        let (stats, share) = (ServiceStats::default(), FleetShare::new(&limit, per_second, 0.0, 3, 1));
        assert_eq!((0..1000).filter(|_| stats.pass_fleet(&share, NOW).is_ok()).count(), at_once, "{per_second}");
        assert_eq!(stats.asked(), 1000, "refused ones ask as well");
        let (second, expected) = (passed(&stats, &share, 0, 10_000), per_second * 10.0);
        assert!(
            (f64::from(u32::try_from(second).unwrap()) - expected).abs() <= 1.0,
            "{second} in ten seconds at {per_second}"
        );
    }
    assert_eq!(FleetShare::alone(&limit).fill, Fill::of(&limit));
}

#[test]
fn a_bucket_whose_share_changes_stays_as_full_as_it_is() {
    let limit = RateLimit { requests: 100, interval: Duration::from_secs(1), burst: 100 };
    let share = |per_second| FleetShare::new(&limit, per_second, 0.0, 2, 2);
    let taken = |stats: &ServiceStats, per_second, most| {
        (0..most).filter(|_| stats.pass_fleet(&share(per_second), NOW).is_ok()).count()
    };
    let stats = ServiceStats::default();
    assert_eq!(taken(&stats, 100.0, 50), 50, "half of what it holds");
    assert_eq!(taken(&stats, 20.0, 1000), 10, "half of a fifth");
    assert_eq!(taken(&stats, 100.0, 1000), 0);
    assert_eq!(stats.pass_fleet(&share(20.0), NOW), Err(Duration::from_millis(50)));
}

#[test]
fn a_count_never_passes_its_limit_and_frees_what_is_dropped() {
    let stats = Arc::new(ServiceStats::default());
    let taken: Vec<Taken> = (0..5).filter_map(|_| stats.take(Count::Requests, 3)).collect();
    assert_eq!((taken.len(), stats.count(Count::Requests)), (3, 3));
    assert!(stats.take(Count::Retries, 1).is_some(), "each has a count of its own");
    drop(taken);
    assert_eq!(stats.count(Count::Requests), 0);
    assert!(stats.take(Count::Requests, 0).is_none());
}

#[tokio::test]
async fn who_waits_for_a_connection_gets_it_in_turn_and_no_more_wait_than_may() {
    let stats = Arc::new(ServiceStats::default());
    let first = stats.connection(1, 2).await.unwrap();
    let mut second = Box::pin(stats.connection(1, 2));
    let mut third = Box::pin(stats.connection(1, 2));
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    assert_eq!(stats.connection(1, 2).await.err(), Some(Full));
    drop(first);
    let second = second.now_or_never().unwrap().unwrap();
    assert!((&mut third).now_or_never().is_none());
    drop(second);
    assert!(third.now_or_never().unwrap().is_ok());
    assert_eq!((stats.count(Count::Connections), stats.count(Count::Pending)), (0, 0));
}

#[tokio::test]
async fn one_that_is_woken_and_gone_passes_its_turn_on() {
    let stats = Arc::new(ServiceStats::default());
    let first = stats.connection(1, 9).await.unwrap();
    let mut second = Box::pin(stats.connection(1, 9));
    let mut third = Box::pin(stats.connection(1, 9));
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    drop(first);
    drop(second);
    assert!(third.now_or_never().unwrap().is_ok());
}
