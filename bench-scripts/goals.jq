# Ringway's goals (bench-scripts/bench) beside what was measured, from the whole of its sections.
include "tables";

# What a peer did in a section, or null.
def of($section; $peer; $load; $what):
    first(.sections[] | select(.name == $section) | .summary[$peer][$load][$what]) // null
    | if type == "object" then .median else . end;
# The best of the foreign peers; `max` of rates, `min` of times.
def best($load; $what; pick): [.sections[] | select(.name == "main") | .summary | to_entries[]
        | select(.key | test("^(plain|null|null-before|ringway.*|metrics)$") | not)
        | .value[$load][$what] | if type == "object" then .median else . end | select(. != null)]
    | if length == 0 then null else pick end;
def ratio($a; $b): if $a == null or $b == null or $b == 0 then null else $a / $b end;

def goal($what; $goal; $value; $unit; met):
    {what: $what, goal: $goal, value: $value,
     measured: (if $value == null then "nothing" else "\($value | digits(3))\($unit)" end),
     verdict: (if $value == null then "-" elif ($value | met) then "PASS" else "MISS" end)};
def at_least($what; $value; $limit; $unit): goal($what; "at least \($limit)\($unit)"; $value; $unit; . >= $limit);
def at_most($what; $value; $limit; $unit): goal($what; "at most \($limit)\($unit)"; $value; $unit; . <= $limit);

def disorder: [.sections[] | .summary | to_entries[] | select(.key | startswith("ringway")) | .value[]
    | .out_of_order // empty | .max] | max;

def goals:
    def tcp($peer): of("main"; $peer; "tcp-1"; "gbit_s");
    def cpu($peer; $load): of("main"; $peer; $load; "gateway_s_per_gb");
    [at_least("TCP, one stream, of boringtun-cli -t 1"; ratio(tcp("ringway"); tcp("boringtun")); 4.3; " x"),
     at_least("the same on the link like a network card"; ratio(of("nic"; "ringway"; "tcp-1"; "gbit_s");
        of("nic"; "boringtun"; "tcp-1"; "gbit_s")); 3.3; " x"),
     at_least("the same with AES-256-GCM, plain veth"; ratio(tcp("ringway-aes"); tcp("boringtun")); 5.2; " x"),
     at_least("AES-256-GCM, of the null tunnel"; ratio(tcp("ringway-aes"); tcp("null")); 0.8; " x"),
     at_least("the null tunnel, of what it was (--before)"; ratio(tcp("null"); tcp("null-before")); 1.1; " x"),
     at_most("gateway s/GB, of boringtun-cli -t 1"; ratio(cpu("ringway"; "tcp-1"); cpu("boringtun"; "tcp-1")); 0.25; " x"),
     at_most("the same with AES-256-GCM"; ratio(cpu("ringway-aes"; "tcp-1"); cpu("boringtun"; "tcp-1")); 0.17; " x"),
     at_most("paced UDP, 1372 bytes, gateway s/GB, of boringtun-cli -t 1";
        ratio(cpu("ringway"; "paced-1372"); cpu("boringtun"; "paced-1372")); 0.7; " x"),
     (("64", "1372") as $size | "flood-\($size)" as $load | at_least("UDP flood, \($size) bytes, delivered, of the best peer";
        ratio(of("main"; "ringway"; $load; "kpps"); best($load; "kpps"; max)); 3; " x")),
     (("mean", "p99") as $what | at_most("idle ping, \($what), of the best peer";
        ratio(of("main"; "ringway"; "ping-idle"; "\($what)_us"); best("ping-idle"; "\($what)_us"; min)); 0.7; " x")),
     at_most("ping under one stream, p99, of the best peer";
        ratio(of("main"; "ringway"; "ping-busy"; "p99_us"); best("ping-busy"; "p99_us"; min)); 1; " x"),
     at_most("datagrams out of order in any flow through Ringway"; disorder; 0; ""),
     if of("main"; "metrics"; "tcp-1"; "gbit_s") == null then empty else
        at_least("with metrics, read every second: TCP, of without"; ratio(tcp("metrics"); tcp("ringway")); 0.97; " x"),
        at_most("gateway s/GB with metrics, of without"; ratio(cpu("metrics"; "tcp-1"); cpu("ringway"; "tcp-1")); 1.03; " x")
     end,
     at_most("memory at start, \(.memory_at_start.workers) workers"; (.memory_at_start.rss_kib.median // null)
        | if . == null then . else . / 1024 end; 64; " MiB")];
