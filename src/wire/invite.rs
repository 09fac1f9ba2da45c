//! The URI of an invite (docs/protocol.md, "Enrolment"): `ringway://invite/ID?key=…&secret=…&uses=N&at=HOST:PORT`.
//!
//! Whoever has it can become a peer: it is printed and read in one place each, and both wipe it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::net::{IpAddr, SocketAddr};
use zeroize::Zeroizing;

use crate::types::{PublicKey, Secret, is_domain};

/// What it begins with.
pub const SCHEME: &str = "ringway://invite/";
/// Longest URI that is read, bytes: with the longest names it is shorter.
pub const MAX_URI: usize = 2048;
/// Most uses.
pub const MAX_USES: u16 = 256;
/// Most places at which the gateway may be.
pub const MAX_PLACES: usize = 4;
/// Longest id, bytes.
pub const MAX_ID: usize = 32;
/// Characters of 32 bytes in base64url without padding.
const KEY_TEXT: usize = 43;

/// What an invite says.
#[derive(Clone, Debug)]
pub struct Invite {
    /// Its name on the gateway: no secret.
    pub id: String,
    /// The gateway's identity.
    pub gateway: PublicKey,
    /// What the keys of its uses are derived from.
    pub secret: Secret,
    /// How many there are, 1 to [`MAX_USES`].
    pub uses: u16,
    /// Where the gateway is, the best first: 1 to [`MAX_PLACES`], each `HOST:PORT` ([`is_place`]).
    pub places: Vec<String>,
}

/// What of a text makes it no invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Not even the beginning fits.
    #[error("this is no invite: one begins with {SCHEME}")]
    Scheme,
    /// Longer than [`MAX_URI`].
    #[error("the invite is longer than {MAX_URI} bytes")]
    Long,
    /// A field is not there.
    #[error("the invite has no `{0}`: it was cut short, or is not from Ringway")]
    Missing(&'static str),
    /// A field is there twice.
    #[error("the invite says `{0}` twice")]
    Twice(&'static str),
    /// A field is wrong.
    #[error("`{field}` of the invite is not {expected}: it was changed on its way")]
    Wrong {
        /// Which.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

const ID: InviteError =
    InviteError::Wrong { field: "id", expected: "1 to 32 letters and digits between / and ?" };
const USES: InviteError = InviteError::Wrong { field: "uses", expected: "a number from 1 to 256" };
const AT: InviteError = InviteError::Wrong { field: "at", expected: "HOST:PORT, four times at most" };

impl Invite {
    /// The URI, wiped when it is dropped.
    #[must_use]
    pub fn to_uri(&self) -> Zeroizing<String> {
        let places: Vec<_> =
            self.places.iter().map(|place| place.replace('[', "%5B").replace(']', "%5D")).collect();
        let room = places.iter().map(|place| place.len() + 4).sum::<usize>() + self.id.len() + 256;
        // Never grows, so that no copy of the secret is left behind.
        let mut uri = Zeroizing::new(String::with_capacity(room));
        let mut push = |parts: &[&str]| parts.iter().for_each(|part| uri.push_str(part));
        push(&[SCHEME, &self.id, "?key=", &URL_SAFE_NO_PAD.encode(self.gateway.0), "&secret="]);
        push(&[&Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.0))]);
        push(&["&uses=", &self.uses.to_string()]);
        places.iter().for_each(|place| push(&["&at=", place]));
        uri
    }

    /// Reads a URI; white space around it and fields of later versions are passed over.
    ///
    /// # Errors
    /// [`InviteError`], which names the field and never what is in it.
    pub fn parse(text: &str) -> Result<Self, InviteError> {
        let text = text.trim_ascii();
        if text.len() > MAX_URI {
            return Err(InviteError::Long);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(InviteError::Scheme)?;
        let (id, query) = rest.split_once('?').ok_or(InviteError::Missing("key"))?;
        if !is_id(id) {
            return Err(ID);
        }
        let (mut key, mut secret, mut uses, mut places) = (None, None, None, Vec::new());
        for field in query.split('&') {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            match name {
                "key" => once(&mut key, "key", bytes(value, "key")?)?,
                "secret" => once(&mut secret, "secret", bytes(value, "secret")?)?,
                "uses" => once(&mut uses, "uses", number(value).ok_or(USES)?)?,
                "at" => places.push(place(value).filter(|_| places.len() < MAX_PLACES).ok_or(AT)?),
                _ => {}
            }
        }
        if places.is_empty() {
            return Err(InviteError::Missing("at"));
        }
        Ok(Self {
            id: id.to_owned(),
            gateway: PublicKey(key.ok_or(InviteError::Missing("key"))?.0),
            secret: secret.ok_or(InviteError::Missing("secret"))?,
            uses: uses.ok_or(InviteError::Missing("uses"))?,
            places,
        })
    }
}

fn once<T>(place: &mut Option<T>, name: &'static str, value: T) -> Result<(), InviteError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(InviteError::Twice(name)),
    }
}

/// 32 bytes of base64url without padding.
fn bytes(text: &str, field: &'static str) -> Result<Secret, InviteError> {
    let wrong = InviteError::Wrong { field, expected: "43 characters of base64url" };
    // Room for the decoder's estimate, which is one byte above what 43 characters hold.
    let mut bytes = Zeroizing::new([0; 33]);
    let decoded = URL_SAFE_NO_PAD.decode_slice(text, bytes.as_mut_slice());
    if text.len() != KEY_TEXT || decoded.ok() != Some(32) {
        return Err(wrong);
    }
    let mut secret = Secret([0; 32]);
    secret.0.copy_from_slice(bytes.first_chunk::<32>().ok_or(wrong)?);
    Ok(secret)
}

fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|uses| digits && (1..=MAX_USES).contains(uses))
}

