use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use ::policy::Problem;
use ::policy::explain::{
    CapacitySource, DistanceSource, Excluded, ExplainedFleetRate, ExplainedLocality, ExplainedRequirements,
    Explanation, Subject, explain, explain_parts,
};
use ::policy::{BackendPolicy, Capacity, Draw};
use clap::{CommandFactory as _, Parser as _};
use crdt_store::{BundleError, BundleFault, StoreError};

use super::target::{Output, Reach, Target};
use super::*;
use crate::admin::ProblemBody;
use crate::view::{
    Applied, AppliedDocument, Capabilities, CheckView, ConflictSide, ConflictView, DocumentDiff, EffectiveKindView,
    EffectiveView, FieldChangeView, FieldSourceView, InstanceView, LinkView, MemberCounts, NodeView, OverriddenView,
    PolicyStatus, ProblemView, Replicated, ServiceSummary, SideChangeView, Status,
};

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_call_that_scripts_rely_on_parses() {
    for call in [
        "demo",
        "demo --nodes 3 --for 60s -o json",
        "init --dir a --mesh shop --name a",
        "init --dir a --mesh shop --name a --region eu --zone z --advertise gw:7440 --mesh-port 7441 --admin 7071 --proxy 127.0.0.1:7081 --root-passphrase-file p",
        "token create --dir a",
        "token create --dir a --ttl 10m --uses 5 --role gateway",
        "join marram1.x.y.z@h:7440 --dir b --name b --mesh-port 7442",
        "agent --dir a",
        "agent --dir a --log-format json",
        "status",
        "status --dir a -o json",
        "nodes --admin http://127.0.0.1:7070 -o wide",
        "services --admin /run/marram/admin.sock",
        "route explain hello --dir a",
        "policy apply -f a.yaml --dir a",
        "policy apply -f - --if-match abc",
        "policy apply -f a.yaml -f b.yaml",
        "policy apply --create-only -f a.yaml",
        "policy list --kind HTTPRoute",
        "policy get global/HTTPRoute/shop",
        "policy delete region:eu/HTTPRoute/shop --if-match abc",
        "policy conflicts",
        "policy apply -f a.yaml -m why --idempotency-key k --wait majority --timeout 10s",
        "policy apply -f a.yaml --dry-run",
        "policy patch global/HTTPRoute/shop -p {} --wait 2",
        "policy patch global/HTTPRoute/shop -f p.json --if-match abc",
        "policy get global/HTTPRoute/shop --at x:1",
        "policy diff -f a.yaml -f b.yaml",
        "policy effective hello --node b",
        "policy history global/HTTPRoute/shop -o wide",
        "policy rollback global/HTTPRoute/shop --to x:1 -m why",
        "policy resolve global/HTTPRoute/shop --take x:1",
        "policy resolve global/HTTPRoute/shop -f a.yaml --wait all",
        "policy sync -o json",
        "store verify --dir a",
        "store export --dir a shop.bundle",
        "store import --dir b shop.bundle",
        "config check node.toml",
        "config check --dir a",
        "config print --dir a",
    ] {
        let words = std::iter::once("marram").chain(call.split(' '));
        assert!(Cli::try_parse_from(words).is_ok(), "{call}");
    }
}

#[test]
fn calls_that_make_no_sense_are_usage_faults() {
    for call in [
        "",
        "demo --nodes 0",
        "demo --for soon",
        "init --dir a --mesh shop",
        "token create",
        "token create --dir a --role king",
        "join --dir a --name b",
        "agent",
        "policy apply",
        "policy get HTTPRoute/shop",
        "policy get global/HTTPRoute/",
        "policy apply -f a --if-match x --create-only",
        "policy apply -f a --wait most",
        "policy apply -f a --timeout soon",
        "policy patch global/HTTPRoute/shop",
        "policy patch global/HTTPRoute/shop -p {} -f x",
        "policy rollback global/HTTPRoute/shop",
        "policy resolve global/HTTPRoute/shop",
        "policy resolve global/HTTPRoute/shop --take x:1 -f a",
        "store",
        "store verify",
        "store export --dir a",
        "store import shop.bundle",
        "config check",
        "config check node.toml --dir a",
        "nodes -o yaml",
        "unknown",
    ] {
        let words = std::iter::once("marram").chain(call.split(' ').filter(|word| !word.is_empty()));
        let error = Cli::try_parse_from(words).expect_err(call);
        assert_eq!(error.exit_code(), 2, "{call}");
    }
}

