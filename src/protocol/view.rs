//! The cluster as one node sees it: what `GET /api/cluster` answers and `parley status` shows.
//!
//! A view is what this node knows and no more: while nodes do not hear each other, their views differ.

use serde::{Deserialize, Serialize};

/// Everything a node knows of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The node whose view this is.
    pub node: String,
    /// All nodes, this one among them, ordered by name.
    pub nodes: Vec<NodeView>,
    /// All shards, ordered by number.
    pub shards: Vec<ShardView>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its `node.name`.
    pub name: String,
    /// The base URL at which browsers reach it, once it is known.
    pub url: Option<String>,
    /// Whether it is heard.
    pub state: NodeState,
    /// Whether it said that it can serve every room.
    pub ready: bool,
    /// Shards it leads.
    pub shards_led: u32,
    /// Rooms that have an actor on it, as it last said.
    pub rooms: u64,
    /// Sessions that are connected to it, as it last said.
    pub sessions: u64,
}

/// Whether a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers.
    Up,
    /// It has missed heartbeats, and may only be slow.
    Suspect,
    /// It is not linked.
    Down,
    /// It answers, but does not belong here: another cluster, another number of shards, or no valid cookie.
    Refused,
}

impl NodeState {
    /// The state as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Refused => "refused",
        }
    }
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardView {
    /// Its number.
    pub id: u16,
    /// The node that leads it, as far as this node knows.
    pub leader: Option<String>,
    /// The nodes that hold a copy of it, the leader among them, ordered by name.
    pub replicas: Vec<String>,
    /// The term of that leader.
    pub term: u64,
    /// The last entry known here to be committed.
    pub commit: u64,
    /// Entries that the slowest replica is behind. Only the leader knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_reads_as_it_is_documented() {
        let view = ClusterView {
            node: "n1".into(),
            nodes: vec![NodeView {
                name: "n1".into(),
                url: Some("http://127.0.0.1:8081".into()),
                state: NodeState::Up,
                ready: true,
                shards_led: 1,
                rooms: 2,
                sessions: 3,
            }],
            shards: vec![ShardView {
                id: 0,
                leader: None,
                replicas: vec!["n1".into()],
                term: 4,
                commit: 5,
                lag: None,
            }],
        };
        let json = concat!(
            r#"{"node":"n1","nodes":[{"name":"n1","url":"http://127.0.0.1:8081","state":"up","ready":true,"#,
            r#""shards_led":1,"rooms":2,"sessions":3}],"#,
            r#""shards":[{"id":0,"leader":null,"replicas":["n1"],"term":4,"commit":5}]}"#
        );
        assert_eq!(serde_json::to_string(&view).unwrap(), json);
        assert_eq!(serde_json::from_str::<ClusterView>(json).unwrap(), view);
        for state in [NodeState::Up, NodeState::Suspect, NodeState::Down, NodeState::Refused] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
