//! What `top` looks like, on a terminal and in plain text. Only the rows that are visible are made.

use std::fmt::Write as _;
use std::time::SystemTime;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table};
use serde_json::Value;

use super::board::{Board, Panel};
use crate::cli::report::{self, PeerRates, WorkerRates};
use crate::cli::show::bytes;
use crate::control::uapi::format::ShowPeer;

/// Names and widths of the workers' columns.
const WORKERS: [(&str, u16); 9] = [
    ("WORKER", 6),
    ("PEERS", 6),
    ("IN/S", 12),
    ("OUT/S", 12),
    ("IN PKT/S", 10),
    ("OUT PKT/S", 10),
    ("BATCH IN/OUT", 13),
    ("HANDED/S", 9),
    ("DROPS/S", 9),
];
/// Names and widths of the peers' columns.
const PEERS: [(&str, u16); 8] = [
    ("PEER", 13),
    ("IN/S", 12),
    ("OUT/S", 12),
    ("IN", 12),
    ("OUT", 12),
    ("HANDSHAKE", 10),
    ("WORKER", 6),
    ("ENDPOINT", 24),
];
/// Characters of a public key: enough to tell peers apart.
const KEY_CHARS: usize = 12;

/// Draws the device that is chosen.
pub(super) fn draw(frame: &mut Frame<'_>, board: &Board, now: SystemTime) {
    let Some(panel) = board.panel() else {
        let words = board.trouble.as_deref().unwrap_or("no device");
        frame.render_widget(Paragraph::new(words), frame.area());
        return;
    };
    let workers = report::workers(&panel.report.show.dataplane);
    // Many workers leave room for the peers.
    let most = usize::from(frame.area().height / 3);
    let shown = workers.len().min(most.max(1));
    let rows = Constraint::Length(u16::try_from(shown + 1).unwrap_or(u16::MAX));
    let heights =
        [Constraint::Length(1), rows, Constraint::Length(1), Constraint::Min(2), Constraint::Length(1)];
    let [head, top, drops, peers, foot] = Layout::vertical(heights).areas(frame.area());
    frame.render_widget(Paragraph::new(heading(board, panel, now)).style(Modifier::BOLD), head);
    let cells = workers
        .iter()
        .enumerate()
        .take(shown)
        .map(|(place, worker)| Row::new(worker_cells(place, worker, panel.rates.workers.get(place))));
    frame.render_widget(table(cells, &WORKERS), top);
    frame.render_widget(Paragraph::new(drop_line(panel)), drops);
    draw_peers(frame, board, panel, peers, now);
    let keys = if board.typing {
        Line::from(format!("filter: {}_   Enter keep   Esc clear", board.filter))
    } else {
        Line::from(keys(board))
    };
    frame.render_widget(Paragraph::new(keys).style(Modifier::DIM), foot);
}

fn draw_peers(frame: &mut Frame<'_>, board: &Board, panel: &Panel, area: Rect, now: SystemTime) {
    let height = usize::from(area.height.saturating_sub(1)).max(1);
    let first = board.row.saturating_sub(height - 1);
    let peers = panel.order.iter().enumerate().skip(first).take(height);
    let rows = peers.filter_map(|(row, place)| {
        let peer = panel.report.show.peers.get(*place)?;
        let rates = panel.rates.peers.get(&peer.public_key);
        let style = if row == board.row { Modifier::REVERSED.into() } else { Style::new() };
        Some(Row::new(peer_cells(peer, rates, now)).style(style))
    });
    frame.render_widget(table(rows, &PEERS), area);
}