#[test]
fn the_help_groups_every_verb_with_an_example() {
    let help = Cli::command().render_help().to_string();
    for verb in Cli::command().get_subcommands() {
        let line = format!("\n  {}", verb.get_name());
        assert!(GROUPS.contains(&line), "`{}` is in no group", verb.get_name());
    }
    for group in ["\nStart\n", "\nLook\n", "\nPolicy\n", "\nSettings\n"] {
        assert!(help.contains(group), "{group} in {help}");
    }
    let mut verbs: Vec<clap::Command> = Cli::command().get_subcommands().cloned().collect();
    while let Some(verb) = verbs.pop() {
        let inner: Vec<clap::Command> = verb.get_subcommands().cloned().collect();
        let has_example = verb.get_after_help().is_some_and(|text| text.to_string().contains("marram "));
        assert!(has_example || !inner.is_empty(), "`{}` shows no example", verb.get_name());
        verbs.extend(inner);
    }
}

#[test]
fn examples_of_the_help_parse() {
    let mut examples: Vec<String> = GROUPS
        .lines()
        .filter(|line| line.starts_with("  "))
        .filter_map(|line| line.split_once("   marram ").map(|(_, example)| example.to_owned()))
        .collect();
    let mut verbs: Vec<clap::Command> = Cli::command().get_subcommands().cloned().collect();
    while let Some(verb) = verbs.pop() {
        let text = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        examples
            .extend(text.lines().filter_map(|line| line.split_once("marram ").map(|(_, example)| example.to_owned())));
        verbs.extend(verb.get_subcommands().cloned());
    }
    assert!(examples.len() > 20, "{examples:?}");
    for example in examples {
        let plain = example.replace(['"', ')'], "");
        let plain = plain.split(" < ").next().unwrap();
        let words = std::iter::once("marram").chain(plain.split(' '));
        assert!(Cli::try_parse_from(words).is_ok(), "{example}");
    }
}

#[test]
fn the_node_that_is_asked_follows_from_options_then_environment() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = |host: &str, port| Target::Tcp { host: host.to_owned(), port };
    let socket = Target::Socket(dir.path().canonicalize().unwrap().join("admin.sock"));
    let some_dir = Some(dir.path().to_owned());
    let cases = [
        (None, None, None, tcp("127.0.0.1", 7070)),
        (None, None, Some(""), tcp("127.0.0.1", 7070)),
        (None, None, Some("http://localhost:7071/"), tcp("localhost", 7071)),
        (None, some_dir.clone(), Some("http://localhost:7071"), socket),
        (Some("http://[::1]:7072"), some_dir, Some("http://localhost:7071"), tcp("::1", 7072)),
        (Some("127.0.0.1:7073"), None, None, tcp("127.0.0.1", 7073)),
        (Some("/run/a.sock"), None, None, Target::Socket(PathBuf::from("/run/a.sock"))),
        (Some("./a.sock"), None, None, Target::Socket(PathBuf::from("./a.sock"))),
        (Some("unix:a.sock"), None, None, Target::Socket(PathBuf::from("a.sock"))),
    ];
    for (admin, dir, environment, expected) in cases {
        let reach = Reach { admin: admin.map(str::to_owned), dir, output: Output::Table };
        assert_eq!(reach.target(environment).unwrap(), expected, "{admin:?} {environment:?}");
    }
    for wrong in ["https://h:1", "localhost", "http://h:x", "http://u@h:1", ":7070"] {
        let reach = Reach { admin: Some(wrong.to_owned()), ..Reach::default() };
        assert!(matches!(reach.target(None), Err(CliError::Usage { .. })), "{wrong}");
    }
}

fn refused(status: u16, code: &str, problems: Vec<Problem>) -> CliError {
    CliError::Refused(Box::new(ProblemBody {
        kind: format!("urn:marram:problem:{code}"),
        title: "title".to_owned(),
        status,
        code: code.to_owned(),
        detail: "the detail".to_owned(),
        problems,
        current: None,
        yours: None,
        changes: Vec::new(),
    }))
}

fn bundle_fault(source: BundleError) -> CliError {
    CliError::Bundle { path: PathBuf::from("shop.bundle"), source: Box::new(source) }
}

