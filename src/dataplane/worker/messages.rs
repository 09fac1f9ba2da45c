//! What control and the handshake thread tell a worker: peers come and go, keys end, sockets change.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;

use crossbeam_channel::bounded;

use super::testing::*;
use super::*;
use crate::dataplane::handoff::SessionChange;
use crate::dataplane::offload::packets::Spec;
use crate::noise::Role;
use crate::types::{Endpoint, Prefix, Source};
use crate::wire::wireguard::INITIATION_LEN;

fn to(host: u8, n: u32) -> Spec {
    Spec { hosts: (1, host), seq: n, ..Spec::default() }
}

fn from(host: u8) -> Vec<u8> {
    Spec { hosts: (host, 1), ..Spec::default() }.packet()
}

fn remove(bench: &mut Bench, id: PeerId) {
    let (done, acknowledged) = bounded(1);
    bench.control(ToWorker::RemovePeer(id, done));
    acknowledged.try_recv().expect("acknowledged");
}

/// Gives the remote other keys.
fn renew(remote: &mut Remote, number: u32) -> u32 {
    std::mem::replace(&mut remote.keys, Keys::new(number, WorkerId(0), 1)).index
}

#[test]
fn every_index_that_ends_is_released_once() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let first = renew(&mut remote, 50);
    bench.install(&remote, Role::Initiator);
    assert_eq!(bench.released(), [0_u32; 0]);
    let second = renew(&mut remote, 51);
    bench.install(&remote, Role::Initiator);
    assert_eq!(bench.released(), [first]);
    let third = renew(&mut remote, 52);
    bench.install(&remote, Role::Responder);
    assert_eq!(bench.released(), [second], "previous makes room for next");
    bench.control(ToWorker::ClearKeys(remote.id));
    assert_eq!(bench.released(), [third, remote.keys.index]);
    bench.control(ToWorker::ClearKeys(remote.id));
    assert_eq!(bench.released(), [0_u32; 0]);

    let fourth = renew(&mut remote, 53);
    assert_ne!(fourth, remote.keys.index);
    bench.install(&remote, Role::Initiator);
    bench.control(ToWorker::ClearAllKeys);
    assert_eq!(bench.released(), [remote.keys.index]);
    renew(&mut remote, 54);
    bench.install(&remote, Role::Initiator);
    remove(&mut bench, remote.id);
    assert_eq!(bench.released(), [remote.keys.index]);
    for number in [first, second, third, fourth, remote.keys.index] {
        assert_eq!(bench.worker.core.peers.slot_of_index(number), None);
    }
    let message = remote.keys.seal(&from(2));
    bench.deliver(message, remote.endpoint());
    assert_eq!(bench.counters().drops.of(Drop::UnknownIndex), 1);
}

#[test]
fn messages_for_an_earlier_or_a_later_peer_in_the_slot_change_nothing() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let kept = remote.keys.index;
    for generation in [0, 2] {
        let peer = PeerId { generation, ..remote.id };
        let index = renew(&mut remote, 60 + generation);
        let keypair = remote.keys.keypair(Role::Initiator);
        let endpoint = Endpoint::new((Ipv4Addr::LOCALHOST, 1).into());
        bench.link.keys(ToOwner::SendInitiation { peer, message: [1; INITIATION_LEN] });
        bench.link.keys(ToOwner::BeginFailed { peer });
        bench.link.keys(ToOwner::Install {
            peer,
            keypair: Box::new(keypair),
            endpoint,
            response: Some([2; 92]),
        });
        bench.control(ToWorker::ClearKeys(peer));
        bench.control(ToWorker::SetEndpoint(peer, endpoint.remote));
        bench.control(ToWorker::SetKeepalive(peer, Some(1)));
        bench.control(ToWorker::Renew(peer, None));
        remove(&mut bench, peer);
        bench.turn();
        assert_eq!(bench.released(), [remote.keys.index], "what was not installed is given back");
        remote.keys.index = index;
        bench.sent(&remote, 0);
    }
    remote.keys = Keys::new(2, WorkerId(0), 1);
    assert_eq!(remote.keys.index, kept);
    let peer = remote.endpoint();
    assert_eq!(bench.session(&remote).endpoint(), Some(peer));
    let message = remote.keys.seal(&from(2));
    bench.deliver(message, peer);
    assert_eq!(drain(&bench.tun).len(), 1, "the peer itself lives on");
    bench.assert_drops(&[]);
}

