use super::*;
use crate::sys::testing::in_netns;
use std::path::Path;

fn run(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn load(rules: &str) {
    run("nft flush ruleset");
    nft::load(rules).unwrap();
}

fn drops() -> Vec<ForeignDrop> {
    forward_drops("wg0").unwrap()
}

/// The one chain that drops, whose remedy, word by word, is then one.
fn remedied(manager: Manager) -> ForeignDrop {
    let found = drops();
    let [drop] = &found[..] else { panic!("{found:?}") };
    assert_eq!(drop.manager, manager);
    assert_eq!((drop.from_clients, drop.to_clients), (true, true), "{drop}");
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
        assert_eq!((found[0].from_clients, found[0].to_clients), (true, false));
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
        assert_eq!((found[0].from_clients, found[0].to_clients), (true, false));
        load(&rules("iifname != \"eth0\" drop\n"));
        assert_eq!(drops().len(), 1, "wg0 is not eth0");
    });
}

/// A chain is not followed for ever, and what nft never prints is no panic.
#[test]
fn strange_rulesets_end() {
    let circle = r#"{"nftables": [
        {"chain": {"family": "ip", "table": "t", "name": "f", "hook": "forward", "type": "filter", "policy": "drop"}},
        {"rule": {"family": "ip", "table": "t", "chain": "f", "expr": [{"jump": {"target": "f"}}]}},
        {"rule": {"family": "ip", "table": "t", "chain": "f", "expr": [{"match": 7}, {}, 3, {"vmap": {"data": []}}]}},
        {"rule": {"family": "ip", "table": "t"}}, 5, null, {"chain": {"name": []}}]}"#;
    assert_eq!(in_ruleset(&serde_json::from_str(circle).unwrap(), "wg0").len(), 1);
    for rubbish in ["null", "[]", "{}", "{\"nftables\": 1}"] {
        assert_eq!(in_ruleset(&serde_json::from_str(rubbish).unwrap(), "wg0"), []);
    }
}
