//! What can be done to a cluster, as data: drawn from a seed, printed, and drawn again from the same seed.

use std::fmt;
use std::time::Duration;

use crate::proxy;
use crate::support::Seed;

/// Kinds of faults that are asked for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// Processes die.
    Kill,
    /// Processes are frozen and go on.
    Freeze,
    /// Links are severed.
    Cut,
    /// Links are slow.
    Lag,
    /// Nodes are stopped gracefully.
    Stop,
    /// A node loses its folder.
    Wipe,
    /// Disks refuse, forget and lie.
    Disk,
    /// Clocks are set.
    Clock,
    /// Clients misbehave.
    Crowd,
}

impl Family {
    pub(crate) const ALL: [(Self, &str); 9] = [
        (Self::Kill, "kill"),
        (Self::Freeze, "freeze"),
        (Self::Cut, "cut"),
        (Self::Lag, "lag"),
        (Self::Stop, "stop"),
        (Self::Wipe, "wipe"),
        (Self::Disk, "disk"),
        (Self::Clock, "clock"),
        (Self::Crowd, "crowd"),
    ];

    /// Reads a list like `kill,cut`.
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let known = || Self::ALL.map(|(_, name)| name).join(", ");
        text.split(',')
            .map(|word| {
                let found = Self::ALL.iter().find(|(_, name)| *name == word.trim());
                found.map(|(family, _)| *family).ok_or_else(|| {
                    format!("there are no faults called \"{}\"; there are: {}", word.trim(), known())
                })
            })
            .collect()
    }
}

/// A node, by the part it plays when the fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The one that hosts the room with this number.
    Host(usize),
    /// One that does not host it.
    Gateway(usize, u64),
    /// Any.
    Any(u64),
}

/// How a link fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Connections are reset and refused.
    Reset,
    /// Nothing arrives, until the link is healed and everything does.
    Hold,
    /// Nothing arrives, ever.
    Swallow,
}

impl Way {
    pub(crate) fn fault(self) -> proxy::Fault {
        match self {
            Self::Reset => proxy::Fault::Cut,
            Self::Hold => proxy::Fault::Held,
            Self::Swallow => proxy::Fault::Swallowed,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to one, and a start with the same data.
    Kill(Whom),
    /// SIGKILL to as many as the cluster must survive.
    KillMinority(u64),
    /// SIGKILL to all.
    KillAll,
    /// SIGSTOP and SIGCONT.
    Freeze(Whom),
    /// Between two nodes nothing gets through.
    CutPair(Whom, u64, Way),
    /// One node reaches nobody, and nobody reaches it.
    Isolate(Whom, Way),
    /// A minority is on its own, together.
    Split(u64, Way),
    /// Two halves that do not see each other, and one node that sees both.
    Bridge(u64, Way),
    /// What one node says does not arrive (`true`), or nothing arrives there.
    OneWay(Whom, bool, Way),
    /// The links of one node are reset again and again.
    Flap(Whom),
    /// Everything that one node says and hears comes this much later, in ms.
    Delay(Whom, u64),
    /// What the host of a room says arrives this much later, in ms, at nodes that keep no copy of it.
    LateWords(usize, u64),
    /// The links of one node carry no more than this many bytes a second.
    Throttle(Whom, u64),
    /// SIGTERM, and a start.
    Stop(Whom),
    /// Every node is stopped and started again, one after the other.
    Roll,
    /// SIGKILL, and a start with an empty folder.
    Wipe(Whom),
    /// Every write of one node fails: the disk is full.
    DiskFull(Whom),
    /// Every fsync of one node fails.
    SyncFails(Whom),
    /// All nodes lose power: what was never fsynced is gone.
    PowerLoss,
    /// SIGKILL, and the end of the journal is gone.
    TornJournal(Whom, u64),
    /// SIGKILL, and one bit in a file is another.
    FlippedBit(Whom, u64),
    /// SIGKILL, and a block of a file is an older one.
    StaleBlock(Whom, u64),
    /// The clock of one node is set, by this many seconds.
    Clock(Whom, i64),
    /// Some clients do not read.
    SlowReaders,
    /// This many sessions come to one node at once, and come again.
    Storm(Whom, usize),
}

impl Fault {
    pub(crate) fn family(self) -> Family {
        match self {
            Self::Kill(_) | Self::KillMinority(_) | Self::KillAll => Family::Kill,
            Self::Freeze(_) => Family::Freeze,
            Self::CutPair(..)
            | Self::Isolate(..)
            | Self::Split(..)
            | Self::Bridge(..)
            | Self::OneWay(..)
            | Self::Flap(_) => Family::Cut,
            Self::Delay(..) | Self::LateWords(..) | Self::Throttle(..) => Family::Lag,
            Self::Stop(_) | Self::Roll => Family::Stop,
            Self::Wipe(_) => Family::Wipe,
            Self::DiskFull(_)
            | Self::SyncFails(_)
            | Self::PowerLoss
            | Self::TornJournal(..)
            | Self::FlippedBit(..)
            | Self::StaleBlock(..) => Family::Disk,
            Self::Clock(..) => Family::Clock,
            Self::SlowReaders | Self::Storm(..) => Family::Crowd,
        }
    }

    /// What it is called in a report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill(Whom::Host(_)) => "kill -9 of a host",
            Self::Kill(Whom::Gateway(..)) => "kill -9 of a gateway",
            Self::Kill(Whom::Any(_)) => "kill -9 of any node",
            Self::KillMinority(_) => "kill -9 of a minority",
            Self::KillAll => "kill -9 of all",
            Self::Freeze(_) => "freeze",
            Self::CutPair(..) => "a link cut",
            Self::Isolate(..) => "a node cut off",
            Self::Split(..) => "a minority split off",
            Self::Bridge(..) => "two halves and a bridge",
            Self::OneWay(..) => "deaf or dumb one way",
            Self::Flap(_) => "flapping links",
            Self::Delay(..) => "slow links",
            Self::LateWords(..) => "slow links to who only listens",
            Self::Throttle(..) => "narrow links",
            Self::Stop(_) => "graceful stop",
            Self::Roll => "rolling restart",
            Self::Wipe(_) => "folder lost",
            Self::DiskFull(_) => "disk full",
            Self::SyncFails(_) => "fsync fails",
            Self::PowerLoss => "power loss of all",
            Self::TornJournal(..) => "journal truncated",
            Self::FlippedBit(..) => "bit flipped",
            Self::StaleBlock(..) => "stale block",
            Self::Clock(..) => "clock set",
            Self::SlowReaders => "slow readers",
            Self::Storm(..) => "reconnect storm",
        }
    }

