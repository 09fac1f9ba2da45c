//! A client's profile: a file as wg-quick(8) reads it, and as `ringway join` and `ringway peer add` write it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::wg_quick::{self, Line, lines};
use crate::types::{Address, Mark, Prefix, PublicKey, Secret, is_domain};

/// Where profiles are that are named without a path: `NAME.conf`.
pub const DIRECTORY: &str = "/etc/ringway/profiles";
/// Longest file, bytes: a list of all countries' networks, twice.
const MAX_FILE: u64 = 4 << 20;
/// Permissions that a profile, which holds a key, must not have.
const OTHERS: u32 = 0o077;
/// How a comment begins that is for Ringway.
const OWN: &str = " ringway:";
/// Permissions that a file whose commands are run must not have.
const WRITERS: u32 = 0o022;

/// What a profile says.
#[derive(Debug, Default)]
pub struct Profile {
    /// The client's own key.
    pub private_key: Option<Secret>,
    /// `Address`; none: those that the gateway leases.
    pub addresses: Vec<Address>,
    /// `# ringway: accept = …`
    pub accept: Accept,
    /// `DNS`, the servers.
    pub dns: Vec<IpAddr>,
    /// `DNS`, the domains.
    pub search: Vec<String>,
    /// `DNS`, the domains after `~`: if there are any, the servers are asked for names below these and below `search`
    /// only. `~.` is every name.
    pub match_domains: Vec<String>,
    /// `MTU`, bytes.
    pub mtu: Option<u32>,
    /// `ListenPort`; 0 for any.
    pub listen_port: u16,
    /// `FwMark`
    pub mark: Option<Mark>,
    /// `Table`
    pub table: Table,
    /// `SaveConfig`: accepted; what a client is told while it runs is not written into its file.
    pub save_config: bool,
    /// Commands.
    pub hooks: Hooks,
    /// `[Peer]`
    pub peers: Vec<Peer>,
}

/// What a client takes from its gateway beside an address. It stands in a comment, which wg-quick(8) passes over:
/// `# ringway: accept = routes, dns, mtu`, before the first `[Peer]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// `routes`: networks behind the gateway, and what of them is not; never everything.
    pub routes: bool,
    /// `dns`: servers and search domains, in the place of the profile's.
    pub dns: bool,
    /// `mtu`: in the place of the profile's.
    pub mtu: bool,
    /// `exclusions`: what of the gateway's networks is not behind it stays within reach beside the tunnel even with
    /// the kill switch.
    pub exclusions: bool,
}

impl Accept {
    /// Whether it takes anything.
    #[must_use]
    pub fn anything(self) -> bool {
        self != Self::default()
    }
}

/// Where routes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// Where they belong.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// Into this one.
    Number(u32),
}

/// Commands of a profile, each a line for sh(1) in which `%i` is the device's name.
#[derive(Debug, Default)]
pub struct Hooks {
    /// Before there is a device.
    pub pre_up: Vec<String>,
    /// When all is set up.
    pub post_up: Vec<String>,
    /// Before anything is undone.
    pub pre_down: Vec<String>,
    /// When all is undone.
    pub post_down: Vec<String>,
}

impl Hooks {
    fn is_empty(&self) -> bool {
        [&self.pre_up, &self.post_up, &self.pre_down, &self.post_down].into_iter().all(Vec::is_empty)
    }
}

/// A gateway, or another peer.
#[derive(Debug)]
pub struct Peer {
    /// `PublicKey`
    pub public_key: PublicKey,
    /// `PresharedKey`
    pub preshared_key: Option<Secret>,
    /// `Endpoint`, `HOST:PORT`, and after it those of `# ringway: endpoints = …`: one gateway, tried in this order.
    pub endpoints: Vec<String>,
    /// `AllowedIPs`
    pub allowed_ips: Vec<Prefix>,
    /// `PersistentKeepalive`, seconds; 0 for none.
    pub keepalive: u16,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its mode lets others read the key in it.
    #[error("{} can be read by others (mode {mode:04o}) and holds a key: chmod 600 it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It has commands, and somebody else than root decides what they are.
    #[error(
        "{} has commands (PreUp to PostDown) that run as root, and somebody else may write it: chown root and \
         chmod 600 it, or take them out", .path.display()
    )]
    NotRoots {
        /// The file.
        path: PathBuf,
    },
    /// A line that means nothing.
    #[error("{}:{line}: {wrong}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        wrong: String,
    },
}

