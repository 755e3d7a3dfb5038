//! Split 2 | 3, policy on both sides, a deletion against an edit, a conflict, heal, settle it, kill -9, return.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::cluster::{Cluster, Member, NODES, all_have, all_see_alive, build_if_missing, roots_equal, statuses, until};
use super::traffic::{Watch, caught_up};
use super::{Outcome, ScenarioOptions};
use crate::admin::{Conflict, Side};
use crate::clock;
use crate::firewall::Firewall;
use crate::report::Report;

const LEFT: [&str; 2] = ["n1", "n2"];
const RIGHT: [&str; 3] = ["n3", "n4", "n5"];
/// Nodes with a load generator, one on each side; they write the policies as well.
const LOADED: [&str; 2] = ["n2", "n4"];
const SERVING: [&str; 3] = ["n1", "n3", "n5"];
const KILLED: &str = "n3";

/// What the documents are.
const KIND: &str = "BackendTrafficPolicy";
/// Documents that each side writes for itself during the split.
const WRITTEN: usize = 5;
/// The document that one side deletes while the other edits it, and the service it is about.
const DISPUTED: &str = "disputed";

/// What the left and the right side write into what both write.
const HALF_DISTANCE: [&str; 2] = ["10ms", "40ms"];

const FORMING_MAX: Duration = Duration::from_secs(90);
const STEADY: Duration = Duration::from_secs(6);
const DETECTION_MAX: Duration = Duration::from_secs(10);
const SPREAD_MAX: Duration = Duration::from_secs(1);
/// During the split a push may go to peers that are not yet known to be out of reach; the next exchange catches up.
const SPREAD_IN_SPLIT_MAX: Duration = Duration::from_secs(5);
const SETTLED_MAX: Duration = Duration::from_secs(1);
const ROOTS_EQUAL_MAX: Duration = Duration::from_secs(5);
const MEMBERS_MAX: Duration = Duration::from_secs(10);
const DEATH_MAX: Duration = Duration::from_secs(10);
const RETURN_MAX: Duration = Duration::from_secs(5);
/// Waiting goes on past a bound, so that the report says how long it took.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(options: &ScenarioOptions) -> Result<Outcome> {
    let project = match Cluster::find(&options.compose).await {
        Ok(project) => project,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    if !rustix::process::geteuid().is_root() {
        return Ok(Outcome::Skipped("cutting the network takes root (iptables)".to_owned()));
    }
    build_if_missing(&options.compose).await?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut report = Report::new("split-heal");
    // Both guards live outside of the steps: whichever way those end, network and containers are taken care of.
    let firewall = Firewall::install()?;
    let cluster = tokio::select! {
        cluster = Cluster::start(project, options.keep) => cluster?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    };
    let steps = tokio::select! {
        steps = Box::pin(steps(options, &cluster, &firewall, &mut report)) => steps,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    if let Err(error) = &steps {
        report.invariant("scenario-runs-to-its-end", false, format!("{error:#}"));
    }

    let broken: Vec<String> = report.broken().into_iter().map(str::to_owned).collect();
    if !broken.is_empty() {
        cluster.save_logs(&options.report.join("logs")).await.context("the containers' logs")?;
    }
    let path = report.write(&options.report)?;
    println!("\n{}\nreport: {}", report.markdown(), path.display());
    steps?;
    Ok(if broken.is_empty() { Outcome::Held } else { Outcome::Broken(broken) })
}

async fn steps(options: &ScenarioOptions, cluster: &Cluster, firewall: &Firewall, report: &mut Report) -> Result<()> {
    let watches = form(cluster, report).await?;
    split(options, cluster, firewall, &watches, report).await?;
    kill(cluster, &watches, report).await
}

/// All see all, requests flow, and a first policy is everywhere.
async fn form(cluster: &Cluster, report: &mut Report) -> Result<Vec<Watch>> {
    let begin = cluster.began;
    report.event("five containers started: n1 founds the mesh, the others join with single-use tokens");
    let formed = until(begin, FORMING_MAX, || all_see_alive(&cluster.members, NODES.len())).await;
    report.time("cluster-forms", formed, Some(FORMING_MAX), "from `docker-compose up` until all five see five alive");
    if formed.is_none() {
        describe(&cluster.members, report).await;
        bail!("the cluster did not form");
    }

    let watches =
        LOADED.iter().map(|name| Watch::start(&cluster.project, cluster.member(name)?)).collect::<Result<Vec<_>>>()?;
    let flowing = || async {
        let now_ms = clock::unix_ms();
        watches.iter().all(|watch| watch.between(now_ms.saturating_sub(3000), now_ms).answered_by == SERVING)
    };
    let flows = until(begin, PATIENCE, flowing).await;
    report.time(
        "requests-flow",
        flows,
        Some(FORMING_MAX),
        "from `docker-compose up` until both loads are answered by n1, n3 and n5",
    );
    if flows.is_none() {
        describe(&cluster.members, report).await;
        bail!("requests do not flow");
    }

    let steady_ms = clock::unix_ms();
    cluster.member("n1")?.admin.apply(&hello_policy("25ms")).await?;
    cluster.member("n1")?.admin.apply(&policy(DISPUTED, DISPUTED, "25ms")).await?;
    let written = clock::now();
    let spread = until(written, PATIENCE, || async {
        all_have(&cluster.members, DISPUTED).await && roots_equal(&cluster.members).await
    });
    report.time("policy-spreads", spread.await, Some(SPREAD_MAX), "from the answer to a write until all five have it");
    sleep(STEADY).await;
    none_failed("no-failures-before", steady_ms, &watches, report).await;
    Ok(watches)
}

/// Cut, write on both sides, heal, compare.
async fn split(
    options: &ScenarioOptions,
    cluster: &Cluster,
    firewall: &Firewall,
    watches: &[Watch],
    report: &mut Report,
) -> Result<()> {
    let (left, right) = (cluster.group(&LEFT), cluster.group(&RIGHT));
    let addresses = |members: &[Member]| members.iter().map(|member| member.address.clone()).collect::<Vec<_>>();
    firewall.split(&addresses(&left), &addresses(&right))?;
    let (cut, cut_ms) = (clock::now(), clock::unix_ms());
    report.event("network cut: n1 n2 | n3 n4 n5");

    let sides = [("left", &left, HALF_DISTANCE[0]), ("right", &right, HALF_DISTANCE[1])];
    for (name, side, half_distance) in sides {
        let author = side.iter().find(|member| LOADED.contains(&member.name)).context("a loaded node on each side")?;
        for number in 0..WRITTEN {
            let own = written_by(name, number);
            author.admin.apply(&policy(&own, &format!("{own}-only"), half_distance)).await?;
        }
        if name == "left" {
            author.admin.delete(KIND, DISPUTED).await?;
        } else {
            author.admin.apply(&policy(DISPUTED, DISPUTED, half_distance)).await?;
        }
        author.admin.apply(&hello_policy(half_distance)).await?;
        let own = written_by(name, WRITTEN - 1);
        let written = clock::now();
        let spread = until(written, PATIENCE, || async { all_have(side, &own).await && roots_equal(side).await }).await;
        let what = format!("a write at {} during the split until its side has it", author.name);
        report.time(&format!("policy-spreads-{name}"), spread, Some(SPREAD_IN_SPLIT_MAX), &what);
    }

    let gone = |side: &[Member]| {
        let side = side.to_vec();
        async move { all_see_alive(&side, side.len()).await }
    };
    let noticed = until(cut, PATIENCE, || async { gone(&left).await && gone(&right).await }).await;
    report.time("split-noticed", noticed, None, "from the cut until each side counts only itself as alive");
    sleep(options.split_for.saturating_sub(cut.elapsed())).await;

    let dropped = firewall.dropped()?;
    let crossed = all_have(&right, &written_by("left", 0)).await || all_have(&left, &written_by("right", 0)).await;
    report.invariant(
        "split-is-real",
        dropped.len() == LEFT.len() * RIGHT.len() * 2 && dropped.iter().all(|&packets| packets > 0) && !crossed,
        format!("packets dropped for each pair and direction {dropped:?}; a write crossed: {crossed}"),
    );

    let heal_ms = clock::unix_ms();
    firewall.heal()?;
    let healed = clock::now();
    report.event("network healed");
    let equal = until(healed, PATIENCE, || roots_equal(&cluster.members)).await;
    report.time("roots-equal", equal, Some(ROOTS_EQUAL_MAX), "from healing until all five policy roots are equal");
    let members = until(healed, PATIENCE, || all_see_alive(&cluster.members, NODES.len())).await;
    report.time("members-return", members, Some(MEMBERS_MAX), "from healing until all five see five alive");
    let chosen = merged(&cluster.members, report).await;
    disputed(&cluster.members, report).await;
    settle(cluster, chosen, report).await?;

    caught_up(watches).await;
    for watch in watches {
        let during = watch.between(cut_ms, heal_ms);
        let window = during.last_failure_ms.map_or(0, |last| last.saturating_sub(cut_ms));
        if let Some(failure) = &during.example {
            report.event(format!("first failure at {}: {failure:?}", watch.node));
        }
        report.figure(
            &format!("failures-in-split-{}", watch.node),
            figure(during.failed),
            "requests",
            &format!("load at {} during the split: {} answered; failed", watch.node, during.ok),
        );
        report.time(
            &format!("traffic-flows-in-split-{}", watch.node),
            (during.ok > 0).then(|| Duration::from_millis(window)),
            Some(DETECTION_MAX),
            &format!("from the cut to the last failed request at {}; none failed after", watch.node),
        );
    }
    sleep(STEADY).await;
    none_failed("no-failures-after-heal", heal_ms, watches, report).await;
    Ok(())
}

/// All writes and the conflict are on every member, with the same side in force; gives a side that is not in force.
async fn merged(members: &[Member], report: &mut Report) -> Option<Side> {
    let mut missing = Vec::new();
    for name in ["left", "right"].into_iter().flat_map(|side| (0..WRITTEN).map(move |n| written_by(side, n))) {
        if !all_have(members, &name).await {
            missing.push(name);
        }
    }
    let detail = format!("{WRITTEN} documents of each side on all five; missing: {missing:?}");
    report.invariant("all-writes-everywhere", missing.is_empty(), detail);

    let mut seen: Vec<(&str, Result<Vec<Conflict>>)> = Vec::new();
    for member in members {
        seen.push((member.name, member.admin.conflicts().await));
    }
    let listed = |conflicts: &[Conflict]| {
        conflicts.iter().find(|conflict| conflict.name == "hello" && conflict.sides.len() == 2).and_then(|conflict| {
            let mut in_force = conflict.sides.iter().filter(|side| side.in_force);
            let (one, none) = (in_force.next()?, in_force.next());
            none.is_none().then(|| (conflict.section.clone(), one.author.clone(), one.value.to_string()))
        })
    };
    let in_force: Vec<_> = seen.iter().map(|(_, conflicts)| listed(conflicts.as_deref().unwrap_or_default())).collect();
    let same = in_force.first().is_some_and(|first| first.is_some() && in_force.iter().all(|other| other == first));
    let detail = match in_force.first() {
        Some(Some((section, author, value))) if same => {
            format!("hello, {section}: two sides listed on all five, {author}'s {value} in force on all five")
        }
        _ => format!("{seen:?}"),
    };
    report.invariant("conflict-everywhere", same, detail);
    let conflicts = seen.into_iter().find_map(|(_, conflicts)| conflicts.ok()).unwrap_or_default();
    let sides = conflicts.into_iter().filter(|conflict| conflict.name == "hello").flat_map(|conflict| conflict.sides);
    sides.into_iter().find(|side| !side.in_force)
}

/// The document that one side deleted and the other edited is there, as edited, and every member says so.
async fn disputed(members: &[Member], report: &mut Report) {
    let mut told = Vec::new();
    for member in members {
        let policies = member.admin.policies().await.unwrap_or_default();
        let conflicts = member.admin.conflicts().await.unwrap_or_default();
        let is_listed = conflicts.iter().any(|conflict| conflict.name == DISPUTED);
        let found = policies.into_iter().find(|document| document.name == DISPUTED);
        told.push(
            found.map(|document| (is_listed && document.deleted_concurrently, balancer(&document.document).cloned())),
        );
    }
    let edit = |text: &serde_json::Value| text.get("halfDistance").is_some_and(|half| half == HALF_DISTANCE[1]);
    let held = told.iter().flatten().filter(|(is_told, text)| *is_told && text.as_ref().is_some_and(edit)).count();
    let held = held == members.len();
    let detail = if held {
        "deleted at n2, edited at n4: the edit stays on all five, marked as deleted concurrently".to_owned()
    } else {
        format!("{told:?}")
    };
    report.invariant("delete-against-edit-is-told", held, detail);
}

/// One request at one node settles the conflict on all: the side that was not in force is taken, and it is.
async fn settle(cluster: &Cluster, chosen: Option<Side>, report: &mut Report) -> Result<()> {
    let Some(chosen) = chosen else {
        report.invariant("conflict-settled", false, "there was none to settle");
        return Ok(());
    };
    let author = cluster.member("n1")?;
    author.admin.resolve(KIND, "hello", &chosen.dot).await?;
    let answered = clock::now();
    let settled = until(answered, PATIENCE, || has_taken(&cluster.members, &chosen)).await;
    let what =
        format!("from the answer at n1, which took {}'s side, until no node lists it and all have it", chosen.author);
    report.time("conflict-settled", settled, Some(SETTLED_MAX), &what);
    Ok(())
}

/// Whether every member lists no conflict about `hello` and has what `side` wrote.
async fn has_taken(members: &[Member], side: &Side) -> bool {
    for member in members {
        let (Ok(conflicts), Ok(policies)) = (member.admin.conflicts().await, member.admin.policies().await) else {
            return false;
        };
        let taken = policies
            .iter()
            .any(|document| document.name == "hello" && balancer(&document.document) == Some(&side.value));
        if !taken || conflicts.iter().any(|conflict| conflict.name == "hello") {
            return false;
        }
    }
    true
}

/// kill -9 of a serving node, then its return.
async fn kill(cluster: &Cluster, watches: &[Watch], report: &mut Report) -> Result<()> {
    let victim = cluster.member(KILLED)?;
    let others: Vec<Member> = cluster.members.iter().filter(|member| member.name != KILLED).cloned().collect();
    let kill_ms = clock::unix_ms();
    let killed = clock::now();
    cluster.project.kill(&victim.container).await?;
    report.event(format!("{KILLED} killed with SIGKILL"));
    let dead = until(killed, PATIENCE, || all_say(&others, "dead")).await;
    report.time("death-noticed", dead, Some(DEATH_MAX), "from kill -9 until the four others say dead");
    if let Some(node) = others.first() {
        let nodes = node.admin.nodes().await?;
        if let Some(seen) = nodes.iter().find(|seen| seen.name == KILLED) {
            report.event(format!("{} says of {KILLED}: {}, {}", node.name, seen.state, seen.reason));
        }
    }
    sleep(STEADY).await;
    none_failed("no-failures-by-kill", kill_ms, watches, report).await;

    let command_ms = clock::unix_ms();
    cluster.project.start(&victim.container).await?;
    let started_at = cluster.project.started_at(&victim.container).await?;
    let started_ms = started_at
        .parse::<jiff::Timestamp>()
        .map_or(command_ms, |time| u64::try_from(time.as_millisecond()).unwrap_or(command_ms));
    // The engine's own work before the process runs is not the node's; both clocks are the host's.
    let since_start = |now_ms: u64| Duration::from_millis(now_ms.saturating_sub(started_ms));
    report.event(format!("{KILLED} started again"));
    let alive = until(clock::now(), PATIENCE, || all_see_alive(&cluster.members, NODES.len())).await;
    let alive = alive.map(|_| since_start(clock::unix_ms()));
    report.time("return-alive", alive, Some(RETURN_MAX), "from the start of its process until all five see five alive");
    let answering = || async { watches.iter().all(|watch| watch.first_answer_by(KILLED, command_ms).is_some()) };
    let serving = until(clock::now(), PATIENCE, answering).await;
    let last = watches.iter().filter_map(|watch| watch.first_answer_by(KILLED, command_ms)).max();
    report.time(
        "return-serving",
        serving.and(last).map(since_start),
        Some(RETURN_MAX),
        "from the start of its process to the end of the second in which it answers both loads again",
    );
    let equal = until(clock::now(), PATIENCE, || roots_equal(&cluster.members)).await;
    report.invariant("roots-equal-after-return", equal.is_some(), "all five policy roots");
    sleep(STEADY).await;
    none_failed("no-failures-by-return", command_ms, watches, report).await;
    Ok(())
}

/// Whether every one of `members` gives [`KILLED`] that state.
async fn all_say(members: &[Member], state: &str) -> bool {
    for member in members {
        let nodes = member.admin.nodes().await.unwrap_or_default();
        if !nodes.iter().any(|node| node.name == KILLED && node.state == state) {
            return false;
        }
    }
    true
}

/// The invariant that no load generator saw a failure since `from_ms`.
async fn none_failed(name: &str, from_ms: u64, watches: &[Watch], report: &mut Report) {
    let current = caught_up(watches).await;
    let now_ms = clock::unix_ms();
    let mut held = current;
    let mut detail = Vec::new();
    for watch in watches {
        let seen = watch.between(from_ms, now_ms);
        held &= seen.failed == 0 && seen.ok > 0;
        let example = seen.example.map_or_else(String::new, |failure| {
            let after_ms = failure.at_ms.saturating_sub(from_ms);
            format!(
                " (first {after_ms} ms in: {} {}, {:.0} ms)",
                failure.cause,
                failure.detail.trim(),
                failure.after_ms
            )
        });
        detail.push(format!("load at {}: {} answered, {} failed{example}", watch.node, seen.ok, seen.failed));
    }
    if !current {
        detail.push("a load generator has fallen silent".to_owned());
    }
    report.invariant(name, held, detail.join("; "));
}

/// What each member says of itself, for a report about a cluster that does not form.
async fn describe(members: &[Member], report: &mut Report) {
    for (member, status) in members.iter().zip(statuses(members).await) {
        report.event(format!("{}: {status:?}", member.name));
    }
}

/// The part of a document that both sides write.
fn balancer(document: &serde_json::Value) -> Option<&serde_json::Value> {
    document.pointer("/spec/loadBalancer")
}

/// The name of a document that one side writes for itself.
fn written_by(side: &str, number: usize) -> String {
    format!("written-{side}-{number}")
}

fn hello_policy(half_distance: &str) -> String {
    policy("hello", "hello", half_distance)
}

fn policy(name: &str, service: &str, half_distance: &str) -> String {
    format!(
        "apiVersion: marram.dev/v1\n\
         kind: {KIND}\n\
         metadata: {{ name: {name}, scope: global }}\n\
         targetRef: {{ kind: Service, name: {service} }}\n\
         spec:\n  \
           loadBalancer: {{ algorithm: EdgeDecay, halfDistance: {half_distance} }}\n"
    )
}

/// Counts stay far below the 2^52 that a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "counts of requests in one scenario are small")]
fn figure(count: u64) -> f64 {
    count as f64
}
