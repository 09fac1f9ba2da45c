//! What a worker sends beside packets of the TUN queue: what waited for a keypair, keepalives, control frames.

use super::super::frames::Answer;
use super::super::outbound::Progress;
use super::{Io, Packet, Worker};
use crate::metrics::drops::Drop;

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
        while self.outbound.has_room() {
            let said = core.peers.by_slot(slot).and_then(|peer| peer.session.next_frame(core.now));
            let Some((suite, frame)) = said else { break };
            self.outbound.frame(core, slot, suite, &frame);
        }
        core.settle(slot);
        true
    }
}
