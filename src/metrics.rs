//! What the node counts. Process-wide totals only: never a room, a user or an address as a label.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    exponential_buckets,
};

/// Every metric of a node. Cheap to share, never blocks.
pub struct Metrics {
    registry: Registry,
    /// Sockets that are open.
    pub sessions: IntGauge,
    /// Rooms that have an actor.
    pub rooms: IntGauge,
    /// Limiters that have an actor.
    pub limiters: IntGauge,
    /// Messages that rooms have stamped.
    pub messages: IntCounter,
    /// Messages handed to sessions' queues.
    pub deliveries: IntCounter,
    /// Messages acknowledged.
    pub acks: IntCounter,
    /// From a message's arrival at the node to its ack, in seconds.
    pub ack_seconds: Histogram,
    /// Duration of one group commit, its fsync included, in seconds.
    pub fsync_seconds: Histogram,
    /// Writes that shared one fsync.
    pub fsync_batch_writes: Histogram,
    /// Messages refused because their address speaks too often.
    pub limiter_refusals: IntCounter,
    /// Sockets the node closed, by close code.
    pub closes: IntCounterVec,
    /// Rooms and other actors that failed and were started again.
    pub actor_failures: IntCounter,
    /// Other nodes that this one is linked to.
    pub links: IntGauge,
    /// From a heartbeat to its answer, in seconds.
    pub heartbeat_seconds: Histogram,
    /// Elections this node stood in.
    pub elections: IntCounter,
    /// Shards this node leads.
    pub leaders: IntGauge,
    /// Over the shards this node leads, the most entries that a replica is behind.
    pub commit_lag: IntGauge,
    /// Batches handed to other nodes.
    pub forwarded_batches: IntCounter,
    /// Bytes of those batches.
    pub forwarded_bytes: IntCounter,
}

impl Metrics {
    /// All zero.
    ///
    /// # Errors
    /// When two metrics share a name, which a test excludes.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        // 100 µs to 13 s, doubling.
        let latencies = exponential_buckets(0.000_1, 2.0, 18)?;
        let closes =
            IntCounterVec::new(Opts::new("parley_closes_total", "Sockets the node closed."), &["code"])?;
        registry.register(Box::new(closes.clone()))?;
        Ok(Self {
            sessions: gauge("parley_sessions", "Open WebSocket sessions.")?,
            rooms: gauge("parley_rooms", "Rooms that have an actor.")?,
            limiters: gauge("parley_limiters", "Limiters that have an actor.")?,
            messages: counter("parley_messages_total", "Messages said.")?,
            deliveries: counter("parley_deliveries_total", "Messages handed to sessions.")?,
            acks: counter("parley_acks_total", "Messages acknowledged as durable.")?,
            ack_seconds: histogram(
                "parley_ack_seconds",
                "From a message's arrival to its ack.",
                latencies.clone(),
            )?,
            fsync_seconds: histogram(
                "parley_fsync_seconds",
                "One group commit, its fsync included.",
                latencies.clone(),
            )?,
            fsync_batch_writes: histogram(
                "parley_fsync_batch_writes",
                "Writes that shared one fsync.",
                exponential_buckets(1.0, 2.0, 14)?,
            )?,
            limiter_refusals: counter(
                "parley_limiter_refusals_total",
                "Messages refused because their address speaks too often.",
            )?,
            actor_failures: counter(
                "parley_actor_failures_total",
                "Actors that failed and were started again.",
            )?,
            links: gauge("parley_links", "Other nodes this one is linked to.")?,
            heartbeat_seconds: histogram(
                "parley_heartbeat_seconds",
                "From a heartbeat to its answer.",
                latencies,
            )?,
            elections: counter("parley_elections_total", "Elections this node stood in.")?,
            leaders: gauge("parley_leaders", "Shards this node leads.")?,
            commit_lag: gauge(
                "parley_commit_lag_entries",
                "Over the shards led here, the most entries that a replica is behind.",
            )?,
            forwarded_batches: counter("parley_forwarded_batches_total", "Batches handed to other nodes.")?,
            forwarded_bytes: counter(
                "parley_forwarded_bytes_total",
                "Bytes of batches handed to other nodes.",
            )?,
            closes,
            registry,
        })
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be written, which none of ours can cause.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_listed() {
        let metrics = Metrics::new().unwrap();
        metrics.closes.with_label_values(&["1013"]).inc();
        let text = metrics.render().unwrap();
        for name in [
            "parley_sessions",
            "parley_ack_seconds_bucket",
            "parley_closes_total{code=\"1013\"} 1",
            "parley_links",
            "parley_heartbeat_seconds_bucket",
            "parley_elections_total",
            "parley_leaders",
            "parley_commit_lag_entries",
            "parley_forwarded_batches_total",
            "parley_forwarded_bytes_total",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }
}
