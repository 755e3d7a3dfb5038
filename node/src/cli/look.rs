//! `status`, `nodes`, `services`: what a node knows.

use transport::Clock as _;

use super::table::{self, Align, Sheet, age, bytes, coloured, millis};
use super::target::{Output, Reach};
use super::{CliError, Exit, print, print_json};
use crate::clock::SystemClock;
use crate::view::{NodeView, ProblemView, ServiceSummary, Status};

/// This node in short: members, links, policy, certificates, problems.
///
/// Exits 3 when the node is not ready, cannot write policy or lists problems.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram status --dir a")]
pub(super) struct StatusVerb {
    #[command(flatten)]
    reach: Reach,
}

impl StatusVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let client = self.reach.client()?;
        let status: Status = client.get("/v1/status")?;
        let problems: Vec<ProblemView> = client.get("/v1/problems")?;
        match self.reach.output {
            Output::Json => print_json(&status)?,
            Output::Table | Output::Wide => {
                print(&coloured(status_text(&status, &problems, SystemClock::start().unix().as_secs())))?;
            }
        }
        let well = status.state == "ready" && status.policy.writable && problems.is_empty();
        Ok(if well { Exit::Ok } else { Exit::Degraded })
    }
}

/// Every node, with its state and the reason for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  marram nodes --dir a\n  marram nodes --dir a -o wide")]
pub(super) struct NodesVerb {
    #[command(flatten)]
    reach: Reach,
}

impl NodesVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let nodes: Vec<NodeView> = self.reach.client()?.get("/v1/nodes")?;
        match self.reach.output {
            Output::Json => print_json(&nodes)?,
            Output::Table => print(&coloured(nodes_text(&nodes, table::width())))?,
            Output::Wide => print(&coloured(nodes_wide(&nodes)))?,
        }
        Ok(Exit::Ok)
    }
}

/// Every service and its instances.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram services --dir a")]
pub(super) struct ServicesVerb {
    #[command(flatten)]
    reach: Reach,
}

impl ServicesVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let services: Vec<ServiceSummary> = self.reach.client()?.get("/v1/services")?;
        match self.reach.output {
            Output::Json => print_json(&services)?,
            Output::Table => print(&coloured(services_text(&services, Some(table::width()))))?,
            Output::Wide => print(&coloured(services_text(&services, None)))?,
        }
        Ok(Exit::Ok)
    }
}

pub(super) fn status_text(status: &Status, problems: &[ProblemView], now_unix: u64) -> String {
    let members = &status.members;
    let mut text = format!(
        "{}  node {} ({})  {} for {}  version {}\n",
        status.mesh,
        status.node,
        status.node_id,
        status.state,
        age(seconds(status.uptime_s)),
        status.version
    );
    text.push_str(&format!(
        "members  {} alive, {} suspect, {} dead, {} joining, {} left\n",
        members.alive, members.suspect, members.dead, members.joining, members.left
    ));
    let writable = if status.policy.writable { "" } else { ", the disk refuses writes" };
    text.push_str(&format!(
        "policy   root {}, {} documents, {} in conflict{writable}\n",
        status.policy.root, status.policy.documents, status.policy.conflicts
    ));
    text.push_str(&format!(
        "certs    leaf ends {}, admission ends {}\n",
        ends(status.leaf_not_after, now_unix),
        ends(status.node_not_after, now_unix)
    ));
    if status.links.is_empty() {
        text.push_str("links    none\n");
    } else {
        text.push_str(&links_text(status));
    }
    for problem in problems {
        text.push_str(&format!("problem  {}: {} ({})\n", problem.about, problem.detail, problem.code));
        for fault in &problem.problems {
            text.push_str(&format!("         {}: {}\n", fault.field, fault.message));
        }
    }
    text
}

fn links_text(status: &Status) -> String {
    let columns = [
        ("LINK", Align::Left),
        ("REMOTE", Align::Left),
        ("PURPOSE", Align::Left),
        ("OVER", Align::Left),
        ("RTT", Align::Right),
        ("LOSS", Align::Right),
        ("KEY EXCHANGE", Align::Left),
        ("DIALLED BY", Align::Left),
    ];
    let mut sheet = Sheet::new(&columns, None);
    for link in &status.links {
        let dialled = if link.outbound { &status.node } else { &link.node };
        sheet.row(&[
            link.node.as_str(),
            &link.remote,
            &link.purpose,
            &link.transport,
            &millis(link.rtt_ms),
            &percent(link.loss),
            &link.key_exchange,
            dialled,
        ]);
    }
    sheet.render()
}

pub(super) fn nodes_text(nodes: &[NodeView], width: u16) -> String {
    let columns = [
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("PLACE", Align::Left),
        ("RTT", Align::Right),
        ("INFLIGHT", Align::Right),
        ("SERVICES", Align::Left),
        ("REASON", Align::Left),
    ];
    let mut sheet = Sheet::new(&columns, Some(width));
    for node in nodes {
        sheet.row(&[
            named(node).as_str(),
            &node.state,
            &age(node.since_s),
            &place(node),
            &distance(node),
            &node.inflight.to_string(),
            &listed(&node.services),
            &node.reason,
        ]);
    }
    let mut text = sheet.render();
    text.push_str(&freshness(nodes));
    text
}