/// Reads a profile that nobody but its owner may read.
///
/// # Errors
/// See [`ProfileError`].
pub fn read(path: &Path) -> Result<Profile, ProfileError> {
    let io = |source| ProfileError::Io { path: path.to_owned(), source };
    // Not held up by a pipe that nobody writes to.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let mode = meta.mode() & 0o7777;
    if !meta.is_file() {
        return Err(io(io::Error::other("is no regular file")));
    }
    if mode & OTHERS != 0 {
        return Err(ProfileError::Exposed { path: path.to_owned(), mode });
    }
    let text = text(file, meta.len()).map_err(io)?;
    let profile = Profile::parse(&text).map_err(|(line, wrong)| ProfileError::Line {
        path: path.to_owned(),
        line,
        wrong,
    })?;
    let roots = meta.uid() == 0 && mode & WRITERS == 0 && is_roots_place(path).map_err(io)?;
    if !profile.hooks.is_empty() && !roots {
        return Err(ProfileError::NotRoots { path: path.to_owned() });
    }
    Ok(profile)
}

fn text(file: File, length: u64) -> io::Result<Zeroizing<String>> {
    if length > MAX_FILE {
        return Err(io::Error::other(format!("is longer than {MAX_FILE} bytes")));
    }
    // Never grows, so that no copy of a key is left behind.
    let mut text = Zeroizing::new(String::with_capacity(length as usize + 1));
    file.take(length).read_to_string(&mut text)?;
    Ok(text)
}

