//! What couriers say to each other, and how it is written.
//!
//! A message is a cast with two parts. The metadata is a version byte and the postcard of a [`Header`]; the payload is
//! the postcard of a [`Hello`], the bytes of a frame as they are, or nothing. Two parts, so that a frame is never
//! copied to put something before it.

use bytes::Bytes;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use serde::{Deserialize, Serialize};

/// The layout of a [`Header`]. What carries another is not read.
const LAYOUT: u8 = 1;

/// Largest frame another layer may send, in bytes. Far below what ends a session, and small enough that a beat
/// behind one is not late.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Longest text of a hello (a name, an address), in bytes.
const HELLO_TEXT_BYTES_MAX: usize = 1024;

/// Who a node is: the first thing it says on every link, and again when it changes.
///
/// Fields are only ever added at the end, and `version` stays the first: then nodes of any two versions can read of
/// each other at least why they do not get along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of everything nodes say to each other.
    pub version: u16,
    /// The node's name.
    pub name: String,
    /// The random number of its data folder.
    pub incarnation: u64,
    /// The cluster it belongs to, once it belongs to one.
    pub cluster_id: Option<u128>,
    /// `cluster.shards`.
    pub shards: u16,
    /// Whether its data folder has been part of a cluster before this start.
    pub has_past: bool,
    /// Where browsers reach it.
    pub url: String,
}

impl Hello {
    /// Why we cannot work with a node that says `other` of itself; `None` when we can.
    #[must_use]
    pub fn objection(&self, other: &Self) -> Option<String> {
        let name = &other.name;
        if other.version != self.version {
            return Some(format!(
                "{name} speaks version {} of the cluster's protocol, this node version {}",
                other.version, self.version
            ));
        }
        if other.name == self.name {
            return Some(format!("another node calls itself {name}, which is this node's own name"));
        }
        if other.shards != self.shards {
            return Some(format!(
                "{name} divides its rooms into {} shards, this node into {}",
                other.shards, self.shards
            ));
        }
        match (self.cluster_id, other.cluster_id) {
            (Some(ours), Some(theirs)) if ours != theirs => Some(format!(
                "{name} belongs to the cluster {theirs:032x}, this node to the cluster {ours:032x}"
            )),
            _ => None,
        }
    }

    /// Reads a hello. Of another version than `version` only that version is read.
    pub(super) fn read(payload: &[u8], version: u16) -> Result<Result<Self, u16>, Unreadable> {
        let (theirs, _) = postcard::take_from_bytes::<u16>(payload).map_err(|_| Unreadable::Hello)?;
        if theirs != version {
            return Ok(Err(theirs));
        }
        let (hello, _) = postcard::take_from_bytes::<Self>(payload).map_err(|_| Unreadable::Hello)?;
        if hello.name.len() > HELLO_TEXT_BYTES_MAX || hello.url.len() > HELLO_TEXT_BYTES_MAX {
            return Err(Unreadable::Hello);
        }
        Ok(Ok(hello))
    }
}

/// Who sends a message, and of what kind it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// The sender's name.
    pub(super) from: String,
    /// The sender's incarnation.
    pub(super) incarnation: u64,
    /// What the message is.
    pub(super) kind: Kind,
}

/// The kinds of messages. New ones are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Are you there? `acquainted`: whether the sender has heard the receiver's hello; if not, it is to say it again.
    Beat {
        /// Numbers the beats of a link.
        seq: u64,
        /// Whether the receiver's hello has arrived.
        acquainted: bool,
    },
    /// The beat with this number has arrived, and with it everything that was sent before it.
    Beaten {
        /// The beat's number.
        seq: u64,
    },
    /// The payload is a [`Hello`].
    Hello,
    /// The payload is for another layer.
    Frame,
}

/// Why a message could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// Not a cast, or one without metadata.
    #[error("it has no header")]
    NoHeader,
    /// Another layout than ours.
    #[error("its header has the layout {0}, not {LAYOUT}")]
    Layout(u8),
    /// Not what the layout says.
    #[error("its header is damaged")]
    Header,
    /// Not a hello.
    #[error("it is a hello that is damaged or too long")]
    Hello,
    /// Larger than [`FRAME_BYTES_MAX`].
    #[error("its frame has {0} bytes")]
    Size(usize),
}

/// What a courier is given.
#[derive(Debug)]
pub(super) enum CourierMsg {
    /// For another node's courier, or from one.
    Letter(Header, Bytes),
    /// From another node, but nobody knows what it says.
    Unreadable(Unreadable),
}

impl ractor::Message for CourierMsg {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        let Self::Letter(header, payload) = self else { return Err(BoxedDowncastErr) };
        let metadata = postcard::to_extend(&header, vec![LAYOUT]).map_err(|_| BoxedDowncastErr)?;
        // Takes the bytes over without a copy when nobody else holds them.
        let args = Vec::from(payload);
        Ok(SerializedMessage::Cast { variant: String::new(), args, metadata: Some(metadata) })
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        // An error here would vanish in a debug log of the library; the courier is to know.
        Ok(read(message).unwrap_or_else(Self::Unreadable))
    }
}

