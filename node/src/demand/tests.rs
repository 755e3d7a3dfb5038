use policy::floor_share;

use super::*;
use crate::limits::{FleetShare, ServiceStats};

const TICK: Duration = Duration::from_millis(250);
const ROUND: Duration = Duration::from_secs(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limit(requests: u32, burst: u32) -> RateLimit {
    RateLimit { requests, interval: Duration::from_secs(1), burst }
}

/// Demands of `s` under a rate, driven by hand.
struct Steered {
    demands: Demands,
    limit: RateLimit,
    asked: u64,
    now: Duration,
}

impl Steered {
    fn new(limit: RateLimit) -> Self {
        let mut steered = Self { demands: Demands::new(ROUND), limit, asked: 0, now: ms(5000) };
        steered.see();
        steered
    }

    fn see(&mut self) {
        let floor = floor_share(self.limit.per_second(), 10);
        let seen = Seen { service: "s", asked: self.asked, limit: &self.limit, floor };
        self.demands.observe(self.now, [seen].into_iter());
    }

    fn held(&self) -> f64 {
        self.demands.services["s"].held()
    }

    /// Ticks for `time` with so many requests in each, and returns what was told: after how many milliseconds, and
    /// requests per second.
    fn run(&mut self, time: Duration, per_tick: u64) -> Vec<(u128, f64)> {
        let (from, mut told) = (self.now, Vec::new());
        while self.now < from + time {
            self.now += TICK;
            self.asked += per_tick;
            self.see();
            if let Some(asks) = self.demands.tell(self.now) {
                let value =
                    asks.services.iter().find(|(name, _)| name == "s").map_or(0.0, |(_, asked)| per_second(*asked));
                told.push(((self.now - from).as_millis(), value));
            }
        }
        told
    }
}

#[test]
fn the_average_takes_in_two_thirds_of_a_change_within_its_time() {
    let rule = limit(100, 100);
    let mut average = 0.0;
    for _ in 0..6 {
        average = averaged(average, 25, TICK, averaged_over(&rule));
    }
    // 100 * (1 - 1/e) after 1.5 s.
    assert!((average - 63.212).abs() < 0.001, "{average}");
    assert!((averaged(average, 7, Duration::ZERO, ROUND) - average).abs() < 1e-9, "no time has passed");
    for (requests, interval_s, expected_s) in
        [(1000, 1, 1.5), (2, 1, 5.0), (1, 1, 10.0), (100, 3600, 60.0), (1, 3600, 60.0)]
    {
        let rule = RateLimit { requests, interval: Duration::from_secs(interval_s), burst: 1 };
        assert_eq!(averaged_over(&rule), Duration::from_secs_f64(expected_s), "{requests} in {interval_s} s");
    }
}

#[test]
fn a_steady_demand_is_told_with_a_tenth_more_and_small_changes_are_not() {
    let mut steered = Steered::new(limit(1000, 1000));
    let told = steered.run(ms(30_000), 25);
    let (_, last) = *told.last().unwrap();
    // Once told above what is asked it stands.
    assert!((100.0..=121.0).contains(&last), "{told:?}");
    assert!(told.len() <= 8 && told.iter().all(|(at, _)| *at < 10_000), "{told:?}");
    assert!(told.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 1000), "once a second at most: {told:?}");
    assert_eq!(steered.run(ms(30_000), 24), [], "96 in a second");
    assert_eq!(steered.run(ms(30_000), 25), []);
    let told = steered.run(ms(30_000), 12);
    assert!((48.0..=64.0).contains(&told.last().unwrap().1), "{told:?}");
}

#[test]
fn next_to_nothing_is_not_told_and_what_ends_is_told_as_nothing() {
    let mut steered = Steered::new(limit(1000, 1000));
    // The floor is 1000 / 20 / 10 = 5 in a second.
    assert_eq!(steered.run(ms(20_000), 1), []);
    assert!(!steered.run(ms(5000), 25).is_empty());
    assert!(steered.run(ms(30_000), 0).last().unwrap().1 < 1e-9);
    assert!(steered.held() < 1e-9);
}