/// Nobody but root can put another file in its place.
fn is_roots_place(path: &Path) -> io::Result<bool> {
    let path = path.canonicalize()?;
    for above in path.ancestors().skip(1) {
        let meta = above.metadata()?;
        // In a sticky directory only a file's owner moves it.
        if meta.uid() != 0 || (meta.mode() & WRITERS != 0 && meta.mode() & libc::S_ISVTX == 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Profile {
    /// The error has its line, counted from 1.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut profile = Self::default();
        let mut section = None;
        let mut last = 0;
        for (number, line) in lines(text) {
            last = number;
            let wrong = |what: String| (number, what);
            match (line.map_err(wrong)?, &mut section) {
                (Line::Comment(comment), section) => {
                    if let Some(own) = comment.strip_prefix(OWN) {
                        let peer = section.as_mut().and_then(Section::peer);
                        profile.own(own, peer).map_err(wrong)?;
                    }
                }
                (Line::Section(next), _) => {
                    let next = match next {
                        wg_quick::Section::Interface => Section::Interface,
                        wg_quick::Section::Peer => Section::Peer(Draft { line: number, ..Draft::default() }),
                    };
                    section = Some(next.after(section.take(), &mut profile)?);
                }
                (Line::Setting { key, value }, Some(Section::Interface)) => {
                    profile.interface(&key.to_ascii_lowercase(), value).map_err(wrong)?;
                }
                (Line::Setting { key, value }, Some(Section::Peer(peer))) => {
                    peer.set(&key.to_ascii_lowercase(), value).map_err(wrong)?;
                }
                (Line::Setting { .. }, None) => return Err(wrong("before the first section".to_owned())),
            }
        }
        if let Some(Section::Peer(peer)) = section {
            profile.peers.push(peer.done()?);
        }
        let missing = |what: &str| Err((last, format!("the file says no {what}")));
        match &profile {
            Self { private_key: None, .. } => missing("PrivateKey"),
            Self { peers, .. } if peers.is_empty() => missing("[Peer]"),
            _ => Ok(profile),
        }
    }

    /// What stands in a comment since wg-quick does not know it.
    fn own(&mut self, line: &str, peer: Option<&mut Draft>) -> Result<(), String> {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        match (key.trim(), peer) {
            ("accept", None) => self.accept(value),
            ("accept", Some(_)) => Err("accept = stands before the first [Peer]".to_owned()),
            ("endpoints", Some(peer)) => {
                peer.others.extend(words(value).map(endpoint).collect::<Result<Vec<_>, _>>()?);
                Ok(())
            }
            ("endpoints", None) => Err("endpoints = stands below a [Peer]".to_owned()),
            _ => Err(format!(
                "#{OWN} is followed by accept = WORDS or, below a [Peer], endpoints = HOST:PORT, …"
            )),
        }
    }

    fn accept(&mut self, value: &str) -> Result<(), String> {
        let Accept { routes, dns, mtu, exclusions } = &mut self.accept;
        for word in words(value) {
            *match word {
                "routes" => &mut *routes,
                "dns" => &mut *dns,
                "mtu" => &mut *mtu,
                "exclusions" => &mut *exclusions,
                _ => return Err(format!("{word:?} is none of routes, dns, mtu, exclusions")),
            } = true;
        }
        Ok(())
    }

    fn interface(&mut self, key: &str, value: &str) -> Result<(), String> {
        let Hooks { pre_up, post_up, pre_down, post_down } = &mut self.hooks;
        match key {
            "privatekey" => self.private_key = Some(secret(value)?),
            "address" => list(value, &mut self.addresses)?,
            "dns" => {
                for one in words(value) {
                    let (domains, domain) = match one.strip_prefix('~') {
                        Some(domain) => (&mut self.match_domains, domain),
                        None => (&mut self.search, one),
                    };
                    match one.parse() {
                        Ok(server) => self.dns.push(server),
                        Err(_) if is_domain(domain) || one == "~." => domains.push(domain.to_owned()),
                        Err(_) => return Err(format!("{one:?} is neither an IP address nor a domain")),
                    }
                }
            }
            "mtu" => self.mtu = Some(number(value)?),
            "listenport" => self.listen_port = number(value)?,
            "fwmark" => self.mark = (value != "off").then(|| bits(value).map(Mark)).transpose()?,
            "table" => {
                self.table = match value {
                    "auto" => Table::Auto,
                    "off" => Table::Off,
                    "main" => Table::Number(254),
                    value => Table::Number(bits(value)?),
                }
            }
            "saveconfig" => self.save_config = value == "true",
            "preup" => pre_up.push(value.to_owned()),
            "postup" => post_up.push(value.to_owned()),
            "predown" => pre_down.push(value.to_owned()),
            "postdown" => post_down.push(value.to_owned()),
            "accept" => {
                return Err(format!("wg-quick would not take this line: write `#{OWN} accept = {value}`"));
            }
            _ => return Err(format!("{key} is no key of [Interface]")),
        }
        Ok(())
    }
}

enum Section {
    Interface,
    Peer(Draft),
}

impl Section {
    fn peer(&mut self) -> Option<&mut Draft> {
        match self {
            Self::Interface => None,
            Self::Peer(draft) => Some(draft),
        }
    }

    /// The section before it is whole.
    fn after(self, before: Option<Self>, profile: &mut Profile) -> Result<Self, (usize, String)> {
        if let Some(Self::Peer(peer)) = before {
            profile.peers.push(peer.done()?);
        }
        Ok(self)
    }
}

/// A peer that is being read.
#[derive(Default)]
struct Draft {
    line: usize,
    public_key: Option<PublicKey>,
    preshared_key: Option<Secret>,
    endpoint: Option<String>,
    /// Beside it.
    others: Vec<String>,
    allowed_ips: Vec<Prefix>,
    keepalive: u16,
}

impl Draft {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "publickey" => self.public_key = Some(PublicKey(secret(value)?.0)),
            "presharedkey" => self.preshared_key = Some(secret(value)?),
            "endpoint" => self.endpoint = Some(endpoint(value)?),
            "endpoints" => {
                return Err(format!("wg-quick would not take this line: write `#{OWN} endpoints = {value}`"));
            }
            "allowedips" => {
                let mut addresses: Vec<Address> = Vec::new();
                list(value, &mut addresses)?;
                self.allowed_ips.extend(addresses.iter().map(Address::network));
            }
            "persistentkeepalive" => self.keepalive = if value == "off" { 0 } else { number(value)? },
            _ => return Err(format!("{key} is no key of [Peer]")),
        }
        Ok(())
    }

    fn done(self) -> Result<Peer, (usize, String)> {
        let Self { line, public_key, preshared_key, endpoint, others, allowed_ips, keepalive } = self;
        let public_key = public_key.ok_or_else(|| (line, "this [Peer] has no PublicKey".to_owned()))?;
        let endpoints = endpoint.into_iter().chain(others).collect();
        Ok(Peer { public_key, preshared_key, endpoints, allowed_ips, keepalive })
    }
}

