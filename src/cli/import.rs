//! `import`: an existing WireGuard server's wg-quick(8) file becomes a gateway's, with all keys and addresses: clients
//! notice nothing.
//!
//! Nothing is replaced: the files are new ones, keys of mode 0600, and the gateway's file, without secrets, is last.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use zeroize::Zeroizing;

use super::admin::print;
use crate::config::Gateway;
use crate::config::wg_quick::{Line, Section, lines};
use crate::control::peers::is_name;
use crate::net::name::InterfaceName;
use crate::types::{Address, PublicKey, Secret};

/// Longest file that is read, bytes: some hundred thousand peers.
const MAX_FILE: u64 = 64 << 20;

/// `import FILE [--to DIRECTORY]`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The server's file, IFNAME.conf
    file: PathBuf,
    /// Where the gateway's file and its keys go
    #[arg(long, value_name = "DIRECTORY", default_value = "/etc/ringway")]
    to: PathBuf,
}

/// Reads the file, writes the others, and says what was left out.
///
/// # Errors
/// What is wrong with the file, by line; a file that is there already.
pub fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let directory = std::path::absolute(&args.to).context("the present directory")?;
    let at = args.file.display();
    let name = args.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name: InterfaceName =
        name.parse().map_err(|error| anyhow!("{at}: the file is named after its interface: {error}"))?;
    let mut text = Zeroizing::new(String::with_capacity(
        fs::metadata(&args.file).map_or(0, |meta| meta.len() as usize + 1),
    ));
    let file = File::open(&args.file).with_context(|| at.to_string())?;
    file.take(MAX_FILE).read_to_string(&mut text).with_context(|| at.to_string())?;
    let server = Server::parse(&text).map_err(|(line, wrong)| anyhow!("{at}:{line}: {wrong}"))?;
    let Imported { config, keys } = server.imported(&name, &directory);
    let path = directory.join("gateway.toml");
    Gateway::parse(&path, &config)
        .context("this cannot be a gateway's file; what is wrong in what was to be written")?;

    DirBuilder::new().recursive(true).mode(0o755).create(&directory).with_context(|| at.to_string())?;
    let files: Vec<_> = keys.iter().map(|(path, _)| path).chain([&path]).collect();
    if let Some(there) = files.iter().find(|path| path.exists()) {
        bail!("{} is there already: move it away, or import into another directory (--to)", there.display());
    }
    for (path, key) in &keys {
        write_new(path, 0o600, super::keys::text(key).as_bytes())?;
    }
    write_new(&path, 0o644, config.as_bytes())?;
    let peers = server.peers.len();
    let mut said = format!("{}: {peers} peers, {} keys beside it\n", path.display(), keys.len());
    for (line, left) in &server.left {
        let _ = writeln!(said, "{at}:{line}: left out: {left}");
    }
    print(&said)
}

fn write_new(path: &Path, mode: u32, content: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().with_context(|| path.display().to_string())
}

/// What a file says of a server.
#[derive(Debug, Default)]
struct Server {
    private_key: Option<Secret>,
    addresses: Vec<Address>,
    listen_port: Option<u16>,
    mtu: Option<u32>,
    fwmark: Option<String>,
    peers: Vec<Peer>,
    /// Lines that a gateway has no use for.
    left: Vec<(usize, String)>,
}

/// What it says of a peer.
#[derive(Debug, Default)]
struct Peer {
    name: String,
    public_key: Option<PublicKey>,
    preshared_key: Option<Secret>,
    allowed_ips: Vec<String>,
    endpoint: Option<String>,
    keepalive: u16,
    /// Where it begins.
    line: usize,
}

/// What becomes of it.
struct Imported {
    config: String,
    keys: Vec<(PathBuf, Secret)>,
}

