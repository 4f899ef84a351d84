//! Nodes that do not belong: they are refused in a sentence, and the others go on.

use std::time::Duration;

use crate::cluster::{COOKIE, Cluster, trial};
use crate::person::{Person, conclude};
use crate::support::{Folder, SOON, copy_all, until};

const ROOM: &str = "lobby";

/// How long a stranger is watched for being taken in by mistake.
const WATCHED: Duration = Duration::from_secs(2);

/// Stops the third node, starts it as it has been changed meanwhile, and checks that it stays outside, that its log or
/// another's has a line that the test knows for the reason, and that the others do not care.
async fn refused(cluster: &mut Cluster, is_the_reason: impl Fn(&str) -> bool) {
    let mut people = Vec::new();
    for (home, name) in [(0, "alice"), (1, "bob")] {
        people.push(Person::on(cluster, &[home], ROOM, name).talking_every(25).come().await);
    }
    cluster.spawn(2);
    until("the stranger is refused in a sentence", SOON, async || {
        let logs = cluster.all().into_iter().map(|index| cluster.node(index).stderr_of_this_life());
        logs.into_iter().any(|log| log.lines().any(&is_the_reason))
    })
    .await;
    let start = std::time::Instant::now();
    while start.elapsed() < WATCHED {
        if cluster.node_mut(2).has_ended() {
            assert_eq!(cluster.node_mut(2).ended(SOON).await, Some(1), "a refused start fails");
            break;
        }
        let readiness = cluster.readiness(2).await;
        assert_ne!(readiness.0, 200, "a stranger cannot serve the rooms of this cluster");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.kill(2);
    for person in &mut people {
        person.until_acked(20, SOON).await;
    }
    cluster.ready().await;
    conclude(cluster, people, SOON).await;
}

/// Whether a line has all of these words.
fn has(line: &str, words: &[&str]) -> bool {
    let line = line.to_lowercase();
    let found: Vec<&str> = line.split(|c: char| !c.is_alphanumeric()).collect();
    words.iter().all(|word| found.contains(word))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_cookie_never_joins() {
    trial(90, async {
        let mut cluster = Cluster::start(3).await;
        cluster.stop(2).await;
        cluster.replan(2, |plan| plan.env("PARLEY_CLUSTER_COOKIE", "quite another cookie"));
        refused(&mut cluster, |line| has(line, &["cookie"])).await;
        for index in cluster.all() {
            let log = cluster.node(index).stderr();
            assert!(!log.contains(COOKIE) && !log.contains("quite another cookie"), "no log tells a cookie");
        }
        cluster.replan(2, |plan| plan.env("PARLEY_CLUSTER_COOKIE", COOKIE));
        cluster.start_again(2).await;
        cluster.whole().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_number_of_shards_is_told_both_numbers() {
    trial(120, async {
        let mut cluster = Cluster::start(3).await;
        cluster.stop(2).await;
        cluster.replan(2, |plan| plan.env("PARLEY_CLUSTER_SHARDS", "7"));
        let both = |line: &str| has(line, &["shards", "4", "7"]);
        // By its own folder, and with an empty one by the others.
        refused(&mut cluster, both).await;
        cluster.wipe(2);
        refused_again(&mut cluster, both).await;
        cluster.wipe(2);
        cluster.replan(2, |plan| plan.env("PARLEY_CLUSTER_SHARDS", "4"));
        cluster.start_again(2).await;
        cluster.whole().await;
    })
    .await;
}

/// Like [`refused`], in a room that has been talked in.
async fn refused_again(cluster: &mut Cluster, is_the_reason: impl Fn(&str) -> bool) {
    let before = cluster.history(ROOM).await;
    cluster.spawn(2);
    until("the stranger is refused in a sentence", SOON, async || {
        let logs = cluster.all().into_iter().map(|index| cluster.node(index).stderr_of_this_life());
        logs.into_iter().any(|log| log.lines().any(&is_the_reason))
    })
    .await;
    if !cluster.node_mut(2).has_ended() {
        assert_ne!(cluster.readiness(2).await.0, 200, "a stranger cannot serve the rooms of this cluster");
    }
    cluster.kill(2);
    assert_eq!(cluster.history(ROOM).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_cluster_is_refused() {
    trial(120, async {
        let foreign = Folder::new();
        {
            let mut elsewhere = Cluster::start(3).await;
            elsewhere.stop(2).await;
            copy_all(elsewhere.node(2).data(), &foreign.join("data"));
        }
        let mut cluster = Cluster::start(3).await;
        cluster.stop(2).await;
        cluster.wipe(2);
        copy_all(&foreign.join("data"), cluster.node(2).data());
        refused(&mut cluster, |line| has(line, &["cluster"]) && line.contains("belongs to")).await;
    })
    .await;
}
