use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

/// A WAN of five places some 10 to 150 ms apart; each node adds an access link of 0.1 to 4 ms to every path.
struct Wan {
    places: Vec<(f64, f64)>,
    access: Vec<f64>,
}

impl Wan {
    fn new(nodes: usize, chance: &mut StdRng) -> Self {
        const CITIES: [(f64, f64); 5] = [(0.0, 0.0), (0.012, 0.004), (0.08, 0.01), (0.05, 0.07), (0.14, 0.05)];
        let places = (0..nodes)
            .map(|node| {
                let (x, y) = CITIES[node % CITIES.len()];
                (x + chance.random::<f64>() * 0.002, y + chance.random::<f64>() * 0.002)
            })
            .collect();
        let access = (0..nodes).map(|_| 0.0001 + chance.random::<f64>() * 0.004).collect();
        Self { places, access }
    }

    fn rtt(&self, a: usize, b: usize) -> f64 {
        let ((ax, ay), (bx, by)) = (self.places[a], self.places[b]);
        (ax - bx).hypot(ay - by) + self.access[a] + self.access[b]
    }
}

#[test]
fn ninety_of_a_hundred_pairs_are_estimated_within_a_quarter() {
    const NODES: usize = 40;
    let mut chance = StdRng::seed_from_u64(7);
    let wan = Wan::new(NODES, &mut chance);
    let mut space: Vec<Vivaldi> = (0..NODES).map(|_| Vivaldi::default()).collect();
    for _round in 0..600 {
        for me in 0..NODES {
            let peer = (me + 1 + chance.random_range(0..NODES - 1)) % NODES;
            // 5 % jitter upwards, and a stall of half a second in one sample of fifty.
            let stall = if chance.random_bool(0.02) { 0.5 } else { 0.0 };
            let seconds = wan.rtt(me, peer) * (1.0 + chance.random::<f64>() * 0.05) + stall;
            let other = space[peer].coord();
            space[me]
                .observe(node(u8::try_from(peer).unwrap()), Duration::from_secs_f64(seconds), &other, &mut chance)
                .unwrap();
        }
    }
    let mut close = 0;
    let mut pairs = 0;
    for a in 0..NODES {
        for b in 0..a {
            let truth = wan.rtt(a, b);
            let estimate = space[a].distance(&space[b].coord()).as_secs_f64();
            pairs += 1;
            close += usize::from((estimate - truth).abs() <= 0.25 * truth);
        }
    }
    assert!(close * 10 >= pairs * 9, "{close} of {pairs} pairs within 25 %");
}

#[test]
fn what_cannot_be_true_is_rejected_and_changes_nothing() {
    let mut chance = StdRng::seed_from_u64(1);
    let mut vivaldi = Vivaldi::default();
    let before = vivaldi.coord();
    let good = Coord::origin();
    let mut far = good;
    far.vec[3] = 11.0;
    let mut nan = good;
    nan.height = f32::NAN;
    let mut infinite = good;
    infinite.adjustment = f32::INFINITY;
    let mut negative = good;
    negative.height = -0.1;
    for bad in [far, nan, infinite, negative] {
        let result = vivaldi.observe(node(1), Duration::from_millis(5), &bad, &mut chance);
        assert_eq!(result, Err(Rejected::BadCoordinate), "{bad:?}");
        assert_eq!(Coord::from_bytes(&bad.to_bytes()), None, "{bad:?}");
    }
    assert_eq!(vivaldi.observe(node(1), Duration::from_millis(10_001), &good, &mut chance), Err(Rejected::TooLong));
    assert_eq!(vivaldi.coord(), before);
}

#[test]
fn a_round_trip_of_zero_is_survived() {
    let mut chance = StdRng::seed_from_u64(1);
    let mut vivaldi = Vivaldi::default();
    for _ in 0..100 {
        vivaldi.observe(node(1), Duration::ZERO, &Coord::origin(), &mut chance).unwrap();
        assert!(vivaldi.coord().is_valid());
    }
}

#[test]
fn two_nodes_find_their_distance() {
    let mut chance = StdRng::seed_from_u64(3);
    let (mut a, mut b) = (Vivaldi::default(), Vivaldi::default());
    for _ in 0..200 {
        let (at_a, at_b) = (a.coord(), b.coord());
        a.observe(node(2), Duration::from_millis(40), &at_b, &mut chance).unwrap();
        b.observe(node(1), Duration::from_millis(40), &at_a, &mut chance).unwrap();
    }
    let estimate = a.distance(&b.coord()).as_secs_f64();
    assert!((estimate - 0.040).abs() < 0.002, "{estimate}");
    assert!(a.coord().error < 0.1, "{}", a.coord().error);
}

#[test]
fn a_coordinate_survives_the_wire_and_a_restart() {
    let mut chance = StdRng::seed_from_u64(3);
    let mut vivaldi = Vivaldi::default();
    vivaldi.observe(node(2), Duration::from_millis(40), &Coord::origin(), &mut chance).unwrap();
    let coord = vivaldi.coord();
    assert_eq!(Coord::from_bytes(&coord.to_bytes()), Some(coord));
    assert_eq!(Vivaldi::new(Some(coord)).coord(), coord);
    let mut broken = coord;
    broken.error = f32::NAN;
    assert_eq!(Vivaldi::new(Some(broken)).coord(), Coord::origin());
}

#[test]
fn small_moves_are_not_worth_publishing() {
    let mut there = Coord::origin();
    there.vec[0] = 0.100;
    there.error = 0.2;
    let mut near = there;
    near.vec[0] = 0.101;
    assert!(!near.differs_from(&there));
    near.vec[0] = 0.110;
    assert!(near.differs_from(&there));
    let mut surer = there;
    surer.error = 0.1;
    assert!(surer.differs_from(&there));
}

#[test]
fn filters_of_peers_are_bounded() {
    let mut chance = StdRng::seed_from_u64(3);
    let mut vivaldi = Vivaldi::default();
    for number in 0..3_000_u32 {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        vivaldi.observe(NodeId::from_bytes(bytes), Duration::from_millis(4), &Coord::origin(), &mut chance).unwrap();
    }
    assert_eq!(vivaldi.filters.len(), PEERS_MAX);
}
