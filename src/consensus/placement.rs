//! Which nodes keep a group, and which of them should lead it. Pure: the same names give the same answer everywhere.

use super::types::GroupId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The names of those that keep `group`: `replicas` of `names`, sorted. All of them keep the cluster's own group.
///
/// By rendezvous hashing (Thaler and Ravishankar, 1998): every name draws a lot for the group, and the highest win. A
/// name that comes or goes then moves only what it wins or has won.
#[must_use]
pub fn voters<'a>(group: GroupId, names: impl IntoIterator<Item = &'a str>, replicas: usize) -> Vec<&'a str> {
    let mut lots: Vec<(u64, &str)> = names
        .into_iter()
        .map(|name| (xxh3_64_with_seed(name.as_bytes(), u64::from(group.0)), name))
        .collect();
    lots.sort_unstable_by(|a, b| b.cmp(a));
    if group != GroupId::META {
        lots.truncate(replicas);
    }
    let mut chosen: Vec<&str> = lots.into_iter().map(|(_, name)| name).collect();
    chosen.sort_unstable();
    chosen
}

/// Which of a group's voters, sorted by name, should lead it: each its fair share of groups.
#[must_use]
pub fn preferred_leader<'a>(group: GroupId, voters: &[&'a str]) -> Option<&'a str> {
    let turn = usize::from(group.0).checked_rem(voters.len())?;
    voters.get(turn).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

    #[test]
    fn every_group_has_as_many_voters_as_asked_for_or_as_there_are() {
        for shard in 0..64 {
            assert_eq!(voters(GroupId(shard), NAMES, 3).len(), 3);
            assert_eq!(voters(GroupId(shard), ["n1", "n2"], 3), ["n1", "n2"]);
        }
        assert_eq!(voters(GroupId::META, NAMES, 3), NAMES);
    }

    #[test]
    fn the_order_of_names_does_not_matter_and_one_more_moves_little() {
        let mut moved = 0;
        for shard in 0..64 {
            let before = voters(GroupId(shard), NAMES[..4].iter().copied(), 3);
            let mut shuffled = NAMES[..4].to_vec();
            shuffled.reverse();
            assert_eq!(voters(GroupId(shard), shuffled, 3), before);
            let after = voters(GroupId(shard), NAMES, 3);
            let lost = before.iter().filter(|name| !after.contains(name)).count();
            assert!(lost <= 1, "one comes, at most one goes");
            moved += lost;
        }
        assert!(moved < 64, "most groups keep their voters: {moved} moved");
    }

    #[test]
    fn leaders_are_spread() {
        let mut led: BTreeMap<&str, usize> = BTreeMap::new();
        for shard in 0..16 {
            let voters = voters(GroupId(shard), ["n1", "n2", "n3"], 3);
            *led.entry(preferred_leader(GroupId(shard), &voters).unwrap()).or_default() += 1;
        }
        assert!(led.len() == 3 && led.values().all(|count| (5..=6).contains(count)), "{led:?}");
    }
}