#[test]
fn exit_codes_follow_from_what_failed() {
    let file = || io::Error::from(io::ErrorKind::NotFound);
    let unreachable = CliError::Unreachable { target: "t".to_owned(), reason: "r".to_owned() };
    for (error, expected) in [
        (refused(500, "internal", Vec::new()), Exit::Failed),
        (refused(404, "not_found", Vec::new()), Exit::Failed),
        (refused(507, "storage_full", Vec::new()), Exit::Failed),
        (refused(503, "unavailable", Vec::new()), Exit::Degraded),
        (refused(409, "no_conflict", Vec::new()), Exit::Failed),
        (refused(412, "stale_context", Vec::new()), Exit::Stale),
        (refused(401, "token_required", Vec::new()), Exit::Denied),
        (refused(403, "denied", Vec::new()), Exit::Denied),
        (refused(421, "host_refused", Vec::new()), Exit::Denied),
        (refused(422, "policy_invalid", Vec::new()), Exit::Invalid),
        (refused(413, "body_too_large", Vec::new()), Exit::Invalid),
        (unreachable, Exit::Unreachable),
        (CliError::Usage { message: "m".to_owned(), hint: "h" }, Exit::Usage),
        (CliError::Documents(Vec::new()), Exit::Invalid),
        (CliError::File { path: PathBuf::from("f"), source: file() }, Exit::Failed),
        (CliError::Config(crate::config::Config::parse("node.toml", "x = 1").unwrap_err()), Exit::Invalid),
        (bundle_fault(BundleError::Newer { version: 9 }), Exit::Invalid),
        (bundle_fault(BundleError::OtherStore { found: "m/global".to_owned() }), Exit::Invalid),
        (bundle_fault(BundleError::Io { doing: "writing", source: file() }), Exit::Failed),
        (CliError::Store { path: PathBuf::from("a/store"), source: Box::new(StoreError::Newer) }, Exit::Failed),
        (CliError::Agent(anyhow::anyhow!("x")), Exit::Failed),
    ] {
        assert_eq!(error.exit(), expected, "{error:?}");
    }
    assert_eq!(ExitCode::from(Exit::Invalid), ExitCode::from(7));
    assert_eq!(ExitCode::from(Exit::Ok), ExitCode::SUCCESS);
}

#[test]
fn failures_are_told_with_their_hints() {
    let problem = |field: &str, hint: Option<&str>| Problem::new(field, "is wrong", hint.map(str::to_owned));
    for (error, expected) in [
        (refused(404, "not_found", Vec::new()), "error: the detail (not_found)"),
        (
            refused(422, "policy_invalid", vec![problem("spec.a", Some("do b")), problem("spec.c", None)]),
            "error: field `spec.a`: is wrong\n  hint: do b\nerror: field `spec.c`: is wrong",
        ),
        (
            refused(401, "token_required", Vec::new()),
            "error: the detail (token_required)\n  hint: name the node's folder with --dir, or put the token into MARRAM_TOKEN",
        ),
        (
            CliError::Config(crate::config::Config::parse("node.toml", "regio = 'x'").unwrap_err()),
            "error: node.toml: line 1: unknown field `regio`\n  hint: did you mean `region`?",
        ),
        (
            bundle_fault(BundleError::Damaged { offset: 14, fault: BundleFault::Cut }),
            "error: shop.bundle: bundle is damaged at byte 14: the file ends here\n  hint: write it again where it came from: `marram store export --dir DIR FILE`",
        ),
        (
            CliError::Store {
                path: PathBuf::from("a/store"),
                source: Box::new(StoreError::Damaged("bits".to_owned())),
            },
            "error: a/store: stored state is damaged: bits\n  hint: `marram store verify --dir DIR` lists what is wrong; the agent refills the store when it starts",
        ),
    ] {
        assert_eq!(error.report(), expected);
    }
}

#[test]
fn a_node_that_is_not_there_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let reach = Reach { admin: None, dir: Some(dir.path().to_owned()), output: Output::Table };
    let error = reach.client().unwrap().get::<Status>("/v1/status").unwrap_err();
    assert_eq!(error.exit(), Exit::Unreachable);
    assert!(error.report().contains("admin.sock: ") && error.report().contains("\n  hint: "), "{}", error.report());
}

