//! `parley status`: the cluster as one of its nodes sees it, for people.

use super::http;
use super::target::Target;
use crate::protocol::view::{ClusterView, NodeState, ShardView};
use clap::Args;
use hyper::StatusCode;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::Write as _;
use std::time::Duration;

/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A thousand shards with nine replicas of the longest names are below 1 MiB.
const VIEW_BYTES_MAX: usize = 4 << 20;

/// So many shards are listed one by one, also when nothing is wrong with them.
const FEW_SHARDS: usize = 4;

/// What `parley status` is asked.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The base URL of a node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: Target,
}

/// Why there is nothing to show. One sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StatusError(String);

/// Asks the node and prints its answer to standard output.
///
/// # Errors
/// When the node does not answer, or not as a node does.
pub fn run(args: &StatusArgs) -> Result<(), StatusError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StatusError(format!("cannot start the runtime: {error}")))?;
    let asked = runtime.block_on(async { tokio::time::timeout(ANSWER_TIMEOUT, ask(&args.url)).await });
    // A look-up of a host's name that is still under way must not delay the end.
    runtime.shutdown_background();
    let view = asked
        .unwrap_or_else(|_| Err(format!("the node did not answer within {} s", ANSWER_TIMEOUT.as_secs())));
    let table = table(&view.map_err(StatusError)?);
    // Whoever reads may have seen enough (`| head`).
    let _ = std::io::stdout().lock().write_all(table.as_bytes());
    Ok(())
}

async fn ask(target: &Target) -> Result<ClusterView, String> {
    let resolved = target.resolve().await?;
    let (status, body) = http::get(&resolved, "/api/cluster", VIEW_BYTES_MAX).await?;
    if status != StatusCode::OK {
        return Err(format!("{} answered with HTTP {status} instead of its cluster", resolved.authority));
    }
    serde_json::from_slice(&body)
        .map_err(|error| format!("the answer of {} is not understood: {error}", resolved.authority))
}

