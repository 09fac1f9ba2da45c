//! Random histories of a set of pools beside a naive one, and each rule by itself.

use std::collections::BTreeMap;
use std::hash::RandomState;

use proptest::prelude::*;

use super::*;

fn client(n: u8) -> PublicKey {
    PublicKey([n + 1; 32])
}

fn addr(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x6440_0000 + n)
}

fn ranges(of: &[(u32, u32)]) -> Ranges {
    of.iter().filter_map(|&(first, last)| Range::new(addr(first), addr(last))).collect()
}

fn spec(name: &str, of: &[(u32, u32)]) -> PoolSpec {
    PoolSpec {
        name: name.to_owned(),
        ranges: ranges(of),
        ipv6: "fd64::/64".parse().ok(),
        lease_time: 100,
        quarantine: 10,
        groups: Vec::new(),
        drain: false,
    }
}

fn pools(specs: &[PoolSpec]) -> Pools<RandomState> {
    let mut pools = Pools::new(RandomState::new());
    pools.configure(specs).unwrap();
    pools
}

fn ask(n: u8) -> Ask<'static> {
    Ask { client: client(n), group: "", pool: "", wanted: None }
}

/// The address of a request that must succeed, as its number.
fn given(pools: &mut Pools<RandomState>, n: u8, now: u32) -> u32 {
    number(pools.request(&ask(n), Moment(now)).unwrap().lease.address)
}

fn number(address: Ipv4Addr) -> u32 {
    address.to_bits() - 0x6440_0000
}

/// What a naive pool knows of an address.
#[derive(Clone, Debug)]
struct Past {
    client: PublicKey,
    /// The end of the lease.
    until: Moment,
    reserved: bool,
}

/// Everything by looking at everything.
#[derive(Default)]
struct Naive {
    specs: Vec<PoolSpec>,
    past: BTreeMap<Ipv4Addr, Past>,
    /// The pools have changed: what left them was forgotten, and nobody says in which order the rest comes.
    reshaped: bool,
}

impl Naive {
    fn spec_of(&self, address: Ipv4Addr) -> Option<&PoolSpec> {
        self.specs.iter().find(|spec| spec.ranges.contains(address))
    }

    fn serves(&self, spec: &PoolSpec, group: &str) -> bool {
        let named = self.specs.iter().any(|spec| spec.groups.iter().any(|one| one == group));
        if named { spec.groups.iter().any(|one| one == group) } else { spec.groups.is_empty() }
    }

    /// When the address may be another client's.
    fn free_at(&self, address: Ipv4Addr) -> Option<Moment> {
        let Some(past) = self.past.get(&address) else { return Some(Moment(0)) };
        let rest = self.spec_of(address).map_or(0, |spec| spec.quarantine);
        (!past.reserved).then(|| past.until + rest)
    }

    fn is_free(&self, address: Ipv4Addr, now: Moment) -> bool {
        self.free_at(address).is_some_and(|at| at <= now)
    }

    /// As [`Self::is_free`]; but a pool that has changed may have ended the rest of an address.
    fn may_be_free(&self, address: Ipv4Addr, now: Moment) -> bool {
        let over = self.past.get(&address).is_none_or(|past| past.until <= now && !past.reserved);
        self.is_free(address, now) || (self.reshaped && over)
    }

    /// Every address that this group could be given.
    fn free(&self, group: &str, now: Moment) -> Vec<Ipv4Addr> {
        let specs = self.specs.iter().filter(|spec| self.serves(spec, group) && !spec.drain);
        let all = specs.flat_map(|spec| spec.ranges.iter());
        let each =
            all.flat_map(|range| (range.first().to_bits()..=range.last().to_bits()).map(Ipv4Addr::from_bits));
        each.filter(|address| self.is_free(*address, now)).collect()
    }

