//! `ringway gateway` in a container as Docker makes one with `--cap-add NET_ADMIN --device /dev/net/tun`: Debian's crun
//! runs it, no daemon does.

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Host, Lab, machine, target, wait_until};
use crate::manners::{SERVER, SERVER_V6, section, site, state};
use crate::peer::{Implementation, Peer, Remote};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, OVERLAY, Outer, client_v4, client_v6, connect, gateway_endpoint,
};
use crate::traffic::{Flow, must_reach};

/// What Docker leaves to root, and what `--cap-add NET_ADMIN` adds.
const CAPABILITIES: [&str; 15] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
    "CAP_NET_ADMIN",
];
/// What the engines' filters forbid without CAP_SYS_ADMIN, as far as anybody like us might ask for it.
const FORBIDDEN: [&str; 14] = [
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "bpf",
    "unshare",
    "setns",
    "mount",
    "umount2",
    "move_mount",
    "pivot_root",
    "perf_event_open",
    "userfaultfd",
    "keyctl",
    "add_key",
];
/// Where the bundle is on its host; the comparison of hosts leaves names with `wg` out.
const BUNDLE: &str = "wg-container";
const SOON: Duration = Duration::from_secs(10);

/// A container with a gateway as its first process.
struct Container {
    host: Arc<Host>,
    crun: Child,
    log: PathBuf,
}

impl Container {
    /// Refused system calls return `errno`: 1 in Docker's containers, 38 in others'.
    fn start(host: &Arc<Host>, file: &str, errno: i32) -> Self {
        let bundle = host.run_file(BUNDLE);
        let root = bundle.join("rootfs");
        let _ = fs::remove_dir_all(&bundle);
        for directory in ["etc", "var"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        symlink("/run", root.join("var/run")).unwrap();
        // Of the image: a program, its file and key, and somebody to become.
        fs::copy(env!("CARGO_BIN_EXE_ringway"), root.join("ringway")).unwrap();
        fs::write(root.join("etc/gateway.toml"), file).unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
            .unwrap();
        let mut options = File::options();
        let mut key = options.write(true).create_new(true).mode(0o600).open(root.join("etc/key")).unwrap();
        std::io::Write::write_all(&mut key, machine("wg genkey").as_bytes()).unwrap();
        fs::write(bundle.join("config.json"), configuration(errno).to_string()).unwrap();

        let tools = target().join("tools/crun/usr");
        assert!(tools.join("bin/crun").exists(), "crun is missing: run `make deps`");
        let libraries = fs::read_dir(tools.join("lib")).unwrap().next().unwrap().unwrap().path();
        // crun knows cgroups of one version at a time only; it makes none here.
        let script = format!(
            "mount -t cgroup2 none /sys/fs/cgroup\nexport LD_LIBRARY_PATH={}\nexec {} --root /run/{BUNDLE}/state \
             --cgroup-manager=disabled run --pid-file /run/{BUNDLE}/pid -b /run/{BUNDLE} gateway",
            libraries.display(),
            tools.join("bin/crun").display()
        );
        let log = target().join("netns-logs").join(format!("{}-container.log", host.namespace));
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let mut command = host.command("unshare");
        command.args(["-m", "sh", "-ec", &script]).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Self { host: Arc::clone(host), crun: command.spawn().unwrap(), log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn wait_until_ready(&mut self) {
        wait_until("the gateway serves", SOON, || {
            assert!(self.crun.try_wait().unwrap().is_none(), "it ended at once: {}", self.said());
            self.said().contains(" ready ")
        });
    }

    /// The number of its first process, outside.
    fn pid(&self) -> String {
        fs::read_to_string(self.host.run_file(BUNDLE).join("pid")).unwrap().trim().to_owned()
    }

    /// Runs a command in it.
    fn run(&self, line: &str) -> Output {
        let line = format!("nsenter -t {} -m -n -p {line}", self.pid());
        let mut words = line.split_whitespace();
        crate::lab::command(words.next().unwrap()).args(words).output().unwrap()
    }

    fn report(&self) -> Value {
        let output = self.run("/ringway show --json wg0");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the container ends", SOON, || {
            status = self.crun.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.crun.kill();
        let _ = self.crun.wait();
        if std::thread::panicking() {
            println!("--- the container said:\n{}", self.said());
        }
    }
}

fn mount(to: &str, kind: &str, options: &[&str]) -> Value {
    json!({ "destination": to, "type": kind, "source": kind, "options": options })
}

/// The bundle's config.json (OCI runtime specification 1.0).
fn configuration(errno: i32) -> Value {
    let namespaces: Vec<_> =
        ["pid", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
    let tun = json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666 });
    json!({
        "ociVersion": "1.0.0",
        "hostname": "gateway",
        "root": { "path": "rootfs" },
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/ringway", "gateway", "--config", "/etc/gateway.toml", "--log", "info"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            "rlimits": [{ "type": "RLIMIT_MEMLOCK", "soft": 8 << 20, "hard": 8 << 20 }],
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755"]),
            { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] },
        ],
        "linux": {
            // The network namespace is this host's, made before as an engine does.
            "namespaces": namespaces,
            "devices": [tun],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    { "names": FORBIDDEN, "action": "SCMP_ACT_ERRNO", "errnoRet": errno },
                    { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
                ],
            },
        },
    })
}