impl Server {
    /// The error has its line, counted from 1.
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut server = Self::default();
        // What stands above a peer is often its name.
        let (mut section, mut above) = (None, "");
        for (number, line) in lines(text) {
            let wrong = |what: String| (number, what);
            let (key, value) = match line.map_err(wrong)? {
                Line::Comment(comment) => {
                    if !comment.is_empty() {
                        above = comment.trim_matches(|letter: char| letter == '#' || letter == ' ');
                    }
                    continue;
                }
                Line::Section(next) => {
                    if next == Section::Peer {
                        server.peers.push(server.new_peer(above, number));
                    }
                    (section, above) = (Some(next), "");
                    continue;
                }
                Line::Setting { key, value } => (key, value),
            };
            let small = key.to_ascii_lowercase();
            let known = match (section, server.peers.last_mut()) {
                (Some(Section::Interface), _) => server.set(&small, value).map_err(wrong)?,
                (Some(Section::Peer), Some(peer)) => peer.set(&small, value).map_err(wrong)?,
                _ => return Err(wrong("this stands in no section".to_owned())),
            };
            if !known {
                // Its value may be anything, and is the operator's own.
                server.left.push((number, key.to_owned()));
            }
        }
        if server.private_key.is_none() {
            return Err((1, "no PrivateKey: this is no server's file".to_owned()));
        }
        match server.peers.iter().find(|peer| peer.public_key.is_none()) {
            Some(peer) => Err((peer.line, "a peer without PublicKey".to_owned())),
            None => Ok(server),
        }
    }

    /// A peer with the name that a comment gives it, if it is one and nobody has it yet.
    fn new_peer(&self, comment: &str, line: usize) -> Peer {
        let name = comment.rsplit_once('=').map_or(comment, |(_, name)| name).trim();
        let taken = self.peers.iter().any(|peer| peer.name == name);
        Peer {
            name: if is_name(name) && !taken { name.to_owned() } else { String::new() },
            line,
            ..Peer::default()
        }
    }

    /// False if the key means nothing to a gateway.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "privatekey" => {
                self.private_key = Some(value.parse().map_err(|error| format!("PrivateKey: {error}"))?)
            }
            "address" => {
                for address in value.split(',').map(str::trim) {
                    self.addresses.push(address.parse().map_err(|error| format!("{address}: {error}"))?);
                }
            }
            "listenport" => {
                self.listen_port = Some(value.parse().map_err(|_| format!("{value} is no port"))?)
            }
            "mtu" => self.mtu = Some(value.parse().map_err(|_| format!("{value} is no MTU"))?),
            "fwmark" if value != "off" => self.fwmark = Some(value.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn imported(&self, interface: &InterfaceName, directory: &Path) -> Imported {
        let mut keys = Vec::new();
        let key_file = directory.join(format!("{interface}.key"));
        let mut config = format!("interface = {:?}\nprivate_key_file = {key_file:?}\n", interface.as_str());
        keys.extend(self.private_key.clone().map(|key| (key_file, key)));
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(config, "addresses = {addresses:?}");
        // Without one wg-quick takes any.
        let _ = writeln!(config, "listen_port = {}", self.listen_port.unwrap_or(0));
        if let Some(mtu) = self.mtu {
            let _ = writeln!(config, "mtu = {mtu}");
        }
        if let Some(mark) = &self.fwmark {
            let _ = writeln!(config, "fwmark = {mark}");
        }
        for (number, peer) in (1..).zip(&self.peers) {
            config.push_str("\n[[peer]]\n");
            if !peer.name.is_empty() {
                let _ = writeln!(config, "name = {:?}", peer.name);
            }
            let public_key = peer.public_key.map(|key| key.to_base64()).unwrap_or_default();
            let _ = writeln!(config, "public_key = {public_key:?}\nallowed_ips = {:?}", peer.allowed_ips);
            if let Some(key) = &peer.preshared_key {
                let path = directory.join(format!("{interface}-{number}.psk"));
                let _ = writeln!(config, "preshared_key_file = {path:?}");
                keys.push((path, key.clone()));
            }
            if let Some(endpoint) = &peer.endpoint {
                let _ = writeln!(config, "endpoint = {endpoint:?}");
            }
            if peer.keepalive != 0 {
                let _ = writeln!(config, "keepalive = {}", peer.keepalive);
            }
        }
        Imported { config, keys }
    }
}