    fn leased_to(&self, client: &PublicKey, now: Moment) -> Option<Ipv4Addr> {
        let mut own = self.past.iter().filter(|(_, past)| past.client == *client && past.until > now);
        let found = own.next().map(|(address, _)| *address);
        assert_eq!(own.next().map(|(address, _)| *address), None, "two leases of one client");
        found
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request { client: u8, group: usize, wanted: Option<u32> },
    Release(u8),
    Reserve { client: u8, wanted: u32 },
    Unreserve(u32),
    Wait(u32),
    Configure { split: u32, end: u32, hole: u32, drain: bool, grouped: bool },
}

const GROUPS: [&str; 2] = ["", "phones"];
/// Addresses and clients of the random histories: more clients than addresses.
const SPAN: u32 = 12;
const CLIENTS: u8 = 16;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..CLIENTS, 0..2usize, proptest::option::of(0..SPAN + 2))
            .prop_map(|(client, group, wanted)| Step::Request { client, group, wanted }),
        3 => (0..CLIENTS).prop_map(Step::Release),
        1 => (0..CLIENTS, 0..SPAN).prop_map(|(client, wanted)| Step::Reserve { client, wanted }),
        1 => (0..SPAN).prop_map(Step::Unreserve),
        4 => (0..80u32).prop_map(Step::Wait),
        1 => (0..SPAN, 0..SPAN, 0..SPAN, any::<bool>(), any::<bool>()).prop_map(
            |(split, end, hole, drain, grouped)| Step::Configure { split, end, hole, drain, grouped }
        ),
    ]
}

/// Two pools of the first `end` addresses but one, which they share at `split`.
fn two_pools(split: u32, end: u32, hole: u32, drain: bool, grouped: bool) -> Vec<PoolSpec> {
    let without = |all: Ranges| all.minus(&ranges(&[(hole, hole)]));
    let mut one = spec("one", &[]);
    one.ranges = without(ranges(&[(0, split.min(end))]));
    one.drain = drain;
    let mut two = spec("two", &[]);
    two.ranges = without(if split < end { ranges(&[(split + 1, end)]) } else { Ranges::default() });
    if grouped {
        two.groups.push("phones".to_owned());
    }
    two.lease_time = 50;
    vec![one, two]
}

/// One step of both, compared.
fn take(pools: &mut Pools<RandomState>, naive: &mut Naive, step: Step, now: &mut Moment) {
    match step {
        Step::Wait(seconds) => {
            *now = *now + seconds;
            // Whether somebody attends to it or not.
            if seconds % 2 == 0 {
                while pools.expire(*now, 2) == 2 {}
            }
        }
        Step::Configure { split, end, hole, drain, grouped } => {
            naive.specs = two_pools(split, end, hole, drain, grouped);
            pools.configure(&naive.specs).unwrap();
            naive.reshaped = true;
        }
        Step::Release(n) => {
            let leased = naive.leased_to(&client(n), *now);
            let released = pools.release(&client(n), *now);
            assert_eq!(released.map(|lease| lease.address), leased);
            if let Some(address) = leased {
                naive.past.get_mut(&address).unwrap().until = *now;
            }
        }
        Step::Reserve { client: n, wanted } => reserve(pools, naive, n, wanted, *now),
        Step::Unreserve(wanted) => {
            let past = naive.past.get_mut(&addr(wanted)).filter(|past| past.reserved);
            let whose = past.as_ref().map(|past| past.client);
            if let Some(past) = past {
                past.reserved = false;
                past.until = past.until.max(*now);
            }
            assert_eq!(pools.unreserve(addr(wanted), *now), whose);
        }
        Step::Request { client: n, group, wanted } => {
            request(pools, naive, n, GROUPS[group], wanted.map(addr), *now);
        }
    }
}