fn file(client: &Peer, more: &str) -> String {
    format!(
        "interface = \"wg0\"\nlisten_port = {GATEWAY_PORT}\nprivate_key_file = \"/etc/key\"\nworkers = 2\n\
         addresses = [\"{GATEWAY_V4}/16\", \"fd64::1/64\"]\n{more}\n[metrics]\nlisten = \"off\"\n{}",
        section(0, client)
    )
}

/// Starts it, has a client of another implementation reach what is behind it, looks at what it says, and ends it.
fn serves(host: &Arc<Host>, server: &Arc<Host>, client: &Peer, more: &str, errno: i32) {
    let before = state(host);
    let mut container = Container::start(host, &file(client, more), errno);
    container.wait_until_ready();
    let report = container.report();
    let public = report["public_key"].as_str().unwrap().to_owned();
    client.know(&Remote {
        public: &public,
        allowed: &format!("{OVERLAY},198.19.0.0/24,fd00:198:19::/64"),
        endpoint: Some(&gateway_endpoint(0, Outer::V4)),
        ..Remote::default()
    });
    for there in [GATEWAY_V4, SERVER, SERVER_V6] {
        must_reach(&client.host, there);
    }
    assert!(Flow::tcp(&client.host, server, SERVER).run().rate > 10e6);

    // What it does without is said in the log and by `show`.
    let report = container.report();
    let plane = &report["dataplane"];
    assert_eq!(plane["io"]["kind"], "poll", "{plane}");
    assert!(plane["io"]["reason"].as_str().unwrap().contains("seccomp"), "{plane}");
    assert_eq!(plane["steering"]["on"], false, "{plane}");
    assert!(!plane["steering"]["reason"].as_str().unwrap().is_empty(), "{plane}");
    let said = container.said();
    for sentence in ["poll takes the place of io_uring", "no steering of packets"] {
        assert_eq!(said.matches(sentence).count(), 1, "{sentence}: {said}");
    }
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    assert!(
        status.contains("CapPrm:\t0000000000001000\n") && status.contains("Seccomp_filters:\t2\n"),
        "{status}"
    );

    machine(&format!("kill -TERM {}", container.pid()));
    assert_eq!(container.ended().code(), Some(0), "{}", container.said());
    assert_eq!(state(host), before);
    client.set(&format!("peer {public} remove"));
}

#[test]
fn a_container_with_net_admin_and_the_tun_device_is_enough() {
    let Some(lab) = Lab::with_traffic() else { return };
    let (host, server) = site(&lab);
    let outside = lab.host("client0");
    connect(&lab, &host, &outside, 0, 1500);
    let client = Peer::start(&outside, Implementation::WireguardGo, "wg0", CLIENT_PORT);
    client.up(&[&format!("{}/10", client_v4(0)), &format!("{}/64", client_v6(0))], 1400);
    outside.run("ip route add 198.19.0.0/24 dev wg0");
    outside.run("ip route add fd00:198:19::/64 dev wg0");

    // /proc/sys is read-only in there: what is missing is named, as the engine's option has it.
    let before = state(&host);
    let mut container = Container::start(&host, &file(&client, ""), 1);
    assert_eq!(container.ended().code(), Some(7), "{}", container.said());
    assert!(container.said().contains("by `--sysctl net.ipv4.ip_forward=1`"), "{}", container.said());
    assert_eq!(state(&host), before);
    drop(container);

    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    serves(&host, &server, &client, "", 1);
    serves(&host, &server, &client, "user = \"nobody\"", 38);
}
