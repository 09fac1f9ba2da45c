//! The screen, drawn from recorded reports into a terminal of memory; the keys.

use std::time::Instant;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use serde::Deserialize as _;
use serde_json::json;

use super::board::{Board, Next};
use super::*;
use crate::control::uapi::format::Show;

/// A device with so many peers; peer `n` has sent `n * seconds` bytes, and its last handshake was `n` seconds after the
/// epoch.
fn recorded(name: &str, peers: u64, at: Instant, seconds: u64) -> Report {
    let peer = |n: u64| {
        json!({ "public_key": format!("KEY{n:05}"), "endpoint": format!("198.18.0.1:{n}"), "rx_bytes": n * seconds,
            "allowed_ips": [format!("100.64.{}.{}/32", n >> 8, n & 255)], "last_handshake": n, "worker": n % 2 })
    };
    let json = json!({
        "listen_port": 51820,
        "peers": (0..peers).map(peer).collect::<Vec<_>>(),
        "dataplane": {
            "workers": [
                { "peers": peers, "drops": { "replayed": 5 * seconds }, "counters": {
                    "ringway_rx_packets_total": 600 * seconds, "ringway_receives_total": 200 * seconds,
                    "ringway_rx_bytes_total": 2048 * seconds, "ringway_handed_over_total": 7 * seconds } },
                { "peers": 0 },
            ],
            "drops": { "replayed": 5 * seconds, "malformed": 0 },
        },
    });
    let show = Show::deserialize(&json).unwrap();
    Report { name: name.parse().unwrap(), at: at + Duration::from_secs(seconds), json, show }
}

/// A board after two looks, two seconds apart.
fn board(names: &[&str], peers: u64) -> Board {
    let at = Instant::now();
    let mut board = Board::default();
    for seconds in [0, 2] {
        board.take(Ok(names.iter().map(|name| recorded(name, peers, at, seconds)).collect()));
    }
    board
}

fn screen(board: &Board, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
    terminal.draw(|frame| view::draw(frame, board, now)).unwrap();
    let cells = terminal.backend().buffer().content();
    let row = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>();
    cells.chunks(usize::from(width)).map(|line| row(line).trim_end().to_owned()).collect()
}

fn press(board: &mut Board, code: KeyCode) -> Next {
    board.key(code, KeyModifiers::NONE)
}

fn words(board: &mut Board, text: &str) {
    text.chars().for_each(|letter| assert_eq!(press(board, KeyCode::Char(letter)), Next::Stay));
}

#[test]
fn ten_thousand_peers_on_a_small_screen() {
    let mut board = board(&["wg0"], 10_000);
    let lines = screen(&board, 110, 20);
    assert_eq!(lines.len(), 20);
    assert_eq!(lines[0], "wg0  port 51820  179 of 10000 peers in session");
    assert!(lines[1].starts_with("WORKER"), "{lines:#?}");
    let cells: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!(cells, ["0", "10000", "2.00", "KiB", "0", "B", "600", "0", "3.0", "/", "0.0", "7", "5"]);
    assert_eq!(lines[4], "drops: replayed 5/s");
    assert!(lines[5].starts_with("PEER"), "{lines:#?}");
    // The fastest first: peer n receives n bytes per second.
    assert!(lines[6].starts_with("KEY09999") && lines[6].contains("9.76 KiB"), "{lines:#?}");
    assert!(lines[18].starts_with("KEY09987"), "{lines:#?}");
    assert!(lines[19].contains("s sort (rate)"), "{lines:#?}");

    press(&mut board, KeyCode::End);
    assert!(screen(&board, 110, 20)[18].starts_with("KEY00000"));
    press(&mut board, KeyCode::Up);
    assert_eq!(board.row, 9998);
    press(&mut board, KeyCode::Home);
    press(&mut board, KeyCode::Up);
    assert_eq!(board.row, 0);
    press(&mut board, KeyCode::PageDown);
    press(&mut board, KeyCode::Down);
    assert_eq!(board.row, 21);
    assert!(screen(&board, 110, 20)[18].starts_with("KEY09978"));
}