fn reserve(pools: &mut Pools<RandomState>, naive: &mut Naive, n: u8, wanted: u32, now: Moment) {
    let address = addr(wanted);
    let got = pools.reserve(&Ask { wanted: Some(address), ..ask(n) }, now);
    let other = naive.past.iter().find(|(_, past)| past.reserved && past.client == client(n));
    match (got, other) {
        (Err(Refusal::Reserved(at)), Some((other, _))) => assert_eq!(at, *other),
        (Err(Refusal::NotInAPool(_)), _) => assert!(naive.spec_of(address).is_none()),
        (Err(Refusal::Taken { by, .. }), _) => {
            assert!(!naive.is_free(address, now));
            assert_eq!(naive.past[&address].client, by);
        }
        (Ok((at, left)), _) => {
            assert_eq!(at, address);
            let past = naive.past.get(&address);
            assert!(naive.may_be_free(address, now) || past.is_some_and(|past| past.client == client(n)));
            let leased = naive.leased_to(&client(n), now);
            assert_eq!(left.map(|lease| lease.address), leased.filter(|leased| *leased != address));
            if let Some(left) = left {
                naive.past.get_mut(&left.address).unwrap().until = now;
            }
            let until = past_until(naive, address, &client(n));
            naive.past.insert(address, Past { client: client(n), until, reserved: true });
        }
        (got, other) => panic!("{got:?} {other:?}"),
    }
}

/// The end of the client's lease of the address, if it has one.
fn past_until(naive: &Naive, address: Ipv4Addr, client: &PublicKey) -> Moment {
    let own = naive.past.get(&address).filter(|past| past.client == *client);
    own.map_or(Moment(0), |past| past.until)
}

fn request(
    pools: &mut Pools<RandomState>,
    naive: &mut Naive,
    n: u8,
    group: &str,
    wanted: Option<Ipv4Addr>,
    now: Moment,
) {
    let client = client(n);
    let leased = naive.leased_to(&client, now);
    let free = naive.free(group, now);
    let reserved = naive.past.iter().find(|(_, past)| past.client == client && past.reserved);
    let reserved = reserved.map(|(address, _)| *address);
    let may_have = |address: Ipv4Addr| {
        naive.spec_of(address).is_some_and(|spec| naive.serves(spec, group))
            && naive.past.get(&address).is_some_and(|past| past.client == client)
    };
    let granted = match pools.request(&Ask { client, group, pool: "", wanted }, now) {
        Ok(granted) => granted,
        Err(Refusal::NoPool(_)) => {
            assert!(!naive.specs.iter().any(|spec| naive.serves(spec, group)));
            return;
        }
        Err(Refusal::NotInAPool(address)) => {
            assert_eq!(Some(address), reserved);
            assert!(naive.spec_of(address).is_none());
            return;
        }
        Err(error) => {
            assert_eq!((error, free), (Refusal::NoFreeAddress, vec![]));
            assert!(leased.is_none_or(|leased| !may_have(leased)) && reserved.is_none());
            return;
        }
    };
    let got = granted.lease.address;
    if let Some(reserved) = reserved {
        assert_eq!(got, reserved);
    } else if let Some(leased) = leased.filter(|leased| may_have(*leased)) {
        assert_eq!(got, leased);
        assert!(granted.renewed);
    } else {
        let served = naive.spec_of(got).is_some_and(|spec| naive.serves(spec, group));
        assert!(may_have(got) || (served && naive.may_be_free(got, now)), "{got} is not to be had: {free:?}");
        if !naive.reshaped && !may_have(got) && wanted != Some(got) && naive.past.contains_key(&got) {
            // Nobody else's memory goes while there is an address that nobody ever had, or one that is free for longer.
            let spec = naive.spec_of(got).unwrap();
            let others = free.iter().filter(|other| spec.ranges.contains(**other));
            let oldest = others.map(|other| naive.free_at(*other)).min().unwrap();
            assert_eq!(naive.free_at(got), oldest, "{got} of {free:?}");
        }
    }
    assert_eq!(granted.left.map(|lease| lease.address), leased.filter(|leased| *leased != got));
    if let Some(left) = granted.left {
        naive.past.get_mut(&left.address).unwrap().until = now;
    }
    let spec = naive.spec_of(got).unwrap();
    let until = now + spec.lease_time;
    assert_eq!(granted.lease.until, until);
    assert_eq!(granted.renewed, leased == Some(got));
    let reserved = reserved == Some(got);
    naive.past.insert(got, Past { client, until, reserved });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// No address is two clients', none is lost, and everybody gets what it is promised.
    #[test]
    fn random_histories_agree_with_a_naive_pool(steps in proptest::collection::vec(step(), 1..200)) {
        let mut naive = Naive { specs: two_pools(5, SPAN - 1, SPAN, false, false), ..Naive::default() };
        let mut pools = pools(&naive.specs);
        let mut now = Moment(1000);
        for step in steps {
            take(&mut pools, &mut naive, step, &mut now);
            for n in 0..CLIENTS {
                let leased = naive.leased_to(&client(n), now);
                prop_assert_eq!(pools.lease_of(&client(n), now).map(|lease| lease.address), leased);
            }
        }
        // Everything that is left can be had, once each.
        now = now + 1000;
        naive.specs = two_pools(SPAN, SPAN - 1, SPAN, false, false);
        naive.reshaped = true;
        pools.configure(&naive.specs).unwrap();
        let left = u8::try_from(naive.free("", now).len()).unwrap();
        for n in CLIENTS..CLIENTS + left {
            request(&mut pools, &mut naive, n, "", None, now);
        }
        prop_assert_eq!(pools.request(&ask(99), now).unwrap_err(), Refusal::NoFreeAddress);
    }
}

