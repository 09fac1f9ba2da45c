use super::*;
use crate::sys::testing::in_netns;
use caps::{CapSet, Capability};
use std::path::Path;

fn run(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn load(rules: &str) {
    run("nft flush ruleset");
    nft::load(rules).unwrap();
}

const FORWARDED: [Dropped; 2] = [Dropped::FromClients, Dropped::ToClients];
const WEB: Service = Service { transport: Transport::Tcp, first: 80, last: 80 };
const GAMES: Service = Service { transport: Transport::Udp, first: 7000, last: 7009 };

fn drops() -> Vec<ForeignDrop> {
    let found = look(&Needs { interface: "wg0", forward: true, listen_port: None, services: &[] }).unwrap();
    assert_eq!(found.unread, None);
    found.drops
}

/// What is dropped of what comes in, whether or not anything is forwarded.
fn input() -> Vec<ForeignDrop> {
    let needs = Needs { interface: "wg0", forward: false, listen_port: Some(51820), services: &[WEB, GAMES] };
    look(&needs).unwrap().drops
}

/// All of it; the remedy, word by word, then helps.
fn input_remedied(manager: Manager) -> ForeignDrop {
    let found = input();
    let [drop] = &found[..] else { panic!("{found:?}") };
    assert_eq!(drop.manager, manager);
    let all = [Dropped::Tunnel(51820), Dropped::Service(WEB), Dropped::Service(GAMES)];
    assert_eq!(drop.dropped, all, "{drop}");
    drop.remedy().iter().for_each(|line| run(line));
    assert_eq!(input(), [], "after {:?}", drop.remedy());
    drop.clone()
}

/// The one chain that drops, whose remedy, word by word, is then one.
fn remedied(manager: Manager) -> ForeignDrop {
    let found = drops();
    let [drop] = &found[..] else { panic!("{found:?}") };
    assert_eq!(drop.manager, manager);
    assert_eq!(drop.dropped, FORWARDED, "{drop}");
    drop.remedy().iter().for_each(|line| run(line));
    assert_eq!(drops(), [], "after {:?}", drop.remedy());
    drop.clone()
}

#[test]
fn a_hosts_own_chain_is_named_with_the_rules_to_add() {
    in_netns(|| {
        assert_eq!(drops(), []);
        load("table inet mine {\nchain ways {\ntype filter hook forward priority 0; policy drop;\n}\n}\n");
        let found = remedied(Manager::Nftables);
        assert_eq!(
            found.to_string(),
            "the forward chain inet mine ways (nftables) drops packets from and to clients; to let them pass: \
             nft insert rule inet mine ways iifname '\"wg0\"' accept; \
             nft insert rule inet mine ways oifname '\"wg0\"' accept"
        );
    });
}

#[test]
fn docker_and_plain_iptables_are_told_apart() {
    in_netns(|| {
        run("iptables-nft -P FORWARD DROP");
        remedied(Manager::Iptables);
        run("nft flush ruleset");
        run(
            "iptables-nft -P FORWARD DROP && iptables-nft -N DOCKER-USER && iptables-nft -A DOCKER-USER -j RETURN \
             && iptables-nft -A FORWARD -j DOCKER-USER \
             && iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT \
             && iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        );
        let found = drops();
        let remedy = found[0].remedy();
        assert_eq!(remedy[0], "iptables -I DOCKER-USER -i wg0 -j ACCEPT");
        assert_eq!(found[0].manager, Manager::Docker);
        remedy.iter().for_each(|line| run(line));
        assert_eq!(drops(), []);
    });
}

#[test]
fn legacy_iptables_are_seen_though_nft_does_not_show_them() {
    in_netns(|| {
        run("iptables-legacy -P FORWARD DROP");
        assert!(Path::new("/proc/thread-self/net/ip_tables_names").exists());
        remedied(Manager::IptablesLegacy);
    });
}

/// As firewalld writes it: the policy accepts, the last rule rejects.
#[test]
fn firewalld_rejects_at_the_end_until_a_zone_has_the_interface() {
    let rules = |zones: &str| {
        format!(
            "table inet firewalld {{\nchain filter_FORWARD {{\n\
             type filter hook forward priority filter + 10; policy accept;\n\
             ct state {{ established, related }} accept\nct status dnat accept\niifname \"lo\" accept\n\
             ct state invalid drop\nip6 daddr {{ ::/96 }} reject with icmpv6 addr-unreachable\n\
             jump filter_FORWARD_ZONES\nreject with icmpx admin-prohibited\n}}\n\
             chain filter_FORWARD_ZONES {{\n{zones}}}\n\
             chain filter_FWD_trusted {{\naccept\n}}\n}}\n"
        )
    };
    in_netns(move || {
        load(&rules(""));
        let found = drops();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].manager, Manager::Firewalld);
        assert_eq!(found[0].dropped, [Dropped::FromClients]);
        assert_eq!(found[0].remedy(), ["firewall-cmd --permanent --zone=trusted --add-interface=wg0"]);
        load(&rules("iifname \"wg0\" goto filter_FWD_trusted\n"));
        assert_eq!(drops(), []);
        load(&rules("iifname vmap { \"wg0\" : goto filter_FWD_trusted, \"wg1\" : drop }\n"));
        assert_eq!(drops(), []);
        load(&rules("iifname { \"eth0\", \"wg1\" } goto filter_FWD_trusted\n"));
        assert_eq!(drops().len(), 1);
    });
}

