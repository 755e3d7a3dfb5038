//! Whether a peer still answers, asked only while a request waits for it.
//!
//! A peer that dies leaves its connection looking healthy until the idle timeout. So whoever waits for a response
//! head longer than a moment has the peer's proxy accept an empty stream now and then; three in a row without an
//! answer and the peer is given up here, which fails all that waits for it, at once. Membership comes to its own
//! verdict, later and for everybody. Streams that carry much may have a way of their own: it is asked for those that wait
//! on it, and given up alone, as long as the peer answers elsewhere.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use transport::NodeId;

use super::attempt::open_probe;
use super::context::ProxyContext;
use super::head::{Content, ServiceHead};
use super::links::Volume;

/// A request that waits no longer than this costs no probe.
const PATIENCE: Duration = Duration::from_millis(250);
/// Probes in a row without an answer until the peer, or its way for what is large, is given up.
const FAILURES: u32 = 3;

/// Asks the peer again and again whether it still answers over the way of streams of this volume, and gives that up when it
/// does not. Never ends by itself.
pub(super) async fn watch(context: &Arc<ProxyContext>, core: usize, node: NodeId, volume: Volume) -> Infallible {
    let mut head = None;
    loop {
        tokio::time::sleep(PATIENCE).await;
        let head = head.get_or_insert_with(|| probe_head(&context.source));
        // Where there is no way of its own, it waits on that of the others.
        let large = (volume == Volume::Large).then(|| context.links.large_link(core, node)).flatten();
        // One probe at a time per peer, core and way, however many requests wait.
        let Some(turn) = context.probe_turn(core, node, large.as_ref()) else { continue };
        // Boxed, as few requests wait for so long.
        let answered = Box::pin(open_probe(context, core, node, head, large.clone())).await.is_ok();
        if turn.finish(answered) < FAILURES {
            continue;
        }
        match large {
            None => {
                metrics::counter!("marram_peers_given_up_total").increment(1);
                tracing::warn!(%node, probes = FAILURES, "peer no longer answers, its requests go elsewhere");
                context.peer_dead(node);
            }
            Some(link) if context.large_dead(core, node, &link) => {
                metrics::counter!("marram_large_links_given_up_total").increment(1);
                tracing::warn!(%node, probes = FAILURES, "peer no longer answers over tcp, large requests go over quic");
            }
            // It ended while it was asked.
            Some(_link) => {}
        }
    }
}

fn probe_head(source: &str) -> ServiceHead {
    ServiceHead {
        service: String::new(),
        instance: String::new(),
        content: Content::Probe,
        source: source.to_owned(),
        hops: 1,
        deadline_ms: 0,
        trace: [0; 16],
    }
}
