//! What a worker sends beside packets of the TUN queue: what waited for a keypair, keepalives, control frames; and what
//! it tells control of sessions.

use super::super::frames::Answer;
use super::super::handoff::SessionChange;
use super::super::outbound::Progress;
use super::super::peers::Peer;
use super::{Core, Io, Packet, Worker};
use crate::metrics::drops::Drop;
use crate::types::{PeerId, Suite};
use crate::wire::frame::{self, Code};

impl Core {
    /// Packets for a peer were dropped: it is told of them, if it understands that.
    pub fn lose(&mut self, id: PeerId, reason: Drop, packets: u64) {
        self.counters.drops.add(reason, packets);
        if let Some(peer) = self.peers.by_id(id) {
            peer.lost.add(u32::try_from(packets).unwrap_or(u32::MAX));
            self.ask(id.slot, false);
        }
    }

    /// Tells control what has become of sessions, as far as there is room.
    pub(super) fn tell_news(&mut self) {
        while let Some(id) = self.untold.pop_front() {
            let now = self.now;
            let change = match self.peers.by_id(id) {
                Some(Peer { session, told, .. }) => {
                    let remote = session.endpoint().map(|endpoint| endpoint.remote);
                    told.change(session.is_live(now), remote)
                }
                None => Some(SessionChange::Disconnected),
            };
            if change.is_some_and(|change| !self.asked.tell(id, change)) {
                self.untold.push_front(id);
                return;
            }
            if let Some(peer) = self.peers.by_id(id) {
                peer.told.note(change);
            }
        }
    }
}

impl<I: Io> Worker<I> {
    /// Sends what sessions asked for: staged packets first, and a keepalive if there were none.
    pub(super) fn serve_due(&mut self) {
        // Sessions may ask again meanwhile: that is for the next turn.
        for _ in 0..self.core.due.len() {
            let Some(slot) = self.core.due.pop_front() else { break };
            let Some(peer) = self.core.peers.by_slot(slot) else { continue };
            peer.due = false;
            let keepalive = std::mem::take(&mut peer.keepalive);
            if !self.serve(slot, keepalive) {
                self.core.ask(slot, keepalive);
            }
        }
    }

    /// Sends what the control thread has to say to a peer. Without a send buffer it is not sent: the peer asks again.
    pub(super) fn say(&mut self, id: PeerId, suite: Suite, frame: &[u8]) {
        let core = &mut self.core;
        if core.peers.by_id(id).is_none() {
            return;
        }
        if self.outbound.has_room() {
            self.outbound.frame(core, id.slot, suite, frame);
        } else {
            core.counters.drops.count(Drop::FrameLimit);
        }
    }

    /// The same to every peer that speaks in frames, as far as there are send buffers.
    pub(super) fn say_to_all(&mut self, frame: &[u8]) {
        for slot in self.core.peers.all() {
            if let Some(id) = self.core.peers.by_slot(slot).map(|peer| peer.id) {
                self.say_if_it_speaks(id, frame);
            }
        }
    }

    /// The same to one peer, if it speaks in frames.
    pub(super) fn say_if_it_speaks(&mut self, id: PeerId, frame: &[u8]) {
        if self.core.peers.by_id(id).is_some_and(|peer| peer.session.speaks()) {
            self.say(id, Suite::ChaCha20Poly1305, frame);
        }
    }

    /// Sends the answers to control frames. Without a send buffer they are not sent: whoever asked asks again.
    pub(super) fn serve_answers(&mut self) {
        let core = &mut self.core;
        while let Some(Answer { slot, suite, frame }) = core.answers.pop_at(0) {
            if self.outbound.has_room() {
                self.outbound.frame(core, slot, suite, &frame);
            } else {
                core.counters.drops.count(Drop::FrameLimit);
            }
        }
    }

    /// False if there was no send buffer for all of it.
    fn serve(&mut self, slot: u32, keepalive: bool) -> bool {
        if !self.stalled.is_empty() {
            return false;
        }
        let core = &mut self.core;
        let mut sent = false;
        while let Some(peer) = core.peers.by_slot(slot) {
            if !peer.session.can_send(core.now) {
                return true;
            }
            if !self.outbound.has_room() {
                return false;
            }
            let Some(read) = peer.session.pop_staged() else { break };
            let Ok(packet) = core.parse(&read) else { continue };
            sent = true;
            if let Progress::Stopped(next) = self.outbound.packet(core, slot, &packet, 0) {
                self.pause_tun();
                self.stalled.push_front((Packet::Copy(read), next));
                return false;
            }
        }
        self.outbound.flush(core);
        if keepalive && !sent {
            self.outbound.keepalive(core, slot);
        }
        if self.outbound.has_room()
            && let Some(peer) = core.peers.by_slot(slot).filter(|peer| peer.session.speaks())
            && let Some(lost) = peer.lost.take(core.now)
        {
            let problem = frame::problem_with(0, Code::PacketLost, None, Some(lost));
            let before = core.counters.drops.total();
            self.outbound.frame(core, slot, Suite::ChaCha20Poly1305, &problem);
            if core.counters.drops.total() > before
                && let Some(peer) = core.peers.by_slot(slot)
            {
                // Nor did this get out.
                peer.lost.add(lost);
            }
        }
        while self.outbound.has_room() {
            let said = core.peers.by_slot(slot).and_then(|peer| peer.session.next_frame(core.now));
            let Some((suite, frame)) = said else { break };
            self.outbound.frame(core, slot, suite, &frame);
        }
        core.settle(slot);
        true
    }
}
