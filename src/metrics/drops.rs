//! Drop reasons: one list is the enum, the metric label and the documentation (`docs/metrics.md` is checked against
//! it).

/// Declares the reasons once.
macro_rules! reasons {
    ($($variant:ident $label:literal $help:literal;)*) => {
        /// Why a packet, a datagram or a handshake message was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Drop {
            $(#[doc = $help] $variant,)*
        }

        impl Drop {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The metric label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// One line of documentation.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

reasons! {
    Malformed "malformed" "outer datagram with a length or type that WireGuard does not have";
    Oversized "oversized" "outer datagram larger than a receive slot";
    UnknownIndex "unknown_index" "transport message whose receiver index names no session";
    Replayed "replayed" "transport message whose counter was seen already";
    TooOld "too_old" "transport message whose counter lies behind the replay window";
    CounterLimit "counter_limit" "transport message whose counter is beyond Reject-After-Messages";
    KeypairExpired "keypair_expired" "transport message in a keypair older than Reject-After-Time";
    SuiteNotDeclared "suite_not_declared"
        "transport message marked with a cipher suite that this session has not said it opens";
    Unauthentic "unauthentic" "transport message that did not authenticate";
    InnerMalformed "inner_malformed" "decrypted payload that is no IPv4 or IPv6 packet, or shorter than it says";
    SourceNotAllowed "source_not_allowed" "decrypted packet whose source address is not the peer's";
    TemporaryPeer "temporary_peer" "what the key of an invite may not carry: packets, frames that are not for joining";
    FrameMalformed "frame_malformed" "control frame that is short, longer than it is, or no strict CBOR";
    FrameUnhandled "frame_unhandled" "control frame of an operation that is not defined, or not handled yet";
    FrameRefused "frame_refused"
        "control frame of another version, or without what its operation asks for; a request is answered with PROBLEM";
    FrameStale "frame_stale"
        "control frame that changes something, in a keypair that is replaced, or ended by DISCONNECT";
    ControlFull "control_full" "control frame for the control thread while its queue was full";
    FrameLimit "frame_limit" "control frame beyond its peer's rate limit, or whose answer found no room";
    TunLinkDown "tun_link_down" "packet for the TUN device while its link is down (EIO)";
    TunInvalid "tun_invalid" "packet that the TUN device refused as invalid (EINVAL)";
    TunFull "tun_full" "packet for the TUN device while its queue was full";
    TunFailed "tun_failed" "packet that the TUN device refused with another error";
    TunMalformed "tun_malformed" "packet read from the TUN device that is no well-formed IP packet or super-packet";
    TooLarge "too_large"
        "packet from the TUN device that does not fit an outer datagram, or is larger than the device's MTU";
    NoRoute "no_route" "packet whose destination is in no peer's allowed-ips";
    NoEndpoint "no_endpoint" "packet for a peer whose endpoint is not known";
    NoSocket "no_socket" "packet for an endpoint of a family that this host has no socket for";
    StagedOverflow "staged_overflow" "oldest packet of a full queue that waits for a handshake";
    StagedExpired "staged_expired" "packet that waited for a handshake which did not come, or whose peer was removed";
    SendFailed "send_failed" "sealed packet that the kernel refused to send";
    HandoverFull "handover_full" "packet for another worker whose hand-over queue was full";
    BadMac1 "bad_mac1" "handshake message whose mac1 is wrong";
    CookieRequired "cookie_required" "handshake message under load without a valid mac2, answered with a cookie";
    SourceLimit "source_limit" "handshake message beyond its source's rate limit";
    PeerLimit "peer_limit" "handshake initiation beyond its peer's rate limit";
    HandshakeQueueFull "handshake_queue_full" "handshake message while its queue was full";
    BadInitiation "bad_initiation" "handshake initiation that did not authenticate or names no peer";
    OldTimestamp "old_timestamp" "handshake initiation whose timestamp is not newer than the greatest seen";
    BadResponse "bad_response" "handshake response that did not authenticate or answers nothing";
    BadCookie "bad_cookie" "cookie reply that did not authenticate or answers nothing";
}

/// What became of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Completed, and confirmed by data.
    Completed,
    /// It did not authenticate, or was a repetition.
    Refused,
    /// Put off by a limit or for want of room: the other side tries again.
    Limited,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: &'static [Self] = &[Self::Completed, Self::Refused, Self::Limited];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused => "refused",
            Self::Limited => "limited",
        }
    }
}

impl Drop {
    /// What a drop for this reason means for a handshake; `None` for packets.
    #[must_use]
    pub const fn outcome(self) -> Option<Outcome> {
        match self {
            Self::BadMac1
            | Self::BadInitiation
            | Self::OldTimestamp
            | Self::BadResponse
            | Self::BadCookie => Some(Outcome::Refused),
            Self::CookieRequired | Self::SourceLimit | Self::PeerLimit | Self::HandshakeQueueFull => {
                Some(Outcome::Limited)
            }
            _ => None,
        }
    }
}

/// How many reasons there are: the length of a counter array.
pub const REASONS: usize = Drop::ALL.len();

/// Counts by reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops {
    counts: [u64; REASONS],
    /// Their sum: says at a glance whether anything was dropped since.
    total: u64,
}

impl Default for Drops {
    fn default() -> Self {
        Self { counts: [0; REASONS], total: 0 }
    }
}

impl Drops {
    /// Counts one.
    #[inline]
    pub fn count(&mut self, reason: Drop) {
        self.add(reason, 1);
    }

    /// Counts `n`.
    #[inline]
    pub fn add(&mut self, reason: Drop, n: u64) {
        self.counts[reason as usize] += n;
        self.total += n;
    }

    /// The count of one reason.
    #[must_use]
    pub fn of(&self, reason: Drop) -> u64 {
        self.counts[reason as usize]
    }

    /// Adds another worker's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// All reasons together.
    #[inline]
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The counts, in the order of [`Drop::ALL`].
    #[inline]
    #[must_use]
    pub fn counts(&self) -> &[u64; REASONS] {
        &self.counts
    }
}