#[test]
fn a_client_gets_its_address_back_while_nobody_needed_it() {
    let mut pools = pools(&[spec("p", &[(0, 3)])]);
    assert_eq!([0, 1, 2].map(|n| given(&mut pools, n, 0)), [0, 1, 2]);
    // 1 leaves, then 0; the fresh address goes first, then the one that was freed first.
    assert!(pools.release(&client(1), Moment(1)).is_some());
    assert!(pools.release(&client(0), Moment(2)).is_some());
    assert!(pools.release(&client(0), Moment(2)).is_none(), "once");
    assert_eq!(given(&mut pools, 3, 3), 3);
    assert_eq!(pools.request(&ask(4), Moment(10)).unwrap_err(), Refusal::NoFreeAddress, "they rest");
    assert_eq!(given(&mut pools, 1, 10), 1, "not from whose they were");
    pools.release(&client(1), Moment(10));
    assert_eq!(given(&mut pools, 4, 50), 0);
    assert_eq!(given(&mut pools, 0, 50), 1, "0 lost its own");
    // All leases end by themselves.
    assert_eq!(given(&mut pools, 5, 3 + 100 + 10), 2, "ended first");
    assert_eq!(pools.usage("p"), Some(Usage { addresses: 4, leased: 3, drained: false }));
    assert_eq!(pools.usage("q"), None);
}

#[test]
fn a_renewal_prolongs_and_a_gap_does_not() {
    let mut pools = pools(&[spec("p", &[(7, 7)])]);
    let mut lease = |now: u32| pools.request(&ask(0), Moment(now)).unwrap();
    let first = lease(5);
    assert_eq!((first.renewed, first.lease.since, first.lease.until), (false, Moment(5), Moment(105)));
    assert_eq!(first.lease.ipv6, Some("fd64::6440:7".parse().unwrap()));
    let second = lease(100);
    assert_eq!((second.renewed, second.lease.since, second.lease.until), (true, Moment(5), Moment(200)));
    let third = lease(200);
    assert_eq!((third.renewed, third.lease.since), (false, Moment(200)));
}