#[test]
fn a_peer_is_removed_while_its_packets_are_under_way() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let other = bench.peer(3);
    // In one turn: packets both ways, then the removal.
    bench.read(&to(2, 0).read(0));
    bench.read(&to(3, 0).read(0));
    let message = remote.keys.seal(&from(2));
    bench.receive(&[message], remote.endpoint());
    bench.read(&to(2, 1).read(0));
    remove(&mut bench, remote.id);
    let sent = bench.sent(&remote, 3);
    assert_eq!(remote.keys.open(&sent[0]).0, 1);
    assert_eq!(other.keys.open(&sent[1]).0, 1);
    assert_eq!(remote.keys.open(&sent[2]).0, 2);
    assert_eq!(drain(&bench.tun).len(), 1);
    bench.assert_drops(&[]);
    // Its prefixes are control's to remove; until then its packets have no way.
    bench.read(&to(2, 2).read(0));
    bench.turn();
    bench.assert_drops(&[(Drop::NoRoute, 1)]);
    let (done, acknowledged) = bounded(1);
    let prefix = Prefix::new(Ipv4Addr::new(100, 64, 0, 2).into(), 32).unwrap();
    bench.control(ToWorker::RemovePrefixes([prefix].into(), done));
    acknowledged.try_recv().expect("acknowledged");
    // The next in its slot starts afresh.
    bench.control(ToWorker::AddPeer(PeerId { generation: 2, ..remote.id }));
    bench.control(ToWorker::AddPrefixes(
        [(prefix, PeerId { generation: 2, ..remote.id }, WorkerId(0))].into(),
    ));
    bench.read(&to(2, 3).read(0));
    bench.turn();
    bench.assert_drops(&[(Drop::NoEndpoint, 1)]);
    bench.turn();
    assert!(bench.slept());
}

#[test]
fn keys_that_were_installed_before_a_message_that_ends_them_do_not_come_back() {
    let mut bench = Bench::wire();
    let mut remote = bench.peer(2);
    let first = renew(&mut remote, 70);
    let keypair = remote.keys.keypair(Role::Initiator);
    let endpoint = remote.endpoint();
    bench.link.keys(ToOwner::Install {
        peer: remote.id,
        keypair: Box::new(keypair),
        endpoint,
        response: None,
    });
    bench.control(ToWorker::ClearKeys(remote.id));
    assert_eq!(bench.released(), [first, remote.keys.index]);
}

#[test]
fn endpoint_and_source_are_set_learned_and_cleared() {
    let mut bench = Bench::udp();
    let mut remote = bench.peer(2);
    let source = Some(Source { addr: Ipv4Addr::LOCALHOST.into(), ifindex: 0 });
    let moved = Endpoint { source, ..Endpoint::new((Ipv4Addr::LOCALHOST, 4).into()) };
    let message = remote.keys.seal(&from(2));
    bench.deliver(message, moved);
    assert_eq!(bench.session(&remote).endpoint(), Some(moved), "roamed");
    bench.control(ToWorker::ClearSources);
    assert_eq!(bench.session(&remote).endpoint(), Some(Endpoint::new(moved.remote)));
    bench.control(ToWorker::SetEndpoint(remote.id, remote.endpoint().remote));
    bench.read(&to(2, 0).read(0));
    bench.turn();
    bench.sent(&remote, 1);
    bench.control(ToWorker::SetMtu(1300));
    assert_eq!(bench.worker.core.mtu, 1300);
}

