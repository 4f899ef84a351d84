//! A node: everything it is made of, started and stopped in order.
//!
//! ```text
//! start   data folder → listener → writer → actors → sockets → "ready"
//! stop    no new sessions → acks → close 1012 → sockets gone → actors → writer → data folder
//! ```

use crate::actors::context::{Context, Parts};
use crate::actors::neighbours::{Neighbourhood, Neighbours};
use crate::actors::root::Root;
use crate::cluster::LinkError;
use crate::config::Config;
use crate::consensus::node::{Consensus, Directory, KEPT_ENTRIES, Past, Settings};
use crate::metrics::Metrics;
use crate::storage::store::{OpenError, Store};
use crate::storage::writer::Writer;
use crate::web::address::Origins;
use crate::web::pages::Page;
use crate::web::{Phase, Web, server};
use ractor::Actor;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

/// How long sessions may take to end after they were told to.
const SESSIONS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long actors may take to end.
const ACTORS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the writer may take to end.
const WRITER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a failed node goes on answering, so that those who watch it can read why.
const FAILED_LINGER: Duration = Duration::from_secs(3);

/// How long a single node may take to lead itself before it shows itself anyway.
const ALONE_READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is asked whether it does.
const READY_POLL: Duration = Duration::from_millis(2);

/// File descriptors that are not for sessions: the store's, the listener's, requests'.
const RESERVED_FILES: u64 = 1024;

/// Connections at one time that are not sessions.
const CONNECTIONS_MAX: usize = 512;

/// Why a node does not run (any more). One sentence, for the person who started it.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The address.
    #[error("cannot listen on {address}: {source}; is another program using it? Choose another with --http")]
    Listen {
        /// `http.listen`.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The address for other nodes.
    #[error("{0}; is another program using it? Choose another with --cluster")]
    Links(LinkError),
    /// The disk.
    #[error(
        "the store failed and the node stopped to lose nothing: {0}; make room on the disk or mend it, then start again"
    )]
    Storage(String),
    /// What is on it.
    #[error(
        "data folder {path} is damaged and the node stopped to show nothing wrong: {reason}; in a cluster move it away, and the other nodes teach this one anew; otherwise restore it from a copy"
    )]
    Damaged {
        /// The data folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Something the system did not give.
    #[error("cannot start: {0}")]
    System(String),
}

