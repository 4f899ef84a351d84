//! One session of a crowd: it receives, checks, and speaks when its load says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::board::Phase;
use super::check::{AckCheck, MemberCheck, Violation};
use super::client::{Client, Event};
use super::crowd::{Crowd, Load, Until};
use super::payload::Payload;
use super::room::Room;
use super::stats::Sampler;
use super::wire::{Incoming, describe_error};

/// When this session speaks.
#[derive(Debug)]
enum Role {
    /// Never.
    Listener,
    /// As soon as its last message came back; this is the one it waits for.
    Echo(Option<u32>),
    /// When it is due.
    Paced,
    /// While fewer than so many of its messages wait for their acknowledgement.
    Acked(AckCheck, usize),
}

/// What a session brings home.
#[derive(Debug)]
pub(super) struct End {
    pub(super) room: u32,
    pub(super) index: u32,
    /// Of a writer: the timestamp each of its messages was acknowledged with.
    pub(super) acked: Vec<u64>,
}

/// A session that was let in.
#[derive(Debug)]
pub(super) struct Member {
    crowd: Arc<Crowd>,
    room: usize,
    index: u32,
    session: u32,
    client: Client,
    joined: u32,
    check: MemberCheck,
    role: Role,
    sent: u32,
    sent_measured: u32,
    stopped: bool,
    latencies: Sampler,
    lags: Sampler,
    /// Someone who left, though nobody may.
    left: Option<String>,
}

enum Step {
    Event(Event),
    Finish,
}

impl Member {
    pub(super) fn new(crowd: Arc<Crowd>, room: usize, index: u32, client: Client, joined: u32) -> Self {
        let here = &crowd.rooms[room];
        let (check, session) = (MemberCheck::new(here.index, here.senders), here.sessions().start + index);
        let role = match crowd.load {
            _ if index >= here.senders => Role::Listener,
            Load::Echo => Role::Echo(None),
            Load::Paced { .. } => Role::Paced,
            Load::Acked { in_flight } => Role::Acked(AckCheck::default(), in_flight as usize),
        };
        Self {
            room,
            index,
            session,
            client,
            joined,
            check,
            role,
            sent: 0,
            sent_measured: 0,
            stopped: false,
            latencies: Sampler::default(),
            lags: Sampler::default(),
            left: None,
            crowd,
        }
    }

    fn room(&self) -> &Room {
        &self.crowd.rooms[self.room]
    }

