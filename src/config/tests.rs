//! The shipped file, every key, and every way to get it wrong, by line.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::sys::testing::Scratch;

/// RFC 7748 section 6.1: Alice's and Bob's.
const ALICE: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const BOB: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

fn shipped() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/gateway.toml")).unwrap()
}

fn parse(text: &str) -> Result<Gateway, ConfigError> {
    Gateway::parse(Path::new("g.toml"), text)
}

/// What is wrong with a text.
fn wrong(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// The lines of the shipped file that are a default (`#key = …`) without their mark.
fn with_defaults(text: &str) -> (String, usize) {
    let mut count = 0;
    let is_default = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(" = ");
    let lines = text.lines().map(|line| match line.strip_prefix('#').filter(|rest| is_default(rest)) {
        Some(line) => {
            count += 1;
            line
        }
        None => line,
    });
    (lines.collect::<Vec<_>>().join("\n"), count)
}

/// The names of a table and of what is in it, from what serde says to a key that does not exist.
fn known_keys(table: &str) -> usize {
    let said = wrong(&format!("{table}\nno_such_key = 1"));
    said.matches('`').count() / 2 - 1
}

#[test]
fn the_shipped_file_is_the_default_with_and_without_its_comments() {
    assert_eq!(parse(&shipped()).unwrap(), Gateway::default());
    let (text, count) = with_defaults(&shipped());
    assert_eq!(parse(&text).unwrap(), Gateway::default());
    let tables = ["[forwarding]", "[services]", "[offload]", "[metrics]", "[log]", "[store]", "[clients]"];
    let keys = known_keys("") - tables.len() - 2 + tables.map(known_keys).iter().sum::<usize>();
    assert_eq!(count, keys, "each key with its default, and no other");
}

/// The default itself cannot show that a line was read: another value of each key must make a difference.
#[test]
fn each_default_of_the_shipped_file_is_its_own() {
    let (text, _) = with_defaults(&shipped());
    for (place, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let other = match value {
            "true" => "false",
            "false" => "true",
            "[]" if key == "addresses" => "[\"100.64.0.1/10\"]",
            "[]" if key == "interfaces" => "[\"eth0\"]",
            "[]" if ["dns", "excluded"].contains(&key) => "[\"100.64.0.1\"]",
            "[]" if key == "search" => "[\"example.org\"]",
            "[]" => "[7]",
            "\"full\"" => "[\"10.0.0.0/8\"]",
            "\"\"" if key == "endpoint" => "\"vpn.example.org\"",
            "0" | "25" | "30" | "100" | "500" | "1420" | "51820" => "777",
            "\"auto\"" if key == "workers" => "3",
            "\"auto\"" if key == "aead" => "\"scalar\"",
            "\"auto\"" if key == "aes" => "\"off\"",
            "\"auto\"" => "\"poll\"",
            "\"info\"" => "\"debug\"",
            "\"text\"" => "\"json\"",
            "\"127.0.0.1:9586\"" => "\"off\"",
            _ => "\"/other\"",
        };
        let other = if key == "interface" { "\"wg7\"" } else { other };
        let changed: Vec<_> = text.lines().enumerate().collect();
        let changed: Vec<_> = changed
            .into_iter()
            .map(|(at, line)| if at == place { format!("{key} = {other}") } else { line.to_owned() })
            .collect();
        assert_ne!(parse(&changed.join("\n")).unwrap(), Gateway::default(), "{key}");
    }
}

#[test]
fn the_example_of_a_peer_is_one() {
    let text: Vec<_> = shipped().lines().map(|line| line.trim_start_matches("##").to_owned()).collect();
    let gateway = parse(&text.join("\n")).unwrap();
    let [alice] = &gateway.peer[..] else { panic!("{:?}", gateway.peer) };
    assert_eq!((alice.name.as_str(), alice.public_key.to_base64().as_str()), ("alice", ALICE));
    assert_eq!(alice.allowed_ips.len(), 2);
    assert_eq!((alice.group.as_str(), alice.pool.as_str()), ("phones", "phones"));
    assert_eq!(known_keys(&format!("[[peer]]\npublic_key = \"{ALICE}\"")), 8, "the example has all of them");
    assert_eq!(known_keys("[[pool]]\nname = \"x\"\nipv4 = []"), 8, "and of a pool");
    let [phones] = &gateway.pool[..] else { panic!("{:?}", gateway.pool) };
    assert_eq!(phones.ranges().count(), 65_536 - 16 + 90);
    assert_eq!(
        phones.to_string(),
        "phones [100.100.0.0-100.100.255.255, 100.101.0.10-100.101.0.99] without [100.100.0.0-100.100.0.15] \
         fd64::/64 for 86400 s, quarantine 300 s, groups [\"phones\"]"
    );
    let least = parse("[[pool]]\nname = \"phones\"\nipv4 = [\"100.100.0.0/16\"]").unwrap();
    let defaults = |pool: &Pool| (pool.lease_time, pool.quarantine, pool.drain);
    assert_eq!(defaults(phones), defaults(&least.pool[0]), "the example's values are the defaults");
    assert_eq!(gateway.services.tcp[0].get(), 53);
    assert_eq!(gateway.cores, [2, 3]);
}

#[test]
fn directories_follow_the_interface() {
    let gateway = parse("interface = \"office\"").unwrap();
    assert_eq!(gateway.private_key_file, Path::new("/var/lib/ringway/office/private.key"));
    assert_eq!(gateway.run_dir(), Path::new("/run/ringway/office"));
    assert_eq!(gateway.store.path, Path::new("/var/lib/ringway/office/store.db"));
}

#[test]
fn values_in_all_their_notations() {
    let gateway = parse("fwmark = 0xffffffff\nworkers = 256\nbusy_poll = 1000\nlisten_port = 0").unwrap();
    assert_eq!((gateway.fwmark, gateway.listen_port), (Mark(u32::MAX), 0));
    assert_eq!(gateway.busy_poll, Duration::from_millis(1));
    assert!(matches!(gateway.workers, Workers::Number(number) if number.get() == 256));
    let peer = format!(
        "[[peer]]\npublic_key = \"{ALICE}\"\nallowed_ips = [\"10.0.0.1\", \"::/0\"]\n\
         endpoint = \"[::ffff:192.0.2.1]:7\""
    );
    let gateway = parse(&peer).unwrap();
    assert_eq!(format!("{:?}", gateway.peer[0].allowed_ips), "[10.0.0.1/32, ::/0]");
    assert_eq!(gateway.peer[0].endpoint, Some("192.0.2.1:7".parse().unwrap()));
}

#[test]
fn words_mean_numbers_and_choices() {
    let count = |text: &str, cores: &[usize]| parse(text).unwrap().workers.count(cores);
    assert_eq!((count("workers = 3", &[]), count("workers = 3", &[1, 2])), (3, 3));
    assert_eq!((count("", &[5]), count("", &[1, 2])), (1, 2));
    let mine = std::thread::available_parallelism().unwrap().get();
    assert_eq!(usize::from(count("", &[])), mine.min(usize::from(crate::sys::tun::MAX_QUEUES)));
    for (word, io) in [("auto", Io::Auto), ("uring", Io::Uring), ("poll", Io::Poll)] {
        assert_eq!((parse(&format!("io = {word:?}")).unwrap().io, word.parse()), (io, Ok(io)));
    }
    assert!("epoll".parse::<Io>().unwrap_err().contains("'poll'"));
}

/// Each value that is refused, alone on line 2 of a file.
#[test]
fn each_bad_value_is_named_with_its_line() {
    for (line, says) in [
        ("bogus = 1", "unknown key `bogus`"),
        ("\"two\\nlines\" = 1", "unknown key `two lines`"),
        ("[forwarding]\nmasqerade = true", "unknown key `masqerade`"),
        ("[[peer]]\nallowedips = []", "unknown key `allowedips`"),
        ("interface = \"a/b\"", "\"a/b\": an interface name has no '/'"),
        ("interface = \"sixteen-letters-\"", "1 to 15 bytes"),
        ("interface = 7", "expected a string"),
        ("addresses = [\"100.64.0.1/33\"]", "\"100.64.0.1/33\": the prefix length is a number up to 32"),
        ("addresses = [\"100.64.0.256/10\"]", "\"100.64.0.256/10\": no IP address"),
        ("addresses = [\"fd64::1/+6\"]", "the prefix length"),
        ("addresses = \"100.64.0.1/10\"", "expected a sequence"),
        ("mtu = 575", "575 is no number from 576 to 65440"),
        ("mtu = 65441", "65441 is no number"),
        ("mtu = 1400.0", "expected i64"),
        ("listen_port = 65536", "65536"),
        ("listen_port = -1", "-1"),
        ("fwmark = 0x100000000", "4294967296 is no number from 0 to 4294967295"),
        ("workers = 0", "\"auto\" or a number from 1 to 256"),
        ("workers = 257", "\"auto\" or a number from 1 to 256"),
        ("workers = \"all\"", "\"auto\" or a number from 1 to 256"),
        ("cores = [-1]", "-1"),
        ("busy_poll = 1001", "1001 is no number from 0 to 1000"),
        ("aead = \"aes\"", "unknown variant `aes`, expected `auto` or `scalar`"),
        ("aes = \"on\"", "unknown variant `on`, expected `auto` or `off`"),
        ("io = \"epoll\"", "unknown variant `epoll`, expected one of `auto`, `uring`, `poll`"),
        ("queue_length = 0", "0 is no number from 1 to 100000"),
        ("[forwarding]\ninterfaces = [\"a/b\"]", "\"a/b\": an interface name has no '/'"),
        ("[services]\ntcp = [0]", "0 is no number from 1 to 65535"),
        ("[metrics]\nlisten = \"localhost:9586\"", "\"localhost:9586\": neither \"off\" nor an address"),
        ("[log]\nlevel = \"loud\"", "unknown variant `loud`"),
        ("[[peer]]\npublic_key = \"short\"", "\"short\": a key has 44 characters of base64"),
        ("[[peer]]\nname = \"x\"", "missing field `public_key`"),
        ("[[peer]]\nallowed_ips = [\"10.0.0.1/8\"]", "bits are set behind the prefix: write 10.0.0.0/8"),
        ("[[peer]]\nendpoint = \"vpn.example:1\"", "names are not looked up"),
        ("[[peer]]\nendpoint = \"192.0.2.1:0\"", "no address and port"),
        ("[[peer]]\nkeepalive = 65536", "65536"),
        ("[clients]\nendpoint = \"vpn.example.org:0\"", "\"vpn.example.org:0\": no name or address"),
        ("[clients]\nendpoint = \"192.0.2.256\"", "no name or address"),
        ("[clients]\nendpoint = \"a_b\"", "no name or address"),
        ("[clients]\nallowed_ips = \"split\"", "\"full\" or a list of networks"),
        ("[clients]\nallowed_ips = [\"10.0.0.1/8\"]", "write 10.0.0.0/8"),
        ("[clients]\nsearch = [\"-x.org\"]", "a domain is letters"),
        ("[clients]\nsearch = [\"x..org\"]", "a domain is letters"),
        ("[clients]\nmtu = 575", "575 is neither 0 nor a number from 576 to 65440"),
        ("[clients]\ndns = [\"a.org\"]", "invalid IP address"),
        ("[store]\nhistory = 3651", "3651 is no number from 0 to 3650"),
        ("[[pool]]\nipv4 = [\"100.64.0.9-100.64.0.1\"]", "the range ends before it begins"),
        ("[[pool]]\nipv4 = [\"fd64::/64\"]", "\"fd64::/64\": no IPv4 range"),
        ("[[pool]]\nname = \"x\"", "missing field `ipv4`"),
        ("[[pool]]\nlease_time = 59", "59 is no number from 60 to 31536000"),
        ("[[pool]]\nquarantine = 604801", "604801 is no number from 0 to 604800"),
        ("[[pool]]\nipv6 = \"fd64::1/64\"", "write fd64::/64"),
        ("mtu = 1400\nmtu = 1400", "duplicate key"),
        ("mtu 1400", "key with no value"),
        ("mtu = ", "expected"),
    ] {
        let said = wrong(&format!("# a comment\n{line}"));
        let at = line.lines().count() + 1;
        // A section that lacks something is named by its first line.
        let at = if said.contains("missing field") { at - 1 } else { at };
        assert!(said.starts_with(&format!("g.toml:{at}: ")), "{line}: {said}");
        assert!(said.contains(says), "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
    }
}

/// What no line alone can tell; every finding of a file is reported.
#[test]
fn what_does_not_fit_together_is_named_with_both_lines() {
    let peers = format!(
        "addresses = [\"100.64.0.1/10\", \"100.64.0.1/24\"]
mtu = 1279
[[peer]]
name = \"a\"
public_key = \"{ALICE}\"
allowed_ips = [\"100.64.0.0/16\", \"100.64.0.2/32\"]
[[peer]]
name = \"a\"
public_key = \"{ALICE}\"
allowed_ips = [
  \"100.64.3.0/24\",
  \"100.64.0.2\",
  \"100.64.0.1\",
]
preshared_key_file = \"alice.psk\""
    );
    let said = wrong(&peers);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "g.toml:1: the address 100.64.0.1 stands here twice, first in line 1",
            "g.toml:8: the name \"a\" is another peer's as well, in line 4",
            "g.toml:9: this public key is another peer's as well, in line 5",
            "g.toml:12: 100.64.0.2/32 belongs to one peer only, and stands in line 6 as well",
            "g.toml:13: 100.64.0.1 is the gateway's own address",
            "g.toml:15: the path must begin with '/'",
        ]
    );
    assert_eq!(
        wrong("mtu = 1279\naddresses = [\"fd64::1/64\"]"),
        "g.toml:1: IPv6 needs an MTU of 1280 at least"
    );
    assert!(parse("mtu = 1280\naddresses = [\"fd64::1/64\"]").is_ok());
    assert!(parse("mtu = 576\naddresses = [\"100.64.0.1/10\"]").is_ok());
    assert_eq!(wrong("cores = [\n1,\n1]"), "g.toml:3: core 1 stands here twice, first in line 2");
    assert_eq!(
        wrong("[forwarding]\ninterfaces = [\n\"up0\",\n\"up0\",\n\"wg0\",\n\"up*\"]"),
        "g.toml:4: the interface up0 stands here twice, first in line 3\n\
         g.toml:5: wg0 is the gateway's own: name those that clients leave by\n\
         g.toml:6: nftables takes no interface named up*: rename it"
    );
    assert_eq!(wrong("private_key_file = \"key\""), "g.toml:1: the path must begin with '/'");
    // Nested prefixes are one peer's exception within another's.
    let nested = format!(
        "[[peer]]\npublic_key = \"{ALICE}\"\nallowed_ips = [\"10.0.0.0/8\"]\n[[peer]]\npublic_key = \"{BOB}\"\n\
         allowed_ips = [\"10.1.0.0/16\"]"
    );
    assert_eq!(parse(&nested).unwrap().peer.len(), 2);
}

#[test]
fn what_clients_are_told_is_bounded_and_a_pool_by_name_exists() {
    let nine = ["\"10.0.0.1\""; 9].join(", ");
    let text = format!(
        "[clients]\ndns = [{nine}]\nsearch = [\"a\"]\n[[peer]]\npublic_key = \"{ALICE}\"\npool = \"x\"\n\
         [[peer]]\npublic_key = \"{BOB}\"\npool = \"y\"\n[[pool]]\nname = \"y\"\nipv4 = [\"100.64.0.0/24\"]"
    );
    assert_eq!(wrong(&text), "g.toml:2: 8 at most\ng.toml:6: there is no pool \"x\"");
    let networks = vec!["\"10.0.0.0/8\""; 100].join(", ");
    let long =
        |mtu| format!("addresses = [\"100.64.0.1/10\"]\nmtu = {mtu}\n[clients]\nexcluded = [{networks}]");
    assert!(parse(&long(716)).is_ok());
    let said = wrong(&long(715));
    assert_eq!(said, "g.toml:3: a client is told all of this in 716 bytes, and 715 fit its MTU: say less");
    let of =
        |text: &str| parse(&format!("[clients]\nendpoint = {text:?}")).unwrap().clients.endpoint.unwrap();
    let printed = |text: &str| (of(text).to_string(), of(text).with_port(7));
    for (text, with_port) in [
        ("vpn.example.org", "vpn.example.org:7"),
        ("vpn.example.org:443", "vpn.example.org:443"),
        ("192.0.2.1", "192.0.2.1:7"),
        ("2001:db8::1", "[2001:db8::1]:7"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
    ] {
        assert_eq!(printed(text), (text.to_owned(), with_port.to_owned()));
    }
}

/// What a pool may not be, and whose addresses it may not have.
#[test]
fn pools_and_addresses_by_name_do_not_meet() {
    let pools = format!(
        "addresses = [\"100.64.0.1/10\",
  \"fd64::6440:2/64\"]
[store]
path = \"store.db\"
[[pool]]
name = \"a\"
ipv4 = [\"100.64.0.0/24\"]
ipv6 = \"fd64::/64\"
[[pool]]
name = \"a\"
ipv4 = [\"100.64.1.0/24\", \"100.64.0.9\",
  \"127.0.0.1\"]
ipv6 = \"10.0.0.0/8\"
[[pool]]
name = \"\"
ipv4 = [\"100.65.0.0/24\"]
exclude = [\"100.65.0.0/16\"]
[[peer]]
public_key = \"{ALICE}\"
allowed_ips = [\"0.0.0.0/0\",
  \"100.64.0.7\",
  \"fd64::6440:100/120\",
  \"fd64::6440:0/120\",
  \"fd64::/48\",
  \"100.65.0.0/24\"]"
    );
    let said = wrong(&pools);
    let lines: Vec<_> = said.lines().map(|line| line.trim_start_matches("g.toml:")).collect();
    assert_eq!(
        lines,
        [
            "1: the pool \"a\" would give 100.64.0.1 to a client: exclude 100.64.0.1",
            "2: the pool \"a\" would give fd64::6440:2 to a client: exclude 100.64.0.2",
            "4: the path must begin with '/'",
            "10: the name \"a\" is another pool's as well, in line 6",
            "11: 100.64.0.9 is in the pool \"a\" as well",
            "12: 127.0.0.1 is no address that a client can have",
            "13: an IPv6 prefix of at most 96 bits is needed: the last 32 are the IPv4 address",
            "15: a pool needs a name",
            "16: no address is left in this pool",
            "21: the pool \"a\" would give addresses of 100.64.0.7/32 to others: exclude 100.64.0.7",
            "23: the pool \"a\" would give addresses of fd64::6440:0/120 to others: exclude \
             100.64.0.0-100.64.0.255",
            "24: the pool \"a\" would give addresses of fd64::/48 to others: exclude 100.64.0.0-100.64.0.255",
        ]
    );
    let excluded = pools.replace("[\"100.64.0.0/24\"]", "[\"100.64.0.0/24\"]\nexclude = [\"100.64.0.0/29\"]");
    assert!(!wrong(&excluded).contains("exclude 100.64.0.1"), "{}", wrong(&excluded));
}

impl Scratch {
    /// Makes a file of it.
    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

#[test]
fn key_files_are_read_and_others_must_not() {
    let scratch = Scratch::new("keys");
    let key = key::read(&scratch.file("good", &format!(" {ALICE}\n"), 0o600)).unwrap();
    assert_eq!(PublicKey(key.0).to_base64(), ALICE);
    assert!(key::read(&scratch.file("owner", ALICE, 0o400)).is_ok());
    let says = |path: &Path| key::read(path).unwrap_err().to_string();
    assert_eq!(says(&scratch.0.join("none")), "does not exist");
    for mode in [0o640, 0o604, 0o610, 0o602] {
        assert!(says(&scratch.file("open", ALICE, mode)).contains(&format!("mode {mode:04o}")), "{mode:o}");
    }
    assert!(says(&scratch.file("text", "no key", 0o600)).contains("holds no key"));
    assert!(says(&scratch.file("long", &format!("{ALICE}{ALICE}"), 0o600)).contains("holds no key"));
    assert!(says(&scratch.file("zero", &PublicKey([0; 32]).to_base64(), 0o600)).contains("holds no key"));
    assert!(says(&scratch.file("binary", "\u{fffd}", 0o600)).contains("holds no key"));
    assert_eq!(says(&scratch.0), "is no regular file");
}

#[test]
fn files_and_cores_are_checked_with_the_line_that_names_them() {
    let scratch = Scratch::new("load");
    let open = scratch.file("open.psk", ALICE, 0o644);
    let none = scratch.0.join("none.psk");
    let text = format!(
        "cores = [4095]\nprivate_key_file = \"{}\"\n[[peer]]\npublic_key = \"{ALICE}\"\npreshared_key_file = \"{}\"\n\
         [[peer]]\npublic_key = \"{BOB}\"\npreshared_key_file = \"{}\"\n",
        scratch.file("private.key", "nonsense", 0o600).display(),
        open.display(),
        none.display()
    );
    let path = scratch.file("gateway.toml", &text, 0o644);
    let said = load(&path).unwrap_err().to_string();
    let lines: Vec<_> = said.lines().collect();
    let file = path.display();
    assert_eq!(lines.len(), 4, "{said}");
    assert!(lines[0].starts_with(&format!("{file}:1: core 4095 is none of this process's: [")), "{said}");
    assert!(lines[1].starts_with(&format!("{file}:2: ")) && lines[1].contains("holds no key"), "{said}");
    assert_eq!(
        lines[2],
        format!("{file}:5: {} can be read by others (mode 0644): chmod 600 it", open.display())
    );
    assert_eq!(lines[3], format!("{file}:8: {} does not exist", none.display()));

    let said = load(&scratch.0.join("absent.toml")).unwrap_err().to_string();
    assert!(said.contains("absent.toml: cannot be opened: No such file"), "{said}");
    // Nobody's file is so long: a sparse one, of NULs.
    let long = scratch.file("long.toml", "", 0o644);
    File::options().write(true).open(&long).unwrap().set_len(MAX_FILE + 1).unwrap();
    assert_eq!(
        load(&long).unwrap_err().to_string(),
        format!("{}: has more than 268435456 bytes", long.display())
    );
    // A private key that is not there is made at the start.
    let text = format!("private_key_file = \"{}\"", scratch.0.join("new.key").display());
    assert!(load(&scratch.file("fresh.toml", &text, 0o644)).is_ok());
}