#[test]
fn groups_have_pools_of_their_own() {
    let mut phones = spec("phones", &[(10, 19)]);
    phones.groups = vec!["phones".to_owned(), "tablets".to_owned()];
    let mut pools = pools(&[spec("rest", &[(0, 9)]), phones.clone()]);
    let mut get = |n, group, wanted: Option<u32>| {
        let ask = Ask { client: client(n), group, pool: "", wanted: wanted.map(addr) };
        let granted = pools.request(&ask, Moment(0)).unwrap();
        (number(granted.lease.address), granted.left.map(|lease| number(lease.address)))
    };
    assert_eq!(get(0, "phones", None), (10, None));
    assert_eq!(get(1, "tablets", Some(15)), (15, None));
    assert_eq!(get(2, "office", Some(15)), (0, None), "a wish for what is another's");
    assert_eq!(get(0, "office", None), (1, Some(10)), "it moved");
    assert_eq!(pools.usage("phones").unwrap().leased, 1);
    pools.configure(&[phones]).unwrap();
    let refused = pools.request(&ask(3), Moment(0)).unwrap_err();
    assert_eq!(refused, Refusal::NoPool(String::new()));
}

#[test]
fn a_drained_pool_keeps_whom_it_has() {
    let mut drained = spec("p", &[(0, 9)]);
    let mut pools = pools(&[drained.clone()]);
    assert_eq!((given(&mut pools, 0, 0), given(&mut pools, 1, 0)), (0, 1));
    pools.release(&client(1), Moment(0));
    drained.drain = true;
    pools.configure(&[drained, spec("q", &[(10, 19)])]).unwrap();
    assert_eq!((given(&mut pools, 0, 5), given(&mut pools, 1, 50), given(&mut pools, 2, 50)), (0, 10, 11));
}

#[test]
fn pools_grow_shrink_and_go() {
    let mut pools = pools(&[spec("p", &[(0, 1)])]);
    assert_eq!((given(&mut pools, 0, 0), given(&mut pools, 1, 0)), (0, 1));
    pools.configure(&[spec("p", &[(1, 2)]), spec("q", &[(5, 5)])]).unwrap();
    assert_eq!(given(&mut pools, 2, 1), 2, "what it grew by");
    assert_eq!(given(&mut pools, 0, 1), 5, "0 is no longer to be had");
    assert_eq!(pools.request(&ask(3), Moment(1)).unwrap_err(), Refusal::NoFreeAddress);
    let before = pools.known();
    pools.configure(&[spec("q", &[(5, 5)])]).unwrap();
    while pools.expire(Moment(500), 9) == 9 {}
    assert!(pools.known() < before, "what is in no pool is forgotten");
    assert_eq!(given(&mut pools, 7, 500), 5);
    // An address that came back is fresh again, whoever had it.
    pools.configure(&[spec("p", &[(0, 9)])]).unwrap();
    let mut all: Vec<_> = (10..19).map(|n| given(&mut pools, n, 501)).collect();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4, 6, 7, 8, 9]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut pools = pools(&[spec("p", &[(0, 9)])]);
    let overlap = pools.configure(&[spec("a", &[(0, 9)]), spec("b", &[(20, 29), (7, 12)])]).unwrap_err();
    assert_eq!(overlap.to_string(), "the pools \"a\" and \"b\" share 100.64.0.7-100.64.0.9");
    let same = pools.configure(&[spec("a", &[(0, 1)]), spec("a", &[(2, 3)])]).unwrap_err();
    assert_eq!(same, PoolError::Name("a".to_owned()));
    let many: Vec<_> = (0..1024).map(|n| spec(&n.to_string(), &[(n, n)])).collect();
    assert_eq!(pools.configure(&many).unwrap_err(), PoolError::TooMany);
    assert_eq!(pools.usage("p").unwrap().addresses, 10, "nothing has changed");

    given(&mut pools, 0, 0);
    let mut reserve = |n, wanted| pools.reserve(&Ask { wanted: Some(addr(wanted)), ..ask(n) }, Moment(0));
    assert_eq!(reserve(1, 0).unwrap_err(), Refusal::Taken { address: addr(0), by: client(0) });
    assert_eq!(reserve(1, 99).unwrap_err(), Refusal::NotInAPool(addr(99)));
    assert_eq!(reserve(1, 5), Ok((addr(5), None)));
    assert_eq!(reserve(1, 6).unwrap_err(), Refusal::Reserved(addr(5)));
}

