//! `genkey`, `pubkey`, `genpsk`: as `wg` has them.

use std::io::{self, Read as _, Write as _};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::crypto::x25519::PrivateKey;
use crate::types::{KEY_TEXT, Secret};

/// `genkey`: a clamped X25519 private key (RFC 7748 section 5).
///
/// # Errors
/// No randomness, or the standard output is closed.
pub fn genkey() -> anyhow::Result<()> {
    print_key(&PrivateKey::new(&random()?).to_secret())
}

/// `genpsk`: 32 random bytes.
///
/// # Errors
/// No randomness, or the standard output is closed.
pub fn genpsk() -> anyhow::Result<()> {
    print_key(&random()?)
}

/// `pubkey`: the public key of the private key on the standard input.
///
/// # Errors
/// The input is no key, or the standard output is closed.
pub fn pubkey() -> anyhow::Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_TEXT));
    io::stdin().take(2 * KEY_TEXT as u64).read_to_string(&mut text).context("standard input")?;
    let public = *PrivateKey::new(&text.trim_ascii().parse()?).public();
    writeln!(io::stdout(), "{}", public.to_base64()).context("standard output")
}

/// 32 random bytes.
pub(super) fn random() -> anyhow::Result<Secret> {
    let mut key = Secret([0; 32]);
    getrandom::fill(&mut key.0).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(key)
}

/// In base64.
pub(super) fn text(key: &Secret) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(key.0))
}

fn print_key(key: &Secret) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{}", *text(key)).context("standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_and_out() {
        // RFC 7748 section 6.1, Alice.
        let text = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n";
        let key = PrivateKey::new(&text.trim_ascii().parse().unwrap());
        assert_eq!(key.public().to_base64(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn no_keys() {
        let good = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        for bad in
            ["", "=", &good[..43], &format!("{good}{good}"), &good.replace('d', "!"), &good.replace('=', "A")]
        {
            assert!(bad.parse::<Secret>().is_err(), "{bad}");
        }
    }

    #[test]
    fn random_keys_differ() {
        assert_ne!(random().unwrap().0, random().unwrap().0);
    }
}
