//! Flows of datagrams between two proxies, and what a third one can do to them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::bench::{Bench, PATIENCE, node};
use crate::config::{Protocol, ProxyConfig};

async fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut payload = vec![0; 2000];
    let length = timeout(PATIENCE, socket.recv(&mut payload)).await.expect("a datagram in time").unwrap();
    payload.truncate(length);
    payload
}

/// The datagram with another first byte and another payload.
fn changed(datagram: &Bytes, kind: u8, payload: &[u8]) -> Bytes {
    [&[kind], &datagram[1..9], payload].concat().into()
}

#[tokio::test]
async fn a_flow_belongs_to_the_two_nodes_at_its_ends() {
    let (mut near, mut far) = (Bench::start().await, Bench::with(ProxyConfig::default(), 2).await);
    let instance = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = instance.local_addr().unwrap();
    far.add_local("echo", address, Protocol::Udp);
    near.links.lead_to(2, &far);
    near.add_remote("echo", &address.port().to_string(), 2, Protocol::Udp);
    let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(listener.local_addr().unwrap()).await.unwrap();
    tokio::spawn(Arc::clone(&near.context).serve_udp(0, listener, "echo".to_owned()));
    client.send(b"one").await.unwrap();
    assert_eq!(received(&instance).await, b"one");
    let first = near.links.datagrams.lock().unwrap()[0].clone();
    assert_eq!((first[0], &first[9..]), (0x40, &b"one"[..]));

    // Another node knows the number, and gets nothing to the instance by it; nor does what is no datagram of a flow.
    far.context.inbound_datagram(node(3), &changed(&first, 0x40, b"forged"));
    for junk in [&b""[..], &[0x40], &[0x40; 8], &[0x4f; 40], &[1; 40]] {
        far.context.inbound_datagram(node(1), &Bytes::copy_from_slice(junk));
    }
    far.context.inbound_datagram(node(1), &changed(&first, 0x40, b"two"));
    assert_eq!(received(&instance).await, b"two", "the forged one would have come first");

    // Nor does it end the flow at the client's node, or send the client anything.
    for kind in [0x41, 0x42, 0x43] {
        near.context.inbound_datagram(node(3), &changed(&first, kind, b"forged"));
    }
    client.send(b"three").await.unwrap();
    assert_eq!(received(&instance).await, b"three");
    assert_eq!(near.links.opened.load(Ordering::SeqCst), 1);
    let nothing = timeout(Duration::from_millis(50), client.recv(&mut [0; 100])).await;
    assert!(nothing.is_err(), "{nothing:?}");

    // The instance's node may: it knows the flow no more, and the next datagram opens another.
    near.context.inbound_datagram(node(2), &changed(&first, 0x42, b""));
    client.send(b"four").await.unwrap();
    assert_eq!(received(&instance).await, b"four");
    assert_eq!(near.links.opened.load(Ordering::SeqCst), 2);
    // And what it sends back by the new number reaches the client.
    let last = near.links.datagrams.lock().unwrap().last().cloned().unwrap();
    near.context.inbound_datagram(node(2), &changed(&last, 0x41, b"answer"));
    assert_eq!(received(&client).await, b"answer");
}

#[tokio::test]
async fn answers_alone_keep_a_flow_open() {
    let idle = Duration::from_millis(1200);
    let config = ProxyConfig { udp_flow_timeout: idle, ..ProxyConfig::default() };
    let (mut near, mut far) = (Bench::with(config.clone(), 1).await, Bench::with(config, 2).await);
    let instance = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = instance.local_addr().unwrap();
    far.add_local("ticker", address, Protocol::Udp);
    near.links.lead_to(2, &far);
    far.links.lead_from(2, 1, &near);
    near.add_remote("ticker", &address.port().to_string(), 2, Protocol::Udp);
    let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(listener.local_addr().unwrap()).await.unwrap();
    tokio::spawn(Arc::clone(&near.context).serve_udp(0, listener, "ticker".to_owned()));
    client.send(b"begin").await.unwrap();
    let (_, flow) = timeout(PATIENCE, instance.recv_from(&mut [0; 100])).await.unwrap().unwrap();
    // Three times as long as a silent flow lasts.
    for _ in 0..36 {
        tokio::time::sleep(idle / 12).await;
        instance.send_to(b"tick", flow).await.unwrap();
        assert_eq!(received(&client).await, b"tick");
    }
    client.send(b"more").await.unwrap();
    assert_eq!(received(&instance).await, b"more");
    assert_eq!(near.links.opened.load(Ordering::SeqCst), 1);
}
