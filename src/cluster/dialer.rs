//! Keeps the link to one peer up, for ever.

use super::keeper::{DialEnd, Event};
use super::links::Shared;
use super::peer::{Peer, PeerState};
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, NodeServerMessage};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// How long the node whose name sorts first lets the other one dial before it dials itself.
pub(super) const HEAD_START: Duration = Duration::from_millis(250);

/// The first pause between two attempts; it doubles each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The pause while the peer is refused.
const PAUSE_REFUSED: Duration = Duration::from_secs(10);

/// How long a peer may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// How often a peer must have turned us away before the cookie is blamed: losing to the peer's own dial looks alike.
const TURNED_AWAY_MAX: u32 = 3;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("it accepts no connection within {} s", CONNECT_MAX.as_secs())]
    ConnectTimeout,
    #[error("it ended the connection before it was authenticated")]
    TurnedAway,
    #[error("the connection ended before it was of use")]
    Ended,
    #[error("it accepts connections but says nothing")]
    Silent,
}

/// Dials `peer` whenever there is no link to it.
pub(super) async fn dial_for_ever(shared: Arc<Shared>, peer: Arc<Peer>) {
    let goes_first = shared.name > peer.name;
    let mut pause = PAUSE_MIN;
    let mut turned_away = 0;
    let mut said = false;
    loop {
        until_unlinked(&peer).await;
        if peer.take_was_up() {
            pause = PAUSE_MIN;
            turned_away = 0;
            said = false;
        }
        let refused = peer.state() == PeerState::Refused;
        sleep(jittered(if refused { PAUSE_REFUSED } else { pause })).await;
        if !goes_first {
            sleep(HEAD_START).await;
        }
        if peer.link().is_some() {
            continue;
        }
        pause = (pause * 2).min(PAUSE_MAX);
        let Err(error) = dial(&shared, &peer).await else { continue };
        if peer.link().is_some() {
            continue;
        }
        match error {
            DialError::Unreachable(_) | DialError::ConnectTimeout => peer.unreachable(),
            DialError::TurnedAway => turned_away += 1,
            DialError::Ended | DialError::Silent => {}
        }
        if turned_away == TURNED_AWAY_MAX {
            tracing::warn!(
                peer = peer.name,
                addr = peer.addr,
                "the peer ends every connection before it is authenticated: has it another cookie?"
            );
        }
        if !said && turned_away == 0 {
            said = true;
            tracing::info!(peer = peer.name, addr = peer.addr, "no link to the peer, trying on: {error}");
        } else {
            tracing::debug!(peer = peer.name, addr = peer.addr, "no link to the peer: {error}");
        }
    }
}

async fn until_unlinked(peer: &Peer) {
    loop {
        // Registered before the look, so that no end of a link goes unnoticed.
        let unlinked = peer.unlinked.notified();
        if peer.link().is_none() {
            return;
        }
        unlinked.await;
    }
}

/// One attempt. Returns when its session is ready, or has ended.
async fn dial(shared: &Shared, peer: &Peer) -> Result<(), DialError> {
    let connect = timeout(CONNECT_MAX, TcpStream::connect(&peer.addr)).await;
    let stream = connect.map_err(|_| DialError::ConnectTimeout)?.map_err(DialError::Unreachable)?;
    stream.set_nodelay(true).map_err(DialError::Unreachable)?;
    let number = shared.dials.fetch_add(1, Ordering::Relaxed);
    let label = format!("{} at {}, attempt {number}", peer.name, peer.addr);
    let (done, end) = oneshot::channel();
    // The keeper knows the label before the session can exist, and ends a session that does not become ready.
    shared.tell(Event::Dialled { label: label.clone(), done });
    let stream = Box::new(Dialled { stream, label });
    let opened = NodeServerMessage::ConnectionOpenedExternal { stream, is_server: false };
    if shared.server().is_none_or(|server| server.cast(opened).is_err()) {
        return Err(DialError::Ended);
    }
    match end.await {
        Ok(DialEnd::Ready) => Ok(()),
        Ok(DialEnd::TurnedAway) => Err(DialError::TurnedAway),
        Ok(DialEnd::Silent) => Err(DialError::Silent),
        Ok(DialEnd::Ended) | Err(_) => Err(DialError::Ended),
    }
}

/// Between half of `pause` and all of it.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// A connection with a label by which the library's session for it is recognised.
struct Dialled {
    stream: TcpStream,
    label: String,
}

impl ClusterBidiStream for Dialled {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = self.stream.into_split();
        (Box::new(read), Box::new(write))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_within_bounds() {
        for _ in 0..100 {
            let pause = jittered(PAUSE_MAX);
            assert!(pause >= PAUSE_MAX / 2 && pause <= PAUSE_MAX, "{pause:?}");
        }
    }
}