fn subject(node: &str, capacity: f64, inflight: f64, distance_ms: f64, picks: u64) -> Subject {
    Subject {
        instance: "hello".to_owned(),
        node: node.to_owned(),
        zone: String::new(),
        capacity: Capacity::new(capacity).unwrap(),
        capacity_source: CapacitySource::Declared,
        inflight,
        distance_ms,
        distance_source: DistanceSource::Rtt,
        latency_ms: (picks > 0).then_some(12.34),
        picks,
        expected_picks: 0.0,
        state: "ok".to_owned(),
        slow_start: None,
    }
}

#[test]
fn an_explanation_reads_as_the_formula_does() {
    let subjects = vec![
        subject("west", 100.0, 30.0, 0.2, 632),
        subject("east", 100.0, 10.0, 40.0, 245),
        subject("north", 200.0, 20.0, 90.0, 123),
    ];
    let out = Excluded {
        instance: "hello".to_owned(),
        node: "south".to_owned(),
        reason: "owner is dead: no ack to 3 probes".to_owned(),
    };
    let single = BackendPolicy { draw: Draw::Single, ..BackendPolicy::default() };
    let text = route::explained(&explain("hello", &single, "west", subjects, vec![out]));
    let expected = "\
SERVICE hello  from west  algorithm EdgeDecay  λ=0.0277/ms (half-distance 25ms)  ε=1  draw Single  policy: default
INSTANCE       C  INFLIGHT     L     RTT  w=C/(L+ε)·e^(−λd)      P  OBSERVED       STATE
hello@west   100      30.0  0.30  0.20ms              76.50  63.0%   63.2% ██████  ok
hello@east   100      10.0  0.10  40.0ms              29.99  24.7%   24.5% ██      ok
hello@north  200      20.0  0.10  90.0ms              14.99  12.3%   12.3% █       ok
out hello@south: owner is dead: no ack to 3 probes
";
    assert_eq!(text, expected);
    assert!(text.lines().skip(1).all(|line| line.chars().count() <= 100), "the table fits 100 columns");
}

#[test]
fn an_explanation_of_the_best_of_two_shows_the_latency_and_says_what_p_is() {
    let subjects = vec![subject("west", 100.0, 30.0, 0.2, 632), subject("east", 100.0, 10.0, 40.0, 0)];
    let policy = BackendPolicy { draw: Draw::BestOfTwo, ..BackendPolicy::default() };
    let text = route::explained(&explain("hello", &policy, "west", subjects, Vec::new()));
    let expected = "\
SERVICE hello  from west  algorithm EdgeDecay  λ=0.0277/ms (half-distance 25ms)  ε=1  draw BestOfTwo  policy: default
INSTANCE      C  INFLIGHT     L     RTT  w=C/(L+ε)·e^(−λd)  LATENCY      P  OBSERVED           STATE
hello@west  100      30.0  0.30  0.20ms              76.50   12.3ms  71.8%  100.0% ██████████  ok
hello@east  100      10.0  0.10  40.0ms              29.99        -  28.2%    0.0%             ok
P is of each draw; of two drawn, the smaller LATENCY·max(1,(INFLIGHT+1)/C) gets the request,
so OBSERVED may differ from P
";
    assert_eq!(text, expected);
    assert!(text.lines().skip(1).all(|line| line.chars().count() <= 100), "the table fits 100 columns");
}

