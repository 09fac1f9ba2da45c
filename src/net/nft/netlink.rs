//! Transactions and notices of nftables over netlink (linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rtnetlink::sys::{Socket, SocketAddr};

use super::NftError;

/// `NETLINK_NETFILTER` of linux/netlink.h.
const NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`.
const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
const BATCH_END: u16 = 0x11;
/// `NFNLGRP_NFTABLES`: what changes, told after each transaction.
const CHANGES: u32 = 7;
/// `NFT_MSG_DELTABLE`, in its subsystem.
const DELETE_TABLE: u16 = NFTABLES << 8 | 2;
/// `NFT_MSG_NEWCHAIN`.
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
/// `NFT_MSG_NEWSETELEM`.
pub(in crate::net) const NEW_ELEMENTS: u16 = NFTABLES << 8 | 12;
/// `NFT_MSG_DELSETELEM`.
pub(in crate::net) const DELETE_ELEMENTS: u16 = NFTABLES << 8 | 14;
/// `NFT_MSG_NEWGEN`: the end of what one transaction changed.
const NEW_GENERATION: u16 = NFTABLES << 8 | 15;
/// `NFTA_TABLE_NAME`; every other object has its table's name under the same number.
const TABLE_NAME: u16 = 1;
/// `NFTA_CHAIN_NAME`.
const CHAIN_NAME: u16 = 3;
/// `NLM_F_REQUEST` of linux/netlink.h.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLMSG_ERROR`: also the acknowledgement, with 0.
const ERROR: u16 = 2;
/// Size of a netlink header (`nlmsghdr`), bytes.
const HEADER: usize = 16;
/// Size of netfilter's own header (`nfgenmsg`), bytes.
const NFGENMSG: usize = 4;
/// Sequence number of the last message of a batch but its end, the one that is answered.
const LAST: u32 = 2;
/// Of all others.
const OTHERS: u32 = 1;

/// Which packets a table sees (linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::net) enum Family {
    /// `NFPROTO_INET`: IPv4 and IPv6.
    Inet = 1,
    /// `NFPROTO_NETDEV`: frames of a link.
    Netdev = 5,
}

/// One change of a transaction.
pub(in crate::net) struct Message {
    /// One of the `NEW_` and `DELETE_` numbers.
    pub(in crate::net) kind: u16,
    /// The table's.
    pub(in crate::net) family: Family,
    /// See [`attribute`].
    pub(in crate::net) attributes: Vec<u8>,
}

/// Makes changes over a socket that was opened while that was permitted.
#[derive(Debug)]
pub(in crate::net) struct Transactions(Socket);

impl Transactions {
    pub(in crate::net) fn open() -> Result<Self, NftError> {
        let open = || {
            let socket = Socket::new(NETFILTER)?;
            // The kernel answers before a send returns: to wait would be to hang.
            socket.set_non_blocking(true)?;
            Ok(Self(socket))
        };
        open().map_err(|error: io::Error| NftError::Refused(format!("opening a netlink socket: {error}")))
    }

