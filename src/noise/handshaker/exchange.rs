//! The two messages of Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard lays them out (white paper sections 5.4.2
//! and 5.4.3), as functions of keys, PSK and stamp. Who may handshake, and when, is decided one level up.
//!
//! | bytes | initiation | | bytes | response |
//! |---|---|---|---|---|
//! | 0..4 | type 1, three zero bytes | | 0..4 | type 2, three zero bytes |
//! | 4..8 | sender's index | | 4..8 | sender's index |
//! | 8..40 | ephemeral | | 8..12 | receiver's index |
//! | 40..88 | sealed static key | | 12..44 | ephemeral |
//! | 88..116 | sealed timestamp | | 44..60 | sealed nothing |
//! | 116..148 | mac1, mac2 | | 60..92 | mac1, mac2 |

use super::HandshakeError;
use crate::crypto::aead::{Key, TAG_LEN};
use crate::crypto::hash::{hash, kdf1, kdf2, kdf3};
use crate::crypto::x25519::{LowOrder, PrivateKey};
use crate::mutation::holds;
use crate::noise::timestamp::{TIMESTAMP_LEN, Tai64n};
use crate::types::{PublicKey, Secret};
use crate::wire::wireguard::{INITIATION_LEN, RESPONSE_LEN};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const INITIATION_TYPE: [u8; 4] = [1, 0, 0, 0];
const RESPONSE_TYPE: [u8; 4] = [2, 0, 0, 0];
const SEALED_KEY_LEN: usize = 32 + TAG_LEN;
const SEALED_STAMP_LEN: usize = TIMESTAMP_LEN + TAG_LEN;

/// Noise's symmetric state: the chaining key and the hash of all that was said. Both are zeroised on drop.
#[derive(Clone)]
pub(super) struct Symmetric {
    chaining: Secret,
    transcript: Secret,
}

impl Symmetric {
    /// Both sides begin with the responder's public key.
    pub(super) fn new(responder: &PublicKey) -> Self {
        let chaining = hash(&[CONSTRUCTION]);
        let named = hash(&[&chaining, IDENTIFIER]);
        Self { chaining: Secret(chaining), transcript: Secret(hash(&[&named, &responder.0])) }
    }

    fn mix_hash(&mut self, said: &[u8]) {
        self.transcript = Secret(hash(&[&self.transcript.0, said]));
    }

    pub(super) fn mix_ephemeral(&mut self, ephemeral: &PublicKey) {
        self.mix_hash(&ephemeral.0);
        self.mix(&ephemeral.0);
    }

    fn mix(&mut self, input: &[u8; 32]) {
        self.chaining = kdf1(&self.chaining, input);
    }

    /// Mixes a shared secret in and yields the key for what is sealed next.
    pub(super) fn mix_key(&mut self, shared: &Secret) -> Secret {
        let (chaining, key) = kdf2(&self.chaining, &shared.0);
        self.chaining = chaining;
        key
    }

    fn mix_psk(&mut self, psk: &Secret) -> Secret {
        let (chaining, temporary, key) = kdf3(&self.chaining, &psk.0);
        self.chaining = chaining;
        self.mix_hash(&temporary.0);
        key
    }

    /// Seals in place, under a key that is used once: the nonce is zero.
    pub(super) fn seal(&mut self, key: &Secret, text: &mut [u8]) -> [u8; TAG_LEN] {
        // Fails only for a text of many gigabytes; a wrong tag is then what the other side refuses.
        let tag = Key::new(key).seal_said(&self.transcript.0, text).unwrap_or_default();
        self.transcript = Secret(hash(&[&self.transcript.0, text, &tag]));
        tag
    }

    /// Opens in place. False if it is not authentic.
    fn open(&mut self, key: &Secret, text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        let after = Secret(hash(&[&self.transcript.0, text, tag]));
        let opened = Key::new(key).open_said(&self.transcript.0, text, tag);
        self.transcript = after;
        holds("handshake-aead", opened)
    }

