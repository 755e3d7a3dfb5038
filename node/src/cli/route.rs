//! `route explain`: the formula with the numbers of now.

use ::policy::Draw;
use ::policy::explain::{
    ExplainedCandidate, ExplainedFleetRate, ExplainedLocality, ExplainedRequirements, Explanation,
};

use super::client::segment;
use super::look::percent;
use super::table::{Align, Sheet, coloured, millis};
use super::target::{Output, Reach};
use super::{CliError, Exit, print, print_json};

/// How requests are routed.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Route {
    Explain(Explain),
}

impl Route {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::Explain(verb) => verb.run(),
        }
    }
}

/// Every candidate for a service with C, L, d, w and P, the share it got, and who is out and why.
///
/// Exits 3 when nothing can be drawn.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram route explain hello --dir a")]
pub(super) struct Explain {
    /// Name of the service
    service: String,
    #[command(flatten)]
    reach: Reach,
}

impl Explain {
    fn run(self) -> Result<Exit, CliError> {
        let path = format!("/v1/explain/{}", segment(&self.service));
        let explanation: Explanation = self.reach.client()?.get(&path)?;
        match self.reach.output {
            Output::Json => print_json(&explanation)?,
            Output::Table | Output::Wide => print(&coloured(explained(&explanation)))?,
        }
        Ok(if explanation.candidates.is_empty() { Exit::Degraded } else { Exit::Ok })
    }
}

/// The explanation as people read it: the parameters on one line, a row per candidate, a line per absent one.
pub(super) fn explained(explanation: &Explanation) -> String {
    let mut text = headline(explanation);
    if explanation.panic {
        text.push_str("panic: too many instances are ejected by this node, so its ejections do not count\n");
    }
    explanation.fleet_rate.iter().for_each(|rate| text.push_str(&fleet_rate(rate)));
    if !explanation.localities.is_empty() {
        text.push_str(&localities(&explanation.localities));
    }
    if !explanation.candidates.is_empty() {
        text.push_str(&candidates(&explanation.candidates, explanation.draw));
    }
    for excluded in &explanation.excluded {
        text.push_str(&format!("out {}@{}: {}\n", excluded.instance, excluded.node, excluded.reason));
    }
    if explanation.candidates.is_empty() {
        text.push_str("nothing to draw: requests are answered 503\n");
    }
    explanation.requirements.iter().for_each(|required| text.push_str(&requirements(required)));
    text
}

fn headline(explanation: &Explanation) -> String {
    let algorithm = match serde_json::to_value(explanation.algorithm) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{:?}", explanation.algorithm),
    };
    let lambda = explanation.lambda_per_ms;
    let half = if lambda > 0.0 {
        format!("half-distance {}", short(std::f64::consts::LN_2 / lambda))
    } else {
        "distance does not count".to_owned()
    };
    format!(
        "SERVICE {}  from {}  algorithm {algorithm}  λ={lambda:.4}/ms ({half})  ε={}  draw {}  policy: {}\n",
        explanation.service,
        explanation.as_known_by,
        trimmed(explanation.epsilon),
        explanation.draw,
        explanation.policy
    )
}

/// A line for what of a rate that all nodes share is this node's.
fn fleet_rate(rate: &ExplainedFleetRate) -> String {
    let ExplainedFleetRate { limit_per_s, share_per_s, demand_per_s, nodes, asking } = rate;
    let [limit, share, demand] = [limit_per_s, share_per_s, demand_per_s].map(|number| trimmed(*number));
    format!("rate for all nodes {limit}/s: {share}/s here, where {demand}/s ask; {asking} of {nodes} nodes ask\n")
}

/// A row for each locality that has instances.
fn localities(localities: &[ExplainedLocality]) -> String {
    let columns =
        [("LOCALITY", Align::Left), ("POLICY", Align::Right), ("SOUND", Align::Right), ("SHARE", Align::Right)];
    let mut sheet = Sheet::new(&columns, None);
    for locality in localities.iter().filter(|locality| locality.known > 0.0 || locality.percent.is_some()) {
        sheet.row(&[
            locality.name.clone(),
            locality.percent.map_or_else(|| "tier".to_owned(), |percent| format!("{percent}%")),
            format!("{} of {}", trimmed(locality.sound), trimmed(locality.known)),
            percent(locality.share),
        ]);
    }
    sheet.render()
}

/// A line for the rule, and one for each instance that its requests skip.
fn requirements(required: &ExplainedRequirements) -> String {
    let otherwise = if required.passes_through { "else to anybody" } else { "else refused" };
    let mut text = format!("rule {} needs {}, {otherwise}\n", required.route, required.requires.join(", "));
    for skipped in &required.skipped {
        text.push_str(&format!("  skips {}@{}: {}\n", skipped.instance, skipped.node, skipped.reason));
    }
    text
}

fn candidates(candidates: &[ExplainedCandidate], draw: Draw) -> String {
    let mut columns = vec![
        ("INSTANCE", Align::Left),
        ("C", Align::Right),
        ("INFLIGHT", Align::Right),
        ("L", Align::Right),
        ("RTT", Align::Right),
        ("w=C/(L+ε)·e^(−λd)", Align::Right),
        ("P", Align::Right),
        ("OBSERVED", Align::Left),
        ("STATE", Align::Left),
    ];
    let compares = draw == Draw::BestOfTwo;
    if compares {
        columns.insert(LATENCY_AT, ("LATENCY", Align::Right));
    }
    let mut sheet = Sheet::new(&columns, None);
    for candidate in candidates {
        let mut row = vec![
            format!("{}@{}", candidate.instance, candidate.node),
            trimmed(candidate.capacity),
            format!("{:.1}", candidate.inflight),
            format!("{:.2}", candidate.load),
            millis(candidate.distance_ms),
            format!("{:.2}", candidate.weight),
            percent(candidate.probability),
            observed(candidate.observed_share),
            state(candidate),
        ];
        if compares {
            row.insert(LATENCY_AT, candidate.latency_ms.map_or_else(|| "-".to_owned(), millis));
        }
        sheet.row(&row);
    }
    let mut text = sheet.render();
    if compares {
        text.push_str(BEST_OF_TWO);
    }
    text
}

/// Before P.
const LATENCY_AT: usize = 6;
/// What P means where it is not the share.
const BEST_OF_TWO: &str = "\
P is of each draw; of two drawn, the smaller LATENCY·max(1,(INFLIGHT+1)/C) gets the request,
so OBSERVED may differ from P
";

/// With what a newcomer has of its weight.
fn state(candidate: &ExplainedCandidate) -> String {
    match candidate.slow_start {
        Some(factor) => format!("{}, new: {} of its weight", candidate.state, percent(factor)),
        None => candidate.state.clone(),
    }
}

fn observed(share: Option<f64>) -> String {
    match share {
        Some(share) => format!("{:>6} {}", percent(share), bar(share)),
        None => "-".to_owned(),
    }
}

/// Ten blocks are the whole.
fn bar(share: f64) -> String {
    let blocks = (1..=10).filter(|block| share * 10.0 + 0.5 >= f64::from(*block)).count();
    "█".repeat(blocks)
}

/// Without a fraction of zero.
fn trimmed(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn short(ms: f64) -> String {
    format!("{}ms", trimmed(ms))
}