fn place(text: &str) -> Option<String> {
    let text = text.replace("%5B", "[").replace("%5D", "]").replace("%5b", "[").replace("%5d", "]");
    is_place(&text).then_some(text)
}

/// True for letters and digits, 1 to [`MAX_ID`].
#[must_use]
pub fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// True for `HOST:PORT`: a name, an IPv4 address, or an IPv6 address in brackets; the port is not 0.
#[must_use]
pub fn is_place(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0;
    }
    let port = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|n| n != 0)
    };
    text.rsplit_once(':')
        .is_some_and(|(host, number)| is_domain(host) && host.parse::<IpAddr>().is_err() && port(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        Invite {
            id: "k7qm2x9a".to_owned(),
            gateway: PublicKey([0xfb; 32]),
            secret: Secret(std::array::from_fn(|n| n as u8)),
            uses: 10,
            places: vec!["vpn.example.org:51820".to_owned(), "[2001:db8::1]:51820".to_owned()],
        }
    }

    fn parts(invite: &Invite) -> (String, [u8; 32], [u8; 32], u16, Vec<String>) {
        (invite.id.clone(), invite.gateway.0, invite.secret.0, invite.uses, invite.places.clone())
    }

    /// The documented example, and every limit, out and in again.
    #[test]
    fn a_uri_is_read_as_it_was_written() {
        let uri = invite().to_uri();
        let documented = include_str!("../../docs/protocol.md");
        assert!(documented.contains(&format!("`{}`", *uri)), "{}", *uri);
        assert_eq!(parts(&Invite::parse(&uri).unwrap()), parts(&invite()));
        let long = format!("{}:65535", ["a".repeat(63).as_str(); 4].join(".").split_at(253).0);
        let wide =
            Invite { id: "A".repeat(MAX_ID), uses: MAX_USES, places: vec![long; MAX_PLACES], ..invite() };
        let uri = wide.to_uri();
        assert!(uri.len() < MAX_URI, "{}", uri.len());
        assert_eq!(parts(&Invite::parse(&format!(" {}\n", *uri)).unwrap()), parts(&wide));
        assert!(Invite::parse(&format!("{}&later=7&x", *uri)).is_ok());
        assert!(!format!("{:?}", invite()).contains("0, 1, 2"), "its secret is not for a log");
    }

    #[test]
    fn what_is_wrong_is_named_and_not_shown() {
        let good = invite().to_uri();
        let wrong =
            |field: &'static str| move |error: InviteError| error.to_string().contains(&format!("`{field}`"));
        let changed: [(&str, &str, &str); 12] = [
            ("?key=", "?kex=", "key"),
            ("&secret=A", "&secret=", "secret"),
            ("&secret=A", "&secret=*", "secret"),
            ("&secret=A", "&secret=AA", "secret"),
            ("&uses=10", "", "uses"),
            ("&uses=10", "&uses=0", "uses"),
            ("&uses=10", "&uses=257", "uses"),
            ("&uses=10", "&uses=+1", "uses"),
            ("&uses=10", "&uses=1&uses=1", "uses"),
            ("vpn.example.org:51820", "vpn.example.org", "at"),
            ("vpn.example.org:51820", "vpn example:1", "at"),
            ("k7qm2x9a", "k7/m", "id"),
        ];
        for (from, to, field) in changed {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, *good);
            let error = Invite::parse(&text).map(|invite| parts(&invite)).unwrap_err();
            assert!(wrong(field)(error), "{text}: {error}");
        }
        let many = format!("{}{}", *good, "&at=a:1".repeat(MAX_PLACES));
        assert_eq!(Invite::parse(&many).map(drop), Err(AT));
        assert_eq!(Invite::parse("https://example.org/").map(drop), Err(InviteError::Scheme));
        assert_eq!(
            Invite::parse(&format!("{}{}", *good, "x".repeat(MAX_URI))).map(drop),
            Err(InviteError::Long)
        );
        assert_eq!(Invite::parse("ringway://invite/a").map(drop), Err(InviteError::Missing("key")));
    }

    #[test]
    fn a_place_is_a_host_and_a_port() {
        for good in ["192.0.2.1:1", "[::1]:65535", "a:1", "vpn.example.org:51820"] {
            assert!(is_place(good), "{good}");
        }
        for bad in
            ["", ":1", "a:", "a:0", "a:+1", "a:65536", "::1:1", "192.0.2.1", "192.0.2.1:0", "a b:1", "[::1]"]
        {
            assert!(!is_place(bad), "{bad}");
        }
    }
}