#[test]
fn an_explanation_shows_localities_newcomers_panic_and_what_rules_require() {
    let subjects = vec![
        subject("west", 100.0, 0.0, 0.2, 0),
        Subject { slow_start: Some(0.25), ..subject("east", 25.0, 0.0, 0.2, 0) },
    ];
    let part = |name: &str, percent, sound, share, candidates| ExplainedLocality {
        name: name.to_owned(),
        percent,
        sound,
        known: 2.0,
        share,
        candidates,
    };
    let localities = vec![
        part("eu/z1", Some(80), 1.0, 0.737, 1),
        part("eu/z2", Some(20), 2.0, 0.263, 1),
        ExplainedLocality { known: 0.0, ..part("own zone", None, 0.0, 0.0, 0) },
    ];
    let skipped =
        Excluded { instance: "hello".into(), node: "east".into(), reason: "needs gpu >= 1, node has 0".into() };
    let required = ExplainedRequirements {
        route: "global/HTTPRoute/see#0".to_owned(),
        requires: vec!["gpu >= 1".to_owned()],
        passes_through: false,
        skipped: vec![skipped],
    };
    let single = BackendPolicy { draw: Draw::Single, ..BackendPolicy::default() };
    let explained = explain_parts("hello", &single, "west", subjects, localities, Vec::new());
    let rate = ExplainedFleetRate { limit_per_s: 200.0, share_per_s: 95.5, demand_per_s: 120.0, nodes: 3, asking: 2 };
    let text = route::explained(&Explanation {
        panic: true,
        fleet_rate: Some(rate),
        requirements: vec![required],
        ..explained
    });
    let expected = "\
SERVICE hello  from west  algorithm EdgeDecay  λ=0.0277/ms (half-distance 25ms)  ε=1  draw Single  policy: default
panic: too many instances are ejected by this node, so its ejections do not count
rate for all nodes 200/s: 95.5/s here, where 120/s ask; 2 of 3 nodes ask
LOCALITY  POLICY   SOUND  SHARE
eu/z1        80%  1 of 2  73.7%
eu/z2        20%  2 of 2  26.3%
INSTANCE      C  INFLIGHT     L     RTT  w=C/(L+ε)·e^(−λd)      P  OBSERVED  STATE
hello@west  100       0.0  0.00  0.20ms              99.45  73.7%  -         ok
hello@east   25       0.0  0.00  0.20ms              24.86  26.3%  -         ok, new: 25.0% of its weight
rule global/HTTPRoute/see#0 needs gpu >= 1, else refused
  skips hello@east: needs gpu >= 1, node has 0
";
    assert_eq!(text, expected);
}

#[test]
fn an_explanation_without_candidates_says_what_that_means() {
    let out = Excluded { instance: "a".to_owned(), node: "b".to_owned(), reason: "check http: 500".to_owned() };
    let text = route::explained(&explain("hello", &BackendPolicy::default(), "west", Vec::new(), vec![out]));
    assert!(text.ends_with("out a@b: check http: 500\nnothing to draw: requests are answered 503\n"), "{text}");
}

fn node(name: &str, state: &str, since_s: f64, reason: &str) -> NodeView {
    NodeView {
        name: name.to_owned(),
        id: "abcdefghijklmnopqrstuvwxyz".to_owned(),
        state: state.to_owned(),
        reason: reason.to_owned(),
        since_s,
        this_node: name == "a",
        incarnation: 1,
        region: "eu".to_owned(),
        zone: "z1".to_owned(),
        address: "10.0.0.5:7440".to_owned(),
        location: None,
        role: "member".to_owned(),
        distance_ms: Some(12.34),
        distance_source: "measured".to_owned(),
        jitter_ms: Some(0.5),
        loss: Some(0.0),
        inflight: 3,
        cpu: 0.25,
        agent_memory_bytes: 18 << 20,
        capabilities: Capabilities {
            arch: "x86_64".to_owned(),
            cores: 2.0,
            memory_bytes: 4 << 30,
            ..Capabilities::default()
        },
        version: "0.1.0".to_owned(),
        policy_root: "0011aabb".to_owned(),
        services: vec!["hello".to_owned()],
        age_s: Some(if state == "dead" { 42.0 } else { 0.4 }),
    }
}

#[test]
fn nodes_show_state_since_when_and_why_within_the_width() {
    let nodes = [
        node("a", "alive", 300.0, "this node"),
        node("b", "alive", 299.0, "answered 0.4s ago"),
        node("c", "dead", 12.0, "no ack to 3 probes; suspected by a, b for 4 s"),
    ];
    let text = look::nodes_text(&nodes, 100);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("NAME  STATE  SINCE  PLACE"), "{text}");
    assert!(lines[1].starts_with("a *   alive     5m  eu/z1") && lines[1].contains("  -  "), "{text}");
    assert!(lines[3].starts_with("c     dead     12s") && lines[3].contains("no ack to 3 probes"), "{text}");
    assert!(text.ends_with("as known by a; 1 of 3 nodes not heard for more than 10s\n"), "{text}");
    for width in [80, 100] {
        let text = look::nodes_text(&nodes, width);
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
    }
}