#[test]
fn a_reservation_outlives_leases_and_yields_to_nobody() {
    let mut pools = pools(&[spec("p", &[(0, 1)])]);
    assert_eq!(pools.reserve(&ask(0), Moment(0)), Ok((addr(0), None)));
    assert_eq!((given(&mut pools, 1, 0), given(&mut pools, 0, 0)), (1, 0));
    while pools.expire(Moment(1000), 9) == 9 {}
    assert_eq!((given(&mut pools, 2, 1000), given(&mut pools, 0, 1000)), (1, 0));
    assert_eq!(pools.unreserve(addr(0), Moment(1000)), Some(client(0)));
    assert_eq!(pools.unreserve(addr(0), Moment(1000)), None);
    assert_eq!(given(&mut pools, 3, 1110), 1, "ended before the other");
    assert_eq!(given(&mut pools, 4, 1110), 0);
}

#[test]
fn what_was_stored_goes_on() {
    let mut pools = pools(&[spec("p", &[(0, 9)])]);
    pools.load(client(0), addr(0), Moment(10), Moment(150));
    pools.load(client(1), addr(1), Moment(10), Moment(40));
    pools.load(client(2), addr(2), Moment(10), Moment(30));
    // The same client twice: a store that missed the end of the first.
    pools.load(client(3), addr(3), Moment(10), Moment(200));
    pools.load(client(3), addr(4), Moment(10), Moment(190));
    pools.load(client(4), addr(99), Moment(10), Moment(300));
    pools.load_reservation(client(5), addr(5));
    while pools.expire(Moment(100), 9) == 9 {}
    assert_eq!(pools.lease_of(&client(0), Moment(100)).unwrap().since, Moment(10));
    assert_eq!(pools.lease_of(&client(1), Moment(100)), None);
    assert_eq!(given(&mut pools, 3, 100), 3, "the later one counts");
    assert_eq!(given(&mut pools, 4, 100), 6, "its own is in no pool");
    assert_eq!(given(&mut pools, 5, 100), 5);
    assert_eq!([7, 8, 9].map(|n| given(&mut pools, n, 100)), [7, 8, 9]);
    assert_eq!(given(&mut pools, 10, 100), 2, "ended first");
    assert_eq!(given(&mut pools, 1, 100), 1, "still its own");
    assert_eq!(pools.request(&ask(11), Moment(100)).unwrap_err(), Refusal::NoFreeAddress, "4 is leased");
}

#[test]
fn a_peer_may_lease_of_one_pool_alone() {
    let mut phones = spec("phones", &[(100, 109)]);
    phones.groups.push("phones".to_owned());
    let mut pools = pools(&[spec("all", &[(0, 9)]), phones]);
    let of = |pool| Ask { pool, ..ask(1) };
    let mut got = |ask: Ask<'_>| pools.request(&ask, Moment(0)).map(|granted| number(granted.lease.address));
    assert_eq!(got(of("phones")), Ok(100), "whatever its group");
    assert_eq!(got(Ask { group: "phones", ..of("all") }), Ok(0), "the other's is no longer its");
    assert_eq!(got(of("none")), Err(Refusal::NoSuchPool("none".to_owned())));
    pools.configure(&[spec("other", &[(100, 109)])]).unwrap();
    assert_eq!(pools.request(&of("all"), Moment(0)), Err(Refusal::NoSuchPool("all".to_owned())));
}

