use std::cell::Cell;
use std::time::Instant;

use tokio::time::sleep;

use super::*;

const PAGE: &str = "ringway_turns_total 1\n";
const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// Runs a client beside the server, on one thread as in the program; returns how often the page was made.
fn with_server<C: Future<Output = ()>>(page: &str, client: impl FnOnce(SocketAddr) -> C) -> u32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let made = Cell::new(0);
    runtime.block_on(async {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let page: Rc<str> = page.into();
        let make = || {
            made.set(made.get() + 1);
            Rc::clone(&page)
        };
        tokio::select! {
            never = serve(&listener, make) => match never {},
            ended = timeout(Duration::from_secs(50), client(address)) => ended.expect("the client is served"),
        }
    });
    made.get()
}

/// Sends a request as it is and reads until the server hangs up.
async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[test]
fn the_page_and_what_is_no_request_for_it() {
    let made = with_server(PAGE, async |address| {
        let answer = ask(address, GET).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", PAGE.len())), "{head}");
        assert_eq!(body, PAGE);
        let answer = ask(address, b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n").await;
        assert!(answer.contains(&format!("Content-Length: {}", PAGE.len())) && answer.ends_with("\r\n\r\n"));
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics HTTP/2\r\n\r\n", "400"),
            (b"GET  /metrics HTTP/1.1\r\n\r\n", "400"),
            (b"\0\xff\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
    });
    assert_eq!(made, 2, "only proper requests cost a page");
}

#[test]
fn a_huge_head_and_half_a_request_are_refused() {
    let made = with_server(PAGE, async |address| {
        let mut huge = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        huge.resize(MAX_HEAD, b'x');
        assert!(ask(address, &huge).await.starts_with("HTTP/1.1 431 "));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    });
    assert_eq!(made, 0);
}

#[test]
fn who_never_finishes_is_cut_off() {
    with_server(PAGE, async |address| {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
        assert!((PATIENCE / 2..PATIENCE * 3).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    });
}

/// A page larger than the kernel takes from us at once, for somebody who takes nothing.
#[test]
fn who_never_reads_is_cut_off_and_disturbs_nobody() {
    let page = "x".repeat(64 << 20);
    with_server(&page, async |address| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let begin = Instant::now();
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
        assert!(begin.elapsed() < PATIENCE / 5);
        sleep(PATIENCE + Duration::from_secs(1)).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.len() < page.len(), "it was served to the end");
    });
}

#[test]
fn a_thousand_idle_connections_do_not_keep_a_scraper_out() {
    with_server(PAGE, async |address| {
        let mut idle = Vec::new();
        for _ in 0..1000 {
            let connected = timeout(Duration::from_secs(5), TcpStream::connect(address)).await;
            idle.push(connected.expect("the server accepts").unwrap());
        }
        let begin = Instant::now();
        assert!(ask(address, GET).await.ends_with(PAGE));
        assert!(begin.elapsed() < PATIENCE / 5, "{:?}", begin.elapsed());
        // The first ones were ended for the later ones, long before their time.
        let oldest = idle.first_mut().unwrap();
        let ended = timeout(PATIENCE / 5, oldest.read(&mut [0])).await.expect("ended");
        assert!(ended.is_err() || ended.is_ok_and(|read| read == 0));
    });
}

#[test]
fn a_used_address_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async { listen(address).unwrap_err() });
    assert!(format!("{error:#}").contains(&address.to_string()), "{error:#}");
}
