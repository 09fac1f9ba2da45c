//! Leases that outlive the process, with a real store.

use super::*;
use crate::lease::ranges::Ranges;
use crate::sys::testing::Scratch;

impl Scratch {
    /// Opens the store's file in it.
    fn open(&self, pools: &[PoolSpec]) -> Leases {
        let path = self.0.join("store.db");
        Leases::open(pools, Keeping { path: &path, history: 30, account: None }).unwrap().0
    }
}

fn pool(name: &str, range: &str) -> PoolSpec {
    PoolSpec {
        name: name.to_owned(),
        ranges: Ranges::from_iter([range.parse().unwrap()]),
        ipv6: None,
        lease_time: 3600,
        quarantine: 0,
        groups: Vec::new(),
        drain: false,
    }
}

fn ask(n: u8) -> Ask<'static> {
    Ask { client: PublicKey([n; 32]), group: "", pool: "", wanted: None }
}

fn given(leases: &mut Leases, n: u8) -> String {
    leases.request(&ask(n)).unwrap().wait().unwrap().lease.address.to_string()
}

#[test]
fn what_was_told_is_so_after_a_restart() {
    let scratch = Scratch::new("restart");
    let pools = [pool("p", "100.64.0.0-100.64.0.4")];
    let mut leases = scratch.open(&pools);
    assert_eq!([1, 2, 3].map(|n| given(&mut leases, n)), ["100.64.0.0", "100.64.0.1", "100.64.0.2"]);
    let reserved = leases.reserve(&ask(4)).unwrap().wait().unwrap();
    assert_eq!(reserved.to_string(), "100.64.0.3");
    assert!(leases.release(&PublicKey([2; 32])).unwrap().wait().unwrap().is_some());
    assert!(leases.release(&PublicKey([2; 32])).unwrap().wait().unwrap().is_none());
    drop(leases);

    let mut leases = scratch.open(&pools);
    assert_eq!(leases.usage("p").unwrap().leased, 2);
    assert!(leases.lease_of(&PublicKey([1; 32])).is_some() && leases.lease_of(&PublicKey([2; 32])).is_none());
    assert_eq!([3, 4, 2].map(|n| given(&mut leases, n)), ["100.64.0.2", "100.64.0.3", "100.64.0.1"]);
    assert_eq!(given(&mut leases, 5), "100.64.0.4");
    let refused = leases.request(&ask(6)).unwrap_err();
    assert!(matches!(refused, RequestError::Refused(Refusal::NoFreeAddress)), "{refused}");
    assert_eq!(leases.trouble(), Trouble { exhausted: 1, ..Trouble::default() });
    assert_eq!(
        leases.usages().collect::<Vec<_>>(),
        [("p", Usage { addresses: 5, leased: 5, drained: false })]
    );
    assert_eq!(leases.unreserve(reserved).unwrap().wait().unwrap(), Some(PublicKey([4; 32])));
    drop(leases);
    assert_eq!(scratch.open(&pools).unreserve(reserved).unwrap().wait().unwrap(), None);
}

#[tokio::test]
async fn history_is_kept_as_long_as_it_shall_be() {
    let scratch = Scratch::new("history");
    let mut leases = scratch.open(&[pool("p", "100.64.0.0")]);
    let address = Ipv4Addr::new(100, 64, 0, 0);
    let now = leases.clock.now();
    let had = async |leases: &Leases| leases.tenures(address, now).await.unwrap().len();
    // As if it had been a while ago.
    leases.clock.wall -= Duration::from_secs(100);
    leases.request(&ask(1)).unwrap().stored().await.unwrap();
    leases.clock.wall += Duration::from_secs(200);
    leases.release(&PublicKey([1; 32])).unwrap().stored().await.unwrap();
    leases.request(&ask(2)).unwrap().stored().await.unwrap();
    let found = leases.tenures(address, now).await.unwrap();
    assert_eq!(found.iter().map(|tenure| tenure.client.0[0]).collect::<Vec<_>>(), [1]);
    leases.clock.wall += Duration::from_secs(u64::from(30 * DAY) - 10);
    leases.forget().unwrap().stored().await.unwrap();
    assert_eq!(had(&leases).await, 1);
    leases.clock.wall += Duration::from_secs(20);
    leases.forget().unwrap().stored().await.unwrap();
    assert_eq!(had(&leases).await, 0);
}

#[test]
fn pools_change_while_it_runs() {
    let scratch = Scratch::new("change");
    let mut leases = scratch.open(&[pool("p", "100.64.0.0")]);
    assert_eq!(given(&mut leases, 1), "100.64.0.0");
    leases.configure(&[pool("p", "100.64.0.0-100.64.0.1"), pool("q", "100.64.1.0")], 0).unwrap();
    assert_eq!([1, 2, 3].map(|n| given(&mut leases, n)), ["100.64.0.0", "100.64.0.1", "100.64.1.0"]);
    let overlap = [pool("p", "100.64.0.0/24"), pool("q", "100.64.0.7")];
    assert!(leases.configure(&overlap, 0).unwrap_err().to_string().contains("share 100.64.0.7"));
    let open = Leases::open(&overlap, Keeping { path: &scratch.0.join("other"), history: 0, account: None });
    assert!(matches!(open, Err(LeasesError::Pools(_))));
}

#[test]
fn a_second_is_over_when_the_wall_clock_says_so() {
    let clock = Clock { begin: Time::from_nanos(900_000_000), wall: Duration::from_millis(1_000_900) };
    let at = |milliseconds: u64| clock.at(Time::from_nanos(milliseconds * 1_000_000)).0;
    assert_eq!(
        [at(0), at(900), at(999), at(1_000), at(1_999), at(2_000)],
        [1000, 1000, 1000, 1001, 1001, 1002]
    );
}
