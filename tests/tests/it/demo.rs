//! The first command that anybody runs.

use tests::run;

#[test]
fn the_demo_serves_without_a_failure_and_counts_what_it_did() {
    let said = run(&["demo", "--for", "4s", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    let summary = said.json();
    assert_eq!(summary["failed"], 0, "{summary:#}");
    assert!(summary["requests"].as_u64().is_some_and(|requests| requests > 100), "{summary:#}");
    assert_eq!(summary["roots_equal"], true, "{summary:#}");
    assert_eq!(summary["roots"].as_array().map(Vec::len), Some(3), "{summary:#}");
    assert!(summary["start_ms"].as_u64().is_some_and(|ms| ms < 5_000), "three agents are up in under 5 s: {summary:#}");
    let shares = summary["candidates"].as_array().unwrap();
    let sum: f64 = shares.iter().filter_map(|candidate| candidate["share"].as_f64()).sum();
    assert!(shares.len() > 1 && (sum - 1.0).abs() < 0.01, "{summary:#}");
}