    /// The transport keys: the first seals what the initiator sends, the second what the responder sends. The third
    /// output is what further keys are derived from (docs/protocol.md); the first two are as without it.
    fn split(&self) -> (Secret, Secret, Secret) {
        kdf3(&self.chaining, &[])
    }
}

/// An initiation without its macs, and the state that its response will be read with.
pub(super) fn write_initiation(
    ours: &PrivateKey,
    theirs: &PublicKey,
    static_static: &Secret,
    ephemeral: &PrivateKey,
    index: u32,
    stamp: Tai64n,
) -> Result<([u8; INITIATION_LEN], Symmetric), LowOrder> {
    let mut symmetric = Symmetric::new(theirs);
    symmetric.mix_ephemeral(ephemeral.public());
    let key = symmetric.mix_key(&ephemeral.shared(theirs)?);
    let mut identity = ours.public().0;
    let identity_tag = symmetric.seal(&key, &mut identity);
    let key = symmetric.mix_key(static_static);
    let mut sealed_stamp = stamp.0;
    let stamp_tag = symmetric.seal(&key, &mut sealed_stamp);

    let mut message = [0; INITIATION_LEN];
    write_fields(
        &mut message,
        &[
            &INITIATION_TYPE,
            &index.to_le_bytes(),
            &ephemeral.public().0,
            &identity,
            &identity_tag,
            &sealed_stamp,
            &stamp_tag,
        ],
    );
    Ok((message, symmetric))
}

/// The ephemeral key of an initiation. `None` if its type or reserved bytes are not those of one.
pub(super) fn ephemeral_of(message: &[u8; INITIATION_LEN]) -> Option<PublicKey> {
    let mut fields = Fields(message);
    let (kind, _index): ([u8; 4], [u8; 4]) = (fields.take(), fields.take());
    (kind == INITIATION_TYPE).then(|| PublicKey(fields.take()))
}

/// An initiation whose static key has been read: it names a peer, but nothing proves yet that the peer sent it.
pub(super) struct Claimed {
    symmetric: Symmetric,
    /// The static key that the sender claims.
    pub(super) identity: PublicKey,
    /// The sender's ephemeral key.
    pub(super) ephemeral: PublicKey,
    index: u32,
    sealed_stamp: [u8; SEALED_STAMP_LEN],
}

impl Claimed {
    /// Reads everything before the timestamp; `shared` is the secret that our static key shares with
    /// [`ephemeral_of`] the message.
    pub(super) fn read(
        ours: &PublicKey,
        shared: &Secret,
        message: &[u8; INITIATION_LEN],
    ) -> Result<Self, HandshakeError> {
        let mut fields = Fields(message);
        let _kind: [u8; 4] = fields.take();
        let index = u32::from_le_bytes(fields.take());
        let ephemeral = PublicKey(fields.take());
        let (mut identity, tag): ([u8; SEALED_KEY_LEN - TAG_LEN], _) = (fields.take(), fields.take());
        let sealed_stamp = fields.take();

        let mut symmetric = Symmetric::new(ours);
        symmetric.mix_ephemeral(&ephemeral);
        let key = symmetric.mix_key(shared);
        if !symmetric.open(&key, &mut identity, &tag) {
            return Err(HandshakeError::BadInitiation);
        }
        Ok(Self { symmetric, identity: PublicKey(identity), ephemeral, index, sealed_stamp })
    }

    /// Reads the timestamp, which only the owner of the claimed key can have sealed.
    pub(super) fn authenticate(mut self, static_static: &Secret) -> Result<Authentic, HandshakeError> {
        let mut fields = Fields(&self.sealed_stamp);
        let (mut stamp, tag): ([u8; TIMESTAMP_LEN], _) = (fields.take(), fields.take());
        let key = self.symmetric.mix_key(static_static);
        if !self.symmetric.open(&key, &mut stamp, &tag) {
            return Err(HandshakeError::BadInitiation);
        }
        Ok(Authentic { claimed: self, stamp: Tai64n(stamp) })
    }
}