#[test]
fn beyond_the_rate_a_demand_is_the_rate_whatever_it_is() {
    let mut steered = Steered::new(limit(100, 100));
    let told = steered.run(ms(10_000), 250);
    assert_eq!(told.last().unwrap().1.to_bits(), 100.0_f64.to_bits());
    let more = [steered.run(ms(10_000), 2500), steered.run(ms(10_000), 30), steered.run(ms(10_000), 600)].concat();
    assert_eq!(more, [], "nobody takes less for it");
    let (at, told) = steered.run(ms(10_000), 0)[0];
    assert!((500..=1250).contains(&at) && told < 100.0, "a flood does not take long to be over: {told} after {at}");
}

#[test]
fn a_rise_counts_here_when_all_others_know_of_it_and_a_fall_at_once() {
    let mut steered = Steered::new(limit(1000, 1000));
    let told = steered.run(ms(1000), 100);
    let (at, first) = told[0];
    assert_eq!((at, told.len()), (250, 1));
    assert!(steered.held() < 1e-9, "told and not yet taken");
    steered.run(ms(2000), 100);
    assert!(steered.held() < 1e-9, "2.75 s after it was told");
    steered.run(ms(250), 100);
    assert!((steered.held() - first).abs() < 1e-9, "3 s after: {first} and not what was told later");
    steered.run(ms(20_000), 100);
    let high = steered.held();
    assert!((400.0..=490.0).contains(&high), "{high}");
    let (_, low) = steered.run(ms(1000), 10)[0];
    assert!(low < high && (steered.held() - low).abs() < 1e-9, "{low} of {high}");
}

#[test]
fn what_a_node_has_it_keeps_as_far_as_its_newest_word_entitles_it() {
    let mut steered = Steered::new(limit(1000, 1000));
    let share = |steered: &mut Steered, others: &[f64]| {
        let limit = steered.limit;
        steered.demands.share("s", &limit, others, 4 - others.len()).per_second
    };
    assert!((share(&mut steered, &[]) - 200.0).abs() < 1e-9, "a fifth of what nobody asks for");
    steered.run(ms(250), 250);
    assert!((share(&mut steered, &[]) - 200.0).abs() < 1e-9, "told, and not taken yet");
    // 1000 less the floors of three, 10 each, are 970. The other one alone would leave this node 10.
    let kept = share(&mut steered, &[1000.0]);
    assert!((kept - 168.870).abs() < 0.001, "{kept}: what it asks for by its first word, 1.1 * 1000 * (1 - exp(-1/6))");
    steered.run(ms(10_000), 250);
    assert!((share(&mut steered, &[1000.0]) - 485.0).abs() < 1e-9, "taken, as it was told for long enough");
    steered.run(ms(20_000), 0);
    assert!((share(&mut steered, &[1000.0]) - 10.0).abs() < 1e-9, "it asks for nothing, so it keeps the floor");
    steered.run(ms(1000), 250);
    assert!((share(&mut steered, &[1000.0]) - 10.0).abs() < 1e-9, "and has that alone to keep");
}

#[test]
fn of_too_many_services_those_are_told_that_ask_for_most_of_their_rate() {
    let names: Vec<String> = (0..200).map(|number| format!("s{number:03}")).collect();
    let mut demands = Demands::new(ROUND);
    let rule = limit(1000, 1000);
    for second in 0..20 {
        let seen = names.iter().zip(1..).map(|(service, number)| Seen {
            service,
            asked: second * number,
            limit: &rule,
            floor: 0.5,
        });
        demands.observe(Duration::from_secs(second), seen);
        let asks = demands.tell(Duration::from_secs(second)).unwrap_or_default();
        assert!(asks.services.len() <= ASKS_MAX);
    }
    let mut share = |service| demands.share(service, &rule, &[900.0; 9], 0).per_second;
    assert!(share("s199") > 99.0);
    assert!(share("s000") < 5.1, "not told, so not taken");
    demands.observe(Duration::from_secs(21), std::iter::empty());
    assert_eq!(demands.tell(Duration::from_secs(21)), Some(Asks::default()));
}

/// Nodes that share one rate, with news between them that take their time.
struct World {
    limit: RateLimit,
    now: Duration,
    nodes: Vec<Simulated>,
    /// The least and the longest time that news take.
    delay: (Duration, Duration),
    chance: u64,
    /// The largest sum of shares at any moment.
    most: f64,
}

