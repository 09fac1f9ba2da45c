//! The metrics page on a live gateway: Debian's promtool and Prometheus judge it, the dashboard and the alerts are held
//! against it, and clients that behave badly do not disturb anybody.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::dropin::program;
use crate::lab::{Host, Lab, machine, target, wait_until};
use crate::peer::{Implementation, Peer, Remote, io_option};
use crate::supervised::hold;
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, OVERLAY, Outer, Plan, Site, client_v4, connect, gateway_endpoint,
};
use crate::traffic::{must_reach, ping};

const PAGE_AT: &str = "127.0.0.1:9586";
const PROMETHEUS_AT: &str = "127.0.0.1:9090";
const SOON: Duration = Duration::from_secs(10);

/// Prints what comes back for a request from the address in the first argument.
const FETCH: &str = r#"
    use IO::Socket::INET;
    my $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], Timeout => 5) or die "connect: $!";
    print $s "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"; print while <$s>;
"#;

/// Opens a thousand connections, half of which begin a request that never ends, says so, and keeps them.
const CROWD: &str = r#"
    use IO::Socket::INET; $| = 1; my @all;
    for my $n (1..1000) {
        my $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], Timeout => 5) or die "connection $n: $!";
        syswrite($s, "GET /metrics HTTP/1.1\r\nX: " . "x" x 1000) if $n % 2;
        push @all, $s;
    }
    print "open\n"; sleep;
"#;

fn tool(name: &str) -> PathBuf {
    let path = target().join("tools/prometheus/usr/bin").join(name);
    assert!(path.exists(), "{} is missing: run `make deps`", path.display());
    path
}

fn project(file: &str) -> String {
    std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A gateway with two workers and metrics, and a client that has reached it.
fn site(lab: &Lab, variables: &[(&'static str, &'static str)]) -> Site {
    let mut plan = Plan::new(Implementation::Ringway { workers: 2 }, Implementation::Ringway { workers: 1 });
    plan.variables = [&[("RINGWAY_METRICS", PAGE_AT)], variables].concat();
    let site = plan.build(lab);
    must_reach(&site.clients[0].host, GATEWAY_V4);
    site
}

fn page(host: &Host) -> String {
    page_at(host, PAGE_AT).expect("no answer")
}

/// The page at an address and port; `None` if nobody answers there.
pub(crate) fn page_at(host: &Host, address: &str) -> Option<String> {
    let mut fetch = host.command("perl");
    let output = fetch.args(["-e", FETCH, address]).output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    Some(body.to_owned())
}

/// The sum of a metric's series that contain `label`.
pub(crate) fn sum(page: &str, metric: &str, label: &str) -> u64 {
    let series = page.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// The metrics that a page declares; of a histogram its three series.
fn declared(page: &str) -> BTreeSet<String> {
    let mut declared = BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        match line.split_once(' ') {
            Some((name, "histogram")) => {
                declared.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            }
            Some((name, _)) => _ = declared.insert(name.to_owned()),
            None => panic!("half a line: {line}"),
        }
    }
    declared
}

/// The metrics that an expression or a file names.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| ["ringway_", "wireguard_", "process_"].iter().any(|p| word.starts_with(p));
    words.filter(ours).map(str::to_owned).collect()
}

/// Every PromQL expression of the dashboard, with its variables filled in.
fn dashboard() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            Value::Object(entries) => {
                found.extend(entries.get("expr").and_then(Value::as_str).map(str::to_owned));
                entries.values().for_each(|value| collect(value, found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(&project("config/grafana.json")).unwrap(), &mut found);
    let fill = |expr: String| expr.replace("$__rate_interval", "5s").replace("$interface", "wg0");
    found.into_iter().map(fill).collect()
}

/// A Prometheus that scrapes the page of its host.
struct Prometheus<'a> {
    host: &'a Host,
    child: Child,
    place: PathBuf,
}

