//! What it costs to make messages durable, by how many share an fsync.

#![expect(clippy::expect_used, reason = "a benchmark that cannot run stops")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use parley::metrics::Metrics;
use parley::protocol::message::Message;
use parley::protocol::names::{MessageId, RoomName};
use parley::storage::rows;
use parley::storage::store::Store;
use parley::storage::writer::{Durability, Flush, Writer};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

fn append(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder for the benchmark");
    let store = Store::open(folder.path(), 16).expect("a new store");
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let on_failure = Box::new(|reason| eprintln!("{reason}"));
    let (writer, _thread) =
        Writer::start(store.clone(), Durability::Sync, metrics, on_failure).expect("a writer");
    let room = RoomName::parse("lobby").expect("a name");
    let mut timestamp = 0;
    let mut next = || {
        timestamp += 1;
        let text =
            "a message of about a hundred characters, as people write them when they have something to tell";
        let id = MessageId::Made(u128::from(timestamp));
        Message { timestamp, name: "alice".into(), text: text.into(), id }
    };
    let mut group = criterion.benchmark_group("append");
    for messages in [1, 32, 1024] {
        group.throughput(Throughput::Elements(messages));
        group.bench_function(BenchmarkId::from_parameter(messages), |bencher| {
            bencher.iter(|| {
                let batch: Vec<Message> = (0..messages).map(|_| next()).collect();
                let (done, written) = sync_channel(1);
                let mut changes = Vec::new();
                rows::of_messages(room.shard(16), &room, &batch, &mut changes);
                let done = Box::new(move |outcome| done.send(outcome).expect("sent"));
                writer.write(changes, Flush::Sync, done);
                written.recv().expect("an answer").expect("written");
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("find");
    let known = MessageId::Made(1);
    let unknown = MessageId::Made(u128::MAX);
    for (name, id) in [("known", &known), ("unknown", &unknown)] {
        group.bench_function(name, |bencher| bencher.iter(|| store.find(&room, id).expect("an answer")));
    }
    group.finish();
}

criterion_group!(benches, append);
criterion_main!(benches);
