//! Agents with their instances and clients, all in one place or in two zones.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use chaos::wan::{NetNs, Wan};
use node::config::Config;
use policy::Draw;
use tests::{Fleet, Node, eventually};
use tokio::runtime::{Builder, Handle, Runtime};

use super::instance::Instance;
use super::{FIRST_ZONE, SERVICE, SLOTS, ZONES};
use crate::wan;

/// Longest wait for a policy to be in force everywhere.
const IN_FORCE_MAX: Duration = Duration::from_secs(10);
/// Longest wait until all agents know each other and how far they are.
const KNOWN_MAX: Duration = Duration::from_secs(60);

/// Five agents and what belongs to them, in the same order.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) places: Vec<Place<'a>>,
    pub(super) instances: Vec<Instance>,
    fleet: Fleet,
    /// Of the namespaces.
    _runtimes: Vec<Runtime>,
}

/// Where an agent, its client and its instance are.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) runtime: Handle,
    zone: usize,
    inside: Option<&'a NetNs>,
}

impl Place<'_> {
    fn run<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        match self.inside {
            Some(inside) => inside.run(work),
            None => work(),
        }
    }

    fn address(&self) -> Ipv4Addr {
        self.inside.map_or(Ipv4Addr::LOCALHOST, NetNs::address)
    }

    /// Starts an instance here.
    fn serve(&self, slots: u16) -> anyhow::Result<Instance> {
        let starting = self.runtime.spawn(Instance::start(slots, self.address()));
        runtime()?.block_on(starting)?
    }
}

/// One with a thread, which stays in the network namespace that it is made in.
pub(super) fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

impl<'a> Site<'a> {
    /// All on the loopback.
    pub(super) fn of_one_zone(runtime: &Runtime) -> anyhow::Result<Self> {
        let place = || Place { runtime: runtime.handle().clone(), zone: 0, inside: None };
        let places: Vec<Place<'_>> = SLOTS.iter().map(|_| place()).collect();
        let instances = serve_all(&places)?;
        let fleet = Fleet::start(SLOTS.len(), &|n, config| serve(config, instances.get(n)));
        fleet.wait_service(SERVICE, SLOTS.len());
        Ok(Self { places, instances, fleet, _runtimes: Vec::new() })
    }

    /// The first ones at one end of the line, the others at the other.
    pub(super) fn of_two_zones(wan: &'a Wan) -> anyhow::Result<Self> {
        let ends = [&wan.left, &wan.right];
        let runtimes = ends.map(|end| end.run(runtime)).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let place = |n: usize| {
            let zone = usize::from(n >= FIRST_ZONE);
            let (runtime, inside) = (runtimes.get(zone)?.handle().clone(), ends.get(zone).copied());
            Some(Place { runtime, zone, inside })
        };
        let places: Vec<Place<'_>> = (0..SLOTS.len()).filter_map(place).collect();
        let instances = serve_all(&places)?;
        let mut fleet = Fleet::launch(0, &|_, _| {});
        let mut token = String::new();
        for (place, instance) in places.iter().zip(&instances) {
            let end = place.inside.context("an end")?;
            let head = if token.is_empty() { ["init", "--mesh", "zones"].as_slice() } else { &["join", &token] };
            let agent = wan::agent(&fleet, end, head, &|config| serve(config, Some(instance)))?;
            if token.is_empty() {
                token = place.run(|| {
                    agent.wait_ready();
                    Ok(agent.token(&["--uses", "10"]))
                })?;
            }
            fleet.nodes.push(agent);
        }
        let site = Self { places, instances, fleet, _runtimes: runtimes };
        site.wait_known()?;
        Ok(site)
    }

    /// Waits until every agent has all instances, and knows which of them are far.
    fn wait_known(&self) -> anyhow::Result<()> {
        let apart_ms = ZONES.delay.as_secs_f64() * 2e3;
        for (node, place) in self.fleet.nodes.iter().zip(&self.places) {
            place.run(|| {
                eventually("all instances are known, and how far they are", KNOWN_MAX, || {
                    let candidates = node.explain(SERVICE)?.candidates;
                    let far = candidates.iter().filter(|candidate| candidate.distance_ms > apart_ms * 0.7).count();
                    let wanted = self.places.iter().filter(|other| other.zone != place.zone).count();
                    if candidates.len() == SLOTS.len() && far == wanted {
                        Ok(())
                    } else {
                        Err(format!("{}: {candidates:?}\n{}", node.name, node.log_tail(25)))
                    }
                });
                Ok(())
            })?;
        }
        Ok(())
    }

    pub(super) fn proxies(&self) -> impl Iterator<Item = SocketAddr> {
        self.fleet.nodes.iter().map(|node| node.proxy)
    }

    /// The place of the instance that will have answered one more request of `client` soonest on average.
    pub(super) fn soonest(&self, client: usize, work: Duration) -> usize {
        let zone = self.places.get(client).map(|place| place.zone);
        let cost = |(place, instance): (&Place<'_>, &Instance)| {
            let way = if Some(place.zone) == zone { Duration::ZERO } else { ZONES.delay * 2 };
            instance.cost(work) + way
        };
        let costs = self.places.iter().zip(&self.instances).map(cost).enumerate();
        costs.min_by_key(|(_, cost)| *cost).map_or(0, |(at, _)| at)
    }

    /// Puts a draw in force at every agent.
    pub(super) fn set_draw(&self, draw: Draw) -> anyhow::Result<()> {
        let body = format!(
            "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {SERVICE}, scope: global }}\n\
             targetRef: {{ kind: Service, name: {SERVICE} }}\nspec: {{ loadBalancer: {{ draw: {draw} }} }}\n"
        );
        let agents = || self.fleet.nodes.iter().zip(&self.places);
        let (first, place) = agents().next().context("an agent")?;
        let path = format!("/v1/policies/global/BackendTrafficPolicy/{SERVICE}");
        let answer = place.run(|| Ok(first.write("PUT", &path, &body)))?;
        anyhow::ensure!((200..300).contains(&answer.status), "{answer:?}");
        for (node, place) in agents() {
            place.run(|| {
                eventually("the draw is in force", IN_FORCE_MAX, || {
                    let in_force = node.explain(SERVICE)?.draw;
                    if in_force == draw { Ok(()) } else { Err(format!("{}: {in_force}", node.name)) }
                });
                Ok(())
            })?;
        }
        Ok(())
    }

    /// How much longer than asked for a request took in its slot, on average, at the worst instance.
    pub(super) fn mean_overrun(&self) -> Duration {
        self.instances.iter().map(Instance::mean_overrun).max().unwrap_or_default()
    }
}

fn serve_all(places: &[Place<'_>]) -> anyhow::Result<Vec<Instance>> {
    places.iter().zip(SLOTS).map(|(place, slots)| place.serve(slots)).collect()
}

fn serve(config: &mut Config, instance: Option<&Instance>) {
    if let Some(instance) = instance {
        Node::serve(config, SERVICE, instance.address, Some(f64::from(instance.slots)));
    }
}
