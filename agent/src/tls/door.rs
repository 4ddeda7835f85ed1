//! Where connections from other machines come in, and prove who they are. Whoever does not, or is slow about it, keeps
//! nobody out: few handshakes run at a time, each not for long, and the one that has to make room is one of the address
//! that has most of them.

use super::{Certificate, Identity, TlsError};
use crate::{
    admission::OUT_OF_DESCRIPTORS,
    callers::{Introduced, Peer, Quiet},
    config::Tls,
    held::Held,
};
use nix::sys::socket::{setsockopt, sockopt};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// Listeners that have not begun to let in.
#[derive(Debug)]
pub(crate) struct Door {
    listeners: Vec<TcpListener>,
    handshakes: Arc<Handshakes>,
}

/// Those who are proving who they are.
#[derive(Debug)]
struct Handshakes {
    identity: Arc<Identity>,
    most: usize,
    patience: Duration,
    going: Mutex<Going>,
    refused: Quiet<IpAddr>,
}

#[derive(Debug, Default)]
struct Going {
    next: u64,
    /// The oldest first.
    all: Vec<(u64, IpAddr, AbortHandle)>,
}

/// A caller that has proved who he is.
pub(crate) type Session = Held<TlsStream<TcpStream>, Peer>;

impl Door {
    /// Listens where the config says, but does not let anybody in yet.
    pub(crate) async fn new(config: &Tls, identity: Arc<Identity>) -> Result<Self, TlsError> {
        let mut listeners = Vec::new();
        for address in &config.listen {
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|source| TlsError::Listen { address: *address, source })?);
        }
        let handshakes = Handshakes {
            identity,
            most: config.handshakes,
            patience: config.handshake_timeout(),
            going: Mutex::default(),
            refused: Quiet::default(),
        };
        Ok(Self { listeners, handshakes: Arc::new(handshakes) })
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Those who have proved who they are, until `stop`.
    pub(crate) fn open(self, stop: &CancellationToken) -> mpsc::Receiver<Session> {
        let (sessions, proved) = mpsc::channel(1);
        for listener in self.listeners {
            let (handshakes, sessions, stop) = (Arc::clone(&self.handshakes), sessions.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = handshakes.of_all(listener, sessions) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        proved
    }
}

impl Handshakes {
    fn going(&self) -> MutexGuard<'_, Going> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn of_all(self: Arc<Self>, listener: TcpListener, sessions: mpsc::Sender<Session>) {
        let mut well = true;
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    well = true;
                    self.begin(stream, from.ip().to_canonical(), sessions.clone());
                }
                Err(error) => {
                    if well {
                        tracing::error!(%error, "cannot let anybody in by TLS: {error}");
                    }
                    well = false;
                    // As for the socket: to ask again at once would be to spin.
                    let _a_pause = timeout(OUT_OF_DESCRIPTORS, std::future::pending::<()>()).await;
                }
            }
        }
    }

    fn begin(self: &Arc<Self>, stream: TcpStream, from: IpAddr, sessions: mpsc::Sender<Session>) {
        let mut going = self.going();
        if going.all.len() >= self.most {
            let (_, address, handshake) = going.make_room();
            handshake.abort();
            self.refuse(address, "others came, and it was slow");
        }
        let number = going.next;
        going.next += 1;
        let this = Arc::clone(self);
        let handshake = tokio::spawn(async move {
            let proved = this.handshake(stream, from).await;
            this.going().all.retain(|(other, ..)| *other != number);
            match proved {
                // Without a receiver the agent is stopping.
                Ok(session) => drop(sessions.send(session).await),
                Err(why) => this.refuse(from, &why),
            }
        });
        going.all.push((number, from, handshake.abort_handle()));
    }

    async fn handshake(&self, stream: TcpStream, from: IpAddr) -> Result<Session, String> {
        keep_alive(&stream).map_err(|error| error.to_string())?;
        let by = self.identity.now();
        let acceptor = TlsAcceptor::from(Arc::clone(&by.server));
        let stream = match timeout(self.patience, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("it was slow".into()),
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = Certificate::new(chain, from, &self.identity, by);
        let certificate = certificate.ok_or("its certificate cannot be read")?;
        Ok(Held::new(stream, Peer::Certified(Arc::new(certificate))))
    }

    /// Tells of it, unless that address was told of just now.
    fn refuse(&self, from: IpAddr, why: &str) {
        if let Some(unsaid) = self.refused.speak_of(from) {
            let (who, outcome) = (from, "NO_HANDSHAKE");
            tracing::info!(
                target: "audit", %who, outcome, why, unsaid,
                "{from}: no TLS connection: {why}; {unsaid} more from there were not told of"
            );
        }
    }
}

impl Going {
    /// Takes out the oldest of the address that has most. There is one: it is called when there are many.
    fn make_room(&mut self) -> (u64, IpAddr, AbortHandle) {
        let mut count = HashMap::new();
        for (_, address, _) in &self.all {
            *count.entry(*address).or_insert(0_usize) += 1;
        }
        let busiest = count.into_iter().max_by_key(|(_, count)| *count).map(|(address, _)| address);
        let oldest = self.all.iter().position(|(_, address, _)| Some(*address) == busiest).unwrap_or_default();
        self.all.remove(oldest)
    }
}

/// A peer whose machine is gone does not keep its place for ever.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

impl Introduced for Session {
    fn peer(&self) -> Peer {
        self.with.clone()
    }
}