impl<'a> Prometheus<'a> {
    fn start(host: &'a Host) -> Self {
        let place = target().join("tmp").join(format!("prometheus-{}", host.namespace));
        std::fs::create_dir_all(&place).unwrap();
        let rules = place.join("alerts.yaml");
        std::fs::write(&rules, project("config/alerts.yaml")).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 1s }}\n\
             rule_files: [ {} ]\n\
             scrape_configs: [ {{ job_name: ringway, static_configs: [ {{ targets: [ '{PAGE_AT}' ] }} ] }} ]\n",
            rules.display()
        );
        std::fs::write(place.join("prometheus.yml"), config).unwrap();
        let child = host
            .command(tool("prometheus"))
            .arg(format!("--config.file={}", place.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", place.join("data").display()))
            .arg(format!("--web.listen-address={PROMETHEUS_AT}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(place.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { host, child, place }
    }

    /// The answer to an instant query, a line per series; `None` while there is no Prometheus.
    fn query(&self, expr: &str) -> Option<String> {
        let mut query = self.host.command(tool("promtool"));
        let url = format!("http://{PROMETHEUS_AT}");
        let output = query.args(["query", "instant", &url, expr]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("bad_data"), "{expr}: {said}");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The answer if it is one value.
    fn value(&self, expr: &str) -> Option<String> {
        Some(self.query(expr)?.split("=> ").nth(1)?.split(' ').next()?.to_owned())
    }

    /// The answer if it is one whole number.
    fn number(&self, expr: &str) -> Option<u64> {
        self.value(expr)?.parse().ok()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!(
                "--- prometheus:\n{}",
                std::fs::read_to_string(self.place.join("log")).unwrap_or_default()
            );
        }
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

#[test]
fn prometheus_knows_what_a_gateway_carried() {
    let Some(lab) = Lab::new() else { return };
    let site = site(&lab, &[("RINGWAY_METRICS_PER_PEER", "1")]);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    let prometheus = Prometheus::start(&gateway.host);
    assert_eq!(ping(&client.host, GATEWAY_V4, 40, 1000), 40);

    // What promtool thinks of the page: names, units, help, types.
    let text = page(&gateway.host);
    gateway.host.run_with_input(&format!("{} check metrics", tool("promtool").display()), &text);

    // Keepalives may follow: both are asked until they agree.
    let series = r#"ringway_packets_total{direction="in"}"#;
    wait_until("Prometheus and `ringway show` agree", Duration::from_secs(30), || {
        let shown = gateway.counter(series);
        shown >= Some(40) && prometheus.number(&format!("sum({series})")) == shown
    });
    let key = &client.public;
    let sent = prometheus.number(&format!("wireguard_sent_bytes_total{{public_key=\"{key}\"}}"));
    assert!(sent.is_some_and(|bytes| bytes >= 40 * 1000), "{sent:?}");
    let sum = prometheus.number(r#"sum(ringway_handshakes_total{outcome="completed",interface="wg0"})"#);
    assert_eq!(sum, Some(1));

    // A histogram is one to Prometheus, counts what the counters count, and the ring's requests are counted.
    let median = "histogram_quantile(0.5, sum by (le) (ringway_receive_batch_datagrams_bucket))";
    let median: Option<f64> = prometheus.value(median).and_then(|value| value.parse().ok());
    assert!(median.is_some_and(|median| 0.0 < median && median <= 2.0), "pings come one by one: {median:?}");
    for (way, what) in [("receive", "datagrams"), ("send", "datagrams"), ("tun_write", "packets")] {
        let batches = format!("sum(ringway_{way}_batch_{what}_count)");
        let calls = format!("sum(ringway_{way}s_total)");
        wait_until("there are as many batches as calls", SOON, || {
            let counted = prometheus.number(&batches);
            counted >= Some(40) && counted == prometheus.number(&calls)
        });
    }
    let submissions = prometheus.number("min(ringway_ring_submissions_total)");
    assert!(submissions >= Some(4), "each worker's wake, queue and two sockets: {submissions:?}");

    // Everything that the dashboard asks is understood and about something that is there.
    let declared = declared(&text);
    let dashboard = dashboard();
    assert!(dashboard.len() >= 10);
    for expr in &dashboard {
        assert!(prometheus.query(expr).is_some(), "{expr}");
        let names = named(expr);
        assert!(!names.is_empty() && names.is_subset(&declared), "{expr}");
    }
    // And what the alerts ask, none of which fires on a gateway in good order.
    let alerts = project("config/alerts.yaml");
    let names = named(&alerts);
    assert!(names.len() >= 5 && names.is_subset(&declared), "{:?}", names.difference(&declared));
    machine(&format!(
        "{} check rules {}/config/alerts.yaml",
        tool("promtool").display(),
        env!("CARGO_MANIFEST_DIR")
    ));
    assert_eq!(prometheus.query("ALERTS").as_deref().map(str::trim), Some(""));
    // One that has a reason to.
    gateway.host.run(&format!("{} switch wg0 udp-send=off", gateway.implementation.program().display()));
    wait_until("the alert is there", SOON, || {
        prometheus.query("ALERTS").is_some_and(|alerts| {
            alerts.contains("RingwayOffloadOff") && alerts.contains(r#"offload="udp_send""#)
        })
    });
    let off = r#"ringway_off_info{interface="wg0",what="udp_send",reason="switched off"} 1"#;
    assert!(page(&gateway.host).contains(off));
    gateway.host.run(&format!("{} switch wg0 udp-send=on", gateway.implementation.program().display()));
    wait_until("the reason is gone", SOON, || !page(&gateway.host).contains(off));
}

#[test]
fn a_page_names_clients_only_on_request_and_totals_outlive_them() {
    let Some(lab) = Lab::new() else { return };
    let site = site(&lab, &[]);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    let (inner, outer) = (client_v4(0), "198.18.0.2");
    let text = page(&gateway.host);
    for secret in [client.public.as_str(), &inner, outer] {
        assert!(!text.contains(secret), "{secret} stands on the page:\n{text}");
    }
    let client_page = page(&client.host);
    assert!(!client_page.contains("198.18.") && !client_page.contains(&gateway.public));
    for (page, on) in [(&text, 1), (&client_page, 0)] {
        assert!(page.contains(&format!("ringway_steering_on{{interface=\"wg0\"}} {on}\n")), "{page}");
        let off = page.contains(r#"what="steering",reason="one worker needs none"} 1"#);
        assert_eq!(off, on == 0, "{page}");
    }
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n");
    assert!(text.lines().any(|line| format!("{line}\n").ends_with(version)), "{text}");
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap()
    };
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds");
    assert!((0.0..60.0).contains(&age), "it is {age} s old");
    let time = value("process_cpu_seconds_total");
    assert!(0.0 < time && time < 60.0, "{time} s of processor time");

    let Some(lab) = Lab::new() else { return };
    let site = self::site(&lab, &[("RINGWAY_METRICS_PER_PEER", "1")]);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    let before = page(&gateway.host);
    let key = &client.public;
    assert!(before.contains(&format!("public_key=\"{key}\",allowed_ips=\"{inner}/32,")), "{before}");
    assert!(!before.contains(outer), "an outer address:\n{before}");
    assert_eq!(sum(&before, "wireguard_latest_handshake_seconds", key).to_string().len(), 10, "{before}");
    let totals = |page: &str| {
        let names = [
            "ringway_packets_total",
            "ringway_bytes_total",
            "ringway_handshakes_total",
            "ringway_turns_total",
        ];
        names.map(|name| sum(page, name, ""))
    };
    assert_eq!((sum(&before, "ringway_peers", ""), sum(&before, "ringway_sessions", "")), (1, 1));
    // An initiation is longer than its response: what came is not what went.
    wait_until("the page and `wg` agree", SOON, || {
        let said = gateway.show("transfer", key);
        let [came, went] = [0, 1].map(|n| said.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap());
        let page = page(&gateway.host);
        let ours = ["in", "out"].map(|way| {
            let direction = format!("direction=\"{way}\"");
            sum(&page, "ringway_peer_bytes_total", &direction)
        });
        let theirs = ["received", "sent"].map(|way| sum(&page, &format!("wireguard_{way}_bytes_total"), key));
        came != went && ours == [came, went] && theirs == [came, went]
    });
    gateway.set(&format!("peer {key} remove"));
    wait_until("the peer is gone from the page", SOON, || !page(&gateway.host).contains(key.as_str()));
    let after = page(&gateway.host);
    assert_eq!((sum(&after, "ringway_peers", ""), sum(&after, "ringway_sessions", "")), (0, 0));
    for (before, after) in totals(&before).into_iter().zip(totals(&after)) {
        assert!(0 < before && before <= after, "{before} became {after}");
    }
}

/// A thousand connections that ask for nothing, or never come to an end.
#[test]
fn a_crowd_at_the_page_disturbs_nobody() {
    let Some(lab) = Lab::new() else { return };
    let site = site(&lab, &[]);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    let mut crowd = gateway.host.command("perl");
    let mut crowd = crowd.args(["-e", CROWD, PAGE_AT]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(crowd.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "open\n");
    let begin = Instant::now();
    let text = page(&gateway.host);
    assert!(begin.elapsed() < Duration::from_secs(3), "the page took {:?}", begin.elapsed());
    assert!(text.contains("ringway_build_info"));
    let begin = Instant::now();
    assert!(gateway.report().is_some());
    assert!(begin.elapsed() < Duration::from_secs(3), "`ringway show` took {:?}", begin.elapsed());
    assert_eq!(ping(&client.host, GATEWAY_V4, 40, 56), 40);
    let open = machine(&format!("ls /proc/{}/fd", gateway.pid())).lines().count();
    assert!(open < 100, "the gateway has {open} descriptors open");
    crowd.kill().unwrap();
    crowd.wait().unwrap();
}

/// The way out of the ordinary is counted as well: datagrams in fragments, and packets for nobody.
#[test]
fn fragments_and_drops_stand_on_the_page() {
    let Some(lab) = Lab::new() else { return };
    let site = site(&lab, &[]);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    let of = |metric: &str, label: &str| sum(&page(&gateway.host), metric, label);
    let no_route = r#"reason="no_route""#;
    assert_eq!(of("ringway_fragmented_sends_total", ""), 0);
    // The kernel itself says something to everybody now and then.
    let before = of("ringway_drops_total", no_route);
    for host in [&gateway.host, &client.host] {
        host.run("ip link set e0 mtu 1300");
    }
    // Each is 1400 bytes, and 60 more outside.
    assert_eq!(ping(&gateway.host, &client_v4(0), 20, 1372), 20);
    gateway.host.attempt("ping -q -c 3 -i 0.01 -W 1 100.64.200.200");
    wait_until("both are counted", SOON, || {
        let text = page(&gateway.host);
        sum(&text, "ringway_fragmented_sends_total", "") == 20
            && (before + 3..before + 20).contains(&sum(&text, "ringway_drops_total", no_route))
            && sum(&text, "ringway_send_batch_datagrams_count", "") == sum(&text, "ringway_sends_total", "")
    });
}

/// The page comes from boards: a thread that hangs does not hold it up, and what waits for it is seen.
#[test]
fn a_worker_that_hangs_is_seen_on_the_page() {
    let Some(lab) = Lab::new() else { return };
    let site = site(&lab, &[]);
    let gateway = &site.gateway;
    let waiting = |worker: &str| {
        let text = page(&gateway.host);
        let labels = format!("worker=\"{worker}\",queue=\"control\"");
        assert!(text.contains(&labels), "{text}");
        sum(&text, "ringway_queue_length", &labels)
    };
    let held = hold(gateway, "ringway-w1");
    for mtu in [1300, 1320, 1340] {
        gateway.host.run(&format!("ip link set wg0 mtu {mtu}"));
    }
    wait_until("the messages to the second worker are seen", SOON, || waiting("1") >= 3);
    assert_eq!(waiting("0"), 0);
    drop(held);
    wait_until("it has caught up", SOON, || waiting("1") == 0);
}

#[test]
fn a_used_address_is_an_error_that_says_so() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let _first = Peer::start_with(
        &host,
        Implementation::Ringway { workers: 1 },
        "wg0",
        1,
        &[("RINGWAY_METRICS", PAGE_AT)],
    );
    let mut second = host.line(&format!("timeout 10 {} -f wg1", program()));
    let output = second.env("RINGWAY_METRICS", PAGE_AT).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(PAGE_AT) && said.contains("in use"), "{said}");
    assert!(!host.has_interface("wg1"));
}

/// A gateway of one file that became somebody else, with a client that knows it.
fn confined(lab: &Lab) -> (Arc<Host>, Child, Peer) {
    let (host, outside) = (lab.host("gateway"), lab.host("client"));
    connect(lab, &host, &outside, 0, 1500);
    let client = Peer::start(&outside, Implementation::ringway(), "wg0", CLIENT_PORT);
    let inner = client_v4(0);
    client.up(&[&format!("{inner}/10")], 1400);
    let file = format!(
        "interface = \"wg0\"\naddresses = [\"{GATEWAY_V4}/10\"]\nlisten_port = {GATEWAY_PORT}\nworkers = 2\n\
         user = \"nobody\"\n[metrics]\nlisten = \"{PAGE_AT}\"\nper_peer = true\n\
         [[peer]]\npublic_key = \"{}\"\nallowed_ips = [\"{inner}/32\"]\n",
        client.public
    );
    std::fs::write(host.run_file("gateway.toml"), file).unwrap();
    let mut cmd = host.line(&format!("{} gateway --config /var/run/gateway.toml {}", program(), io_option()));
    let child = cmd.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the gateway answers", SOON, || host.attempt("wg show wg0").status.success());
    let public = host.run("wg show wg0 public-key");
    let endpoint = gateway_endpoint(0, Outer::V4);
    let endpoint = Some(endpoint.as_str());
    client.know(&Remote { public: public.trim(), allowed: OVERLAY, endpoint, ..Remote::default() });
    must_reach(&outside, GATEWAY_V4);
    (host, child, client)
}

/// From outside, as root: the page, `show` and every switch of an appliance that has given up nearly everything.
#[test]
pub(crate) fn a_confined_appliance_is_seen_and_switched() {
    let Some(lab) = Lab::new() else { return };
    let (host, mut child, client) = confined(&lab);
    let text = page(&host);
    host.run_with_input(&format!("{} check metrics", tool("promtool").display()), &text);
    let sent = sum(&text, "wireguard_sent_bytes_total", &client.public);
    assert!(sent > 0 && sum(&text, "process_resident_memory_bytes", "") > 1 << 20, "{text}");
    let show =
        || -> Value { serde_json::from_str(&host.run(&format!("{} show --json wg0", program()))).unwrap() };
    let shown = show();
    assert_eq!(shown["peers"][0]["public_key"], client.public.as_str());
    let of_workers = |path: &str| -> Vec<u64> {
        let path = format!("/histograms/ringway_receive_batch_datagrams/{path}");
        let workers = shown["dataplane"]["workers"].as_array().unwrap();
        workers.iter().map(|worker| worker.pointer(&path).unwrap().as_u64().unwrap()).collect()
    };
    let (ones, sums) = (of_workers("buckets/1"), of_workers("sum"));
    assert!(ones.iter().sum::<u64>() > 0 && ones <= sums, "{shown:#}");
    let people = host.run(&format!("{} show -i wg0", program()));
    assert!(people.contains("sessions: 1 of 1 peers"), "{people}");

    for name in ["tun_read", "tun_write", "udp_send", "udp_receive", "mss_clamp"] {
        for (word, is_on) in [("off", false), ("on", true)] {
            host.run(&format!("{} switch wg0 {name}={word}", program()));
            let line =
                format!("ringway_offload_on{{interface=\"wg0\",offload=\"{name}\"}} {}", u8::from(is_on));
            wait_until("the page says so", SOON, || page(&host).lines().any(|l| l == line));
            let shown = show();
            let place = if name == "mss_clamp" { "/dataplane/mss_clamp" } else { "/dataplane/offloads" };
            let state = shown.pointer(place).unwrap();
            let state = state.get(name).unwrap_or(state);
            assert_eq!(state["on"], is_on, "{name}: {state}");
        }
        must_reach(&client.host, GATEWAY_V4);
    }
    machine(&format!("kill -TERM {}", child.id()));
    assert!(child.wait().unwrap().success());
}

/// The keys of peers that are nowhere, in hexadecimal.
fn strangers(count: u32) -> impl Iterator<Item = String> {
    (1..=count).map(|n| format!("{n:08x}{}", "5a".repeat(28)))
}

/// Least, mean, greatest round trip and its deviation, milliseconds, from the last line of ping(8).
fn round_trips(said: &str) -> [f64; 4] {
    let values = said.split(" = ").nth(1).unwrap().split(' ').next().unwrap();
    let values: Vec<_> = values.split('/').map(|value| value.parse().unwrap()).collect();
    values.try_into().unwrap()
}

/// The largest page that is promised: 10,000 peers, by name.
#[test]
fn a_page_of_ten_thousand_peers_is_bounded_and_stalls_no_packet() {
    const PEERS: u32 = 10_000;
    let Some(lab) = Lab::with_traffic() else { return };
    let site = site(&lab, &[("RINGWAY_METRICS_PER_PEER", "1")]);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    let mut request = "set=1\n".to_owned();
    for (n, key) in strangers(PEERS).enumerate() {
        let address = format!("100.{}.{}.{}", 80 + (n >> 16), n >> 8 & 255, n & 255);
        writeln!(request, "public_key={key}\nallowed_ip={address}/32\nallowed_ip=fd99::{n:x}/128").unwrap();
    }
    let mut socket = UnixStream::connect(gateway.socket()).unwrap();
    socket.write_all(format!("{request}\n").as_bytes()).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "errno=0\n\n");

    let mut pings = client.host.line(&format!("ping -q -i 0.002 -c 1500 {GATEWAY_V4}"));
    let pings = pings.stdout(Stdio::piped()).spawn().unwrap();
    let mut slowest = Duration::ZERO;
    let mut text = String::new();
    for _ in 0..10 {
        let begin = Instant::now();
        text = page(&gateway.host);
        slowest = slowest.max(begin.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
    let said = String::from_utf8(pings.wait_with_output().unwrap().stdout).unwrap();
    println!("{} bytes, {slowest:?} at most, {said}", text.len());
    assert_eq!(text.matches("wireguard_sent_bytes_total{").count(), PEERS as usize + 1);
    // As docs/metrics.md has it.
    assert!(text.len() < 1200 * PEERS as usize + 64 * 1024, "{} bytes", text.len());
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(said.contains("1500 received, 0% packet loss"), "{said}");
    // A ping every 2 ms: if a page stopped a worker for 50 ms, they would wait a millisecond on average.
    let [_, mean, most, _] = round_trips(&said);
    assert!(mean < 1.0 && most < 100.0, "{said}");
    gateway.host.run_with_input(&format!("{} check metrics", tool("promtool").display()), &text);
}