fn read(message: SerializedMessage) -> Result<CourierMsg, Unreadable> {
    let SerializedMessage::Cast { args, metadata: Some(metadata), .. } = message else {
        return Err(Unreadable::NoHeader);
    };
    let (layout, header) = metadata.split_first().ok_or(Unreadable::NoHeader)?;
    if *layout != LAYOUT {
        return Err(Unreadable::Layout(*layout));
    }
    let header = postcard::from_bytes(header).map_err(|_| Unreadable::Header)?;
    if args.len() > FRAME_BYTES_MAX {
        return Err(Unreadable::Size(args.len()));
    }
    Ok(CourierMsg::Letter(header, args.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ractor::Message;

    fn hello(name: &str) -> Hello {
        Hello {
            version: 1,
            name: name.to_owned(),
            incarnation: 7,
            cluster_id: None,
            shards: 16,
            has_past: false,
            url: "http://127.0.0.1:8080".to_owned(),
        }
    }

    #[test]
    fn a_letter_is_read_as_it_was_written() {
        let header =
            Header { from: "n1".into(), incarnation: 7, kind: Kind::Beat { seq: 9, acquainted: true } };
        let written = CourierMsg::Letter(header.clone(), Bytes::from_static(b"abc")).serialize().unwrap();
        let CourierMsg::Letter(read, payload) = CourierMsg::deserialize(written).unwrap() else {
            panic!("unreadable")
        };
        assert_eq!((read, payload), (header, Bytes::from_static(b"abc")));
    }

    #[test]
    fn another_layout_and_a_frame_too_large_are_told_apart_from_damage() {
        let cast =
            |args: Vec<u8>, metadata| SerializedMessage::Cast { variant: String::new(), args, metadata };
        let unreadable = |message| match CourierMsg::deserialize(message).unwrap() {
            CourierMsg::Unreadable(why) => why,
            CourierMsg::Letter(..) => panic!("readable"),
        };
        assert_eq!(unreadable(cast(vec![], None)), Unreadable::NoHeader);
        assert_eq!(unreadable(cast(vec![], Some(vec![9, 1]))), Unreadable::Layout(9));
        assert_eq!(unreadable(cast(vec![], Some(vec![LAYOUT, 200]))), Unreadable::Header);
        let header = Header { from: "n1".into(), incarnation: 7, kind: Kind::Frame };
        let header = postcard::to_extend(&header, vec![LAYOUT]).unwrap();
        let large = vec![0; FRAME_BYTES_MAX + 1];
        assert_eq!(unreadable(cast(large, Some(header))), Unreadable::Size(FRAME_BYTES_MAX + 1));
    }

    proptest! {
        #[test]
        fn no_bytes_are_worse_than_unreadable(args: Vec<u8>, metadata: Option<Vec<u8>>) {
            let _ = Hello::read(&args, 1);
            let message = SerializedMessage::Cast { variant: String::new(), args, metadata };
            prop_assert!(CourierMsg::deserialize(message).is_ok());
        }
    }

    #[test]
    fn a_hello_of_another_version_shows_that_version_whatever_follows() {
        let mut newer = postcard::to_stdvec(&2_u16).unwrap();
        newer.extend([255; 3]);
        assert_eq!(Hello::read(&newer, 1), Ok(Err(2)));
        let mut longer = postcard::to_stdvec(&hello("n2")).unwrap();
        longer.push(1);
        assert_eq!(Hello::read(&longer, 1), Ok(Ok(hello("n2"))), "fields are added at the end");
    }

    #[test]
    fn nodes_object_to_each_other_in_plain_words() {
        let ours = hello("n1");
        assert_eq!(ours.objection(&hello("n2")), None);
        let objection = |change: fn(&mut Hello)| {
            let mut theirs = hello("n2");
            change(&mut theirs);
            ours.objection(&theirs).unwrap_or_default()
        };
        assert_eq!(
            objection(|hello| hello.shards = 8),
            "n2 divides its rooms into 8 shards, this node into 16"
        );
        assert_eq!(
            objection(|hello| hello.version = 2),
            "n2 speaks version 2 of the cluster's protocol, this node version 1"
        );
        assert_eq!(
            objection(|hello| hello.name = "n1".into()),
            "another node calls itself n1, which is this node's own name"
        );
        assert_eq!(objection(|hello| hello.cluster_id = Some(1)), "", "one of us has no cluster yet");
        let mut ours = ours.clone();
        ours.cluster_id = Some(2);
        let mut theirs = hello("n2");
        theirs.cluster_id = Some(1);
        assert!(ours.objection(&theirs).is_some_and(|text| text.contains("belongs to the cluster")));
    }
}
