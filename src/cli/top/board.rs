//! What `top` knows and what its user chose; no terminal, no clock.

use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use super::Sample;
use crate::cli::report::{Rates, Report};
use crate::control::uapi::format::ShowPeer;

/// Longest filter, characters: a key and more.
const FILTER_MAX: usize = 64;
/// Rows that a page key moves by.
const PAGE: usize = 20;

/// What comes after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    End,
}

/// By what peers are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Bytes per second, both ways, the fastest first.
    #[default]
    Rate,
    /// The latest handshake first.
    Handshake,
    /// Bytes in all, both ways, the most first.
    Bytes,
}

impl Sort {
    /// For people.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Handshake => "handshake",
            Self::Bytes => "bytes",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Rate => Self::Handshake,
            Self::Handshake => Self::Bytes,
            Self::Bytes => Self::Rate,
        }
    }
}

/// One device: its latest report, and what changed since the one before.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) report: Report,
    pub(super) rates: Rates,
    /// Places of the peers that the filter lets through, sorted.
    pub(super) order: Vec<usize>,
}

impl Panel {
    /// A peer's bytes per second, both ways.
    pub(super) fn rate(&self, peer: &ShowPeer) -> f64 {
        self.rates.peers.get(&peer.public_key).map_or(0.0, |rates| rates.sum())
    }

    fn arrange(&mut self, sort: Sort, filter: &str) {
        let filter = filter.to_lowercase();
        let peers = &self.report.show.peers;
        let mut order: Vec<_> =
            (0..peers.len()).filter(|place| peers.get(*place).is_some_and(|p| matches(p, &filter))).collect();
        // The greatest first; equals stay in the order of the configuration.
        let rank = |place: &usize| {
            peers.get(*place).map_or(0.0, |peer| match sort {
                Sort::Rate => self.rate(peer),
                Sort::Handshake => peer.last_handshake.unwrap_or(0) as f64,
                Sort::Bytes => peer.rx_bytes.saturating_add(peer.tx_bytes) as f64,
            })
        };
        order.sort_by_cached_key(|place| std::cmp::Reverse(Rank(rank(place))));
        self.order = order;
    }
}

/// A number that has an order: rates are never NaN, and if one were it would still have a place.
#[derive(PartialEq)]
struct Rank(f64);

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

fn matches(peer: &ShowPeer, filter: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(filter);
    has(&peer.public_key)
        || peer.endpoint.as_deref().is_some_and(has)
        || peer.allowed_ips.iter().any(|prefix| has(prefix))
}

/// Everything on the screen.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) panels: Vec<Panel>,
    /// Which device is shown.
    pub(super) shown: usize,
    /// Which peer the arrows have reached, by its row.
    pub(super) row: usize,
    pub(super) sort: Sort,
    pub(super) filter: String,
    /// Keys go to the filter.
    pub(super) typing: bool,
    pub(super) paused: bool,
    /// Why the last look failed.
    pub(super) trouble: Option<String>,
}

impl Board {
    /// Takes a new look at the devices in, unless it is paused. After a failure the last good look stays.
    pub(super) fn take(&mut self, sample: Sample) {
        if self.paused {
            return;
        }
        let reports = match sample {
            Ok(reports) => reports,
            Err(trouble) => {
                self.trouble = Some(trouble);
                return;
            }
        };
        self.trouble = reports.is_empty().then(|| "no device is served any more".to_owned());
        let mut former = std::mem::take(&mut self.panels);
        self.panels = reports
            .into_iter()
            .map(|report| {
                let before = former.iter_mut().find(|panel| panel.report.name == report.name);
                let rates = before.map_or_else(Rates::default, |old| Rates::between(&old.report, &report));
                Panel { report, rates, order: Vec::new() }
            })
            .collect();
        self.arrange();
    }

    /// The device on the screen.
    pub(super) fn panel(&self) -> Option<&Panel> {
        self.panels.get(self.shown).or(self.panels.first())
    }

    /// Does what a key asks for.
    pub(super) fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> Next {
        if code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL) {
            return Next::End;
        }
        if self.typing {
            self.type_key(code);
            return Next::Stay;
        }
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::End,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Tab => self.shown = (self.shown + 1) % self.panels.len().max(1),
            KeyCode::Up => self.row = self.row.saturating_sub(1),
            KeyCode::Down => self.row += 1,
            KeyCode::PageUp => self.row = self.row.saturating_sub(PAGE),
            KeyCode::PageDown => self.row += PAGE,
            KeyCode::Home => self.row = 0,
            KeyCode::End => self.row = usize::MAX,
            _ => return Next::Stay,
        }
        self.arrange();
        Next::Stay
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) if self.filter.chars().count() < FILTER_MAX => self.filter.push(letter),
            _ => {}
        }
        self.arrange();
    }

    /// Sorts and filters anew, and keeps the row inside.
    fn arrange(&mut self) {
        let (sort, filter) = (self.sort, self.filter.as_str());
        self.panels.iter_mut().for_each(|panel| panel.arrange(sort, filter));
        let last = self.panel().map_or(0, |panel| panel.order.len().saturating_sub(1));
        self.row = self.row.min(last);
    }
}