#[test]
fn services_show_every_instance_with_its_state() {
    let instance = InstanceView {
        id: "8081".to_owned(),
        node: "a".to_owned(),
        state: "up".to_owned(),
        address: "127.0.0.1:8081".to_owned(),
        protocol: Some(crate::config::Protocol::Http),
        capacity: 100.0,
        capacity_source: "declared".to_owned(),
        inflight: 4,
        checks: vec![CheckView { kind: "http".to_owned(), passing: true, detail: "200 in 2ms".to_owned() }],
        labels: BTreeMap::new(),
    };
    let services = [
        ServiceSummary { name: "hello".to_owned(), instances: vec![instance] },
        ServiceSummary { name: "ghost".to_owned(), instances: Vec::new() },
    ];
    let text = look::services_text(&services, Some(100));
    assert!(
        text.contains("hello    8081@a    up           http      100         4  127.0.0.1:8081  http: 200 in 2ms\n"),
        "{text}"
    );
    assert!(text.contains("ghost    -         no instance"), "{text}");
    assert!(look::services_text(&[], None).starts_with("no services"));
}

#[test]
fn a_status_tells_links_certificates_and_problems() {
    let status = Status {
        mesh: "shop".to_owned(),
        node: "a".to_owned(),
        node_id: "abc".to_owned(),
        version: "0.1.0".to_owned(),
        state: "ready".to_owned(),
        uptime_s: 300,
        members: MemberCounts { alive: 2, dead: 1, ..MemberCounts::default() },
        policy: PolicyStatus { root: "00ff".to_owned(), documents: 3, conflicts: 1, tombstones: 0, writable: false },
        links: vec![LinkView {
            node: "b".to_owned(),
            remote: "10.0.0.6:7440".to_owned(),
            rtt_ms: 1.5,
            loss: 0.0,
            key_exchange: "X25519MLKEM768".to_owned(),
            transport: "quic".to_owned(),
            outbound: true,
            purpose: "control".to_owned(),
        }],
        leaf_not_after: 1_800_000_000,
        node_not_after: 1_700_000_000,
    };
    let problem = ProblemView {
        about: "global/HTTPRoute/shop".to_owned(),
        code: "policy_invalid".to_owned(),
        detail: "the last good form stays in force".to_owned(),
        problems: vec![Problem::new("spec.rules", "is missing", None)],
    };
    let expected = "\
shop  node a (abc)  ready for 5m  version 0.1.0
members  2 alive, 0 suspect, 1 dead, 0 joining, 0 left
policy   root 00ff, 3 documents, 1 in conflict, the disk refuses writes
certs    leaf ends 2027-01-15 08:00 UTC (in 12h), admission ends 2023-11-14 22:13 UTC (1157d ago)
LINK  REMOTE         PURPOSE  OVER     RTT  LOSS  KEY EXCHANGE    DIALLED BY
b     10.0.0.6:7440  control  quic  1.50ms  0.0%  X25519MLKEM768  a
problem  global/HTTPRoute/shop: the last good form stays in force (policy_invalid)
         spec.rules: is missing
";
    assert_eq!(look::status_text(&status, &[problem], 1_799_956_800), expected);
}

#[test]
fn policy_results_name_documents_and_versions() {
    let document = |change: &str, etag: &str| AppliedDocument {
        scope: "global".to_owned(),
        kind: "HTTPRoute".to_owned(),
        name: "shop".to_owned(),
        change: change.to_owned(),
        etag: etag.to_owned(),
    };
    let applied = Applied {
        dot: "x:7".to_owned(),
        root: "00ff".to_owned(),
        documents: vec![document("created", "e1"), document("deleted", "")],
        ..Applied::default()
    };
    assert_eq!(
        policy::text::applied_text(&applied),
        "created global/HTTPRoute/shop  etag e1\ndeleted global/HTTPRoute/shop\nstored as x:7, policy root 00ff\n"
    );
    let side = |author: &str, in_force| ConflictSide {
        dot: "x:1".to_owned(),
        author: author.to_owned(),
        written_ms: 1_800_000_000_000,
        message: String::new(),
        in_force,
        deleted: false,
        value: serde_json::json!({"epsilon": 2}),
    };
    let conflict = ConflictView {
        scope: "global".to_owned(),
        kind: "BackendTrafficPolicy".to_owned(),
        name: "shop".to_owned(),
        section: "spec.loadBalancer".to_owned(),
        sides: vec![side("a", true), side("b", false)],
        base: serde_json::Value::Null,
        changes: Vec::new(),
    };
    let text = policy::text::conflicts_text(&[conflict]);
    assert!(
        text.starts_with("global/BackendTrafficPolicy/shop  section spec.loadBalancer\n  in force  a  2027-01-15"),
        "{text}"
    );
    assert!(text.contains("            {\"epsilon\":2}\n"), "{text}");
    assert_eq!(policy::text::conflicts_text(&[]), "no conflicts\n");
}

