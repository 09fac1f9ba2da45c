//! Counters: plain integers that a thread owns; a scraper asks for a copy.

pub mod drops;

use drops::Drops;

/// Declares a struct of counters once: fields, names and help texts.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($field:ident $metric:literal $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = $help] pub $field: u64,)*
            /// Drops by reason (`ringway_drops_total`).
            pub drops: Drops,
        }

        impl $name {
            /// Metric names, help texts and values, in order of declaration.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($metric, $help, self.$field),)*]
            }
        }
    };
}

counters! {
    /// What a worker counts.
    WorkerCounters {
        rx_packets "ringway_rx_packets_total" "transport messages that were authenticated";
        rx_bytes "ringway_rx_bytes_total" "outer bytes of these";
        tx_packets "ringway_tx_packets_total" "transport messages that were sealed and handed to the kernel";
        tx_bytes "ringway_tx_bytes_total" "outer bytes of these";
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
        polls "ringway_polls_total" "ppoll calls, made where the worker has no io_uring";
        sleeps "ringway_ring_sleeps_total" "io_uring_enter or ppoll calls that were allowed to sleep";
        busy_polls "ringway_busy_polls_total" "waits that began by polling awake, after a quiet spell";
        busy_poll_hits "ringway_busy_poll_hits_total" "of these, how many were spared a sleep";
        completions "ringway_ring_completions_total" "io_uring completions handled, or what poll found and was done";
        buffers_exhausted "ringway_receive_buffers_exhausted_total"
            "turns of a descriptor that ended for want of a buffer";
    }
}

counters! {
    /// What the handshake thread counts.
    HandshakeCounters {
        received "ringway_handshake_messages_total" "handshake messages received";
        initiations_sent "ringway_initiations_sent_total" "initiations made";
        responses_sent "ringway_responses_sent_total" "responses made";
        responses_taken "ringway_responses_accepted_total" "responses that completed a handshake";
        cookies_sent "ringway_cookies_sent_total" "cookie replies sent under load";
        cookies_taken "ringway_cookies_accepted_total" "cookie replies accepted";
        under_load "ringway_under_load_total" "times that the handshake thread came under load";
    }
}
