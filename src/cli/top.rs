//! `top`: the devices of this host, live: workers, drops, peers.
//!
//! 1. a thread asks the devices once per interval and sends what they say
//! 2. `board` keeps it, with what the user chose
//! 3. `view` draws what is visible
//!
//! Where the standard output is no terminal, or with `--once`, one plain table is printed after one interval.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use crossbeam_channel::{Receiver, bounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show as ShowCursor;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::execute;
use tokio::signal::unix::{SignalKind, signal};

use super::report::{self, Report};
use crate::control::socket::DIRECTORY;
use crate::net::name::InterfaceName;

mod board;
mod view;

use board::{Board, Next};

/// Longest time until a signal or a new report is noticed.
const PATIENCE: Duration = Duration::from_millis(100);

/// `top [--once] [--interval SECONDS] [-i IFNAME]…`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print one plain table and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// This device only; may be repeated
    #[arg(short, long = "interface", value_name = "IFNAME")]
    interface: Vec<InterfaceName>,
}

/// Shows the devices until the user, a signal or `--once` ends it.
///
/// # Errors
/// No device is served, or this user may not ask; the terminal fails. The terminal is as it was in every case.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let interval = Duration::from_secs(args.interval);
    let first = report::devices(Path::new(DIRECTORY), &args.interface)?;
    if first.is_empty() {
        bail!("no device is served here: start one with `ringway IFNAME` or `ringway gateway`");
    }
    let mut board = Board::default();
    board.take(Ok(first));
    if args.once || !io::stdout().is_terminal() {
        thread::sleep(interval);
        board.take(Ok(report::devices(Path::new(DIRECTORY), &args.interface)?));
        let text = view::plain(&board, SystemTime::now());
        return match io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
            _ => Ok(()),
        };
    }
    let ended = end_on_signals()?;
    let samples = sample(args.interface.clone(), interval)?;
    let mut screen = Screen::open().context("the terminal")?;
    live(&mut screen.0, &mut board, &samples, &ended).context("the terminal")
}

/// The loop: draw, then wait for a key, a report or a signal.
fn live(
    terminal: &mut DefaultTerminal,
    board: &mut Board,
    samples: &Receiver<Sample>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut changed = true;
    while !ended.load(Ordering::Relaxed) {
        if let Ok(sample) = samples.try_recv() {
            board.take(sample);
            changed = true;
        }
        if changed {
            terminal.draw(|frame| view::draw(frame, board, SystemTime::now()))?;
        }
        changed = event::poll(PATIENCE)?;
        if changed
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && board.key(key.code, key.modifiers) == Next::End
        {
            break;
        }
    }
    Ok(())
}

/// What the devices say, or why they say nothing.
type Sample = Result<Vec<Report>, String>;

/// Asks once per interval on a thread of its own: a device that hangs must not hold up the keys.
fn sample(wanted: Vec<InterfaceName>, interval: Duration) -> io::Result<Receiver<Sample>> {
    let (sender, samples) = bounded(1);
    let ask = move || {
        loop {
            thread::sleep(interval);
            let sample = report::devices(Path::new(DIRECTORY), &wanted).map_err(|error| format!("{error:#}"));
            if sender.send(sample).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("ringway-top".to_owned()).spawn(ask)?;
    Ok(samples)
}

/// Becomes true at SIGTERM, SIGINT, SIGQUIT or SIGHUP: the terminal is put back before the program ends.
fn end_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup()];
    let entered = runtime.enter();
    let [mut terminate, mut interrupt, mut quit, mut hangup] = kinds.map(signal);
    drop(entered);
    let told = Arc::clone(&ended);
    let wait = move || {
        runtime.block_on(async {
            let (Ok(terminate), Ok(interrupt), Ok(quit), Ok(hangup)) =
                (&mut terminate, &mut interrupt, &mut quit, &mut hangup)
            else {
                return;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
                _ = hangup.recv() => {}
            }
            told.store(true, Ordering::Relaxed);
        });
    };
    thread::Builder::new().name("ringway-signal".to_owned()).spawn(wait)?;
    Ok(ended)
}

/// The terminal in raw mode on its alternate screen; as it was when dropped, and before a panic speaks.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            former(panic);
        }));
        ratatui::try_init().map(Self).inspect_err(|_| restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let _ = ratatui::try_restore();
    let _ = execute!(io::stdout(), ShowCursor);
}

#[cfg(test)]
mod tests;