#[test]
fn what_came_of_a_wait_is_told() {
    let applied = |nodes: &[&str], wanted| Applied {
        dot: "x:7".to_owned(),
        root: "00ff".to_owned(),
        replayed: true,
        replicated_to: Some(Replicated { nodes: nodes.iter().map(|node| (*node).to_owned()).collect(), wanted }),
        ..Applied::default()
    };
    assert_eq!(
        policy::text::applied_text(&applied(&["b", "c"], 2)),
        "stored earlier as x:7, policy root 00ff\non disk at b, c: 2 of 2 wanted\n"
    );
    let missed = policy::text::applied_text(&applied(&[], 2));
    assert!(missed.ends_with("on disk at nobody yet: 0 of 2 wanted; not in time, it goes on spreading\n"), "{missed}");
}

#[test]
fn a_conflict_shows_what_each_side_did_to_what_was_there() {
    let side = |author: &str, in_force, deleted| ConflictSide {
        dot: "x:1".to_owned(),
        author: author.to_owned(),
        written_ms: 1_800_000_000_000,
        message: "too slow".to_owned(),
        in_force,
        deleted,
        value: serde_json::Value::Null,
    };
    let change = SideChangeView {
        path: "spec.loadBalancer.lambda".to_owned(),
        base: Some(serde_json::json!(0.5)),
        sides: vec![Some(serde_json::json!(0.1)), None],
        agrees: false,
    };
    let conflict = ConflictView {
        scope: "global".to_owned(),
        kind: "BackendTrafficPolicy".to_owned(),
        name: "shop".to_owned(),
        section: String::new(),
        sides: vec![side("west", true, false), side("east", false, true)],
        base: serde_json::Value::Null,
        changes: vec![change],
    };
    let expected = "\
global/BackendTrafficPolicy/shop  deleted while it was edited
  in force  west  2027-01-15 08:00:00Z  (x:1)  \"too slow\"
            east  2027-01-15 08:00:00Z  (x:1)  deleted it  \"too slow\"
    FIELD                     BEFORE  west  east
    spec.loadBalancer.lambda  0.5     0.1   -
to settle one: `marram policy resolve SCOPE/KIND/NAME --take DOT`, or -f with the document as you want it
";
    assert_eq!(policy::text::conflicts_text(&[conflict]), expected);
}

#[test]
fn differences_and_effective_policy_read_field_by_field() {
    let change = |path: &str, before, after| FieldChangeView { path: path.to_owned(), before, after };
    let diff = DocumentDiff {
        scope: "global".to_owned(),
        kind: "HTTPRoute".to_owned(),
        name: "shop".to_owned(),
        change: "changed".to_owned(),
        changes: vec![change("spec.a", None, Some(1.into())), change("spec.b", Some("x".into()), None)],
    };
    assert_eq!(
        policy::text::diffs_text(&[diff]),
        "changed global/HTTPRoute/shop\n  spec.a: - → 1\n  spec.b: \"x\" → -\n"
    );
    let field = FieldSourceView {
        path: "loadBalancer.lambda".to_owned(),
        value: 1.into(),
        document: "global/BackendTrafficPolicy/x".to_owned(),
        locked_by: Some("global/BackendTrafficPolicy/x".to_owned()),
        overridden: vec![OverriddenView {
            document: "node:a/BackendTrafficPolicy/y".to_owned(),
            value: 2.into(),
            why: "locked".to_owned(),
        }],
    };
    let effective = EffectiveView {
        service: "hello".to_owned(),
        node: "a".to_owned(),
        region: "eu".to_owned(),
        zone: String::new(),
        kinds: vec![EffectiveKindView {
            kind: "BackendTrafficPolicy".to_owned(),
            spec: serde_json::Value::Null,
            fields: vec![field],
        }],
    };
    let text = policy::text::effective_text(&effective, None);
    assert!(text.starts_with("SERVICE hello  at a (eu)\nBackendTrafficPolicy\nFIELD"), "{text}");
    assert!(
        text.contains("global/BackendTrafficPolicy/x (locked)  2 of node:a/BackendTrafficPolicy/y: locked"),
        "{text}"
    );
}

