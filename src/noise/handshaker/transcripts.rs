//! Whole handshakes against an independent implementation of the Noise protocol (the crate `snow`), in both roles.

use chacha20poly1305::aead::{Aead as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use snow::{Builder, HandshakeState, TransportState};

use super::tests::{ENDPOINT, Installed, PEER, at, installed, key, machine_with, stamp};
use super::*;
use crate::crypto::random::ScriptedRng;

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const PSK: [u8; 32] = [0xa5; 32];
const NO_PSK: [u8; 32] = [0; 32];

/// The secret bytes of the keys: ours, theirs, and the ephemerals.
const OURS: u8 = 0x11;
const THEIRS: u8 = 0x22;
const OUR_EPHEMERAL: [u8; 32] = [0x33; 32];
const THEIR_EPHEMERAL: [u8; 32] = [0x44; 32];

fn snow_side(psk: &[u8; 32], initiator: bool) -> HandshakeState {
    let (private, remote) = (key(THEIRS), *PrivateKey::new(&key(OURS)).public());
    let builder = Builder::new(PATTERN.parse().unwrap())
        .local_private_key(&private.0)
        .unwrap()
        .prologue(PROLOGUE)
        .unwrap()
        .psk(2, psk)
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(&THEIR_EPHEMERAL);
    if initiator {
        builder.remote_public_key(&remote.0).unwrap().build_initiator().unwrap()
    } else {
        builder.build_responder().unwrap()
    }
}

fn our_side(psk: &[u8; 32]) -> (Handshaker, ScriptedRng) {
    let (machine, mut rng) = machine_with(OURS, THEIRS, Some(Secret(*psk)));
    rng.push(&OUR_EPHEMERAL);
    (machine, rng)
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    bytes.into()
}

/// What one side seals the other opens, both ways, for a few counters.
fn keys_agree(keypair: &NewKeypair, snow: &mut TransportState) {
    let (send, recv) =
        (ChaCha20Poly1305::new(&keypair.send.0.into()), ChaCha20Poly1305::new(&keypair.recv.0.into()));
    let mut buffer = [0; 64];
    for counter in 0..3 {
        let len = snow.write_message(b"from snow", &mut buffer).unwrap();
        assert_eq!(recv.decrypt(&nonce(counter), &buffer[..len]).unwrap(), b"from snow");
        let sealed = send.encrypt(&nonce(counter), b"from us".as_slice()).unwrap();
        let len = snow.read_message(&sealed, &mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"from us");
    }
}

#[test]
fn we_initiate_and_snow_responds() {
    for psk in [PSK, NO_PSK] {
        let (mut ours, mut rng) = our_side(&psk);
        let mut theirs = snow_side(&psk, false);
        let sent = ours.begin(PEER, stamp(1), at(0), &mut rng).unwrap();
        assert_eq!(sent[..4], [1, 0, 0, 0]);

        let mut payload = [0; 64];
        let len = theirs.read_message(&sent[8..116], &mut payload).unwrap();
        assert_eq!(payload[..len], stamp(1).0);
        assert_eq!(theirs.get_remote_static().unwrap(), ours.public_key().unwrap().0);

        let mut response = [0; 92];
        response[..8].copy_from_slice(&[2, 0, 0, 0, 9, 8, 7, 6]);
        response[8..12].copy_from_slice(&sent[4..8]);
        assert_eq!(theirs.write_message(&[], &mut response[12..60]).unwrap(), 48);
        let Installed { keypair, response, .. } =
            installed(ours.consume_response(&response, ENDPOINT, at(1)).unwrap());
        assert_eq!(response, None);
        assert_eq!(keypair.role, Role::Initiator);
        assert_eq!(keypair.local_index.to_le_bytes(), sent[4..8]);
        assert_eq!(keypair.remote_index, 0x0607_0809);
        keys_agree(&keypair, &mut theirs.into_transport_mode().unwrap());
    }
}

fn snow_initiation(theirs: &mut HandshakeState, stamp: Tai64n) -> [u8; INITIATION_LEN] {
    let mut message = [0; INITIATION_LEN];
    message[..8].copy_from_slice(&[1, 0, 0, 0, 9, 8, 7, 6]);
    assert_eq!(theirs.write_message(&stamp.0, &mut message[8..116]).unwrap(), 108);
    message
}

#[test]
fn snow_initiates_and_we_respond() {
    for psk in [PSK, NO_PSK] {
        let (mut ours, mut rng) = our_side(&psk);
        let mut theirs = snow_side(&psk, true);
        let message = snow_initiation(&mut theirs, stamp(1));
        let Installed { keypair, response, peer, endpoint } =
            installed(ours.consume_initiation(&message, ENDPOINT, at(0), &mut rng).unwrap());
        let response = response.unwrap();
        assert_eq!((peer, endpoint), (PEER, ENDPOINT));
        assert_eq!(response[..4], [2, 0, 0, 0]);
        assert_eq!(response[4..8], keypair.local_index.to_le_bytes());
        assert_eq!(response[8..12], [9, 8, 7, 6]);
        assert_eq!(keypair.role, Role::Responder);
        assert_eq!(keypair.remote_index, 0x0607_0809);

        assert_eq!(theirs.read_message(&response[12..60], &mut [0; 16]).unwrap(), 0);
        keys_agree(&keypair, &mut theirs.into_transport_mode().unwrap());
    }
}

#[test]
fn a_different_psk_is_found_out() {
    let (mut ours, mut rng) = our_side(&PSK);
    let mut theirs = snow_side(&NO_PSK, false);
    let sent = ours.begin(PEER, stamp(1), at(0), &mut rng).unwrap();
    theirs.read_message(&sent[8..116], &mut [0; 64]).unwrap();
    let mut response = [0; 92];
    response[..4].copy_from_slice(&[2, 0, 0, 0]);
    response[8..12].copy_from_slice(&sent[4..8]);
    theirs.write_message(&[], &mut response[12..60]).unwrap();
    assert_eq!(ours.consume_response(&response, ENDPOINT, at(1)).err(), Some(HandshakeError::BadResponse));
}

/// The same keys and ephemerals on both sides of both implementations: every byte before the macs is equal, and
/// equal to what is written down here.
#[test]
fn transcripts_are_equal_byte_for_byte() {
    // Ours is the initiator with OUR_EPHEMERAL, snow the responder with THEIR_EPHEMERAL, and a second snow stands
    // where we are.
    let (mut ours, mut rng) = our_side(&PSK);
    let our_private = key(OURS);
    let their_public = *PrivateKey::new(&key(THEIRS)).public();
    let mut twin = Builder::new(PATTERN.parse().unwrap())
        .local_private_key(&our_private.0)
        .unwrap()
        .remote_public_key(&their_public.0)
        .unwrap()
        .prologue(PROLOGUE)
        .unwrap()
        .psk(2, &PSK)
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(&OUR_EPHEMERAL)
        .build_initiator()
        .unwrap();
    rng.push(&0x0403_0201u32.to_le_bytes());
    let sent = ours.begin(PEER, stamp(1), at(0), &mut rng).unwrap();
    let mut expected = [0; 108];
    twin.write_message(&stamp(1).0, &mut expected).unwrap();
    assert_eq!(sent[8..116], expected);
    assert_eq!(hex(&sent), GOLDEN_INITIATION);

    // The other machine is ours too, so that our response stands beside that of snow.
    let (mut responder, mut rng) = machine_with(THEIRS, OURS, Some(Secret(PSK)));
    rng.push(&THEIR_EPHEMERAL);
    rng.push(&0x0807_0605u32.to_le_bytes());
    assert!(responder.check_mac1(&sent));
    let answered = installed(responder.consume_initiation(&sent, ENDPOINT, at(0), &mut rng).unwrap());
    let response = answered.response.unwrap();
    let mut theirs = snow_side(&PSK, false);
    theirs.read_message(&sent[8..116], &mut [0; 64]).unwrap();
    let mut expected = [0; 48];
    theirs.write_message(&[], &mut expected).unwrap();
    assert_eq!(response[12..60], expected);
    assert_eq!(hex(&response), GOLDEN_RESPONSE);

    assert!(ours.check_mac1(&response));
    let confirmed = installed(ours.consume_response(&response, ENDPOINT, at(0)).unwrap());
    twin.read_message(&response[12..60], &mut [0; 16]).unwrap();
    for said in [&answered.keypair.transcript, &confirmed.keypair.transcript] {
        assert_eq!(said.0, twin.get_handshake_hash(), "the hash of all that was said");
    }
    keys_agree(&answered.keypair, &mut twin.into_transport_mode().unwrap());
    keys_agree(&confirmed.keypair, &mut theirs.into_transport_mode().unwrap());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const GOLDEN_INITIATION: &str = "\
    01000000010203047b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b1481e498317da959fb\
    a46669572516a5e6c021bfa620bb6c56ca0082e1feae14988c2c64d024c617734a263f76a008df04d0f94bad81059449\
    e1c269552e688b7f7e2151fec81aa4095971f953c9683ca2b668fc542ca4c8a7ce412cff000000000000000000000000\
    00000000";
const GOLDEN_RESPONSE: &str = "\
    020000000506070801020304ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6be97da676\
    24a915261713f294be3fa8bc62566af119f34dd19d09115652a3349100000000000000000000000000000000";
