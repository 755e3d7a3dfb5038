//! A way to a node on which UDP and TCP can be blocked and let through again, as a firewall would.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// Passes UDP and TCP on unless it is blocked; one port number for both.
pub(super) struct Relay {
    pub(super) addr: SocketAddr,
    is_blocked: Arc<AtomicBool>,
    is_held: watch::Sender<bool>,
    _runtime: Runtime,
}

impl Relay {
    /// A relay in front of the node at `to`.
    pub(super) fn start(to: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (udp, tcp) = runtime.block_on(async {
            for _ in 0..16 {
                let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")).await {
                    return (udp, tcp);
                }
            }
            panic!("no port is free for both");
        });
        let addr = tcp.local_addr().expect("bound");
        let is_blocked = Arc::new(AtomicBool::new(false));
        runtime.spawn(pass_udp(Arc::new(udp), to, Arc::clone(&is_blocked)));
        let is_held = watch::Sender::new(false);
        runtime.spawn(pass_tcp(tcp, to, is_held.subscribe()));
        Self { addr, is_blocked, is_held, _runtime: runtime }
    }

    pub(super) fn block_udp(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::SeqCst);
    }

    /// Connections stay open, and nothing more passes on them.
    pub(super) fn block_tcp(&self, is_blocked: bool) {
        self.is_held.send_replace(is_blocked);
    }
}

async fn pass_udp(front: Arc<UdpSocket>, to: SocketAddr, is_blocked: Arc<AtomicBool>) {
    let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut packet = vec![0; 65_536];
    while let Ok((len, from)) = front.recv_from(&mut packet).await {
        if is_blocked.load(Ordering::SeqCst) {
            continue;
        }
        if let Entry::Vacant(place) = backs.entry(from) {
            let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
            back.connect(to).await.expect("connected");
            let (front, reader, is_blocked) = (Arc::clone(&front), Arc::clone(&back), Arc::clone(&is_blocked));
            tokio::spawn(async move {
                let mut packet = vec![0; 65_536];
                loop {
                    let Ok(len) = reader.recv(&mut packet).await else { continue };
                    if !is_blocked.load(Ordering::SeqCst) {
                        front.send_to(&packet[..len], from).await.ok();
                    }
                }
            });
            place.insert(back);
        }
        backs[&from].send(&packet[..len]).await.ok();
    }
}

async fn pass_tcp(listener: TcpListener, to: SocketAddr, is_held: watch::Receiver<bool>) {
    while let Ok((front, _)) = listener.accept().await {
        let is_held = is_held.clone();
        tokio::spawn(async move {
            let back = TcpStream::connect(to).await?;
            let ((front_in, front_out), (back_in, back_out)) = (front.into_split(), back.into_split());
            tokio::try_join!(pass(front_in, back_out, is_held.clone()), pass(back_in, front_out, is_held))
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_held: watch::Receiver<bool>) -> io::Result<()> {
    let mut piece = vec![0; 65_536];
    loop {
        let len = from.read(&mut piece).await?;
        is_held.wait_for(|is_held| !is_held).await.ok();
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..len]).await?;
    }
}