    /// Lives until the run is over.
    ///
    /// # Errors
    /// The sentence that says which promise was broken, without the session's name.
    pub(super) async fn stay(mut self) -> Result<End, String> {
        loop {
            match std::future::poll_fn(|cx| self.poll_step(cx)).await? {
                Step::Event(Event::Frame(frame)) => self.take(&frame)?,
                Step::Event(Event::Pong) => {}
                Step::Finish => return self.finish(),
            }
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, String>> {
        self.crowd.board.watch(self.session, cx.waker());
        let phase = self.crowd.board.phase();
        if phase == Phase::Finish {
            return Poll::Ready(Ok(Step::Finish));
        }
        if let Err(error) = self.speak(phase, cx) {
            return Poll::Ready(Err(error));
        }
        self.client.poll_event(cx).map_ok(Step::Event)
    }

    fn take(&mut self, frame: &str) -> Result<(), String> {
        match Incoming::parse(frame)? {
            Incoming::Said(said) => {
                let here = &self.crowd.rooms[self.room];
                let payload = self
                    .check
                    .receive(
                        &here.order,
                        self.crowd.run_id,
                        said.name.as_ref(),
                        said.message.as_ref(),
                        said.timestamp,
                    )
                    .map_err(|violation| violation.to_string())?;
                here.received.fetch_add(1, Ordering::Relaxed);
                self.received(payload, said.timestamp).map_err(|violation| violation.to_string())
            }
            Incoming::Ack { id, timestamp } => {
                self.acked(id.as_ref(), timestamp).map_err(|violation| violation.to_string())
            }
            Incoming::Joined => {
                self.joined += 1;
                self.crowd.board.joined.fetch_add(1, Ordering::Relaxed);
                if self.joined > self.room().members {
                    return Err(format!("more than the {} members of the room joined", self.room().members));
                }
                Ok(())
            }
            Incoming::Quit(name) => {
                // The one who left knows best why, and says so.
                self.left.get_or_insert_with(|| name.as_ref().to_owned());
                Ok(())
            }
            Incoming::Ready => Err("got `ready` a second time".to_owned()),
            Incoming::Error { text, retry_after_ms } => Err(describe_error(text.as_ref(), retry_after_ms)),
        }
    }

    fn received(&mut self, payload: Payload, timestamp: u64) -> Result<(), Violation> {
        let mine = payload.sender == self.index;
        match &mut self.role {
            Role::Acked(acks, _) => {
                // What counts here is the acknowledgement.
                return if mine { acks.relayed(self.index, payload.seq, timestamp) } else { Ok(()) };
            }
            Role::Echo(waiting) if mine && *waiting == Some(payload.seq) => *waiting = None,
            Role::Echo(_) | Role::Listener | Role::Paced => {}
        }
        self.sample(payload.sent_us);
        Ok(())
    }

    fn acked(&mut self, id: &str, timestamp: u64) -> Result<(), Violation> {
        let Role::Acked(acks, _) = &mut self.role else { return Err(Violation::AckUnasked(id.to_owned())) };
        let sent_us = acks.acked(self.crowd.run_id, self.session, id, timestamp)?;
        self.room().acked.fetch_add(1, Ordering::Relaxed);
        self.sample(sent_us);
        Ok(())
    }

    fn sample(&mut self, sent_us: u64) {
        let crowd = &self.crowd;
        if crowd.counts(sent_us) {
            self.latencies.record(&crowd.latencies, crowd.board.now_us().saturating_sub(sent_us));
        }
    }

    /// Says what there is to say in this phase.
    fn speak(&mut self, phase: Phase, cx: &mut Context<'_>) -> Result<(), String> {
        if self.stopped || phase < Phase::Warmup || matches!(self.role, Role::Listener) {
            return Ok(());
        }
        while self.may_speak(phase, cx)? {
            self.say()?;
            if phase == Phase::Measure {
                self.sent_measured += 1;
                if matches!(self.crowd.until, Until::Messages(messages) if self.sent_measured >= messages) {
                    self.stop();
                    return Ok(());
                }
            }
        }
        // A paced sender still owes what was due before the end.
        let owes = matches!(self.role, Role::Paced) && self.sent < self.room().due(self.index);
        if phase == Phase::Drain && !owes {
            self.stop();
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.stopped = true;
        // Whoever sees the count must also see what this session sent.
        self.crowd.board.done.fetch_add(1, Ordering::Release);
    }

    fn may_speak(&mut self, phase: Phase, cx: &mut Context<'_>) -> Result<bool, String> {
        let running = phase < Phase::Drain;
        Ok(match &self.role {
            Role::Listener => false,
            Role::Echo(waiting) => running && waiting.is_none(),
            Role::Acked(acks, in_flight) => running && acks.waiting() < *in_flight,
            Role::Paced => {
                // What a server does not read stays due, and its latency grows.
                self.sent < self.room().due(self.index)
                    && match self.client.poll_sent(cx) {
                        Poll::Ready(sent) => sent.map(|()| true)?,
                        Poll::Pending => false,
                    }
            }
        })
    }

    fn say(&mut self) -> Result<(), String> {
        let (seq, now_us) = (self.sent, self.crowd.board.now_us());
        let room = self.room().index;
        let mut sent_us = now_us;
        if let Some(pace) = &self.crowd.pace {
            sent_us = pace.sender_due_us(room, self.index, seq);
            if self.crowd.counts(sent_us) {
                self.lags.record(&self.crowd.lags, now_us.saturating_sub(sent_us));
            }
        }
        let mut frame = String::with_capacity(self.crowd.size + 64);
        frame.push_str("{\"message\":\"");
        Payload { room, sender: self.index, seq, sent_us }.encode(
            self.crowd.run_id,
            self.crowd.size,
            &mut frame,
        );
        match &mut self.role {
            Role::Acked(acks, _) => {
                acks.sent(seq, sent_us);
                frame.push_str("\",\"id\":\"");
                frame.push_str(&AckCheck::id(self.crowd.run_id, self.session, seq));
            }
            Role::Echo(waiting) => *waiting = Some(seq),
            Role::Listener | Role::Paced => {}
        }
        frame.push_str("\"}");
        self.room().count_sent(self.index);
        self.sent += 1;
        self.client.queue(frame)
    }

    fn finish(mut self) -> Result<End, String> {
        self.latencies.flush(&self.crowd.latencies);
        self.lags.flush(&self.crowd.lags);
        self.check.finish(&self.room().sent()).map_err(|violation| violation.to_string())?;
        if let Some(name) = self.left {
            return Err(format!("was told that {name} left, which nobody did"));
        }
        let acked = match self.role {
            Role::Acked(acks, _) => {
                if let Some(seq) = acks.oldest_waiting() {
                    return Err(format!("its message {seq} was never acknowledged"));
                }
                acks.into_acked()
            }
            Role::Listener | Role::Echo(_) | Role::Paced => Vec::new(),
        };
        Ok(End { room: self.crowd.rooms[self.room].index, index: self.index, acked })
    }
}