/// An initiation that the owner of its static key made, now or in the past.
pub(super) struct Authentic {
    /// What it claimed is so.
    pub(super) claimed: Claimed,
    /// Its timestamp.
    pub(super) stamp: Tai64n,
}

/// What a finished handshake yields.
pub(super) struct Agreed {
    /// Seals what we send.
    pub(super) send: Secret,
    /// Opens what we receive.
    pub(super) recv: Secret,
    /// What further keys are derived from.
    pub(super) third: Secret,
    /// The hash of all that was said.
    pub(super) transcript: Secret,
    /// The other side's receiver index.
    pub(super) remote_index: u32,
}

impl Authentic {
    /// The response, without its macs, and the keys. `shared` are the secrets that our ephemeral key shares with theirs
    /// and with their static one.
    pub(super) fn respond(
        self,
        psk: &Secret,
        ephemeral: &PublicKey,
        shared: &[Secret; 2],
        index: u32,
    ) -> ([u8; RESPONSE_LEN], Agreed) {
        let Claimed { mut symmetric, index: remote_index, .. } = self.claimed;
        symmetric.mix_ephemeral(ephemeral);
        shared.iter().for_each(|shared| symmetric.mix(&shared.0));
        let key = symmetric.mix_psk(psk);
        let tag = symmetric.seal(&key, &mut []);
        let (recv, send, third) = symmetric.split();

        let mut message = [0; RESPONSE_LEN];
        write_fields(
            &mut message,
            &[&RESPONSE_TYPE, &index.to_le_bytes(), &remote_index.to_le_bytes(), &ephemeral.0, &tag],
        );
        (message, Agreed { send, recv, third, transcript: symmetric.transcript, remote_index })
    }
}

/// The index of ours that a response answers. `None` if its type or reserved bytes are not those of one.
pub(super) fn receiver_of_response(message: &[u8; RESPONSE_LEN]) -> Option<u32> {
    let mut fields = Fields(message);
    let (kind, _sender, receiver): ([u8; 4], [u8; 4], [u8; 4]) =
        (fields.take(), fields.take(), fields.take());
    (kind == RESPONSE_TYPE).then(|| u32::from_le_bytes(receiver))
}

/// Reads the response to the initiation that `symmetric` and `ephemeral` are from. Both stay as they are, so that a
/// forged response harms nothing.
pub(super) fn read_response(
    symmetric: &Symmetric,
    ours: &PrivateKey,
    ephemeral: &PrivateKey,
    psk: &Secret,
    message: &[u8; RESPONSE_LEN],
) -> Result<Agreed, HandshakeError> {
    let mut fields = Fields(message);
    let (_kind, sender, _receiver): ([u8; 4], [u8; 4], [u8; 4]) =
        (fields.take(), fields.take(), fields.take());
    let (theirs, tag) = (PublicKey(fields.take()), fields.take());

    let mut symmetric = symmetric.clone();
    symmetric.mix_ephemeral(&theirs);
    symmetric.mix(&ephemeral.shared(&theirs)?.0);
    symmetric.mix(&ours.shared(&theirs)?.0);
    let key = symmetric.mix_psk(psk);
    if !symmetric.open(&key, &mut [], &tag) {
        return Err(HandshakeError::BadResponse);
    }
    let (send, recv, third) = symmetric.split();
    Ok(Agreed {
        send,
        recv,
        third,
        transcript: symmetric.transcript,
        remote_index: u32::from_le_bytes(sender),
    })
}

/// Writes the fields one after another; the macs behind them stay zero.
fn write_fields(message: &mut [u8], fields: &[&[u8]]) {
    for (to, from) in message.iter_mut().zip(fields.iter().copied().flatten()) {
        *to = *from;
    }
}

/// Reads fields one after another. The messages have fixed lengths and the fields fit them (tested), so that the
/// zeros beyond an end are never seen.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}
