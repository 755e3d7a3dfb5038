use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use super::*;
use crate::clock::SystemClock;
use crate::config::Protocol;

#[test]
fn a_check_falls_after_its_number_of_failures_and_rises_after_its_number_of_successes() {
    let mut state = CheckState::new(2, 2);
    let results = [true, true, false, true, false, false, true, true];
    let verdicts: Vec<bool> = results.into_iter().map(|result| state.observe(result)).collect();
    assert_eq!(verdicts, [false, true, true, true, true, false, false, true]);
}

#[test]
fn a_ttl_check_fails_before_the_first_heartbeat_and_after_silence() {
    let beat = Heartbeat::default();
    let ttl = Duration::from_secs(3);
    assert!(ttl_verdict(beat.silent_for(Duration::from_secs(1)), ttl).is_err());
    beat.beat(Duration::from_secs(2));
    assert!(ttl_verdict(beat.silent_for(Duration::from_secs(5)), ttl).is_ok());
    assert!(ttl_verdict(beat.silent_for(Duration::from_millis(5001)), ttl).is_err());
}

fn local(address: SocketAddr) -> Arc<LocalInstance> {
    Arc::new(LocalInstance {
        service: "hello".to_owned(),
        instance: "1".to_owned(),
        address,
        protocol: Protocol::Http,
        inflight: AtomicU32::new(0),
        healthy: AtomicBool::new(false),
        connect_failures: AtomicU32::new(0),
        broken_connections: AtomicU32::new(0),
    })
}

fn start(local: &Arc<LocalInstance>, checks: Vec<CheckConfig>) -> (mpsc::Receiver<HealthChanged>, Arc<Heartbeat>) {
    let (sender, receiver) = mpsc::channel(16);
    let heartbeat = Arc::new(Heartbeat::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    tokio::spawn(supervise(Arc::clone(local), checks, Arc::clone(&heartbeat), clock, sender));
    (receiver, heartbeat)
}

async fn next(changes: &mut mpsc::Receiver<HealthChanged>, healthy: bool) -> HealthChanged {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let change = changes.recv().await.expect("the supervisor is running");
            if change.healthy == healthy {
                return change;
            }
        }
    });
    waited.await.unwrap_or_else(|_| panic!("no verdict healthy={healthy} within 10 s"))
}

/// A socket of this address that does not listen yet, so nobody does. Others of the same kind may have the same address,
/// and one of them may listen.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

#[tokio::test]
async fn an_instance_without_checks_goes_out_when_a_request_is_refused_and_returns_when_it_listens() {
    let socket = bound("127.0.0.1:0".parse().unwrap());
    let local = local(socket.local_addr().unwrap());
    let (mut changes, _) = start(&local, Vec::new());
    next(&mut changes, true).await;
    local.connect_failures.fetch_add(1, Ordering::Relaxed);
    let out = next(&mut changes, false).await;
    assert_eq!(out.checks[0].kind, "connect");
    let _listener = socket.listen(8).unwrap();
    next(&mut changes, true).await;
}

#[tokio::test]
async fn an_instance_whose_connection_broke_goes_out_where_nobody_listens_and_stays_where_somebody_does() {
    // It keeps the port from others when the listener is gone.
    let kept = bound("127.0.0.1:0".parse().unwrap());
    let address = kept.local_addr().unwrap();
    let listener = bound(address).listen(8).unwrap();
    let local = local(address);
    let (mut changes, _) = start(&local, Vec::new());
    next(&mut changes, true).await;
    local.broken_connections.fetch_add(1, Ordering::Relaxed);
    let looked = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
    looked.expect("it is looked at").unwrap();
    assert!(local.healthy.load(Ordering::Relaxed));
    drop(listener);
    local.broken_connections.fetch_add(1, Ordering::Relaxed);
    let out = next(&mut changes, false).await;
    assert_eq!(out.checks[0].kind, "connect");
}

#[tokio::test]
async fn an_http_check_tells_the_status_it_saw() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = local(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let answers = ["503 Service Unavailable", "200 OK"];
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 512];
            let read = stream.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /ready HTTP/1.1\r\n"));
            let status = answers[usize::from(number > 2)];
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let check = CheckConfig::Http {
        path: "/ready".to_owned(),
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(1),
        fall: 1,
        rise: 1,
    };
    let (mut changes, _) = start(&local, vec![check]);
    let out = next(&mut changes, false).await;
    assert!(out.checks[0].detail.contains("503"), "{out:?}");
    let up = next(&mut changes, true).await;
    assert!(up.checks[0].detail.contains("200"), "{up:?}");
    assert!(local.healthy.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_heartbeat_brings_an_instance_with_a_ttl_up_and_silence_takes_it_down() {
    let local = local("127.0.0.1:9".parse().unwrap());
    let (mut changes, heartbeat) = start(&local, vec![CheckConfig::Ttl { ttl: Duration::from_millis(300) }]);
    next(&mut changes, false).await;
    let clock = SystemClock::start();
    heartbeat.beat(clock.now() + Duration::from_millis(200));
    next(&mut changes, true).await;
    next(&mut changes, false).await;
}
