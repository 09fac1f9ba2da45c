//! The rules in the kernel: loaded, loaded again, deleted.

use std::fs;
use std::io;
use std::mem;

use super::Options;
use super::ruleset::{number_chain, ruleset, table_name};
use crate::net::manners::can_name;
use crate::net::name::InterfaceName;
use crate::net::nft::{self, Family, NftError, Notice, Transactions};

/// The rules of one guard.
pub(super) struct Rules {
    options: Options,
    transactions: Transactions,
    /// There are rules for frames: the kernel has the hook (`CONFIG_NETFILTER_EGRESS`, Linux 5.16).
    frames: bool,
    /// The links named in them.
    links: Vec<String>,
    /// Number of the last load.
    load: u64,
    /// The last load that was seen in notices.
    seen: u64,
    /// What the notices of a transaction, of which the end has not been seen, told so far: that it is about our tables,
    touched: bool,
    /// and that it is the last load.
    own: bool,
    restored: u64,
}

impl Rules {
    /// Loads rules; those for frames if the kernel has them.
    pub(super) fn load(options: &Options) -> Result<Self, NftError> {
        // A link may go while its name is on the way to a kernel that takes no names of absent ones (before 6.16).
        match Self::load_with(options, true).or_else(|_| Self::load_with(options, true)) {
            Err(NftError::Refused(why)) => {
                let rules = Self::load_with(options, false)?;
                tracing::warn!(
                    why,
                    "this kernel has no egress hook: the kill switch does not hold back raw sockets and macvlan links"
                );
                Ok(rules)
            }
            loaded => loaded,
        }
    }

    pub(super) fn load_with(options: &Options, frames: bool) -> Result<Self, NftError> {
        let mut rules = Self {
            options: options.clone(),
            transactions: Transactions::open()?,
            frames,
            links: Vec::new(),
            load: 0,
            seen: 0,
            touched: false,
            own: false,
            restored: 0,
        };
        rules.put()?;
        Ok(rules)
    }

    pub(super) fn change(&mut self, options: &Options) -> Result<(), NftError> {
        let tunnel = self.options.tunnel.clone();
        let before = mem::replace(&mut self.options, options.clone());
        if let Err(error) = self.put() {
            self.options = before;
            return Err(error);
        }
        if tunnel != self.options.tunnel { delete(&self.transactions, &tunnel) } else { Ok(()) }
    }

    pub(super) fn stay(&self) -> bool {
        self.options.stays
    }

    pub(super) fn restored(&self) -> u64 {
        self.restored
    }

    pub(super) fn covers_links(&self) -> bool {
        self.frames
    }

    /// Puts everything in force as it is to be, in one transaction.
    fn put(&mut self) -> Result<(), NftError> {
        let (load, links) = (self.load + 1, self.links_to_name()?);
        nft::load(&ruleset(&self.options, load, self.frames.then_some(&links)))?;
        (self.load, self.links) = (load, links);
        Ok(())
    }

    /// All links of the namespace but the loopback and the tunnel, which the rules let pass anyway.
    fn links_to_name(&self) -> Result<Vec<String>, NftError> {
        let failed = |error: io::Error| NftError::Refused(format!("/proc/net/dev: {error}"));
        let table = fs::read_to_string("/proc/thread-self/net/dev").map_err(failed)?;
        let names = table.lines().skip(2).filter_map(|line| Some(line.rsplit_once(':')?.0.trim()));
        let mut links: Vec<String> = names
            .filter(|name| *name != "lo" && *name != self.options.tunnel.as_str())
            .filter(|name| name.parse().is_ok_and(|name: InterfaceName| can_name(&name)))
            .map(str::to_owned)
            .collect();
        links.sort();
        Ok(links)
    }

    /// The links of the namespace changed: names those that came.
    pub(super) fn follow_links(&mut self) -> Result<(), NftError> {
        if self.frames && self.links_to_name()? != self.links { self.put() } else { Ok(()) }
    }

    /// What the kernel told; whether somebody else has touched our tables since our last load.
    pub(super) fn digest(&mut self, notices: &[Notice]) -> bool {
        let mut foreign = false;
        // Its coming is our own doing, once.
        let (name, own) = (table_name(self.options.tunnel.as_str()), number_chain(self.load));
        for notice in notices {
            match notice {
                Notice::Changed { table, chain } if *table == name => {
                    self.touched = true;
                    self.own |= self.seen != self.load && chain.as_ref() == Some(&own);
                }
                Notice::Changed { .. } => {}
                Notice::End => {
                    let (touched, own) = (mem::take(&mut self.touched), mem::take(&mut self.own));
                    if own {
                        self.seen = self.load;
                    } else {
                        // What came before our last load was replaced by it.
                        foreign |= touched && self.seen == self.load;
                    }
                }
                Notice::Lost => foreign = true,
            }
        }
        foreign
    }

    /// Puts back what somebody else has taken.
    pub(super) fn restore(&mut self) -> Result<(), NftError> {
        self.put()?;
        self.restored += 1;
        Ok(())
    }

    pub(super) fn delete(&self) -> Result<(), NftError> {
        delete(&self.transactions, &self.options.tunnel)
    }
}

/// Deletes both tables of a tunnel; the one for frames first, which is the one that only holds back.
pub(super) fn delete(transactions: &Transactions, tunnel: &InterfaceName) -> Result<(), NftError> {
    let table = table_name(tunnel.as_str());
    let frames = transactions.delete(Family::Netdev, &table);
    transactions.delete(Family::Inet, &table).and(frames)
}
