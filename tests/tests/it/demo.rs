//! The first command that anybody runs.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tests::{Process, binary, eventually, run};

/// A demo wishes for the ports that the README names: one at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_demo_serves_without_a_failure_and_counts_what_it_did() {
    let _turn = turn();
    let said = run(&["demo", "--for", "4s", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    let summary = said.json();
    assert_eq!(summary["failed"], 0, "{summary:#}");
    assert!(summary["requests"].as_u64().is_some_and(|requests| requests > 100), "{summary:#}");
    assert_eq!(summary["roots_equal"], true, "{summary:#}");
    assert_eq!(summary["roots"].as_array().map(Vec::len), Some(3), "{summary:#}");
    let shares = summary["candidates"].as_array().unwrap();
    let sum: f64 = shares.iter().filter_map(|candidate| candidate["share"].as_f64()).sum();
    assert!(shares.len() > 1 && (sum - 1.0).abs() < 0.01, "{summary:#}");
}

#[test]
fn three_agents_of_the_demo_are_up_in_under_five_seconds() {
    let _turn = turn();
    // Other tests run at the same time: the fastest of three tells what the demo takes.
    let mut tried = Vec::new();
    for _ in 0..3 {
        let said = run(&["demo", "--for", "1s", "-o", "json"]);
        assert_eq!(said.code, 0, "{said:?}");
        let took = said.json()["start_ms"].as_u64().expect("a time");
        if took < 5_000 {
            return;
        }
        tried.push(took);
    }
    panic!("{tried:?} ms");
}

/// A running demo and the process ids of its three agents.
fn demo() -> (Process, Vec<String>) {
    let mut command = Command::new(binary());
    command.args(["demo", "--for", "60s", "-o", "json"]);
    let demo = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    let (agents, _) = eventually("three agents run", Duration::from_secs(20), || {
        // A process has its children listed for each of its threads.
        let tasks = fs::read_dir(format!("/proc/{}/task", demo.pid())).map_err(|fault| fault.to_string())?;
        let listed = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<String> = listed.flat_map(|text| words(&text)).collect();
        let agents: Vec<String> = children.into_iter().filter(|pid| is_agent(pid)).collect();
        if agents.len() == 3 { Ok(agents) } else { Err(format!("{agents:?}")) }
    });
    (demo, agents)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn is_agent(pid: &str) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split('\0').any(|word| word == "agent")
}

#[test]
fn no_agent_outlives_a_demo_that_is_killed_or_interrupted() {
    let _turn = turn();
    for signal in [Signal::KILL, Signal::INT] {
        let (mut demo, agents) = demo();
        demo.signal(signal);
        let code = demo.ended(Duration::from_secs(15));
        assert!(signal == Signal::KILL || code.is_some(), "an interrupted demo ends by itself: {code:?}");
        eventually("its agents are gone", Duration::from_secs(15), || {
            let left: Vec<&String> = agents.iter().filter(|pid| is_agent(pid)).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?} after {signal:?}")) }
        });
    }
}
