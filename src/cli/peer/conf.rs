//! What a client's device is given: a configuration as wg-quick(8) and the WireGuard apps read it, and the same as a QR
//! code. Both hold the client's private key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use qrcode::render::{svg, unicode::Dense1x2};
use qrcode::{Color, EcLevel, QrCode};
use zeroize::Zeroizing;

use crate::cli::keys;
use crate::control::admin::wire::{GatewayView, PeerView};
use crate::types::Secret;

/// Pixels of a module in an image.
const PIXELS: usize = 8;
/// Modules around the code (ISO/IEC 18004 section 5.3.8).
const QUIET: usize = 4;

/// Secrets that no gateway knows or shows.
#[derive(Debug, Default)]
pub(in crate::cli) struct Secrets {
    /// The client's private key; `None` if its owner keeps it.
    pub private_key: Option<Secret>,
    /// The key that both sides share beside the others.
    pub preshared_key: Option<Secret>,
}

/// The configuration of a client.
#[must_use]
pub(in crate::cli) fn conf(gateway: &GatewayView, peer: &PeerView, secrets: &Secrets) -> Zeroizing<String> {
    let told = &gateway.clients;
    // Never grows, so that no copy of a key is left behind.
    let lists = told.allowed_ips.iter().chain(&told.dns).chain(&peer.allowed_ips).map(|one| one.len() + 2);
    let mut text = Zeroizing::new(String::with_capacity(1024 + peer.name.len() + lists.sum::<usize>()));
    let mut line = |parts: &[&str]| {
        parts.iter().for_each(|part| text.push_str(part));
        text.push('\n');
    };
    line(&["# ", &peer.name]);
    line(&["[Interface]"]);
    match &secrets.private_key {
        Some(key) => line(&["PrivateKey = ", &keys::text(key)]),
        None => line(&["# PrivateKey = the one that belongs to ", &peer.public_key.0.to_base64()]),
    }
    line(&["Address = ", &peer.allowed_ips.join(", ")]);
    if !told.dns.is_empty() {
        line(&["DNS = ", &told.dns.join(", ")]);
    }
    line(&["MTU = ", &told.mtu.to_string()]);
    line(&["", "\n[Peer]"]);
    line(&["PublicKey = ", &gateway.public_key.map(|key| key.0.to_base64()).unwrap_or_default()]);
    if let Some(key) = &secrets.preshared_key {
        line(&["PresharedKey = ", &keys::text(key)]);
    }
    match &told.endpoint {
        Some(endpoint) => {
            if told.endpoint_is_a_guess {
                line(&["# a guess: [clients] endpoint of the gateway's file says nothing"]);
            }
            line(&["Endpoint = ", endpoint]);
        }
        None => line(&["# Endpoint = HOST:PORT, which the gateway's file does not say"]),
    }
    line(&["AllowedIPs = ", &told.allowed_ips.join(", ")]);
    if told.keepalive != 0 {
        line(&["PersistentKeepalive = ", &told.keepalive.to_string()]);
    }
    text
}

/// What is doubtful about where clients are told that the gateway is.
#[must_use]
pub(in crate::cli) fn doubt(gateway: &GatewayView) -> Option<String> {
    let told = &gateway.clients;
    let Some(endpoint) = &told.endpoint else {
        return Some(
            "no endpoint: the gateway's file says none, and this host has no default route".to_owned(),
        );
    };
    if !told.endpoint_is_a_guess {
        return None;
    }
    let set = "set [clients] endpoint in the gateway's file and `ringway reload`";
    let address = endpoint.parse::<SocketAddr>().map(|endpoint| endpoint.ip());
    Some(match address {
        Ok(address) if is_private(address) => format!(
            "the endpoint {endpoint} is a guess and a private address, which nobody outside this network reaches: {set}"
        ),
        _ => format!("the endpoint {endpoint} is a guess, the source address of the default route: {set}"),
    })
}

/// Addresses that the Internet does not route (RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 4291).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            v4.is_private() || v4.is_link_local() || v4.is_loopback() || shared
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback(),
    }
}