#[test]
fn a_source_that_is_gone_is_given_up_and_the_packet_is_sent() {
    let mut bench = Bench::udp();
    let mut remote = bench.peer(2);
    let gone = Some(Source { addr: Ipv4Addr::new(198, 18, 77, 77).into(), ifindex: 0 });
    let endpoint = Endpoint { source: gone, ..remote.endpoint() };
    let message = remote.keys.seal(&from(2));
    bench.deliver(message, endpoint);
    (0..3).for_each(|n| bench.read(&to(2, n).read(0)));
    bench.turn();
    assert_eq!(
        remote.datagrams(3).iter().map(|message| remote.keys.open(message).0).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(bench.counters().source_resets, 1);
    assert_eq!(bench.session(&remote).endpoint(), Some(remote.endpoint()));

    let message = remote.keys.seal(&[]);
    bench.deliver(message, endpoint);
    bench.link.keys(ToOwner::SendInitiation { peer: remote.id, message: [1; INITIATION_LEN] });
    bench.turn();
    assert_eq!(remote.datagrams(1), [[1; INITIATION_LEN]]);
    assert_eq!(bench.counters().source_resets, 2);
    assert_eq!(bench.session(&remote).endpoint(), Some(remote.endpoint()));
    bench.assert_drops(&[]);
}

#[test]
fn other_sockets_take_over() {
    let mut bench = Bench::udp();
    let mut remote = bench.peer(2);
    let source = Some(Source { addr: Ipv4Addr::LOCALHOST.into(), ifindex: 0 });
    let message = remote.keys.seal(&[]);
    bench.deliver(message, Endpoint { source, ..remote.endpoint() });
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap();
    bench.control(ToWorker::ReplaceSockets(Sockets { v4: Some(Arc::new(socket.into())), v6: None }));
    assert_eq!(bench.script.borrow().replaced, [(Family::V4, true), (Family::V6, false)]);
    assert_eq!(bench.session(&remote).endpoint(), Some(remote.endpoint()), "without its source");
    bench.read(&to(2, 0).read(0));
    bench.turn();
    let mut datagram = [0; 2000];
    let (_, sender) = remote.socket.recv_from(&mut datagram).unwrap();
    assert_eq!(sender, port);
}

#[test]
fn a_report_has_every_peer() {
    let mut bench = Bench::wire();
    let (two, three) = (bench.peer(2), bench.stranger(3));
    bench.read(&to(2, 0).read(0));
    bench.turn();
    let (reply, report) = bounded(1);
    bench.control(ToWorker::Report(reply));
    let report = report.try_recv().unwrap();
    assert_eq!((report.worker, report.counters.tun_reads), (WorkerId(0), 1));
    let endpoints: Vec<_> = report.peers.iter().map(|peer| (peer.peer, peer.endpoint)).collect();
    assert_eq!(endpoints, [&two, &three].map(|remote| (remote.id, Some(remote.endpoint().remote))));
    assert_eq!(report.peers[1].last_handshake, None);
    assert!(report.peers[0].last_handshake.is_some() && report.peers[0].tx_bytes >= 176);
}

#[test]
fn it_stops_when_told_and_when_the_device_is_gone() {
    let mut bench = Bench::wire();
    assert!(bench.link.control(ToWorker::Stop));
    assert!(!bench.worker.run().unwrap());
    let mut bench = Bench::wire();
    bench.script.borrow_mut().events.push_back(Event::Failed(Target::Udp(Family::V4), libc::EBADFD));
    bench.turn();
    bench.script.borrow_mut().events.push_back(Event::Failed(Target::Tun, libc::EBADFD));
    assert!(bench.worker.run().unwrap());
}

#[test]
fn an_idle_worker_sleeps_until_the_next_deadline() {
    let mut bench = Bench::wire();
    bench.turn();
    assert_eq!(bench.script.borrow().timeout, None, "nothing to wait for");
    let mut remote = bench.peer(2);
    let message = remote.keys.seal(&from(2));
    bench.deliver(message, remote.endpoint());
    bench.turn();
    // Data came and was not answered: the keepalive is due in 10 seconds, rounded up to the wheel's next tick.
    let timeout = bench.script.borrow().timeout.unwrap();
    assert!(timeout > Duration::ZERO && timeout <= Duration::from_millis(10_017), "{timeout:?}");
    bench.read(&to(2, 0).read(0));
    bench.turn();
    bench.turn();
    assert!(bench.slept());
}

#[test]
fn a_run_is_sealed_before_its_keypair_is_replaced() {
    for way in ["datagram", "hand-over", "install"] {
        let mut bench = Bench::wire();
        let mut remote = bench.peer(2);
        renew(&mut remote, 80);
        let old = Keys::new(2, WorkerId(0), 1);
        bench.read(&to(2, 0).read(0));
        let sent = if way == "install" {
            bench.install(&remote, Role::Initiator);
            bench.read(&to(2, 1).read(0));
            bench.turn();
            drain(&bench.wire)
        } else {
            bench.script.borrow_mut().events.clear();
            bench.install(&remote, Role::Responder);
            drain(&bench.wire);
            let confirmation = remote.keys.seal(&[]);
            if way == "datagram" {
                bench.read(&to(2, 0).read(0));
                bench.receive(&[confirmation], remote.endpoint());
                bench.read(&to(2, 1).read(0));
            } else {
                let (endpoint, tos) = (remote.endpoint(), 0);
                let datagram = Handover::Datagram { bytes: confirmation.into(), endpoint, tos };
                let reads = [0, 1].map(|n| Handover::Tun(to(2, n).read(0).into()));
                let [first, second] = reads;
                for packet in [first, datagram, second] {
                    assert!(bench.link.handover(packet));
                }
            }
            bench.turn();
            drain(&bench.wire)
        };
        let index = |message: &Vec<u8>| u32::from_le_bytes(message[4..8].try_into().unwrap());
        let sent: Vec<_> = sent.into_iter().filter(|message| message.len() > 32).collect();
        assert_eq!(
            sent.iter().map(index).collect::<Vec<_>>(),
            [old.remote_index, remote.keys.remote_index],
            "{way}"
        );
        assert_eq!(old.open(&sent[0]).0, 1, "{way}");
        remote.keys.open(&sent[1]);
        bench.assert_drops(&[]);
    }
}

#[test]
fn control_hears_who_comes_moves_and_goes_from_the_session_itself() {
    let mut bench = Bench::udp();
    let mut stranger = bench.stranger(2);
    assert_eq!(bench.news(), [], "an endpoint by hand is no session");
    let home = stranger.endpoint().remote;
    // A responder's keypair proves nothing before a message in it.
    bench.install(&stranger, Role::Responder);
    assert_eq!(bench.news(), []);
    let message = stranger.keys.seal(&from(2));
    bench.deliver(message, stranger.endpoint());
    assert_eq!(bench.news(), [(stranger.id, SessionChange::Connected(home))]);
    let away = Endpoint::new("192.0.2.7:7".parse().unwrap());
    for _ in 0..2 {
        let message = stranger.keys.seal(&from(2));
        bench.deliver(message, away);
    }
    assert_eq!(bench.news(), [(stranger.id, SessionChange::Moved(away.remote))]);
    bench.control(ToWorker::ClearKeys(stranger.id));
    assert_eq!(bench.news(), [(stranger.id, SessionChange::Disconnected)]);
    // A renewal is no coming.
    let mut other = bench.peer(3);
    assert_eq!(bench.news(), [(other.id, SessionChange::Connected(other.endpoint().remote))]);
    renew(&mut other, 60);
    bench.install(&other, Role::Initiator);
    assert_eq!(bench.news(), []);
    // By itself, at the keypair's end, and not before.
    let now = clock::boottime();
    let limits = *bench.worker.core.limits;
    let over = |bench: &mut Bench, after: Duration| {
        bench.worker.core.now = bench.worker.core.now.max(now + after);
        bench.worker.timers();
        bench.worker.core.tell_news();
        bench.news()
    };
    assert_eq!(over(&mut bench, limits.reject_after_time - Duration::from_secs(1)), []);
    assert_eq!(
        over(&mut bench, limits.reject_after_time + Duration::from_secs(1)),
        [(other.id, SessionChange::Disconnected)]
    );
}

#[test]
fn who_is_removed_goes_and_nothing_that_lasts_is_lost_for_want_of_room() {
    let mut bench = Bench::wire();
    let remote = bench.peer(2);
    let connected = SessionChange::Connected(remote.endpoint().remote);
    assert_eq!(bench.news(), [(remote.id, connected)]);
    // No room but for requests.
    let asked = bench.worker.core.asked.clone();
    let other = PeerId { slot: 77, ..remote.id };
    while asked.tell(other, SessionChange::Disconnected) {}
    bench.control(ToWorker::ClearKeys(remote.id));
    assert!(bench.news().iter().all(|(id, _)| *id == other));
    bench.turn();
    assert_eq!(bench.news(), [(remote.id, SessionChange::Disconnected)]);
    bench.install(&remote, Role::Initiator);
    assert_eq!(bench.news(), [(remote.id, connected)]);
    while asked.tell(other, SessionChange::Disconnected) {}
    remove(&mut bench, remote.id);
    bench.news();
    bench.turn();
    assert_eq!(bench.news(), [(remote.id, SessionChange::Disconnected)]);
}