    /// Deletes a table. None of that name is as good.
    pub(in crate::net) fn delete(&self, family: Family, table: &str) -> Result<(), NftError> {
        match self.change(&[Message { kind: DELETE_TABLE, family, attributes: text(TABLE_NAME, table) }]) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                Err(NftError::Refused(format!("deleting the table {table}: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// All of these changes, or none.
    pub(in crate::net) fn change(&self, messages: &[Message]) -> io::Result<()> {
        // What more was said of a batch that was refused.
        while self.0.recv_from_full().is_ok() {}
        self.0.send(&batch(messages), 0)?;
        loop {
            let (answers, _) = self.0.recv_from_full()?;
            match verdict(&answers) {
                Some(0) => return Ok(()),
                Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                None => {}
            }
        }
    }
}

/// One thing that the kernel tells of a transaction, anybody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::net) enum Notice {
    /// An object of this table came, changed or went.
    Changed {
        /// The table's name.
        table: String,
        /// The name of the chain, if it is a chain that came.
        chain: Option<String>,
    },
    /// That was all of the transaction.
    End,
    /// More happened than there was room to tell.
    Lost,
}

/// What changes in the nftables of a network namespace, as it changes.
pub(in crate::net) struct Notices(Socket);

impl Notices {
    /// Opens the socket in the present namespace.
    pub(in crate::net) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(CHANGES)?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// What has been told since the last call; waits for nothing.
    pub(in crate::net) fn read(&self) -> io::Result<Vec<Notice>> {
        let mut told = Vec::new();
        loop {
            match self.0.recv_from_full() {
                Ok((bytes, _)) => told.extend(notices(&bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(told),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told.push(Notice::Lost),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A transaction of these messages.
fn batch(messages: &[Message]) -> Vec<u8> {
    let subsystem = NFTABLES.to_be_bytes();
    let frame = |kind| message(kind, REQUEST, OTHERS, [0, 0, subsystem[0], subsystem[1]], &[]);
    let mut batch = frame(BATCH_BEGIN);
    for (place, Message { kind, family, attributes }) in messages.iter().enumerate() {
        let last = place + 1 == messages.len();
        let (flags, sequence) = if last { (REQUEST | ACK, LAST) } else { (REQUEST, OTHERS) };
        let flags = if *kind == NEW_ELEMENTS { flags | CREATE } else { flags };
        batch.extend(message(*kind, flags, sequence, [*family as u8, 0, 0, 0], attributes));
    }
    batch.extend(frame(BATCH_END));
    batch
}

/// An attribute that holds a string.
pub(in crate::net) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), b"\0"].concat())
}

/// An attribute that holds attributes.
pub(in crate::net) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

/// A netlink attribute of less than 64 KiB.
pub(in crate::net) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// A netlink message with netfilter's own header (`nfgenmsg`) before its attributes.
fn message(kind: u16, flags: u16, sequence: u32, nfgenmsg: [u8; NFGENMSG], attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + nfgenmsg.len() + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(nfgenmsg);
    bytes.extend(attributes);
    bytes
}

/// Takes a message of at least both headers from the front of `bytes`.
fn next_message<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let message = bytes.get(..length).filter(|message| message.len() >= HEADER + NFGENMSG)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(message)
}

fn kind_of(message: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*message.get(4..)?.first_chunk()?))
}

/// What the kernel says of a batch: 0, or an errno below zero. `None` if it is not in there.
fn verdict(mut answers: &[u8]) -> Option<i32> {
    loop {
        let answer = next_message(&mut answers)?;
        let word = |at: usize| answer.get(at..)?.first_chunk::<4>().copied();
        let code = i32::from_ne_bytes(word(HEADER)?);
        // A refusal of another message, or of the batch as a whole, comes before or in place of the last one's answer.
        if kind_of(answer)? == ERROR && (u32::from_ne_bytes(word(8)?) == LAST || code != 0) {
            return Some(code);
        }
    }
}

/// What a datagram tells. Objects without a table's name are nobody's.
fn notices(mut bytes: &[u8]) -> Vec<Notice> {
    let mut told = Vec::new();
    while let Some(message) = next_message(&mut bytes) {
        let kind = kind_of(message);
        let attributes = message.get(HEADER + NFGENMSG..).unwrap_or_default();
        if kind == Some(NEW_GENERATION) {
            told.push(Notice::End);
        } else if let Some(table) = string(attributes, TABLE_NAME) {
            let chain = (kind == Some(NEW_CHAIN)).then(|| string(attributes, CHAIN_NAME)).flatten();
            told.push(Notice::Changed { table, chain });
        }
    }
    told
}

/// The string in the first attribute of this kind.
fn string(mut attributes: &[u8], wanted: u16) -> Option<String> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            let value = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(value).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_found_among_answers_and_never_beyond_them() {
        let answer = |sequence, code: i32| {
            let mut bytes = message(ERROR, 0, sequence, code.to_ne_bytes(), &[0; 16]);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        assert_eq!(verdict(&[answer(1, 0), answer(LAST, -2)].concat()), Some(-2));
        assert_eq!(verdict(&answer(1, -1)), Some(-1));
        let whole = [answer(1, 0), answer(LAST, 0)].concat();
        assert_eq!(verdict(&whole), Some(0));
        for length in 0..whole.len() {
            assert_eq!(verdict(&whole[..length]), None);
        }
    }

    #[test]
    fn notices_are_read_and_what_is_cut_short_is_none() {
        let table = |name| text(TABLE_NAME, name);
        let chain = [table("t"), attribute(2, &[0; 8]), text(CHAIN_NAME, "c")].concat();
        let bytes = [
            message(DELETE_TABLE, 0, 0, [1, 0, 0, 0], &table("gone")),
            message(NEW_CHAIN, 0, 0, [1, 0, 0, 0], &chain),
            message(NEW_GENERATION, 0, 0, [0; 4], &attribute(1, &[0; 4])),
        ]
        .concat();
        let changed = |table: &str, chain: Option<&str>| Notice::Changed {
            table: table.to_owned(),
            chain: chain.map(str::to_owned),
        };
        let whole = [changed("gone", None), changed("t", Some("c")), Notice::End];
        assert_eq!(notices(&bytes), whole);
        for length in 0..bytes.len() {
            let told = notices(&bytes[..length]);
            assert!(told.len() < whole.len() && whole.starts_with(&told), "{length}: {told:?}");
        }
    }
}
