//! What peers share with nobody.

use super::*;

const A: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

fn peer(id: u64, name: &str, ipv4: Option<&str>) -> Peer {
    Peer {
        id,
        name: name.to_owned(),
        public_key: PublicKey([id as u8; 32]),
        preshared_key: None,
        ipv4: ipv4.map(|text| text.parse().unwrap()),
        ipv6: None,
        group: String::new(),
        expires: None,
        disabled: false,
        created: Moment(1),
    }
}

#[test]
fn a_peer_of_both_file_and_store_is_refused_by_line() {
    let path = Path::new("/g.toml");
    let stored = vec![
        Peer { public_key: A.parse().unwrap(), ..peer(1, "alice", Some("100.64.0.2")) },
        peer(2, "bob", Some("10.1.2.3")),
    ];
    let peers = Peers::new(Site::default(), stored, Vec::new());
    let said = |text: &str| {
        let file = config::Gateway::parse(path, text).unwrap();
        peers.check(path, &file).map_err(|error| error.to_string())
    };
    let other = PublicKey([9; 32]).to_base64();
    assert_eq!(said(&format!("[[peer]]\npublic_key = {other:?}\nallowed_ips = [\"0.0.0.0/0\"]")), Ok(()));
    let wrong = said(&format!(
        "addresses = [\"100.64.0.2/24\"]\n\n[[peer]]\npublic_key = {A:?}\n\n[[peer]]\nname = \"bob\"\n\
         public_key = {other:?}\nallowed_ips = [\"10.0.0.0/8\"]"
    ));
    let wrong = wrong.unwrap_err();
    let lines: Vec<_> = wrong.lines().collect();
    assert_eq!(lines.len(), 4, "{wrong}");
    assert!(lines[0].starts_with("/g.toml: addresses: 100.64.0.2 is that of the peer \"alice\""), "{wrong}");
    assert!(
        lines[1].starts_with("/g.toml:3: this public key is that of the peer \"alice\" of the store"),
        "{wrong}"
    );
    assert!(lines[2].starts_with("/g.toml:6: this name is that of the peer \"bob\""), "{wrong}");
    assert!(
        lines[3].starts_with("/g.toml:6: an address of 10.0.0.0/8 is that of the peer \"bob\""),
        "{wrong}"
    );
}

#[test]
fn names_are_for_people_and_shells() {
    for good in
        ["a", "Ann-Marie's phone".trim_matches('\''), "Zoë.2", "bob@example.org", "7+7", &"x".repeat(64)]
    {
        assert_eq!(is_name(good), !good.contains('\''), "{good}");
    }
    for bad in ["", " a", "a ", "-a", ".", "..", "a/b", "a\nb", "a\0", "\u{202e}a", &"x".repeat(65), A] {
        assert!(!is_name(bad), "{bad:?}");
    }
}

#[test]
fn every_index_follows_a_change() {
    let mut peers = Peers::new(Site::default(), vec![peer(1, "a", Some("100.64.0.2"))], Vec::new());
    let other = Peer {
        name: "b".to_owned(),
        public_key: PublicKey([8; 32]),
        ipv4: Some(Ipv4Addr::new(100, 64, 0, 3)),
        expires: Some(Moment(50)),
        ..peer(1, "", None)
    };
    peers.put(other);
    assert!(peers.named("a").is_none() && peers.of_key(&PublicKey([1; 32])).is_none());
    let within = |text: &str| peers.within(&text.parse().unwrap()).map(|peer| peer.name.as_str());
    assert_eq!(
        (within("100.64.0.2"), within("100.64.0.2/31"), within("0.0.0.0/0")),
        (None, Some("b"), Some("b"))
    );
    assert_eq!(within("100.64.0.4/30"), None);
    assert_eq!(peers.ended(Moment(49), Moment(50)).count(), 1);
    assert_eq!(peers.ended(Moment(50), Moment(50)).count() + peers.ended(Moment(50), Moment(99)).count(), 0);
    peers.remove(1);
    assert_eq!((peers.count(), peers.fresh_id(), peers.ended(Moment(0), Moment(99)).count()), (0, 1, 0));
}