fn nodes_wide(nodes: &[NodeView]) -> String {
    let columns = [
        ("NAME", Align::Left),
        ("ID", Align::Left),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("PLACE", Align::Left),
        ("LOCATION", Align::Left),
        ("ADDRESS", Align::Left),
        ("ROLE", Align::Left),
        ("RTT", Align::Right),
        ("BY", Align::Left),
        ("JITTER", Align::Right),
        ("LOSS", Align::Right),
        ("INFLIGHT", Align::Right),
        ("CPU", Align::Right),
        ("CORES", Align::Right),
        ("MEMORY", Align::Right),
        ("AGENT", Align::Right),
        ("GPU", Align::Right),
        ("ARCH", Align::Left),
        ("LABELS", Align::Left),
        ("SERVICES", Align::Left),
        ("POLICY", Align::Left),
        ("INC", Align::Right),
        ("VERSION", Align::Left),
        ("HEARD", Align::Right),
        ("REASON", Align::Left),
    ];
    let mut sheet = Sheet::new(&columns, None);
    for node in nodes {
        let machine = &node.capabilities;
        let labels: Vec<String> = machine.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let location = node.location.map(|at| format!("{:.3},{:.3}", at.lat, at.lon));
        let row = [
            named(node),
            node.id.clone(),
            node.state.clone(),
            age(node.since_s),
            place(node),
            location.unwrap_or_else(dash),
            node.address.clone(),
            node.role.clone(),
            distance(node),
            node.distance_source.clone(),
            node.jitter_ms.map_or_else(dash, millis),
            node.loss.map_or_else(dash, percent),
            node.inflight.to_string(),
            percent(node.cpu),
            format!("{:.1}", machine.cores),
            bytes(machine.memory_bytes),
            bytes(node.agent_memory_bytes),
            machine.gpu.to_string(),
            machine.arch.clone(),
            listed(&labels),
            listed(&node.services),
            node.policy_root.clone(),
            node.incarnation.to_string(),
            node.version.clone(),
            node.age_s.map_or_else(dash, age),
            node.reason.clone(),
        ];
        sheet.row(&row);
    }
    let mut text = sheet.render();
    text.push_str(&freshness(nodes));
    text
}

pub(super) fn services_text(services: &[ServiceSummary], width: Option<u16>) -> String {
    if services.is_empty() {
        return "no services; register one with [[service]] in node.toml or PUT /v1/services/NAME/instances/ID\n"
            .to_owned();
    }
    let columns = [
        ("SERVICE", Align::Left),
        ("INSTANCE", Align::Left),
        ("STATE", Align::Left),
        ("PROTOCOL", Align::Left),
        ("C", Align::Right),
        ("INFLIGHT", Align::Right),
        ("ADDRESS", Align::Left),
        ("CHECKS", Align::Left),
    ];
    let mut sheet = Sheet::new(&columns, width);
    for service in services {
        for instance in &service.instances {
            let checks: Vec<String> =
                instance.checks.iter().map(|check| format!("{}: {}", check.kind, check.detail)).collect();
            let protocol = instance.protocol.map_or("unknown", crate::config::Protocol::as_str);
            sheet.row(&[
                service.name.as_str(),
                &format!("{}@{}", instance.id, instance.node),
                &instance.state,
                protocol,
                &format!("{:.0}", instance.capacity),
                &instance.inflight.to_string(),
                if instance.address.is_empty() { "-" } else { &instance.address },
                &listed(&checks),
            ]);
        }
        if service.instances.is_empty() {
            sheet.row(&[service.name.as_str(), "-", "no instance", "-", "-", "-", "-", "-"]);
        }
    }
    sheet.render()
}

/// Who answers, and who was not heard for a while.
fn freshness(nodes: &[NodeView]) -> String {
    let me = nodes.iter().find(|node| node.this_node).map_or("this node", |node| node.name.as_str());
    let silent = nodes.iter().filter(|node| node.age_s.is_some_and(|age| age > 10.0)).count();
    if silent == 0 {
        format!("as known by {me}\n")
    } else {
        format!("as known by {me}; {silent} of {} nodes not heard for more than 10s\n", nodes.len())
    }
}

fn named(node: &NodeView) -> String {
    if node.this_node { format!("{} *", node.name) } else { node.name.clone() }
}

fn place(node: &NodeView) -> String {
    match (node.region.as_str(), node.zone.as_str()) {
        ("", "") => dash(),
        (region, "") => region.to_owned(),
        ("", zone) => zone.to_owned(),
        (region, zone) => format!("{region}/{zone}"),
    }
}

fn distance(node: &NodeView) -> String {
    match node.distance_ms {
        Some(_) if node.this_node => dash(),
        Some(ms) => millis(ms),
        None => dash(),
    }
}

fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    if names.is_empty() { dash() } else { names.join(", ") }
}

fn ends(not_after: u64, now: u64) -> String {
    let left = seconds(not_after) - seconds(now);
    let day = i64::try_from(not_after).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    let at = day.map_or_else(|| not_after.to_string(), |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string());
    if left < 0.0 { format!("{at} ({} ago)", age(-left)) } else { format!("{at} (in {})", age(left)) }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn dash() -> String {
    "-".to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "Unix seconds are far below 2^52")]
const fn seconds(whole: u64) -> f64 {
    whole as f64
}
