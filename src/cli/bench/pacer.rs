//! The open loop: messages are due at moments fixed beforehand, whatever the server does meanwhile. A late message's
//! latency counts from when it was due, so a server that stalls is charged for everyone who had to wait.
//!
//! A thread of its own keeps the time: the runtime's timer is only good to a millisecond.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::board::Phase;
use super::crowd::Crowd;

/// The longest sleep, so that the thread sees the end of the run.
const SLEEP_MAX: Duration = Duration::from_millis(5);

/// When the messages of a run are due: one room after the other, in each room one sender after the other.
#[derive(Debug)]
pub(super) struct Pace {
    start_us: AtomicU64,
    /// Between any two messages of the run.
    interval_us: f64,
    rooms: u64,
    senders: u64,
}

impl Pace {
    /// `rate` messages a second in each of `rooms`, by `senders` in turn.
    pub(super) fn new(rate: f64, rooms: u32, senders: u32) -> Self {
        Self {
            start_us: AtomicU64::new(0),
            interval_us: 1e6 / (rate * f64::from(rooms)),
            rooms: u64::from(rooms),
            senders: u64::from(senders),
        }
    }

    /// When the run's `number`th message is due.
    fn due_us(&self, number: u64) -> u64 {
        // A run of hours at a million messages a second stays far below what a double counts exactly.
        self.start_us.load(Ordering::Acquire) + (number as f64 * self.interval_us) as u64
    }

    /// Whose the run's `number`th message is: room and sender.
    fn whose(&self, number: u64) -> (usize, u32) {
        ((number % self.rooms) as usize, (number / self.rooms % self.senders) as u32)
    }

    /// When a sender's message is due, in microseconds since the run began.
    pub(super) fn sender_due_us(&self, room: u32, sender: u32, seq: u32) -> u64 {
        let turn = u64::from(seq) * self.senders + u64::from(sender);
        self.due_us(turn * self.rooms + u64::from(room))
    }
}

/// Starts the thread that tells the senders when they are due. It ends with the run's last measured moment.
///
/// # Errors
/// When the system gives no thread, as text.
pub(super) fn start(crowd: Arc<Crowd>) -> Result<(), String> {
    if let Some(pace) = &crowd.pace {
        pace.start_us.store(crowd.board.now_us(), Ordering::Release);
        std::thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || keep(&crowd))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    Ok(())
}

fn keep(crowd: &Crowd) {
    let Some(pace) = &crowd.pace else { return };
    let mut number = 0;
    while crowd.board.phase() < Phase::Drain {
        let now_us = crowd.board.now_us();
        while pace.due_us(number) <= now_us {
            let (room, sender) = pace.whose(number);
            let room = &crowd.rooms[room];
            room.raise_due(sender);
            crowd.board.wake(room.sessions().start + sender);
            number += 1;
        }
        let wait = Duration::from_micros(pace.due_us(number).saturating_sub(crowd.board.now_us()));
        std::thread::sleep(wait.min(SLEEP_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pacer_and_the_senders_agree_when_each_message_is_due() {
        let pace = Pace::new(10.0, 3, 2);
        pace.start_us.store(500, Ordering::Release);
        let mut seqs = [[0; 2]; 3];
        for number in 0..100 {
            let (room, sender) = pace.whose(number);
            let seq = &mut seqs[room][sender as usize];
            assert_eq!(pace.sender_due_us(room as u32, sender, *seq), pace.due_us(number));
            *seq += 1;
        }
    }

    #[test]
    fn each_room_keeps_its_rate() {
        let pace = Pace::new(10.0, 4, 3);
        let room_0: Vec<u64> =
            (0..400).filter(|&number| pace.whose(number).0 == 0).map(|n| pace.due_us(n)).collect();
        assert_eq!(room_0.len(), 100);
        assert!(room_0.windows(2).all(|pair| (99_999..=100_001).contains(&(pair[1] - pair[0]))));
    }
}
