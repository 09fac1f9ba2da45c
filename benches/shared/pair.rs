//! Two handshakers that know each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ringway::crypto::random::SystemRng;
use ringway::crypto::x25519::PrivateKey;
use ringway::noise::handshaker::Handshaker;
use ringway::noise::index::IndexKey;
use ringway::noise::timestamp::Tai64n;
use ringway::noise::{NewKeypair, ToOwner};
use ringway::types::{Endpoint, PeerId, Secret, Time, WorkerId};
use ringway::wire::wireguard::{INITIATION_LEN, RESPONSE_LEN};

pub(crate) const PEER: PeerId = PeerId { slot: 0, generation: 1 };

/// Two machines that know each other, and a clock that never stands.
pub(crate) struct Pair {
    initiator: Handshaker,
    responder: Handshaker,
    pub(crate) endpoint: Endpoint,
    rng: SystemRng,
    rounds: u64,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let (ours, theirs) = (Secret([1; 32]), Secret([2; 32]));
        let machine = |ours: &Secret, theirs: &Secret| {
            let mut machine = Handshaker::new(1, IndexKey::new([1, 2, 3]));
            machine.set_private_key(Some(ours.clone()));
            machine.add_peer(PEER, WorkerId(0), *PrivateKey::new(theirs).public(), None).unwrap();
            machine
        };
        let endpoint = Endpoint::new(SocketAddr::from((Ipv4Addr::new(198, 18, 0, 1), 51820)));
        let rng = SystemRng::new().unwrap();
        Self {
            initiator: machine(&ours, &theirs),
            responder: machine(&theirs, &ours),
            endpoint,
            rng,
            rounds: 0,
        }
    }

    /// A second for each initiation.
    pub(crate) fn now(&self) -> Time {
        Time::from_nanos(self.rounds * 1_000_000_000)
    }

    /// The initiator's first message.
    pub(crate) fn begin(&mut self) -> [u8; INITIATION_LEN] {
        self.rounds += 1;
        let stamp = Tai64n::from_unix(Duration::from_secs(1_790_000_000 + self.rounds));
        self.initiator.begin(PEER, stamp, self.now(), &mut self.rng).unwrap()
    }

    /// The responder's.
    pub(crate) fn answer(&mut self, initiation: &[u8; INITIATION_LEN]) -> [u8; RESPONSE_LEN] {
        assert!(self.checks(initiation));
        let now = self.now();
        let answered = self.responder.consume_initiation(initiation, self.endpoint, now, &mut self.rng);
        let (_, ToOwner::Install { keypair, response, .. }) = answered.unwrap() else { unreachable!() };
        self.responder.release(keypair.local_index);
        response.unwrap()
    }

    /// What the initiator installs.
    pub(crate) fn finish(&mut self, response: &[u8; RESPONSE_LEN]) -> Box<NewKeypair> {
        assert!(self.initiator.check_mac1(response));
        let finished = self.initiator.consume_response(response, self.endpoint, self.now());
        let (_, ToOwner::Install { keypair, .. }) = finished.unwrap() else { unreachable!() };
        self.initiator.release(keypair.local_index);
        keypair
    }

    /// The responder's first look at an initiation.
    pub(crate) fn checks(&self, initiation: &[u8; INITIATION_LEN]) -> bool {
        self.responder.check_mac1(initiation)
    }

    /// The responder looks at a message that has a right mac1 and nothing else.
    pub(crate) fn refuse(&mut self, forged: &[u8; INITIATION_LEN]) {
        let now = self.now();
        self.responder.consume_initiation(forged, self.endpoint, now, &mut self.rng).unwrap_err();
    }
}