    /// Whether the cluster must be whole before, and nothing else may go wrong meanwhile: what one node loses here, it
    /// may lose only because the others have it.
    pub(crate) fn is_exclusive(self) -> bool {
        matches!(
            self,
            Self::Wipe(_)
                | Self::KillAll
                | Self::PowerLoss
                | Self::TornJournal(..)
                | Self::FlippedBit(..)
                | Self::StaleBlock(..)
                | Self::Roll
        )
    }

    fn draw(seed: &mut Seed, family: Family, rooms: usize) -> Self {
        let whom = draw_whom(seed, rooms);
        let way = [Way::Reset, Way::Hold, Way::Swallow][seed.between(0, 3) as usize];
        let number = seed.next();
        match family {
            Family::Kill => match seed.between(0, 8) {
                0 => Self::KillAll,
                1 | 2 => Self::KillMinority(number),
                _ => Self::Kill(whom),
            },
            Family::Freeze => Self::Freeze(whom),
            Family::Cut => match seed.between(0, 7) {
                0 | 1 => Self::CutPair(whom, number, way),
                2 => Self::Isolate(whom, way),
                3 => Self::Split(number, way),
                4 => Self::Bridge(number, way),
                5 => Self::OneWay(whom, number.is_multiple_of(2), way),
                _ => Self::Flap(whom),
            },
            Family::Lag => match seed.between(0, 3) {
                0 => Self::Delay(whom, seed.between(10, 400)),
                1 => Self::LateWords(seed.between(0, rooms as u64) as usize, seed.between(100, 1_400)),
                _ => Self::Throttle(whom, seed.between(20_000, 400_000)),
            },
            Family::Stop => match seed.between(0, 5) {
                0 => Self::Roll,
                _ => Self::Stop(whom),
            },
            Family::Wipe => Self::Wipe(whom),
            Family::Disk => match seed.between(0, 6) {
                0 => Self::DiskFull(whom),
                1 => Self::SyncFails(whom),
                2 => Self::PowerLoss,
                3 => Self::TornJournal(whom, number),
                4 => Self::FlippedBit(whom, number),
                _ => Self::StaleBlock(whom, number),
            },
            Family::Clock => {
                let seconds = [60, 600, 3_600, 7_200][seed.between(0, 4) as usize];
                Self::Clock(whom, if number.is_multiple_of(2) { seconds } else { -seconds })
            }
            Family::Crowd => match seed.between(0, 3) {
                0 => Self::SlowReaders,
                _ => Self::Storm(whom, seed.between(100, 400) as usize),
            },
        }
    }