#[test]
fn any_size_of_screen_is_drawn() {
    let board = board(&["wg0"], 3);
    for (width, height) in [(1, 1), (5, 2), (200, 3), (20, 60), (1, 50)] {
        assert_eq!(screen(&board, width, height).len(), usize::from(height));
    }
    assert_eq!(screen(&Board::default(), 20, 2)[0], "no device");
}

#[test]
fn keys_sort_filter_pause_and_end() {
    let mut board = board(&["wg0", "wg1"], 300);
    assert!(screen(&board, 110, 20)[0].contains("(device 1 of 2)"));
    press(&mut board, KeyCode::Tab);
    assert!(screen(&board, 110, 20)[0].starts_with("wg1"));
    press(&mut board, KeyCode::Tab);
    assert!(screen(&board, 110, 20)[0].starts_with("wg0"));

    words(&mut board, "s");
    assert!(screen(&board, 110, 20)[19].contains("sort (handshake)"));

    // A prefix of one peer; `q` is a letter here.
    words(&mut board, "/100.64.1.7/q");
    assert!(screen(&board, 110, 20)[19].contains("filter: 100.64.1.7/q_"));
    press(&mut board, KeyCode::Backspace);
    press(&mut board, KeyCode::Enter);
    let lines = screen(&board, 110, 20);
    assert!(lines[0].contains("1 match '100.64.1.7/'") && lines[6].starts_with("KEY00263"), "{lines:#?}");
    assert_eq!(lines[7], "");
    words(&mut board, "/");
    press(&mut board, KeyCode::Esc);
    assert!(screen(&board, 110, 20)[7].starts_with("KEY00298"));

    words(&mut board, "p");
    assert!(screen(&board, 110, 20)[0].contains("PAUSED"));
    board.take(Ok(Vec::new()));
    assert_eq!(board.panels.len(), 2, "nothing moves while it is paused");
    words(&mut board, "p");
    board.take(Err("the socket is gone".to_owned()));
    assert!(screen(&board, 110, 20)[0].contains("the socket is gone"));
    board.take(Ok(Vec::new()));
    assert!(screen(&board, 110, 20)[0].contains("no device is served any more"));

    assert_eq!(press(&mut board, KeyCode::Char('q')), Next::End);
    assert_eq!(press(&mut board, KeyCode::Esc), Next::End);
    words(&mut board, "/");
    assert_eq!(board.key(KeyCode::Char('c'), KeyModifiers::CONTROL), Next::End);
}

#[test]
fn the_order_follows_the_choice() {
    let at = Instant::now();
    let mut board = Board::default();
    let with = |rx: [u64; 3], handshakes: [u64; 3], seconds| {
        let mut report = recorded("wg0", 3, at, seconds);
        for (n, peer) in report.show.peers.iter_mut().enumerate() {
            (peer.rx_bytes, peer.last_handshake) = (rx[n], Some(handshakes[n]));
        }
        report
    };
    board.take(Ok(vec![with([1000, 0, 500], [7, 5, 9], 0)]));
    board.take(Ok(vec![with([1001, 100, 550], [7, 5, 9], 1)]));
    let order = |board: &Board| board.panels[0].order.clone();
    assert_eq!(order(&board), [1, 2, 0], "rate");
    words(&mut board, "s");
    assert_eq!(order(&board), [2, 0, 1], "handshake");
    words(&mut board, "s");
    assert_eq!(order(&board), [0, 2, 1], "bytes");
    words(&mut board, "s");
    assert_eq!(board.sort.word(), "rate");
}

#[test]
fn the_plain_table_has_everything() {
    let board = board(&["wg0", "wg1"], 30);
    let text = view::plain(&board, SystemTime::UNIX_EPOCH + Duration::from_secs(100));
    assert_eq!(text.lines().filter(|line| line.starts_with("KEY")).count(), 60);
    assert!(text.starts_with("wg0  port 51820  30 of 30 peers in session  2.0 s\nWORKER"), "{text}");
    assert!(text.contains("\n\nwg1  port"), "{text}");
    assert!(text.contains("drops: replayed 5/s\nPEER"), "{text}");
    let first = text.lines().find(|line| line.starts_with("KEY")).unwrap();
    let cells: Vec<_> = first.split_whitespace().collect();
    assert_eq!(cells, ["KEY00029", "29", "B", "0", "B", "58", "B", "0", "B", "1m", "1", "198.18.0.1:29"]);
}