#[test]
fn names_in_paths_are_escaped() {
    for (text, expected) in [("region:eu", "region:eu"), ("a b/c?d", "a%20b%2Fc%3Fd"), ("ä", "%C3%A4"), ("..", "..")] {
        assert_eq!(client::segment(text), expected);
    }
    let address = policy::Address::parse("zone:eu.z1/HTTPRoute/shop").unwrap();
    assert_eq!(address.path(), "/v1/policies/zone:eu.z1/HTTPRoute/shop");
}

#[test]
fn local_addresses_may_be_ports() {
    assert_eq!(start::local_address("7071").unwrap().to_string(), "127.0.0.1:7071");
    assert_eq!(start::local_address("[::1]:7071").unwrap().to_string(), "[::1]:7071");
    assert!(start::local_address("localhost:7071").unwrap_err().contains("IP:PORT"));
}

#[test]
fn seeds_of_a_token_come_before_the_peers_it_told_of_each_once() {
    let peers = ["b:1", "a:1", "c:1"].map(str::to_owned);
    assert_eq!(start::seeds_of(vec!["a:1".to_owned()], peers.into_iter()), ["a:1", "b:1", "c:1"]);
    let many = (0..100).map(|index| format!("h:{index}"));
    assert_eq!(start::seeds_of(Vec::new(), many).len(), 16);
}

#[test]
fn a_node_is_made_from_nothing_and_never_written_over() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a");
    let dir_text = dir.to_str().unwrap();
    let call =
        ["marram", "init", "--dir", dir_text, "--mesh", "shop", "--name", "a", "--zone", "z1", "--mesh-port", "7441"];
    let run = || execute(Cli::try_parse_from(call).unwrap().command);
    assert_eq!(run().unwrap(), Exit::Ok);
    let config = crate::config::Config::load_dir(&dir).unwrap();
    assert_eq!((config.zone.as_str(), config.mesh.bind.port()), ("z1", 7441));
    assert!(dir.join("admin.token").exists() && dir.join("identity").is_dir());
    assert!(matches!(run(), Err(CliError::Occupied(_))));

    let token = ["marram", "token", "create", "--dir", dir_text, "--ttl", "10m"];
    assert_eq!(execute(Cli::try_parse_from(token).unwrap().command).unwrap(), Exit::Ok);
}

#[test]
fn options_with_faults_make_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a");
    let call = [
        "marram",
        "init",
        "--dir",
        dir.to_str().unwrap(),
        "--mesh",
        "shop",
        "--name",
        "a",
        "--admin",
        "10.0.0.1:7070",
        "--region",
        "Eu West",
    ];
    let error = execute(Cli::try_parse_from(call).unwrap().command).unwrap_err();
    assert_eq!(error.exit(), Exit::Invalid);
    let report = error.report();
    assert!(report.contains("error: field `region`") && report.contains("error: field `admin.bind`"), "{report}");
    assert!(!dir.exists());
}

#[test]
fn a_verified_store_is_told_in_numbers_with_every_fault() {
    let mut report = crdt_store::Report {
        documents: 3,
        conflicts: 1,
        tombstones: 2,
        ops: 7,
        root: Some([0xab; 16]),
        disk_bytes: 524_288,
        snapshot_ops: Some(7),
        faults: Vec::new(),
    };
    let text = store::report_text(std::path::Path::new("a/store"), &report);
    let expected = "\
store      a/store
documents  3
conflicts  1
tombstones 2
ops        7
root       abababababababababababababababab
disk       524288 bytes
snapshot   7 ops
ok
";
    assert_eq!(text, expected);
    (report.root, report.snapshot_ops) = (None, None);
    report.faults = vec!["op x:1: checksum does not match".to_owned(), "the store does not open: y".to_owned()];
    let text = store::report_text(std::path::Path::new("a/store"), &report);
    assert!(text.contains("root       unknown\n") && text.contains("snapshot   none that reads\n"), "{text}");
    assert!(text.contains("fault      op x:1: checksum") && text.contains("fault      the store does"), "{text}");
    assert!(!text.contains("\nok\n"), "{text}");
}