impl Peer {
    /// False if the key means nothing to a gateway.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "publickey" => {
                self.public_key = Some(value.parse().map_err(|error| format!("PublicKey: {error}"))?)
            }
            "presharedkey" => {
                self.preshared_key = Some(value.parse().map_err(|error| format!("PresharedKey: {error}"))?);
            }
            "allowedips" => {
                for prefix in value.split(',').map(str::trim).filter(|prefix| !prefix.is_empty()) {
                    // WireGuard clears what is behind the length.
                    let address: Address = prefix.parse().map_err(|error| format!("{prefix}: {error}"))?;
                    self.allowed_ips.push(address.network().to_string());
                }
            }
            // A gateway looks no names up: a client that begins itself is found all the same.
            "endpoint" if value.parse::<std::net::SocketAddr>().is_err() => return Ok(false),
            "endpoint" => self.endpoint = Some(value.to_owned()),
            "persistentkeepalive" if value == "off" => {}
            "persistentkeepalive" => {
                self.keepalive = value.parse().map_err(|_| format!("{value} is no number"))?
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::Scratch;

    const CONF: &str = "# a server\n[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n\
        Address = 10.8.0.1/24, fd08::1/64 # two\nListenPort=51999\nMTU = 1380\nFwMark = 0x51\nDNS = 1.1.1.1\n\
        PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo PrivateKey = secret\nSaveConfig = true\n\n\
        ### Name = alice ###\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n\
        PresharedKey = FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=\nAllowedIPs = 10.8.0.2/32,fd08::2/128\n\
        PersistentKeepalive = 25\n\n[peer]\npublickey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\n\
        allowedips = 10.8.0.3/32, 192.168.7.9/24\nEndpoint = [2001:db8::7]:51820\n\n# alice\n[Peer]\n\
        PublicKey = gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=\nAllowedIPs =\nEndpoint = home.example.org:7\n";

    fn said(conf: &str) -> String {
        let (line, wrong) = Server::parse(conf).unwrap_err();
        format!("{line}: {wrong}")
    }

    #[test]
    fn a_server_keeps_its_keys_and_addresses() {
        let Scratch(scratch) = &Scratch::new("import");
        let file = scratch.join("wg7.conf");
        fs::write(&file, CONF).unwrap();
        let to = scratch.join("etc");
        run(&ImportArgs { file: file.clone(), to: to.clone() }).unwrap();
        let config = crate::config::load(&to.join("gateway.toml")).unwrap();
        assert_eq!(
            (config.interface.as_str(), config.listen_port, config.mtu, config.fwmark.0),
            ("wg7", 51999, 1380, 0x51)
        );
        assert_eq!(format!("{:?}", config.addresses), "[10.8.0.1/24, fd08::1/64]");
        let key = crate::config::key::read(&config.private_key_file).unwrap();
        assert_eq!(*super::super::keys::text(&key), "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=");
        let [alice, site, third] = &config.peer[..] else { panic!("{:?}", config.peer) };
        assert_eq!((alice.name.as_str(), alice.keepalive), ("alice", 25));
        let psk = crate::config::key::read(alice.preshared_key_file.as_ref().unwrap()).unwrap();
        assert_eq!(*super::super::keys::text(&psk), "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=");
        assert_eq!(
            format!("{:?} {:?}", alice.allowed_ips, site.allowed_ips),
            "[10.8.0.2/32, fd08::2/128] [10.8.0.3/32, 192.168.7.0/24]"
        );
        assert_eq!(site.endpoint.unwrap().to_string(), "[2001:db8::7]:51820");
        assert_eq!((third.name.as_str(), third.endpoint, third.allowed_ips.len()), ("", None, 0));
        let left = Server::parse(CONF).unwrap().left;
        let left: Vec<_> = left.iter().map(|(line, what)| format!("{line} {what}")).collect();
        assert_eq!(left, ["8 DNS", "9 PostUp", "10 SaveConfig", "28 Endpoint"]);
        // Nothing is replaced.
        let again = run(&ImportArgs { file, to }).unwrap_err().to_string();
        assert!(again.contains("wg7.key is there already"), "{again}");
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        assert_eq!(said(""), "1: no PrivateKey: this is no server's file");
        assert_eq!(said("a = b"), "1: this stands in no section");
        assert_eq!(said("[Interface]\nPrivateKey = x"), "2: PrivateKey: a key has 44 characters of base64");
        assert_eq!(said("[Interface]\nMTU = x"), "2: x is no MTU");
        assert_eq!(said("[Interface]\nhello"), "2: neither a section nor KEY = VALUE");
        assert_eq!(said("[Other]"), "1: [Other] is no section: [Interface] and [Peer] are");
        let peer = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n[Peer]\n";
        assert_eq!(said(peer), "3: a peer without PublicKey");
        assert!(said(&format!("{peer}AllowedIPs = 10.0.0.0/33")).starts_with("4: 10.0.0.0/33: "));
    }
}