#[test]
fn ufw_is_told_by_its_chains() {
    in_netns(|| {
        run("iptables-nft -P FORWARD DROP && iptables-nft -N ufw-user-forward \
             && iptables-nft -A FORWARD -j ufw-user-forward");
        let found = drops();
        assert_eq!(found[0].manager, Manager::Ufw);
        assert_eq!(found[0].remedy(), ["ufw route allow in on wg0", "ufw route allow out on wg0"]);
        run("iptables-nft -A ufw-user-forward -i wg0 -j ACCEPT");
        run("iptables-nft -A ufw-user-forward -o wg0 -j ACCEPT");
        assert_eq!(drops(), []);
    });
}

#[test]
fn rules_of_other_hooks_conditions_and_gateways_are_no_drop() {
    in_netns(|| {
        load(
            "table inet other {\nchain a {\ntype filter hook input priority 0; policy drop;\n}\n\
             chain b {\ntype filter hook forward priority 0; policy accept;\n\
             tcp dport 25 drop\nip saddr 10.0.0.0/8 reject\niifname \"wg1*\" drop\noifname != \"wg0\" jump c\n}\n\
             chain c {\niifname \"wg0\" return\nreturn\n}\n}\n\
             table inet ringway_wg1 {\nchain f {\ntype filter hook forward priority 0; policy drop;\n}\n}\n",
        );
        assert_eq!(drops(), []);
    });
}

#[test]
fn a_drop_before_an_accept_counts_and_one_behind_it_does_not() {
    let rules = |lines: &str| {
        format!(
            "table ip t {{\nchain f {{\ntype filter hook forward priority 0; policy accept;\n{lines}}}\n}}\n"
        )
    };
    in_netns(move || {
        load(&rules("iifname \"wg*\" drop\niifname \"wg0\" accept\n"));
        assert_eq!(drops().len(), 1);
        load(&rules("iifname \"wg0\" accept\niifname \"wg*\" drop\n"));
        assert_eq!(drops(), []);
        load(&rules("ct state established accept\ncounter log drop\n"));
        let found = drops();
        assert_eq!(found[0].dropped, [Dropped::FromClients]);
        load(&rules("iifname != \"eth0\" drop\n"));
        assert_eq!(drops().len(), 1, "wg0 is not eth0");
    });
}