fn system(error: impl std::fmt::Display) -> NodeError {
    NodeError::System(error.to_string())
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// When it cannot start, or its store fails.
pub async fn run(config: Config) -> Result<(), NodeError> {
    let sessions_max = sessions_max();
    let shards = config.shards;
    let store = open(config.data.clone(), shards).await?;
    let listener = TcpListener::bind(config.http)
        .await
        .map_err(|source| NodeError::Listen { address: config.http, source })?;
    let address = listener.local_addr().map_err(system)?;
    // An address that stands for all addresses is none that a browser could open.
    let listens_at = (!address.ip().is_unspecified()).then(|| format!("http://{address}"));
    let url = config.advertise.clone().or(listens_at);

    let metrics = Arc::new(Metrics::new().map_err(system)?);
    let (phase_sender, phase) = watch::channel(Phase::Running);
    let phase_sender = Arc::new(phase_sender);
    let on_failure = {
        let phase_sender = Arc::clone(&phase_sender);
        Box::new(move |reason: String| {
            error!(reason, "the store has failed; nothing is acknowledged any more");
            phase_sender.send_replace(Phase::Failed(reason));
        })
    };
    let (writer, writer_thread) =
        Writer::start(store.clone(), config.durability, Arc::clone(&metrics), on_failure).map_err(system)?;
    let damage = watch_for_damage(&store, Arc::clone(&phase_sender));
    let found_damage = || {
        let path = config.data.clone();
        damage.get().cloned().map(|reason| NodeError::Damaged { path, reason })
    };
    let gateways = std::thread::available_parallelism().map_or(1, usize::from);
    let neighbours = neighbours(&config, &store, url.clone(), &metrics).await;
    let neighbours = neighbours.map_err(|error| found_damage().unwrap_or(error))?;
    let consensus = consensus(&config, &store, writer, &neighbours, &metrics).await;
    let consensus = consensus.map_err(|error| found_damage().unwrap_or(error))?;
    let context = Context::new(Parts {
        node: config.name.clone(),
        url: url.clone(),
        gateways,
        limits: config.limits,
        store,
        consensus: Arc::clone(&consensus),
        neighbours: Arc::clone(&neighbours),
        metrics,
    });
    let context = Arc::new(context);
    let (root, root_task) = Root::spawn(None, Root, Arc::clone(&context)).await.map_err(system)?;

    let (session_alive, mut sessions_gone) = mpsc::channel(1);
    let origins = Origins::new(config.allowed_origins.iter().cloned().chain(url));
    let page = Page::new().map_err(system)?;
    let web = Web::new(
        Arc::clone(&context),
        phase.clone(),
        origins,
        config.trusted_proxies.clone(),
        page,
        sessions_max,
        session_alive.downgrade(),
    );
    let web = Arc::new(web.map_err(system)?);
    let on_urls = {
        let web = Arc::clone(&web);
        Box::new(move |urls| web.origins.set_cluster(urls))
    };
    let following = neighbours.follow(&consensus, on_urls);
    if config.cluster.is_none() {
        // Nobody else has to be waited for.
        let ready = async {
            while context.not_ready().is_some() {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        let _ = timeout(ALONE_READY_TIMEOUT, ready).await;
    }
    let server = tokio::spawn(server::serve(listener, web, CONNECTIONS_MAX));

    announce(&config, address, neighbours.listen());
    info!(node = config.name, %address, sessions_max, gateways, "ready");
    let failure = wait_for_end(phase).await?;
    match &failure {
        None => {
            info!("stopping");
            // First, so that no room is without a leader while its sessions look for another node.
            neighbours.leave();
            consensus.hand_over(&neighbours.linked()).await;
            phase_sender.send_replace(Phase::Stopping);
        }
        // The sessions have been told by the phase itself; the listener stays for those who ask what happened.
        Some(_) => tokio::time::sleep(FAILED_LINGER).await,
    }
    drop(session_alive);
    if timeout(SESSIONS_TIMEOUT, sessions_gone.recv()).await.is_err() {
        warn!("some sessions did not end in time and are cut off");
    }
    phase_sender.send_replace(Phase::Stopping);
    if timeout(ACTORS_TIMEOUT, server).await.is_err() {
        warn!("the listener did not end in time");
    }
    root.stop(None);
    if timeout(ACTORS_TIMEOUT, root_task).await.is_err() {
        warn!("some actors did not end in time");
    }
    if let Some(following) = following {
        following.abort();
    }
    if timeout(ACTORS_TIMEOUT, consensus.stop()).await.is_err() {
        warn!("some groups did not end in time");
    }
    neighbours.stop().await;
    drop((consensus, neighbours));
    // The writer's thread ends when the last actor has let go of it, and leaves everything on disk.
    drop(context);
    let writer_ended = tokio::task::spawn_blocking(move || writer_thread.join());
    match timeout(WRITER_TIMEOUT, writer_ended).await {
        Ok(Ok(Ok(()))) => {}
        Ok(_) => error!("the writer's thread has failed"),
        Err(_) => warn!("the writer did not end in time; what it acknowledged is on disk"),
    }
    failure.map_or(Ok(()), |reason| Err(found_damage().unwrap_or(NodeError::Storage(reason))))
}

/// Fails the node once something stored cannot be read, and keeps what was found first.
fn watch_for_damage(store: &Store, phase: Arc<watch::Sender<Phase>>) -> Arc<OnceLock<String>> {
    let damage = Arc::new(OnceLock::new());
    let found = Arc::clone(&damage);
    store.watch(Box::new(move |reason| {
        if found.set(reason.clone()).is_ok() {
            error!(reason, "what is stored cannot be read; nothing is served any more");
            // Only the first failure is told.
            phase.send_if_modified(|phase| {
                let running = matches!(phase, Phase::Running);
                if running {
                    *phase = Phase::Failed(reason);
                }
                running
            });
        }
    }));
    damage
}

/// Opens the data folder where it may block. A folder so damaged that the database panics over it is damaged too.
async fn open(data: PathBuf, shards: u16) -> Result<Store, OpenError> {
    let path = data.clone();
    tokio::task::spawn_blocking(move || Store::open(&path, shards)).await.unwrap_or_else(|_| {
        Err(OpenError::Damaged { path: data, detail: "the database cannot make sense of it".to_owned() })
    })
}

/// The links to other nodes, if there are to be any.
async fn neighbours(
    config: &Config,
    store: &Store,
    url: Option<String>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Neighbours>, NodeError> {
    let Some(cluster) = &config.cluster else {
        return Ok(Neighbours::none(config.shards, Arc::clone(metrics)));
    };
    let hood = Neighbourhood {
        name: config.name.clone(),
        url,
        listen: cluster.listen,
        peers: cluster.peers.iter().map(|peer| (peer.name.clone(), peer.addr.clone())).collect(),
        cookie: cluster.cookie.reveal().to_owned(),
    };
    let past = Past::of(store).map_err(system)?;
    Neighbours::start(hood, store, &past, Arc::clone(metrics)).await.map_err(NodeError::Links)
}

/// The groups that agree on what was said.
async fn consensus(
    config: &Config,
    store: &Store,
    writer: Writer,
    neighbours: &Arc<Neighbours>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Consensus>, NodeError> {
    let peers = config.cluster.iter().flat_map(|cluster| &cluster.peers);
    #[cfg(feature = "fault-injection")]
    let kept_entries = crate::actors::fault::kept_entries().unwrap_or(KEPT_ENTRIES);
    #[cfg(not(feature = "fault-injection"))]
    let kept_entries = KEPT_ENTRIES;
    let settings = Settings {
        name: config.name.clone(),
        peers: peers.map(|peer| peer.name.clone()).collect(),
        shards: config.shards,
        replicas: config.replicas,
        kept_entries,
    };
    let directory: Directory = {
        let neighbours = Arc::clone(neighbours);
        Arc::new(move || neighbours.linked())
    };
    let links = Arc::clone(neighbours);
    Consensus::start(settings, store, writer, links, directory, Arc::clone(metrics)).await.map_err(system)
}

/// Waits for a signal, or until the node fails: then the reason is returned.
async fn wait_for_end(mut phase: watch::Receiver<Phase>) -> Result<Option<String>, NodeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
    tokio::select! {
        _ = terminate.recv() => Ok(None),
        _ = interrupt.recv() => Ok(None),
        failed = phase.wait_for(|phase| matches!(phase, Phase::Failed(_))) => match failed.as_deref() {
            Ok(Phase::Failed(reason)) => Ok(Some(reason.clone())),
            _ => Ok(None),
        },
    }
}

/// The one line on standard output.
fn announce(config: &Config, address: SocketAddr, cluster: Option<SocketAddr>) {
    let data = config.data.display();
    let cluster = cluster.map_or_else(|| "off".to_owned(), |address| address.to_string());
    let line = format!("parley {} ready http=http://{address} cluster={cluster} data={data}\n", config.name);
    let mut out = io::stdout().lock();
    // Whoever started the node may not want to know.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// How many sessions the system's limit on open files leaves room for, after raising it as far as we may.
fn sessions_max() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let files = files.unwrap_or(1 << 20).min(1 << 20);
    files.saturating_sub(RESERVED_FILES).max(64) as usize
}
