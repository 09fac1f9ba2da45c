//! Reverse path filtering (RFC 3704) beside a tunnel that takes the default route.
//!
//! The strict kind drops what comes from the gateway: it asks where an answer without a mark would go, which is into
//! the tunnel. The loose kind asks only whether there is a way at all. `net.ipv4.conf.all.rp_filter` = 2 makes every
//! interface loose, those to come included, whatever its own value is (ip-sysctl of the kernel's documentation); it is
//! changed only where some interface is strict, and restored at the end. `src_valid_mark` would help only if marks were
//! restored from connections, which needs rules in the firewall; it is left alone.

use std::fs;
use std::path::{Path, PathBuf};

use super::MannersError;
use super::forwarding::{self, parameter, read};
use super::record::{Change, Record, Records};
use crate::net::name::InterfaceName;
use crate::net::sysctl::{Family, Parameter};

/// Strict and loose.
const STRICT: &str = "1";
const LOOSE: &str = "2";

/// Filters that are loose for a tunnel's sake. What was found is restored when this is dropped, unless another tunnel
/// needs it.
#[derive(Debug)]
pub struct Loosened {
    record: Record,
    interface: InterfaceName,
    run: PathBuf,
}

/// Makes strict filters loose for the tunnel `interface`, and says so in a record below `run`, which is `/run/ringway`;
/// `None` if none is strict.
///
/// # Errors
/// A parameter that cannot be read or set; a record that cannot be kept.
pub fn loosen(interface: &InterfaceName, run: &Path) -> Result<Option<Loosened>, MannersError> {
    let all = parameter(Family::V4, "all", "rp_filter")?;
    let strict = is_strict(interface.as_str())?;
    if !strict && !run.exists() {
        return Ok(None);
    }
    let records = Records::open(run)?;
    let others = records.needed_by_others(Some(interface.as_str()))?;
    let theirs = others.into_iter().find(|change| change.parameter == all);
    if !strict && theirs.is_none() {
        return Ok(None);
    }
    let now = read(&all)?.unwrap_or_default();
    let before = theirs.map_or_else(|| now.clone(), |change| change.before);
    let mut loosened =
        Loosened { record: records.begin(interface)?, interface: interface.clone(), run: run.to_owned() };
    // Dropping it waits for the lock.
    drop(records);
    loosened.record.add(vec![Change { parameter: all.clone(), before, set: LOOSE.to_owned() }])?;
    all.write(LOOSE).map_err(|refusal| MannersError::Sysctl {
        parameter: all.to_string(),
        value: now,
        wanted: LOOSE.to_owned(),
        general: "net.ipv4.conf.all.rp_filter",
        refusal,
    })?;
    Ok(Some(loosened))
}

/// Restores what the tunnel `interface` changed whose process was killed; true if there was anything.
///
/// # Errors
/// A record that cannot be read.
pub fn restore(interface: &InterfaceName, run: &Path) -> Result<bool, MannersError> {
    if !run.join(interface.as_str()).exists() {
        return Ok(false);
    }
    let records = Records::open(run)?;
    let needed = records.needed_by_others(Some(interface.as_str()))?;
    let left = records.abandoned()?.into_iter().find(|(name, _)| name == interface.as_str());
    let Some((_, record)) = left else { return Ok(false) };
    forwarding::restore(record.changes(), &needed);
    record.close();
    Ok(true)
}

impl Drop for Loosened {
    fn drop(&mut self) {
        let needed = Records::open(&self.run).and_then(|records| {
            let needed = records.needed_by_others(Some(self.interface.as_str()))?;
            Ok((records, needed))
        });
        match needed {
            Ok((_records, needed)) => {
                forwarding::restore(self.record.changes(), &needed);
                self.record.close();
                // It goes with the last one.
                let _ = fs::remove_dir(&self.run);
            }
            Err(error) => tracing::warn!(%error, "rp_filter stays as it is; the next start restores it"),
        }
    }
}

/// Whether some interface that packets may come in by, now or later, filters strictly: the greater of its own value and
/// that of `all` counts.
fn is_strict(tunnel: &str) -> Result<bool, MannersError> {
    let value = |interface: &str| read(&parameter(Family::V4, interface, "rp_filter")?);
    let all = value("all")?.unwrap_or_default();
    if all == LOOSE {
        return Ok(false);
    }
    for interface in Parameter::interfaces(Family::V4) {
        let counts = !matches!(interface.as_str(), "all" | "lo") && interface != tunnel;
        if counts && value(&interface)?.is_some_and(|own| own == STRICT || (all == STRICT && own != LOOSE)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{Scratch, in_netns, ip};

    fn filter(interface: &str) -> Parameter {
        Parameter::of(Family::V4, interface, "rp_filter").unwrap()
    }

    fn set(interface: &str, value: &str) {
        filter(interface).write(value).unwrap();
    }

    fn all() -> String {
        filter("all").read().unwrap().unwrap()
    }

    #[test]
    fn strict_filters_are_loose_as_long_as_a_tunnel_needs_it() {
        in_netns(|| {
            let scratch = Scratch::new("reverse");
            let run = scratch.0.join("run");
            let [one, two] = ["one", "two"].map(|name| name.parse::<InterfaceName>().unwrap());
            ip("link add out type veth peer name out-end");
            for interface in ["all", "default", "out", "lo"] {
                set(interface, "0");
            }
            assert!(loosen(&one, &run).unwrap().is_none() && !run.exists());
            set("out", "1");
            let first = loosen(&one, &run).unwrap().unwrap();
            assert_eq!(all(), "2");
            let second = loosen(&two, &run).unwrap().unwrap();
            drop(first);
            assert_eq!(all(), "2");
            drop(second);
            assert_eq!((all().as_str(), run.exists()), ("0", false));

            // Killed: the lock is gone, the record stays.
            set("all", "1");
            let killed = loosen(&one, &run).unwrap().unwrap();
            assert_eq!(all(), "2");
            let record = run.join("one/undo");
            let text = fs::read(&record).unwrap();
            drop(killed);
            fs::create_dir_all(run.join("one")).unwrap();
            fs::write(&record, text).unwrap();
            set("all", "2");
            assert!(!restore(&two, &run).unwrap() && restore(&one, &run).unwrap());
            assert_eq!((all().as_str(), record.exists()), ("1", false));
            // The host's owner changed it meanwhile: his value stays.
            let changed = loosen(&one, &run).unwrap().unwrap();
            set("all", "0");
            drop(changed);
            assert_eq!(all(), "0");
        });
    }
}