/// The view as it is printed.
fn table(view: &ClusterView) -> String {
    let mut text = String::new();
    let mut nodes = vec![
        ["NODE", "STATE", "READY", "LEADS", "REPLICAS", "ROOMS", "SESSIONS", "URL"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for node in &view.nodes {
        let replicas = view.shards.iter().filter(|shard| shard.replicas.contains(&node.name)).count();
        // What a node said before it fell silent is not what it is doing.
        let heard = |figure: u64| match node.state {
            NodeState::Up | NodeState::Suspect => figure.to_string(),
            NodeState::Down | NodeState::Refused => "-".to_owned(),
        };
        let asked = if node.name == view.node { " *" } else { "" };
        nodes.push(vec![
            format!("{}{asked}", node.name),
            node.state.as_str().to_owned(),
            if node.ready { "yes" } else { "no" }.to_owned(),
            node.shards_led.to_string(),
            replicas.to_string(),
            heard(node.rooms),
            heard(node.sessions),
            node.url.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    columns(&mut text, &nodes);
    text.push('\n');
    summarise(&mut text, view);
    text
}

fn summarise(text: &mut String, view: &ClusterView) {
    let shards = &view.shards;
    let led = shards.iter().filter(|shard| shard.leader.is_some()).count();
    let fewest = shards.iter().map(|shard| shard.replicas.len()).min().unwrap_or(0);
    let most = shards.iter().map(|shard| shard.replicas.len()).max().unwrap_or(0);
    let copies = if fewest == most { most.to_string() } else { format!("{fewest} to {most}") };
    let lag = shards.iter().filter_map(|shard| shard.lag).max();
    let lag = lag.map_or_else(|| "unknown here".to_owned(), |lag| lag.to_string());
    // Writing to a string does not fail.
    let _ =
        writeln!(text, "{} shards, {led} with a leader; copies of each: {copies}; lag: {lag}", shards.len());

    let up: BTreeSet<&str> = view
        .nodes
        .iter()
        .filter(|node| matches!(node.state, NodeState::Up))
        .map(|node| node.name.as_str())
        .collect();
    let is_whole = |shard: &ShardView| {
        shard.leader.is_some()
            && shard.replicas.len() == most
            && shard.replicas.iter().all(|replica| up.contains(replica.as_str()))
    };
    let listed: Vec<&ShardView> =
        shards.iter().filter(|shard| shards.len() <= FEW_SHARDS || !is_whole(shard)).collect();
    if listed.is_empty() {
        return;
    }
    let mut rows = vec![["SHARD", "LEADER", "TERM", "COMMIT", "LAG", "REPLICAS"].map(str::to_owned).to_vec()];
    for shard in listed {
        let replicas = shard
            .replicas
            .iter()
            .map(|name| if up.contains(name.as_str()) { name.clone() } else { format!("{name} (not up)") });
        rows.push(vec![
            shard.id.to_string(),
            shard.leader.clone().unwrap_or_else(|| "none".to_owned()),
            shard.term.to_string(),
            shard.commit.to_string(),
            shard.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
            replicas.collect::<Vec<_>>().join(", "),
        ]);
    }
    text.push('\n');
    columns(text, &rows);
}

/// Rows below each other: figures to the right, words to the left. The first row is the headings.
fn columns(text: &mut String, rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let is_figure = |cell: &str| cell == "-" || cell.bytes().all(|byte| byte.is_ascii_digit());
    let count = rows.first().map_or(0, Vec::len);
    let layout: Vec<(usize, bool)> = (0..count)
        .map(|column| (width(column), rows.iter().skip(1).all(|row| is_figure(&row[column]))))
        .collect();
    for row in rows {
        let cells = row.iter().zip(&layout).map(|(cell, (width, right))| {
            // What came over the network does not steer the terminal.
            let cell: String = cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::view::NodeView;

    fn node(name: &str, state: NodeState, leads: u32) -> NodeView {
        NodeView {
            name: name.into(),
            url: Some(format!("http://{name}.example")),
            state,
            ready: state == NodeState::Up,
            shards_led: leads,
            rooms: 12,
            sessions: 345,
        }
    }

    fn shard(id: u16, leader: Option<&str>, lag: Option<u64>) -> ShardView {
        let replicas = ["n1", "n2", "n3"].map(str::to_owned).to_vec();
        ShardView { id, leader: leader.map(str::to_owned), replicas, term: 7, commit: 1234, lag }
    }

    #[test]
    fn a_cluster_in_order_takes_few_lines() {
        let shards = (0..6).map(|id| shard(id, Some("n1"), Some(u64::from(id)))).collect();
        let nodes =
            vec![node("n1", NodeState::Up, 6), node("n2", NodeState::Up, 0), node("n3", NodeState::Up, 0)];
        let expected = "\
NODE  STATE  READY  LEADS  REPLICAS  ROOMS  SESSIONS  URL
n1    up     yes        6         6     12       345  http://n1.example
n2 *  up     yes        0         6     12       345  http://n2.example
n3    up     yes        0         6     12       345  http://n3.example

6 shards, 6 with a leader; copies of each: 3; lag: 5
";
        assert_eq!(table(&ClusterView { node: "n2".into(), nodes, shards }), expected);
    }

    #[test]
    fn what_is_wrong_is_listed() {
        let mut shards: Vec<_> = (0..6).map(|id| shard(id, Some("n1"), Some(0))).collect();
        shards[4].leader = None;
        shards[4].lag = None;
        shards[5].replicas = vec!["n1".into(), "n2".into()];
        let nodes =
            vec![node("n1", NodeState::Up, 5), node("n2", NodeState::Up, 0), node("n3", NodeState::Up, 0)];
        let text = table(&ClusterView { node: "n1".into(), nodes: nodes.clone(), shards: shards.clone() });
        let expected = "\
6 shards, 5 with a leader; copies of each: 2 to 3; lag: 0

SHARD  LEADER  TERM  COMMIT  LAG  REPLICAS
    4  none       7    1234    -  n1, n2, n3
    5  n1         7    1234    0  n1, n2
";
        assert_eq!(text.split_once("\n\n").unwrap().1, expected);

        let nodes = vec![nodes[0].clone(), nodes[1].clone(), node("n3", NodeState::Down, 0)];
        let text = table(&ClusterView { node: "n1".into(), nodes, shards });
        assert!(text.contains("n3    down   no         0         5      -         -"), "{text}");
        assert!(text.contains("n1, n2, n3 (not up)"), "{text}");
        assert_eq!(text.lines().count(), 4 + 1 + 1 + 1 + 1 + 6, "every shard lacks a copy:\n{text}");
    }

    #[test]
    fn few_shards_are_all_listed() {
        let nodes = ["n1", "n2", "n3"].map(|name| node(name, NodeState::Up, 1)).to_vec();
        let shards = (0..4).map(|id| shard(id, Some("n1"), None)).collect();
        let text = table(&ClusterView { node: "n1".into(), nodes, shards });
        assert!(text.contains("lag: unknown here"), "{text}");
        assert!(text.contains("\n    3  n1         7    1234    -  n1, n2, n3\n"), "{text}");
    }

    #[test]
    fn what_a_server_sends_does_not_steer_the_terminal() {
        let nodes = vec![node("n\u{1b}[2J", NodeState::Up, 1)];
        let text = table(&ClusterView { node: "n1".into(), nodes, shards: Vec::new() });
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