    /// How long it is to last.
    fn draw_length(self, seed: &mut Seed) -> Duration {
        let (shortest, longest) = match self {
            Self::Freeze(_) => (100, 20_000),
            Self::Roll | Self::SlowReaders | Self::Storm(..) => (1_000, 4_000),
            Self::Flap(_) | Self::Delay(..) | Self::LateWords(..) | Self::Throttle(..) | Self::Clock(..) => {
                (1_000, 8_000)
            }
            _ => (200, 8_000),
        };
        // Evenly on a scale of doublings, so that the short ones are not drowned by the long.
        let doublings = f64::from(longest / shortest).log2();
        let share = seed.between(0, 1_000) as f64 / 1_000.0;
        Duration::from_millis((f64::from(shortest) * (doublings * share).exp2()) as u64)
    }
}

fn draw_whom(seed: &mut Seed, rooms: usize) -> Whom {
    let room = seed.between(0, rooms as u64) as usize;
    match seed.between(0, 5) {
        0 | 1 => Whom::Host(room),
        2 | 3 => Whom::Gateway(room, seed.next()),
        _ => Whom::Any(seed.next()),
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(room) => write!(f, "the host of room {room}"),
            Self::Gateway(room, _) => write!(f, "a node without room {room}"),
            Self::Any(_) => write!(f, "any node"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        match self {
            Self::Kill(whom)
            | Self::Freeze(whom)
            | Self::Flap(whom)
            | Self::Stop(whom)
            | Self::Wipe(whom)
            | Self::DiskFull(whom)
            | Self::SyncFails(whom)
            | Self::TornJournal(whom, _)
            | Self::FlippedBit(whom, _)
            | Self::StaleBlock(whom, _) => write!(f, ": {whom}"),
            Self::CutPair(whom, _, way) | Self::Isolate(whom, way) => write!(f, ": {whom} ({way:?})"),
            Self::OneWay(whom, true, way) => write!(f, ": nobody hears {whom} ({way:?})"),
            Self::OneWay(whom, false, way) => write!(f, ": {whom} hears nobody ({way:?})"),
            Self::Split(_, way) | Self::Bridge(_, way) => write!(f, " ({way:?})"),
            Self::Delay(whom, ms) => write!(f, ": {whom}, {ms} ms"),
            Self::LateWords(room, ms) => write!(f, ": room {room}, {ms} ms"),
            Self::Throttle(whom, bytes) => write!(f, ": {whom}, {} kB/s", bytes / 1_000),
            Self::Clock(whom, seconds) => write!(f, ": {whom}, by {seconds} s"),
            Self::Storm(whom, sessions) => write!(f, ": {sessions} sessions at {whom}"),
            Self::KillMinority(_) | Self::KillAll | Self::Roll | Self::PowerLoss | Self::SlowReaders => {
                Ok(())
            }
        }
    }
}

/// Something goes wrong after a while, and is put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    /// How long nothing happens before.
    pub(crate) calm: Duration,
    /// What goes wrong; the second a little later, and both are put right at once.
    pub(crate) faults: Vec<Fault>,
    /// From the first fault until all is put right.
    pub(crate) lasts: Duration,
}

impl Strike {
    /// The next strike of a seed.
    pub(crate) fn draw(seed: &mut Seed, families: &[Family], rooms: usize) -> Self {
        let family = |seed: &mut Seed| families[seed.between(0, families.len() as u64) as usize];
        let calm = Duration::from_millis(seed.between(0, 3_000));
        let own = family(seed);
        let first = Fault::draw(seed, own, rooms);
        let mut faults = vec![first];
        let other = family(seed);
        let second = Fault::draw(seed, other, rooms);
        // Not two of one kind: putting one right would put the other right too.
        if seed.between(0, 4) == 0 && !first.is_exclusive() && !second.is_exclusive() && own != other {
            faults.push(second);
        }
        Self { calm, lasts: first.draw_length(seed), faults }
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(Fault::to_string).collect();
        write!(f, "after {:?}, for {:?}: {}", self.calm, self.lasts, faults.join(", and "))
    }
}