struct Simulated {
    demands: Demands,
    stats: ServiceStats,
    share: FleetShare,
    /// What is asked here, per second, and the part of a request left over.
    asked: (f64, f64),
    passed: u32,
    /// By node: number of the news and what it said.
    heard: Vec<(u32, f64)>,
    /// When, from whom, its number, what.
    coming: Vec<(Duration, usize, u32, f64)>,
    told: u32,
    is_gone: bool,
}

const STEP: Duration = Duration::from_millis(10);

impl World {
    fn new(count: usize, limit: RateLimit, delay_ms: (u64, u64)) -> Self {
        let node = || Simulated {
            demands: Demands::new(ROUND),
            stats: ServiceStats::default(),
            share: FleetShare::new(
                &limit,
                limit.per_second() / f64::from(u32::try_from(count).unwrap()),
                0.0,
                count,
                0,
            ),
            asked: (0.0, 0.0),
            passed: 0,
            heard: vec![(0, 0.0); count],
            coming: Vec::new(),
            told: 0,
            is_gone: false,
        };
        let delay = (ms(delay_ms.0), ms(delay_ms.1));
        let nodes = (0..count).map(|_| node()).collect();
        Self { limit, now: ms(60_000), nodes, delay, chance: 7, most: 0.0 }
    }

    fn ask(&mut self, per_second: &[f64]) {
        self.nodes.iter_mut().zip(per_second).for_each(|(node, asked)| node.asked.0 = *asked);
    }

    /// How many requests begin in each second of the next ones.
    fn seconds(&mut self, count: usize) -> Vec<u32> {
        let second = |world: &mut Self| {
            (0..100).for_each(|_| world.step());
            world.nodes.iter_mut().map(|node| std::mem::take(&mut node.passed)).sum()
        };
        (0..count).map(|_| second(self)).collect()
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in self.nodes.iter_mut().filter(|node| !node.is_gone) {
            node.asked.1 += node.asked.0 * STEP.as_secs_f64();
            while node.asked.1 >= 1.0 {
                node.asked.1 -= 1.0;
                node.passed += u32::from(node.stats.pass_fleet(&node.share, self.now).is_ok());
            }
        }
        for at in 0..self.nodes.len() {
            // Their ticks are not at the same moment.
            let offset = u128::try_from(at * 10).unwrap();
            if !self.nodes[at].is_gone && (self.now.as_millis() + offset) % TICK.as_millis() < STEP.as_millis() {
                self.tick(at);
            }
        }
        let there = self.nodes.iter().filter(|node| !node.is_gone);
        self.most = self.most.max(there.map(|node| node.share.per_second).sum());
    }

    fn tick(&mut self, at: usize) {
        let (now, limit, rate) = (self.now, self.limit, self.limit.per_second());
        let there: Vec<usize> = (0..self.nodes.len()).filter(|peer| !self.nodes[*peer].is_gone).collect();
        let node = &mut self.nodes[at];
        let coming = std::mem::take(&mut node.coming);
        let (due, coming): (Vec<_>, Vec<_>) = coming.into_iter().partition(|(when, ..)| *when <= now);
        node.coming = coming;
        for (_, from, number, asked) in due {
            if number > node.heard[from].0 {
                node.heard[from] = (number, asked);
            }
        }
        let floor = floor_share(rate, there.len());
        let seen = Seen { service: "s", asked: node.stats.asked(), limit: &limit, floor };
        node.demands.observe(now, [seen].into_iter());
        let asks = node.demands.tell(now);
        let others: Vec<f64> = there.iter().filter(|peer| **peer != at).map(|peer| node.heard[*peer].1).collect();
        node.share = node.demands.share("s", &limit, &others, 0);
        let Some(asks) = asks else { return };
        let asked = asks.services.first().map_or(0.0, |(_, asked)| per_second(*asked));
        node.told += 1;
        let number = node.told;
        for peer in there.into_iter().filter(|peer| *peer != at) {
            let when = now + self.delayed();
            self.nodes[peer].coming.push((when, at, number, asked));
        }
    }

