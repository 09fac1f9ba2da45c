//! The log of a running gateway: the journal's priorities, and lines that come again and again.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::Duration;

use crate::dropin::program;
use crate::lab::{Host, Lab, machine, wait_until};
use crate::peer::stranger;

const SOON: Duration = Duration::from_secs(20);

/// Says the same nonsense to a device as often as the second argument has it.
const NONSENSE: &str = r#"
    use IO::Socket::UNIX;
    for (1..$ARGV[1]) {
        my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!";
        print $s "set=1\nnonsense=1\n\n"; shutdown($s, 1); print while <$s>;
    }
"#;

fn nonsense(host: &Host, times: u32) {
    let mut perl = host.command("perl");
    perl.args(["-e", NONSENSE, "/var/run/wireguard/wg0.sock", &times.to_string()]).stdout(Stdio::null());
    assert!(perl.status().unwrap().success());
}

#[test]
fn the_journal_hears_priorities_and_repeated_lines_are_counted() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    // A peer for everybody has no route, with a warning.
    let file = format!(
        "interface = \"wg0\"\naddresses = [\"100.64.0.1/10\"]\nmetrics.listen = \"off\"\n\
         [[peer]]\npublic_key = \"{}\"\nallowed_ips = [\"0.0.0.0/0\"]\n",
        stranger()
    );
    fs::write(host.run_file("gateway.toml"), file).unwrap();
    let log = host.run_file("log");
    let stderr = File::create(&log).unwrap();
    let meta = stderr.metadata().unwrap();
    let mut cmd = host.line(&format!("{} gateway --config /var/run/gateway.toml --log debug", program()));
    cmd.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
    // The device answers sooner than it says so: what is in the log below is all that was written.
    let mut child = cmd.env("RINGWAY_TEST_LOG_WINDOW", "4").stderr(stderr).spawn().unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    wait_until("it is ready", SOON, || said().contains("<6>ready interface=wg0 "));
    let said_so = |line: &str| said().lines().filter(|said| said.starts_with(line)).count();
    assert_eq!(said_so("<4>no route is made: "), 1, "{}", said());
    assert!(said().lines().all(|line| line.starts_with('<')), "{}", said());

    let refused = "<7>UAPI request refused line=2 ";
    nonsense(&host, 20);
    assert_eq!(said_so(refused), 5, "{}", said());
    // Nothing else happens: the gateway says it by itself.
    wait_until("the repetitions are counted", SOON, || said_so(refused) == 6);
    assert!(said().lines().last().unwrap().ends_with(" repeated=15"), "{}", said());

    nonsense(&host, 9);
    machine(&format!("kill -TERM {}", child.id()));
    assert!(child.wait().unwrap().success());
    let said = said();
    assert!(said.contains("<6>ending end=Ok(Signal)\n"), "{said}");
    assert!(said.lines().last().unwrap().ends_with(" repeated=4"), "{said}");
}

#[test]
fn a_drop_in_device_counts_repeated_lines_while_it_runs() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let log = host.run_file("log");
    let mut cmd = host.line(&format!("{} -f wg0", program()));
    cmd.env("LOG_LEVEL", "debug").env("RINGWAY_TEST_LOG_WINDOW", "2");
    let mut child = cmd.stderr(File::create(&log).unwrap()).spawn().unwrap();
    wait_until("it answers", SOON, || host.attempt("wg show wg0").status.success());
    nonsense(&host, 8);
    wait_until("the repetitions are counted", SOON, || {
        fs::read_to_string(&log).unwrap().lines().any(|line| line.ends_with(" repeated=3"))
    });
    assert!(child.try_wait().unwrap().is_none(), "it runs on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn who_is_not_the_journal_gets_times() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let mut cmd = host.line(&format!("{} -f wg0", program()));
    // systemd's, but redirected since.
    cmd.env("JOURNAL_STREAM", "1:1").env("LOG_LEVEL", "loud").env("RINGWAY_WORKERS", "0");
    let output = cmd.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said.lines().next().unwrap();
    assert!(line.contains("Z  WARN LOG_LEVEL is none of") && line.starts_with("20"), "{said}");
}
