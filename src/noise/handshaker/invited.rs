//! Temporary peers: the keys of an invite's uses, which may ask to become a peer and nothing else
//! (docs/protocol.md, "Enrolment"). Of their sessions the hash of the handshake is kept, since the proof is about it.

use arrayvec::ArrayVec;

use super::{Handshaker, peer_mut};
use crate::crypto::enrolment::{self, PROOF_LEN};
use crate::types::{PeerId, PublicKey, Secret};

/// Sessions of a temporary peer that may be proven for: the three that its owner keeps, and one on its way there.
const SESSIONS: usize = 4;

/// The transcript hashes of a temporary peer's sessions, by our receiver index, the oldest first.
#[derive(Default)]
pub(super) struct Invited(ArrayVec<(u32, Secret), SESSIONS>);

impl Invited {
    /// A session has begun.
    pub(super) fn add(&mut self, index: u32, transcript: &Secret) {
        if self.0.is_full() {
            self.0.remove(0);
        }
        self.0.push((index, transcript.clone()));
    }

    /// A session has ended.
    pub(super) fn remove(&mut self, index: u32) {
        self.0.retain(|(known, _)| *known != index);
    }
}

/// Why somebody is not taken for one who was invited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInvited {
    /// The proof is not for this key in this session, or there is no such session of a temporary peer.
    #[error("the proof is wrong")]
    NotProven,
    /// The new key has low order.
    #[error("the key has low order")]
    LowOrder,
    /// The new key is our own.
    #[error("the key is the gateway's own")]
    OwnKey,
}

impl Handshaker {
    /// Makes a peer a temporary one: from now on the transcripts of its sessions are kept for [`Self::invited`]. A peer
    /// that is gone is ignored.
    pub fn invite(&mut self, id: PeerId) {
        if let Some(peer) = peer_mut(&mut self.peers, id) {
            peer.invited = Some(Box::default());
        }
    }

    /// Whether a temporary peer has proven, in the session of this receiver index, that it was invited, and whether the
    /// key that it wants to be a peer's can be one. Costs an X25519 only after the proof was right.
    ///
    /// # Errors
    /// [`NotInvited`].
    pub fn invited(
        &self,
        id: PeerId,
        index: u32,
        own: &PublicKey,
        proof: &[u8; PROOF_LEN],
    ) -> Result<(), NotInvited> {
        let ours = self.private.as_ref().ok_or(NotInvited::NotProven)?;
        let peer = self.find(id).ok_or(NotInvited::NotProven)?;
        let sessions = peer.invited.as_ref().ok_or(NotInvited::NotProven)?;
        let session = sessions.0.iter().find(|(known, _)| *known == index);
        let (Some((_, transcript)), Some(shared)) = (session, &peer.static_static) else {
            return Err(NotInvited::NotProven);
        };
        if !enrolment::is_proven(shared, transcript, own, proof) {
            return Err(NotInvited::NotProven);
        }
        if own == ours.public() {
            return Err(NotInvited::OwnKey);
        }
        ours.shared(own).map(drop).map_err(|_| NotInvited::LowOrder)
    }
}