/// A chain is not followed for ever, and what nft never prints is no panic.
#[test]
fn strange_rulesets_end() {
    let needs = Needs { interface: "wg0", forward: true, listen_port: Some(1), services: &[] };
    let circle = r#"{"nftables": [
        {"chain": {"family": "ip", "table": "t", "name": "f", "hook": "forward", "type": "filter", "policy": "drop"}},
        {"rule": {"family": "ip", "table": "t", "chain": "f", "expr": [{"jump": {"target": "f"}}]}},
        {"rule": {"family": "ip", "table": "t", "chain": "f", "expr": [{"match": 7}, {}, 3, {"vmap": {"data": []}}]}},
        {"rule": {"family": "ip", "table": "t"}}, 5, null, {"chain": {"name": []}}]}"#;
    assert_eq!(follow::in_ruleset(&serde_json::from_str(circle).unwrap(), &needs).len(), 1);
    for rubbish in ["null", "[]", "{}", "{\"nftables\": 1}"] {
        assert_eq!(follow::in_ruleset(&serde_json::from_str(rubbish).unwrap(), &needs), []);
    }
}

#[test]
fn a_hosts_own_input_chain_is_named_with_the_rules_to_add() {
    in_netns(|| {
        assert_eq!(input(), []);
        // What a careful host has: none of it lets a datagram in that belongs to no connection.
        load(
            "table inet mine {\nchain in {\ntype filter hook input priority 0; policy drop;\n\
             ct state established,related accept\niifname \"lo\" accept\nip saddr 10.0.0.0/8 accept\n\
             iifname \"lan0\" accept\ntcp dport { 22, 443 } accept\nudp dport 1-51819 ip daddr 10.0.0.1 drop\n\
             tcp dport 51820 accept\nudp sport 51820 accept\n}\n}\n",
        );
        let found = input_remedied(Manager::Nftables);
        assert_eq!(
            found.to_string(),
            "the input chain inet mine in (nftables) drops datagrams to the listen port 51820, clients' packets to \
             the service tcp 80, clients' packets to the service udp 7000-7009; to let them pass: \
             nft insert rule inet mine in udp dport 51820 accept; \
             nft insert rule inet mine in iifname '\"wg0\"' tcp dport 80 accept; \
             nft insert rule inet mine in iifname '\"wg0\"' udp dport 7000-7009 accept"
        );
    });
}

#[test]
fn iptables_and_their_input_chains() {
    in_netns(|| {
        let own = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        run(&format!("iptables-nft -P INPUT DROP && iptables-nft -A INPUT {own}"));
        input_remedied(Manager::Iptables);
        // Docker has no say about what comes in.
        run("nft flush ruleset");
        run("iptables-nft -P INPUT DROP && iptables-nft -N DOCKER-USER");
        assert_eq!(input()[0].remedy()[0], "iptables -I INPUT -p udp --dport 51820 -j ACCEPT");
        run("nft flush ruleset");
        run(
            "iptables-nft -P INPUT DROP && iptables-nft -A INPUT -p udp -m multiport --dports 51820,53 -j ACCEPT",
        );
        assert_eq!(input()[0].dropped, [Dropped::Service(WEB)], "the list is not to be seen");
        run("nft flush ruleset");
        run(&format!("iptables-legacy -P INPUT DROP && iptables-legacy -A INPUT {own}"));
        input_remedied(Manager::IptablesLegacy);
        run("iptables-legacy -F INPUT && iptables-legacy -A INPUT -i wg0 -j ACCEPT");
        assert_eq!(input()[0].dropped, [Dropped::Tunnel(51820)]);
    });
}

