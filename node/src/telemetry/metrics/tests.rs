use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::view::{MemberCounts, PolicyStatus};

/// Where a series is recorded: file and line.
type Places = BTreeMap<String, Vec<String>>;

#[test]
fn whatever_the_code_records_is_described_and_the_other_way_round() {
    let described: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
    let recorded = recorded();
    for (name, places) in &recorded {
        assert!(described.contains(name), "{name} is recorded in {places:?} and missing in telemetry/metrics/table.rs");
    }
    for name in described {
        assert!(recorded.contains_key(&name), "{name} is described and nothing records it");
    }
}

#[test]
fn names_follow_the_convention() {
    let mut seen = BTreeSet::new();
    for metric in METRICS {
        let name = metric.name;
        assert!(seen.insert(name), "{name} is described twice");
        assert!(name.starts_with("marram_"), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(
            name.ends_with("_total"),
            metric.kind == Kind::Counter,
            "{name}: counters and only they end in _total"
        );
        assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{name}: {}", metric.help);
        let free = ["path", "host", "address", "url", "message", "id"];
        assert!(!metric.labels.iter().any(|label| free.contains(label)), "{name}: labels come from closed sets");
    }
}

#[test]
fn the_documentation_lists_the_same_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let documented: Vec<&str> = text.lines().filter(|line| line.starts_with("| `marram_")).collect();
    let expected: Vec<String> = METRICS.iter().map(line).collect();
    let missing: Vec<&String> = expected.iter().filter(|line| !documented.contains(&line.as_str())).collect();
    let surplus: Vec<&&str> = documented.iter().filter(|line| !expected.iter().any(|known| known == **line)).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing:\n{}\nsurplus:\n{surplus:#?}", joined(&missing));
}

fn joined(lines: &[&String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The line of `docs/metrics.md`.
fn line(metric: &Metric) -> String {
    let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    let stable = if metric.stable { "stable" } else { "not stable" };
    format!("| `{}` | {} | {} | {stable} | {}. |", metric.name, metric.kind.word(), labels.join(", "), metric.help)
}

#[test]
fn a_scrape_has_the_process_and_the_status() {
    let recorder = builder().unwrap().build_recorder();
    let handle = MetricsHandle { recorder: recorder.handle() };
    let status = Status {
        mesh: "shop".to_owned(),
        node: "a".to_owned(),
        node_id: String::new(),
        version: "0.1.0".to_owned(),
        state: "ready".to_owned(),
        uptime_s: 7,
        members: MemberCounts { alive: 3, dead: 1, ..MemberCounts::default() },
        policy: PolicyStatus { root: String::new(), documents: 4, conflicts: 1, tombstones: 2, writable: true },
        links: Vec::new(),
        leaf_not_after: 1_800_000_000,
        node_not_after: 1_900_000_000,
    };
    let text = metrics::with_local_recorder(&recorder, || {
        describe();
        metrics::histogram!("marram_request_duration_seconds").record(0.003);
        handle.render(&status, 2, 5)
    });
    for expected in [
        "marram_build_info{version=\"0.1.0\"} 1",
        "marram_members{state=\"alive\"} 3",
        "marram_members{state=\"dead\"} 1",
        "marram_policy_documents 4",
        "marram_policy_writable 1",
        "marram_problems 2",
        "marram_inflight 5",
        "marram_certificate_not_after_timestamp_seconds{certificate=\"leaf\"} 1800000000",
        "# HELP marram_process_resident_memory_bytes Resident memory of the agent",
        "# TYPE marram_process_cpu_seconds_total counter",
        "marram_request_duration_seconds_bucket{le=\"0.005\"} 1",
    ] {
        assert!(text.contains(expected), "{expected}\nis not in\n{text}");
    }
}

/// Names given to the macros `counter!`, `gauge!` and `histogram!` anywhere in this crate, and those written by hand.
fn recorded() -> Places {
    let mut places = Places::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in files(&source) {
        let is_test = file.ends_with("tests.rs") || file.components().any(|part| part.as_os_str() == "tests");
        if is_test || file.ends_with("telemetry/metrics/table.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(&text);
        for (index, line) in code.lines().enumerate() {
            for name in line.split('"').filter(|part| part.starts_with("marram_") && part.len() > "marram_".len()) {
                if name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                    places.entry(name.to_owned()).or_default().push(format!("{}:{}", file.display(), index + 1));
                }
            }
        }
    }
    places
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