#[test]
fn what_is_set_aside_is_given_first_and_yields_to_who_needs_it() {
    let mut pools = pools(&[spec("all", &[(0, 3)])]);
    let aside = |pools: &mut Pools<RandomState>, n| pools.earmark(&ask(n), Moment(5)).map(number);
    assert_eq!([1, 2, 1, 2].map(|n| aside(&mut pools, n)), [Ok(0), Ok(1), Ok(0), Ok(1)]);
    assert_eq!(pools.usage("all").map(|usage| usage.leased), Some(0));
    assert_eq!(pools.lease_of(&client(1), Moment(5)), None);
    assert_eq!(given(&mut pools, 2, 6), 1, "its own, not what nobody ever had");
    // A wish goes before what was only set aside, but not before what it has had.
    let wish = |n, to| Ask { wanted: Some(addr(to)), ..ask(n) };
    let mut asks = |n, to| number(pools.request(&wish(n, to), Moment(7)).unwrap().lease.address);
    assert_eq!((asks(1, 3), asks(1, 0), asks(2, 0)), (3, 3, 1));
    // Nobody loses an address by it: the four are four clients'.
    assert_eq!((given(&mut pools, 5, 8), given(&mut pools, 6, 8)), (2, 0));
    assert_eq!(pools.request(&ask(7), Moment(8)), Err(Refusal::NoFreeAddress));
    assert_eq!(aside(&mut pools, 7), Err(Refusal::NoFreeAddress));
    assert_eq!(aside(&mut pools, 6), Ok(0), "what it has");
    // Of an address that was set aside and is needed, the other knows nothing.
    let mut pools = self::pools(&[spec("all", &[(0, 0)])]);
    assert_eq!(aside(&mut pools, 1), Ok(0));
    assert_eq!(given(&mut pools, 2, 6), 0);
    assert_eq!(pools.request(&ask(1), Moment(7)), Err(Refusal::NoFreeAddress));
    assert_eq!(given(&mut pools, 1, 200), 0, "after lease and quarantine");
}

#[test]
fn an_address_outside_the_pools_is_held_and_a_pool_that_comes_to_it_gives_it_to_nobody() {
    let now = Moment(100);
    let mut pools = pools(&[]);
    let hold = |pools: &mut Pools<_>, n: u8, last| pools.hold(client(n), addr(last), now);
    assert_eq!(hold(&mut pools, 1, 5), Ok(None));
    assert_eq!(hold(&mut pools, 1, 5), Ok(None), "once more");
    assert_eq!(hold(&mut pools, 1, 6), Err(Refusal::Reserved(addr(5))));
    assert_eq!(hold(&mut pools, 2, 5), Err(Refusal::Taken { address: addr(5), by: client(1) }));
    pools.configure(&[spec("p", &[(4, 6)])]).unwrap();
    assert_eq!([3, 4].map(|n| given(&mut pools, n, 100)), [4, 6]);
    assert_eq!(pools.request(&ask(5), now), Err(Refusal::NoFreeAddress));
    // Under another key it is still the same client's, whose lease ends.
    assert_eq!(given(&mut pools, 1, 100), 5);
    let ended = pools.hand_over(&client(1), client(9), Moment(110)).unwrap();
    assert_eq!((ended.client, ended.address, ended.until), (client(1), addr(5), Moment(110)));
    assert_eq!(pools.hand_over(&client(1), client(8), now), None);
    assert_eq!(pools.request(&ask(1), Moment(120)), Err(Refusal::NoFreeAddress));
    assert_eq!(given(&mut pools, 9, 120), 5);
    // A lease elsewhere ends when an address is held.
    assert_eq!(pools.hold(client(3), addr(99), Moment(130)).unwrap().map(|left| left.address), Some(addr(4)));
    assert_eq!(pools.unreserve(addr(99), now), Some(client(3)));
    assert_eq!(pools.known(), 3);
}

#[test]
fn an_address_of_each_family_goes_with_one_of_the_other() {
    let pools = pools(&[spec("p", &[(1, 9)]), PoolSpec { ipv6: None, ..spec("q", &[(20, 29)]) }]);
    let six = |last| Ipv6Addr::from_bits((0xfd64 << 112) | u128::from(addr(last).to_bits()));
    assert_eq!([1, 10, 20].map(|last| pools.ipv6_of(addr(last))), [Some(six(1)), None, None]);
    assert_eq!([1, 10, 20].map(|last| pools.ipv4_of(six(last))), [Some(addr(1)), None, None]);
    assert_eq!(pools.ipv4_of(Ipv6Addr::from_bits(six(1).to_bits() | 1 << 64)), None);
}