fn table<'a>(rows: impl Iterator<Item = Row<'a>>, columns: &[(&'static str, u16)]) -> Table<'a> {
    let header = Row::new(columns.iter().map(|(name, _)| *name)).style(Modifier::BOLD);
    Table::new(rows, columns.iter().map(|(_, width)| Constraint::Min(*width))).header(header)
}

fn heading(board: &Board, panel: &Panel, now: SystemTime) -> String {
    let show = &panel.report.show;
    let mut line = format!(
        "{}  port {}  {} of {} peers in session",
        panel.report.name,
        show.listen_port,
        report::sessions(show, now),
        show.peers.len(),
    );
    if panel.order.len() != show.peers.len() {
        let _ = write!(line, "  {} match '{}'", panel.order.len(), board.filter);
    }
    if board.panels.len() > 1 {
        let _ = write!(line, "  (device {} of {})", board.shown + 1, board.panels.len());
    }
    if board.paused {
        line.push_str("  PAUSED");
    }
    if let Some(trouble) = &board.trouble {
        let _ = write!(line, "  {trouble}");
    }
    line
}

fn drop_line(panel: &Panel) -> String {
    let drops = &panel.rates.drops;
    let each: Vec<_> = drops.iter().map(|(reason, rate)| format!("{reason} {rate:.0}/s")).collect();
    if each.is_empty() { "drops: none".to_owned() } else { format!("drops: {}", each.join("  ")) }
}

fn keys(board: &Board) -> String {
    let device = if board.panels.len() > 1 { "   Tab device" } else { "" };
    format!("q quit   arrows move   s sort ({})   / filter   p pause{device}", board.sort.word())
}

fn worker_cells(place: usize, worker: &Value, rates: Option<&WorkerRates>) -> [String; WORKERS.len()] {
    let rates = rates.cloned().unwrap_or_default();
    [
        place.to_string(),
        worker["peers"].as_u64().unwrap_or(0).to_string(),
        bytes(rates.rx_bytes as u64),
        bytes(rates.tx_bytes as u64),
        format!("{:.0}", rates.rx_packets),
        format!("{:.0}", rates.tx_packets),
        format!("{:.1} / {:.1}", rates.rx_batch, rates.tx_batch),
        format!("{:.0}", rates.handed_over),
        format!("{:.0}", rates.drops),
    ]
}

fn peer_cells(peer: &ShowPeer, rates: Option<&PeerRates>, now: SystemTime) -> [String; PEERS.len()] {
    let rates = rates.copied().unwrap_or_default();
    let age = peer.handshake_age(now);
    [
        peer.public_key.chars().take(KEY_CHARS).collect(),
        bytes(rates.rx_bytes as u64),
        bytes(rates.tx_bytes as u64),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
        age.map_or_else(|| "never".to_owned(), |age| brief(age.as_secs())),
        peer.worker.to_string(),
        peer.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// An age in its greatest unit: `42s`, `3m`, `5h`, `9d`.
fn brief(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Every device with every worker and peer, in lines.
pub(super) fn plain(board: &Board, now: SystemTime) -> String {
    let mut out = String::new();
    for (place, panel) in board.panels.iter().enumerate() {
        if place > 0 {
            out.push('\n');
        }
        let show = &panel.report.show;
        let sessions = report::sessions(show, now);
        let _ = writeln!(
            out,
            "{}  port {}  {sessions} of {} peers in session  {:.1} s",
            panel.report.name,
            show.listen_port,
            show.peers.len(),
            panel.rates.seconds,
        );
        plain_row(&mut out, &WORKERS, WORKERS.map(|(name, _)| name));
        for (place, worker) in report::workers(&show.dataplane).iter().enumerate() {
            plain_row(&mut out, &WORKERS, worker_cells(place, worker, panel.rates.workers.get(place)));
        }
        let _ = writeln!(out, "{}", drop_line(panel));
        plain_row(&mut out, &PEERS, PEERS.map(|(name, _)| name));
        for peer in panel.order.iter().filter_map(|place| show.peers.get(*place)) {
            plain_row(&mut out, &PEERS, peer_cells(peer, panel.rates.peers.get(&peer.public_key), now));
        }
    }
    out
}

fn plain_row<const N: usize>(out: &mut String, columns: &[(&str, u16); N], cells: [impl AsRef<str>; N]) {
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(columns) {
        let _ = write!(line, "{:<width$} ", cell.as_ref(), width = usize::from(*width));
    }
    let _ = writeln!(out, "{}", line.trim_end());
}