/// The configuration as a QR code.
///
/// # Errors
/// It is longer than a code holds, 2,953 bytes.
pub(in crate::cli) fn qr(conf: &str) -> anyhow::Result<QrCode> {
    QrCode::with_error_correction_level(conf, EcLevel::L).map_err(|_| {
        anyhow::anyhow!("the configuration is too long for a QR code: exclude less in [clients]")
    })
}

/// For a terminal, dark on light whatever its colours are.
#[must_use]
pub(in crate::cli) fn for_terminal(code: &QrCode) -> String {
    let text = code.render::<Dense1x2>().quiet_zone(true).build();
    // Black on white.
    let lines = text.lines().map(|line| format!("\x1b[30;107m{line}\x1b[0m\n"));
    lines.collect()
}

/// A file that is made before the peer is, so that its key is not lost for want of a directory; removed if nothing is
/// written.
#[derive(Debug)]
pub(in crate::cli) struct Draft {
    path: PathBuf,
    file: File,
    written: bool,
}

impl Draft {
    /// A new file, mode 0600.
    ///
    /// # Errors
    /// It is there already, or what the file system says.
    pub(in crate::cli) fn new(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!("{} is there already: name another file", path.display())
            }
            _ => anyhow::anyhow!("{}: {error}", path.display()),
        })?;
        Ok(Self { path: path.to_owned(), file, written: false })
    }

    /// For an image, which its name must say to be a PNG or an SVG.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(in crate::cli) fn image(path: &Path) -> anyhow::Result<Self> {
        if !is_svg(path) && path.extension().is_none_or(|extension| extension != "png") {
            bail!("{}: an image ends in .png or .svg", path.display());
        }
        Self::new(path)
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What the file system says.
    pub(in crate::cli) fn write(mut self, content: &[u8]) -> anyhow::Result<()> {
        let written = self.file.write_all(content).and_then(|()| self.file.sync_all());
        written.with_context(|| self.path.display().to_string())?;
        self.written = true;
        Ok(())
    }

    /// Writes a code as the image that the file's name says.
    ///
    /// # Errors
    /// What the file system says.
    pub(in crate::cli) fn draw(self, code: &QrCode) -> anyhow::Result<()> {
        let image = Zeroizing::new(if is_svg(&self.path) {
            code.render::<svg::Color<'_>>().min_dimensions(256, 256).quiet_zone(true).build().into_bytes()
        } else {
            png(code).context("the image")?
        });
        self.write(&image)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.written {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_svg(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "svg")
}

/// Grey on eight bits: black and white.
fn png(code: &QrCode) -> Result<Vec<u8>, png::EncodingError> {
    let (width, modules) = (code.width(), code.to_colors());
    let side = (width + 2 * QUIET) * PIXELS;
    let mut pixels = Zeroizing::new(vec![0xff; side * side]);
    let dark = modules.chunks(width).enumerate().flat_map(|(row, line)| {
        let dark = line.iter().enumerate().filter(|(_, color)| **color == Color::Dark);
        dark.map(move |(column, _)| (row, column))
    });
    for (row, column) in dark {
        for line in 0..PIXELS {
            let at = ((row + QUIET) * PIXELS + line) * side + (column + QUIET) * PIXELS;
            if let Some(run) = pixels.get_mut(at..at + PIXELS) {
                run.fill(0);
            }
        }
    }
    let mut image = Vec::new();
    let mut encoder = png::Encoder::new(&mut image, side as u32, side as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::wire::{ClientsView, Key, Origin, State};
    use crate::sys::testing::Scratch;
    use crate::types::PublicKey;

    fn gateway() -> GatewayView {
        GatewayView {
            version: "1".to_owned(),
            interface: "wg0".to_owned(),
            public_key: Some(Key(PublicKey([1; 32]))),
            listen_port: 51820,
            addresses: vec!["100.64.0.1/10".to_owned()],
            clients: ClientsView {
                endpoint: Some("192.0.2.1:51820".to_owned()),
                endpoint_is_a_guess: false,
                allowed_ips: vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
                dns: vec!["100.64.0.1".to_owned(), "example.org".to_owned()],
                keepalive: 25,
                mtu: 1420,
            },
        }
    }

    fn peer() -> PeerView {
        PeerView {
            name: "alice".to_owned(),
            source: Origin::Store,
            public_key: Key(PublicKey([2; 32])),
            preshared_key: true,
            allowed_ips: vec!["100.64.0.2/32".to_owned(), "fd64::2/128".to_owned()],
            group: String::new(),
            connected: None,
            hostname: None,
            state: State::Active,
            expires: None,
            created: Some(7),
            place: None,
            traffic: None,
        }
    }

    #[test]
    fn the_configuration_is_what_wg_quick_reads() {
        let secrets = Secrets { private_key: Some(Secret([3; 32])), preshared_key: Some(Secret([4; 32])) };
        let key = |byte| keys::text(&Secret([byte; 32])).to_string();
        let text = conf(&gateway(), &peer(), &secrets);
        assert_eq!(
            *text,
            format!(
                "# alice\n[Interface]\nPrivateKey = {}\nAddress = 100.64.0.2/32, fd64::2/128\n\
                 DNS = 100.64.0.1, example.org\nMTU = 1420\n\n[Peer]\nPublicKey = {}\nPresharedKey = {}\n\
                 Endpoint = 192.0.2.1:51820\nAllowedIPs = 0.0.0.0/0, ::/0\nPersistentKeepalive = 25\n",
                key(3),
                key(1),
                key(4)
            )
        );
        assert!(text.capacity() < 2048 && qr(&text).unwrap().width() < 80);
        // A private key that its owner keeps; nothing that need not be said; a guess.
        let mut plain = gateway();
        plain.clients =
            ClientsView { dns: Vec::new(), keepalive: 0, endpoint_is_a_guess: true, ..plain.clients };
        let text = conf(&plain, &peer(), &Secrets::default());
        assert!(text.contains(&format!("# PrivateKey = the one that belongs to {}\n", key(2))), "{}", *text);
        assert!(
            text.contains("\n# a guess") && !text.contains("DNS") && !text.contains("Keepalive"),
            "{}",
            *text
        );
        plain.clients.endpoint = None;
        assert!(conf(&plain, &peer(), &Secrets::default()).contains("\n# Endpoint = HOST:PORT"));
    }

    #[test]
    fn a_guess_is_told_and_a_private_one_more_so() {
        let told = |endpoint: Option<&str>, guess| {
            let mut gateway = gateway();
            gateway.clients.endpoint = endpoint.map(str::to_owned);
            gateway.clients.endpoint_is_a_guess = guess;
            doubt(&gateway).unwrap_or_default()
        };
        assert_eq!(told(Some("10.0.0.1:7"), false), "");
        assert!(told(None, true).starts_with("no endpoint"));
        for private in ["10.0.0.1:7", "100.64.0.1:7", "169.254.0.1:7", "[fd00::1]:7", "[fe80::1]:7"] {
            assert!(told(Some(private), true).contains("private"), "{private}");
        }
        for public in ["192.0.2.1:7", "100.128.0.1:7", "[2001:db8::1]:7"] {
            assert!(!told(Some(public), true).contains("private"), "{public}");
        }
    }

    #[test]
    fn nothing_is_replaced_and_nothing_empty_left() {
        let scratch = Scratch::new("draft");
        let path = scratch.0.join("code.png");
        drop(Draft::image(&path).unwrap());
        assert!(!path.exists());
        Draft::image(&path).unwrap().draw(&qr("text").unwrap()).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(b"\x89PNG"));
        assert!(Draft::new(&path).unwrap_err().to_string().contains("is there already"));
        assert!(Draft::image(Path::new("a.gif")).unwrap_err().to_string().contains(".png or .svg"));
        let svg = path.with_extension("svg");
        Draft::image(&svg).unwrap().draw(&qr("text").unwrap()).unwrap();
        assert!(fs::read_to_string(&svg).unwrap().contains("<svg"));
    }
}