fn endpoint(value: &str) -> Result<String, String> {
    let (host, port) = value.rsplit_once(':').ok_or("an endpoint is HOST:PORT")?;
    if host.is_empty() || port.parse::<u16>().unwrap_or(0) == 0 {
        return Err("an endpoint is HOST:PORT, or [ADDRESS]:PORT of IPv6".to_owned());
    }
    Ok(value.to_owned())
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn list(value: &str, into: &mut Vec<Address>) -> Result<(), String> {
    for one in words(value) {
        into.push(one.parse().map_err(|error| format!("{one:?}: {error}"))?);
    }
    Ok(())
}

/// What stands there may be a key: it is not said again.
fn secret(value: &str) -> Result<Secret, String> {
    value.parse().map_err(|error: crate::types::KeyError| error.to_string())
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value:?} is no number that fits here"))
}

/// Decimal, or hexadecimal after `0x`.
fn bits(value: &str) -> Result<u32, String> {
    let hexadecimal = value.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16));
    let parsed = hexadecimal.unwrap_or_else(|| value.parse());
    parsed.map_err(|_| format!("{value:?} is no number of 32 bits"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::sys::testing::Scratch;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn whole() -> String {
        format!(
            "# Ringway profile 1: made by somebody\n[Interface]\nPrivateKey = {KEY}\nAddress = 100.64.0.2/10, \
             fd64::2/64\naddress=10.0.0.1\nDNS = 100.64.0.1, example.org, ~corp.example, ~.\n\
             MTU = 1380\nTable = 0x10\nFwMark = 51820\n\
             SaveConfig = true\nPostUp = echo a=b %i # why\nPostUp = true\n\n[Peer]\nPublicKey = {KEY}\n\
             PresharedKey = {KEY}\nAllowedIPs = 0.0.0.0/0, 10.1.2.3/8\nEndpoint = [fd00::1]:51820\n\
             PersistentKeepalive = 25\n[Peer]\nPublicKey={KEY}\nPersistentKeepalive=off\n"
        )
    }

    #[test]
    fn all_that_wg_quick_knows_is_read() {
        let profile = Profile::parse(&whole()).unwrap();
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        assert_eq!(format!("{:?}", profile.addresses), "[100.64.0.2/10, fd64::2/64, 10.0.0.1/32]");
        assert_eq!(
            (format!("{:?}", profile.dns), profile.search, profile.match_domains),
            ("[100.64.0.1]".to_owned(), words(&["example.org"]), words(&["corp.example", "."]))
        );
        assert_eq!(
            (profile.mtu, profile.table, profile.mark),
            (Some(1380), Table::Number(16), Some(Mark(51820)))
        );
        assert_eq!(profile.hooks.post_up, ["echo a=b %i", "true"]);
        assert!(profile.save_config && profile.listen_port == 0);
        let [first, second] = &profile.peers[..] else { panic!("{:?}", profile.peers) };
        assert_eq!(format!("{:?}", first.allowed_ips), "[0.0.0.0/0, 10.0.0.0/8]");
        assert_eq!((first.endpoints.concat(), first.keepalive), ("[fd00::1]:51820".to_owned(), 25));
        assert!(first.preshared_key.is_some() && second.endpoints.is_empty() && second.keepalive == 0);
    }

    #[test]
    fn what_means_nothing_is_named_by_its_line_and_no_key_is_said_again() {
        let cases = [
            ("[Interface]", "[Server]", 2, "no section"),
            ("Table = 0x10", "Table = ten", 8, "32 bits"),
            ("MTU = 1380", "MTU = -1", 7, "fits here"),
            ("DNS = 100", "DNS = a..b, 100", 6, "neither an IP"),
            ("~corp", "~~corp", 6, "neither an IP"),
            ("~.", ".", 6, "neither an IP"),
            ("Address = 100.64.0.2/10", "Address = 100.64.0.2/33", 4, "up to 32"),
            ("Endpoint = [fd00::1]:51820", "Endpoint = host", 18, "HOST:PORT"),
            ("Endpoint = [fd00::1]:51820", "Endpont = host:1", 18, "no key of [Peer]"),
            ("SaveConfig = true", "Junk = 1", 10, "no key of [Interface]"),
            ("[Peer]\nPublicKey=", "[Peer]\n#", 20, "no PublicKey"),
        ];
        for (from, to, line, why) in cases {
            let (at, wrong) = Profile::parse(&whole().replacen(from, to, 1)).unwrap_err();
            assert!(at == line && wrong.contains(why), "{to}: {at}: {wrong}");
        }
        let (_, wrong) = Profile::parse(&whole().replacen(KEY, &format!("x{KEY}"), 1)).unwrap_err();
        assert!(!wrong.contains(KEY), "{wrong}");
        let (_, wrong) = Profile::parse("[Interface]\nAddress = 10.0.0.1\n").unwrap_err();
        assert!(wrong.contains("no PrivateKey"), "{wrong}");
    }

    #[test]
    fn what_is_taken_from_the_gateway_stands_in_a_comment() {
        let with = |line: &str| Profile::parse(&whole().replacen("[Interface]", line, 1));
        let accept = with("# ringway: accept = routes, mtu\n[Interface]").unwrap().accept;
        assert_eq!(accept, Accept { routes: true, mtu: true, ..Accept::default() });
        let accept = with("[Interface]\n  # ringway: accept=dns,exclusions").unwrap().accept;
        assert_eq!(accept, Accept { dns: true, exclusions: true, ..Accept::default() });
        assert!(!with("[Interface]\n# Ringway: accepts").unwrap().accept.anything());
        for (line, at, why) in [
            ("[Interface]\n# ringway: accept = everything", 3, "none of routes"),
            ("# ringway: except = dns\n[Interface]", 2, "followed by accept"),
            ("# ringway: endpoints = a:1\n[Interface]", 2, "below a [Peer]"),
            ("[Interface]\nAccept = dns", 3, "write `# ringway: accept = dns`"),
        ] {
            let (number, wrong) = with(line).unwrap_err();
            assert!(number == at && wrong.contains(why), "{line}: {number}: {wrong}");
        }
        let (_, wrong) = Profile::parse(&(whole() + "# ringway: accept = dns\n")).unwrap_err();
        assert!(wrong.contains("before the first [Peer]"), "{wrong}");
        // The second peer has no Endpoint.
        let places = |list: &str| Profile::parse(&format!("{}  # ringway: endpoints = {list}\n", whole()));
        let read = places("a.example:1, [fd00::2]:2").unwrap();
        assert_eq!(read.peers[0].endpoints, ["[fd00::1]:51820"]);
        assert_eq!(read.peers[1].endpoints, ["a.example:1", "[fd00::2]:2"]);
        assert!(places("a.example").unwrap_err().1.contains("HOST:PORT"));
        let leased = Profile::parse(&whole().replace("Address", "# ").replace("address", "# ")).unwrap();
        assert!(leased.addresses.is_empty());
    }

    #[test]
    fn a_profile_is_its_owners_and_one_with_commands_is_roots() {
        let scratch = Scratch::new("profile");
        let path = scratch.0.join("a.conf");
        let with = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read(&path).map(drop).map_err(|error| error.to_string())
        };
        let plain = whole().replace("PostUp", "#");
        assert_eq!(with(&plain, 0o600), Ok(()));
        assert!(with(&plain, 0o640).unwrap_err().contains("chmod 600"));
        assert!(read(&scratch.0).unwrap_err().to_string().contains("no regular file"));
        // The directory that it is in is sticky, or the scratch's own.
        let own = fs::metadata(&scratch.0).unwrap().uid() == 0;
        assert_eq!(with(&whole(), 0o600).is_ok(), own);
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(with(&whole(), 0o600).unwrap_err().contains("commands"));
        assert_eq!(with(&plain, 0o600), Ok(()));
    }
}