#[test]
fn firewalld_and_ufw_open_ports_in_chains_of_their_own() {
    let firewalld = |ports: &str| {
        format!(
            "table inet firewalld {{\nchain filter_INPUT {{\ntype filter hook input priority filter + 10; \
             policy accept;\nct state {{ established, related }} accept\nct status dnat accept\n\
             iifname \"lo\" accept\nct state invalid drop\njump filter_INPUT_ZONES\n\
             reject with icmpx admin-prohibited\n}}\n\
             chain filter_INPUT_ZONES {{\niifname \"lan0\" goto filter_IN_trusted\n\
             iifname \"eth0\" goto filter_IN_public\n}}\nchain filter_IN_trusted {{\naccept\n}}\n\
             chain filter_IN_public {{\njump filter_IN_public_allow\n}}\n\
             chain filter_IN_public_allow {{\n{ports}}}\n}}\n"
        )
    };
    in_netns(move || {
        load(&firewalld("tcp dport 22 accept\n"));
        let found = input();
        assert_eq!((found.len(), found[0].manager), (1, Manager::Firewalld));
        let trust = "firewall-cmd --permanent --zone=trusted --add-interface=wg0";
        assert_eq!(found[0].remedy(), ["firewall-cmd --permanent --add-port=51820/udp", trust]);
        load(&firewalld("udp dport 51820 accept\n"));
        assert_eq!(input()[0].dropped, [Dropped::Service(WEB), Dropped::Service(GAMES)]);
        load(&firewalld("udp dport 51820 ct state new accept\n"));
        assert_eq!(input()[0].dropped.len(), 3, "what is not tracked is not new");

        run("nft flush ruleset && iptables-nft -P INPUT DROP && iptables-nft -N ufw-user-input \
             && iptables-nft -A INPUT -j ufw-user-input");
        let found = input();
        let remedy = [
            "ufw allow 51820/udp",
            "ufw allow in on wg0 to any port 80 proto tcp",
            "ufw allow in on wg0 to any port 7000:7009 proto udp",
        ];
        assert_eq!(
            (found[0].manager, &found[0].remedy()[..]),
            (Manager::Ufw, &remedy.map(str::to_owned)[..])
        );
        run("iptables-nft -A ufw-user-input -p udp --dport 51820 -j ACCEPT");
        run("iptables-nft -A ufw-user-input -i wg0 -j ACCEPT");
        assert_eq!(input(), []);
    });
}

#[test]
fn conditions_on_what_comes_in() {
    let dropped = |lines: &str| {
        load(&format!(
            "table inet t {{\nchain none {{\n}}\nchain i {{\ntype filter hook input priority 0; policy drop;\n\
             {lines}\n}}\n}}\n"
        ));
        input().first().map_or(0, |drop| drop.dropped.len())
    };
    in_netns(move || {
        for (lines, count) in [
            ("", 3),
            ("accept", 0),
            ("meta l4proto udp accept", 1),
            ("ip protocol udp accept", 1),
            ("meta l4proto != udp accept", 2),
            ("udp dport { 53, 51820, 7000-7009 } accept", 1),
            ("udp dport 7000-7008 accept", 3),
            ("udp dport != 53 accept", 1),
            ("th dport 80 accept", 2),
            ("udp dport vmap { 53 : drop, 51820 : accept }", 2),
            ("iifname vmap { \"lan0\" : accept, \"wg0\" : accept }", 1),
            ("iifname \"wg*\" accept", 1),
            ("iifname != \"lo\" accept", 0),
            ("iifname { \"lo\", \"wg0\" } udp dport 51820 accept", 3),
            ("iifname \"eth0\" udp dport 51820 accept", 2),
            ("iifname \"eth0\" udp dport 51820 drop\nudp dport 51820 accept", 2),
            ("ip daddr 198.18.0.1 udp dport 51820 limit rate 9/second accept", 2),
            ("ip saddr 198.18.0.1 udp dport 51820 accept", 3),
            ("ct state untracked accept", 2),
            ("ct state new accept", 1),
            ("iifname \"wg0\" drop\naccept", 2),
            ("udp dport 51820 drop\naccept", 1),
            ("jump none\naccept", 0),
            ("goto none\naccept", 3),
        ] {
            assert_eq!(dropped(lines), count, "{lines}");
        }
    });
}

/// As under the unit, which has no right to ask.
#[test]
fn legacy_iptables_that_cannot_be_read_are_said_once() {
    in_netns(|| {
        run("iptables-legacy -P FORWARD DROP && ip6tables-legacy -P FORWARD DROP");
        // Of this thread, and of the programs that it starts.
        caps::drop(None, CapSet::Bounding, Capability::CAP_NET_RAW).unwrap();
        let needs = Needs { interface: "wg0", forward: true, listen_port: None, services: &[] };
        let found = look(&needs).unwrap();
        assert_eq!(found.drops, []);
        let said = found.unread.unwrap();
        assert!(said.starts_with("the rules of legacy iptables cannot be read (iptables"), "{said}");
        assert!(said.ends_with("see `iptables-legacy -S`") && !said.contains('\n'), "{said}");
    });
}
