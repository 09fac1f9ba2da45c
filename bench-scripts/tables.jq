# What is made of measurements (bench-scripts/compare): the summary, and Markdown tables of it.

# Of none it is null.
def quantile($share): (. // []) | sort | .[(length - 1) * $share | floor];
def spread: map(select(. != null)) | sort | if length == 0 then null else
    {median: (if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end),
     min: first, max: last} end;

# Lines of one peer and load: each number as a spread; pings as quantiles over all rounds (p99.9 of 1000 and more).
def summary_of:
    (map(.us // empty) | map(select(length > 0))) as $turns | ($turns | add) as $all
    | (reduce ((.[0] // {}) | keys - ["peer", "round", "load", "us", "lost"])[] as $what
        ({}; .[$what] = null)) as $none
    | . as $lines
    | ($none | with_entries(.key as $what | .value = ($lines | map(.[$what]) | spread)))
      + if any(has("us")) then
          {mean_us: ($turns | map(add / length) | spread), pings: ($all | length), lost: (map(.lost) | add),
           p50_us: ($all | quantile(0.5)), p99_us: ($all | quantile(0.99)),
           p999_us: (if ($all | length) < 1000 then null else $all | quantile(0.999) end)}
        else {} end;
# {peer: {load: {what: {median, min, max}}}}
def summary: map(select(.error == null)) | group_by(.peer)
    | map({key: .[0].peer, value: (group_by(.load) | map({key: .[0].load, value: summary_of}) | from_entries)}) | from_entries;

# Two digits more of what would else be little but zeros.
def digits($n): (if . != 0 and fabs * pow(10; $n) < 10 and $n > 0 then $n + 2 else $n end) as $n
    | . * pow(10; $n) | round / pow(10; $n) | tostring;
def cell($n): if . == null then "" elif type == "number" then digits($n)
    elif .min == .max then .median | digits($n) else "\(.median | digits($n)) (\(.min | digits($n)) to \(.max | digits($n)))" end;
def row: "| " + join(" | ") + " |";

def columns: {
    tcp: [["Gbit/s", "gbit_s", 2], ["client s/GB", "client_s_per_gb", 2], ["gateway s/GB", "gateway_s_per_gb", 2],
        ["retransmissions", "retransmits", 0]],
    udp: [["arrived kpps", "kpps", 1], ["Gbit/s", "gbit_s", 2], ["lost %", "lost_percent", 2], ["out of order", "out_of_order", 0],
        ["client s/GB", "client_s_per_gb", 2], ["gateway s/GB", "gateway_s_per_gb", 2]],
    ping: [["mean µs", "mean_us", 0], ["p50", "p50_us", 0], ["p99", "p99_us", 0], ["p99.9", "p999_us", 0], ["pings", "pings", 0],
        ["lost", "lost", 0]],
    memory: [["resident at start, KiB", "rss_start_kib", 0], ["after the loads, KiB", "rss_after_kib", 0]]};
def kind: split("-")[0] | if . == "flood" or . == "paced" then "udp" else . end;
def title: split("-") as $w | if $w[0] == "tcp" then
        "TCP, \($w[1]) stream\(if $w[1] == "1" then "" else "s" end)\(if $w[2] then ", from the server" else "" end)"
    elif $w[0] == "flood" then "UDP, \($w[1]) bytes, as fast as they go"
    elif $w[0] == "paced" then "UDP, \($w[1]) bytes, 300 Mbit/s offered"
    elif . == "ping-idle" then "Ping, idle" elif . == "ping-busy" then "Ping under one TCP stream"
    else "Memory of the gateway" end;

# Loads in the order in which they are read.
def ordered: map(select(. != "start")) | sort_by((kind | {tcp: 0, udp: 1, ping: 2, memory: 3}[.]), (split("-") | [.[2:], .[0],
    (.[1] // "0" | tonumber? // 0)]));

# The table of one load, of the comparison that is the input.
def table($load): . as $all | columns[$load | kind] as $columns
    | (["peer"] + ($columns | map(.[0])) | row), (["---"] + ($columns | map("---")) | row),
      (.peers[] | .name as $name | $all.summary[$name][$load] // empty | . as $of
       | [$name] + ($columns | map(. as $column | $of[$column[1]] | cell($column[2]))) | row);
def peer_table: (["peer", "setting", "version", "date"] | row), (["---", "---", "---", "---"] | row),
    (.peers[] | [.name, .how, .version, (.date + if .note == "" then "" else " (\(.note))" end)] | row);
