//! What the clamp of TCP's segment size costs a packet: one that is no SYN (all but two of a connection) and a SYN,
//! with the clamp on and off. `nothing` is the bench's own work, to be taken off each; for scale, reading the
//! packet's IP header, which each packet pays in any case.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ringway::dataplane::offload::mss;
use ringway::dataplane::offload::switches::{Switch, Switches};
use ringway::types::Offload;
use ringway::wire::{ip, tcp};

const MTU: u32 = 1420;

/// A TCP packet of the tunnel's MTU, of no use but to be looked at: 10.0.0.1 to 10.0.0.2, or fd00::1 to fd00::2, with a
/// segment size of 1460. Its checksums are 0.
fn packet(v6: bool, flags: u8) -> Vec<u8> {
    let header = if v6 { ip::V6_LEN } else { ip::V4_LEN };
    let mut packet = vec![0; MTU as usize];
    let (ip, rest) = packet.split_at_mut(header);
    if v6 {
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
        (ip[6], ip[7], ip[8], ip[23], ip[24], ip[39]) = (ip::TCP, 64, 0xfd, 1, 0xfd, 2);
    } else {
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(MTU as u16).to_be_bytes());
        (ip[8], ip[9], ip[12], ip[15], ip[16], ip[19]) = (64, ip::TCP, 10, 1, 10, 2);
    }
    (rest[12], rest[13]) = (0x60, flags);
    rest[20..24].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    packet
}

/// As a worker does it.
fn clamp(packet: &mut [u8], header: &ip::Header, switches: &Switches) -> bool {
    mss::may_be_syn(packet, header)
        && switches.now().is_on(Switch::MssClamp)
        && mss::clamp(packet, header, MTU)
}

fn clamping(criterion: &mut Criterion) {
    for (family, v6) in [("v4", false), ("v6", true)] {
        let mut group = criterion.benchmark_group(family);
        let data = packet(v6, tcp::ACK);
        let mut nothing = data.clone();
        group.bench_function("nothing", |bencher| {
            bencher.iter(|| {
                nothing[60..62].copy_from_slice(&[0x05, 0xb4]);
                black_box(&mut nothing);
            });
        });
        group.bench_function("header", |bencher| bencher.iter(|| ip::Header::parse(black_box(&data))));
        for (name, flags, on) in [
            ("data_on", tcp::ACK, true),
            ("data_off", tcp::ACK, false),
            ("syn_on", tcp::SYN, true),
            ("syn_off", tcp::SYN, false),
        ] {
            let mut packet = packet(v6, flags);
            let Some(header) = ip::Header::parse(&packet) else { continue };
            let switches = Switches::new(Offload::default(), on);
            let size = header.header_len + tcp::MIN_LEN + 2;
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    // As it came, each time.
                    packet[size..size + 2].copy_from_slice(&[0x05, 0xb4]);
                    clamp(black_box(&mut packet), black_box(&header), black_box(&switches))
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = clamping
}
criterion_main!(benches);