    /// Somewhere between the least and the longest, by a generator of Lehmer's.
    fn delayed(&mut self) -> Duration {
        self.chance = self.chance * 48_271 % 0x7fff_ffff;
        let span = u64::try_from((self.delay.1 - self.delay.0).as_millis()).unwrap();
        self.delay.0 + ms(self.chance % (span + 1))
    }
}

/// After how many seconds all are within a tenth of `rate`.
fn settled(seconds: &[u32], rate: u32) -> usize {
    let is_off = |count: &u32| !(rate * 9 / 10..=rate * 11 / 10).contains(count);
    seconds.iter().rposition(is_off).map_or(0, |last| last + 1)
}

/// With the tick, half the time after which a rise is taken.
const IN_TIME: (u64, u64) = (100, 1250);

#[test]
fn an_unequal_demand_gets_the_rate_within_seconds_and_never_more() {
    let mut world = World::new(10, limit(1000, 50), IN_TIME);
    world.seconds(10);
    world.ask(&[3000.0, 50.0, 50.0, 50.0, 50.0]);
    let seconds = world.seconds(30);
    println!("one of ten wants all: {seconds:?}, shares at most {}", world.most);
    assert!(settled(&seconds, 1000) <= 6, "{seconds:?}");
    assert!(world.most <= 1000.0 * (1.0 + 1e-9), "{}", world.most);
    assert!(seconds.iter().all(|count| *count <= 1000 + 50 + 10), "{seconds:?}");
    assert!(world.nodes[1].share.per_second >= 50.0, "who asks for little has it");

    // The same demand, now elsewhere.
    world.ask(&[50.0, 50.0, 50.0, 50.0, 50.0, 0.0, 0.0, 0.0, 0.0, 3000.0]);
    let seconds = world.seconds(30);
    println!("it moves: {seconds:?}");
    assert!(settled(&seconds, 1000) <= 8, "{seconds:?}");
    assert!(world.most <= 1000.0 * (1.0 + 1e-9), "{}", world.most);
}

#[test]
fn when_all_ask_for_much_at_once_each_has_its_part_from_the_first_moment() {
    let mut world = World::new(10, limit(1000, 50), IN_TIME);
    world.seconds(10);
    world.ask(&[500.0; 10]);
    let seconds = world.seconds(20);
    println!("all ten at once: {seconds:?}, shares at most {}", world.most);
    assert_eq!(settled(&seconds, 1000), 0, "{seconds:?}");
    assert!(world.most <= 1000.0 * (1.0 + 1e-9), "{}", world.most);
    for node in &world.nodes {
        assert!((node.share.per_second - 100.0).abs() < 1e-6, "{}", node.share.per_second);
    }
}

#[test]
fn what_a_dead_node_had_goes_to_the_others_once_it_is_known() {
    let mut world = World::new(4, limit(1000, 50), IN_TIME);
    world.ask(&[600.0; 4]);
    world.seconds(10);
    world.nodes[0].is_gone = true;
    let seconds = world.seconds(10);
    println!("one of four dies: {seconds:?}");
    assert!(settled(&seconds, 1000) <= 1, "{seconds:?}");
}

#[test]
fn news_that_come_too_late_let_more_through_for_as_long_as_they_are_late() {
    let mut world = World::new(10, limit(1000, 50), (8000, 8000));
    world.seconds(10);
    // The first two seem to be alone with what they ask for until each hears of the other.
    world.ask(&[900.0, 900.0]);
    let seconds = world.seconds(30);
    println!("two of ten, news take 8 s: {seconds:?}, shares at most {}", world.most);
    let most = seconds.iter().copied().max().unwrap();
    assert!((1101..=2000).contains(&most), "{seconds:?}");
    assert!(settled(&seconds, 1000) <= 12, "{seconds:?}");
}

#[test]
fn whatever_is_asked_where_the_shares_never_come_to_more_than_the_rate() {
    for seed in 1..=20 {
        let mut world = World::new(6, limit(300, 30), IN_TIME);
        world.chance = seed;
        for _ in 0..8 {
            let asked: Vec<f64> = (0..6).map(|_| (world.delayed().as_secs_f64() * 100.0 - 80.0).max(0.0)).collect();
            world.ask(&asked);
            world.seconds(4);
            assert!(world.most <= 300.0 * (1.0 + 1e-9), "seed {seed}: {}", world.most);
        }
    }
}
