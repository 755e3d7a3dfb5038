//! Sockets that whoever starts the agent has opened already, and keeps: those of a systemd `.socket` unit.
//!
//! While the agent restarts they stay open there, and connections wait in their queue where they would be refused
//! otherwise. What is passed goes to the listener of the same address, so the order in a unit does not matter.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, bail};
use listenfd::ListenFd;

/// Listening sockets that nobody has taken yet, each with its address.
#[derive(Debug, Default)]
pub struct PassedSockets {
    listeners: Vec<(SocketAddr, TcpListener)>,
}

impl PassedSockets {
    /// Takes over what `LISTEN_FDS` announces (`sd_listen_fds(3)`). To be called once, before anything else looks at the
    /// environment.
    ///
    /// # Errors
    /// When one of them is not a TCP socket that listens.
    pub fn from_env() -> anyhow::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut listeners = Vec::new();
        for number in 0..passed.len() {
            let taken = passed.take_tcp_listener(number).and_then(|listener| {
                let Some(listener) = listener else { return Ok(None) };
                listener.set_nonblocking(true)?;
                Ok(Some((listener.local_addr()?, listener)))
            });
            let place = || format!("socket {number} of LISTEN_FDS\n  hint: a socket unit takes `ListenStream=IP:PORT`");
            listeners.extend(taken.with_context(place)?);
        }
        Ok(Self { listeners })
    }

    /// The sockets that listen on `address`.
    pub fn take(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        self.listeners.extract_if(.., |(at, _)| *at == address).map(|(_, listener)| listener).collect()
    }

    /// Makes sure that everything was taken: what connects to a socket that nobody serves would wait for ever.
    ///
    /// # Errors
    /// Names the addresses that are left.
    pub fn finish(self) -> anyhow::Result<()> {
        if self.listeners.is_empty() {
            return Ok(());
        }
        let left: Vec<String> = self.listeners.iter().map(|(at, _)| at.to_string()).collect();
        bail!(
            "nothing in node.toml listens on {}, of which a socket was passed (LISTEN_FDS)\n  hint: the addresses of a \
             socket unit are those of `proxy.bind`, `admin.bind` and `[[listener]] address`",
            left.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_gets_its_sockets_and_what_is_left_is_named() {
        let [one, two] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let (at_one, at_two) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        let twin = one.try_clone().unwrap();
        let mut passed = PassedSockets { listeners: vec![(at_one, one), (at_two, two), (at_one, twin)] };
        assert_eq!(passed.take(at_one).len(), 2);
        assert!(passed.take(at_one).is_empty());
        let left = passed.finish().unwrap_err().to_string();
        assert!(left.contains(&at_two.to_string()) && !left.contains(&at_one.to_string()), "{left}");
        assert!(PassedSockets::default().finish().is_ok());
    }
}
