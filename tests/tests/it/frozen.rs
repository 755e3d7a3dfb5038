//! The control thread of an agent stands still: nothing gossips, nothing is probed, nobody answers the admin API. Requests
//! go on with what was decided last.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tests::{App, Fleet, Load, Node, Request, Sent, Stopwatch, pause, send_within, skip};

/// How long it stands still: well under the time in which its peers take it for dead.
const STILL: Duration = Duration::from_secs(4);

/// One thread of another process, which stands still until this is dropped.
struct Still {
    release: Option<mpsc::Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Still {
    /// Stops the first thread of a process, and no other, as a debugger does; every call has to come from one thread.
    fn hold(pid: u32) -> nix::Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
        let (release, released) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let tracer = std::thread::spawn(move || {
            let held = ptrace::seize(pid, ptrace::Options::empty())
                .and_then(|()| ptrace::interrupt(pid))
                .and_then(|()| waitpid(pid, Some(WaitPidFlag::__WALL)).map(drop));
            let is_held = held.is_ok();
            tell.send(held).ok();
            // Ends when the sender is dropped.
            released.recv().ok();
            if is_held {
                ptrace::detach(pid, None).expect("it stands still");
            }
        });
        told.recv().expect("the tracer tells")?;
        Ok(Self { release: Some(release), tracer: Some(tracer) })
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            tracer.join().ok();
        }
    }
}

#[test]
fn requests_go_on_while_the_control_thread_of_a_node_stands_still() {
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(2, &|n, config| Node::serve(config, "hello", apps[n].address(), None));
    fleet.wait_service("hello", 2);
    // At the node itself, for both instances, and at its peer, which sends some of them there.
    let loads: Vec<Load> =
        fleet.nodes.iter().map(|node| Load::start(node.proxy, "hello", "GET", 2, Duration::from_millis(5))).collect();
    let node = &fleet.nodes[0];
    let still = match Still::hold(node.pid().unwrap()) {
        Ok(still) => still,
        Err(fault) => {
            return skip("requests_go_on_while_the_control_thread_stands_still", &format!("ptrace: {fault}"));
        }
    };
    let watch = Stopwatch::start();
    let asked = Request { path: "/readyz", ..Request::default() };
    let answer = send_within(node.admin, &asked, Duration::from_secs(1));
    assert!(answer.is_err(), "the admin API is served by the thread that stands still: {answer:?}");
    let before: Vec<u64> = apps.iter().map(App::requests).collect();
    while watch.elapsed() < STILL {
        pause(Duration::from_millis(50));
    }
    let served: Vec<u64> = apps.iter().zip(before).map(|(app, before)| app.requests() - before).collect();
    drop(still);
    let sent: Vec<Sent> = loads.into_iter().flat_map(Load::stop).collect();
    let failed: Vec<&Sent> = sent.iter().filter(|sent| !sent.is_good()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}\n{}", failed.len(), sent.len(), fleet.logs());
    assert!(served.iter().all(|served| *served > 100), "both instances were asked meanwhile: {served:?}");
    fleet.wait_whole();
    fleet.wait_service("hello", 2);
}
