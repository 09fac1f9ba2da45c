//! Counters: plain integers that a thread owns; whoever asks gets a copy, and a [`board::Board`] shows them to the
//! exporter.

pub mod board;
pub mod drops;
pub mod histogram;

use board::Board;
use drops::Drops;
use histogram::Histogram;

/// A series: a metric's name with its label, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// The metric's name.
    pub name: &'static str,
    /// Name and value of a label, if the metric has several series per thread.
    pub label: Option<(&'static str, &'static str)>,
    /// One line of documentation.
    pub help: &'static str,
}

impl Series {
    /// The series as Prometheus writes it: `name` or `name{label="value"}`.
    #[must_use]
    pub fn key(&self) -> String {
        match self.label {
            Some((label, value)) => format!("{}{{{label}=\"{value}\"}}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// An optional label of [`Series`].
macro_rules! label {
    () => {
        None
    };
    ($label:literal $value:literal) => {
        Some(($label, $value))
    };
}

/// Declares a struct of numbers once: fields, names, labels and help texts.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident {
        $($field:ident $metric:literal $([$label:literal $value:literal])? $help:literal;)*
    } $($drops:ident $({
        $($sizes:ident $sizes_metric:literal $sizes_help:literal;)*
    })?)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = $help] pub $field: u64,)*
            $(/// Drops by reason (`ringway_drops_total`).
            pub $drops: Drops,
            $($(#[doc = $sizes_help] pub $sizes: Histogram,)*)?)?
        }

        impl $name {
            /// Every series, in order of declaration.
            pub const SERIES: &'static [Series] =
                &[$(Series { name: $metric, label: label!($($label $value)?), help: $help },)*];

            /// The values, in the order of [`Self::SERIES`].
            #[inline]
            #[must_use]
            pub fn values(&self) -> [u64; Self::SERIES.len()] {
                [$(self.$field,)*]
            }
            $($(
            /// Every histogram, in order of declaration.
            pub const HISTOGRAMS: &'static [Series] =
                &[$(Series { name: $sizes_metric, label: None, help: $sizes_help },)*];

            /// The histograms, in the order of [`Self::HISTOGRAMS`].
            #[inline]
            #[must_use]
            pub fn histograms(&self) -> [&Histogram; Self::HISTOGRAMS.len()] {
                [$(&self.$sizes,)*]
            }
            )?)?
        }
    };
}

numbers! {
    /// What a worker counts.
    WorkerCounters {
        rx_packets "ringway_packets_total" ["direction" "in"]
            "transport messages, authenticated (in) or sealed and handed to the kernel (out)";
        rx_bytes "ringway_bytes_total" ["direction" "in"] "outer UDP payload of these";
        tx_packets "ringway_packets_total" ["direction" "out"]
            "transport messages, authenticated (in) or sealed and handed to the kernel (out)";
        tx_bytes "ringway_bytes_total" ["direction" "out"] "outer UDP payload of these";
        receives "ringway_receives_total" "receives from UDP sockets, each one datagram or a coalesced run";
        sends "ringway_sends_total" "sends to UDP sockets, each one datagram or a segmented run";
        send_retries "ringway_send_retries_total" "sends that found the socket full and waited for it";
        tun_reads "ringway_tun_reads_total" "reads from the TUN queue, each a packet or a super-packet";
        tun_read_segments "ringway_tun_read_segments_total" "packets that these reads were split into";
        tun_writes "ringway_tun_writes_total" "writes to the TUN queue, each a packet or a super-packet";
        tun_written_segments "ringway_tun_written_segments_total" "packets that these writes carried";
        handed_over "ringway_handed_over_total" "packets given to another worker";
        taken_over "ringway_taken_over_total" "packets taken from another worker";
        keepalives "ringway_keepalives_received_total" "transport messages without a packet";
        aes_in "ringway_aes_packets_total" ["direction" "in"]
            "of the transport messages, those sealed with AES-256-GCM";
        aes_out "ringway_aes_packets_total" ["direction" "out"]
            "of the transport messages, those sealed with AES-256-GCM";
        aes_agreed "ringway_aes_agreed_total" "keypairs in which data went over to AES-256-GCM";
        aes_refused "ringway_aes_refused_total"
            "keypairs that stayed with ChaCha20-Poly1305, since no PING in AES-256-GCM came back";
        frames_in "ringway_control_frames_total" ["direction" "in"] "control frames read (in) or sent (out)";
        frames_out "ringway_control_frames_total" ["direction" "out"] "control frames read (in) or sent (out)";
        connected "ringway_sessions_confirmed_total" "handshakes that were completed and confirmed";
        stalls "ringway_stalls_total" "times that reading from the TUN queue was paused for want of a send buffer";
        source_resets "ringway_source_resets_total" "sends repeated without their sticky source address";
        segment_fallbacks "ringway_segment_fallbacks_total" "segmented sends repeated as plain datagrams";
        coalesce_fallbacks "ringway_coalesce_fallbacks_total"
            "super-packets that the TUN device refused, written packet by packet";
        fragmented "ringway_fragmented_sends_total"
            "datagrams larger than the outer device's MTU, sent in fragments";
        mss_clamped "ringway_mss_clamped_total" "TCP SYNs whose maximum segment size was lowered to what fits";
        too_big_sent "ringway_icmp_too_big_total"
            "packets larger than the TUN device's MTU that were answered with ICMP";
        turns "ringway_turns_total" "turns of the worker's loop";
        enters "ringway_ring_enters_total" "io_uring_enter calls";
        submissions "ringway_ring_submissions_total" "requests that io_uring_enter took: receives, polls, cancels";
        polls "ringway_polls_total" "ppoll calls: without io_uring, or while there is hardly any traffic";
        sleeps "ringway_ring_sleeps_total" "io_uring_enter or ppoll calls that were allowed to sleep";
        busy_polls "ringway_busy_polls_total" "waits that began by polling awake, after a quiet spell";
        busy_poll_hits "ringway_busy_poll_hits_total" "of these, how many were spared a sleep";
        lingers "ringway_lingers_total" "waits that let small packets gather";
        completions "ringway_ring_completions_total" "io_uring completions handled, or what poll found and was done";
        buffers_exhausted "ringway_receive_buffers_exhausted_total"
            "turns of a descriptor that ended for want of a buffer";
    } drops {
        receive_sizes "ringway_receive_batch_datagrams" "datagrams of each receive from a UDP socket";
        send_sizes "ringway_send_batch_datagrams" "datagrams of each send to a UDP socket";
        tun_read_sizes "ringway_tun_read_batch_packets" "packets of each read from the TUN queue, once all are sealed";
        tun_write_sizes "ringway_tun_write_batch_packets" "packets of each write to the TUN queue";
    }
}

numbers! {
    /// What the handshake thread counts.
    HandshakeCounters {
        received "ringway_handshake_messages_total" "handshake messages received";
        initiations_sent "ringway_initiations_sent_total" "initiations made";
        responses_sent "ringway_responses_sent_total" "responses made";
        responses_taken "ringway_responses_accepted_total" "responses that completed a handshake";
        cookies_sent "ringway_cookies_sent_total" "cookie replies sent under load";
        cookies_taken "ringway_cookies_accepted_total" "cookie replies accepted";
        under_load "ringway_under_load_total" "times that the handshake thread came under load";
    } drops
}

numbers! {
    /// How a worker stands at the end of a turn.
    WorkerGauges {
        peers "ringway_peers" "peers that the worker owns";
        sessions "ringway_sessions" "peers with a keypair, the last handshake at most nine minutes ago";
        staged_bytes "ringway_staged_bytes" "bytes of packets that wait for a handshake";
        send_buffers "ringway_send_buffers_in_use" "send buffers that hold sealed packets or are being filled";
        stalled "ringway_queue_length" ["queue" "stalled"] "messages or packets that wait, by queue";
        backlog "ringway_queue_length" ["queue" "backlog"] "messages or packets that wait, by queue";
    }
}

numbers! {
    /// How the handshake thread stands at the end of a turn.
    HandshakeGauges {
        queued "ringway_handshake_queue_length" "handshake messages and own initiations that wait";
        under_load "ringway_handshake_under_load" "1 while handshakes without a cookie are refused";
    }
}

// A board has room for every thread's numbers.
const _: () = assert!(WorkerCounters::SERIES.len() <= board::COUNTERS);
const _: () = assert!(HandshakeCounters::SERIES.len() <= board::COUNTERS);
const _: () = assert!(WorkerCounters::HISTOGRAMS.len() <= board::HISTOGRAMS);
const _: () = assert!(WorkerGauges::SERIES.len() <= board::GAUGES);
const _: () = assert!(HandshakeGauges::SERIES.len() <= board::GAUGES);

impl WorkerCounters {
    /// Shows all of it to the exporter.
    #[inline]
    pub fn publish(&self, gauges: &WorkerGauges, board: &Board) {
        board.publish(&self.values(), &self.drops, &gauges.values());
        board.publish_histograms(self.histograms());
    }
}

impl HandshakeCounters {
    /// Shows all of it to the exporter.
    pub fn publish(&self, gauges: &HandshakeGauges, board: &Board) {
        board.publish(&self.values(), &self.drops, &gauges.values());
    }
}
