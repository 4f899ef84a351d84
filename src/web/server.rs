//! Accepts connections and serves requests on them.

use super::{Phase, Web, routes};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

/// How long a connection may take to send a request, or to think of the next.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes a request's head may have.
const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long to wait when the system has no more sockets to give.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The address at the other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Serves on `listener` until the node is no longer running. At most `connections_max` connections are open that are
/// not, or not yet, sessions; more wait in the system's queue.
pub async fn serve(listener: TcpListener, web: Arc<Web>, connections_max: usize) {
    let mut phase = web.phase.clone();
    let service = warp::service(routes::all(web));
    let slots = Arc::new(Semaphore::new(connections_max));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // A failed node still answers, so that its state can be read from outside.
            () = stopping(&mut phase) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let connection = serve_connection(stream, peer, service.clone(), phase.clone());
        tokio::spawn(async move {
            connection.await;
            drop(slot);
        });
    }
}

async fn serve_connection<S>(
    stream: TcpStream,
    peer: SocketAddr,
    service: S,
    mut phase: watch::Receiver<Phase>,
) where
    S: tower_service::Service<
            hyper::Request<hyper::body::Incoming>,
            Response = warp::reply::Response,
            Error = std::convert::Infallible,
        > + Clone,
{
    // Chat is small messages that somebody waits for.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "a connection ended before it began");
        return;
    }
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        service.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(REQUEST_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stopping(&mut phase) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}

/// Waits until the node is told to stop.
async fn stopping(phase: &mut watch::Receiver<Phase>) {
    // An error means that nobody is left who could tell: the node is going down.
    let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await;
}
