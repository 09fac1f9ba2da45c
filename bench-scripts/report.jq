# The page that bench-scripts/report makes of a run of bench-scripts/bench. $more: files with further `.goals`, or a `.budget`.
include "tables";
include "plots";
import "budget" as budget;

def settings: "Link: \(if .link == "nic" then "veth without segmentation offload, GRO at the receiver"
        elif .link == "wan" then "`ringway bench link`, \(.delay) and \(.loss) loss each way" else "veth" end), MTU \(.mtu)\(
        if .server_behind then "; the server is a third host behind the gateway" else "" end). \(.rounds) interleaved rounds of \(
        .seconds) s (UDP \(.udp_seconds) s); pinned: \(.pinned), processors \(.processors | map(tostring) | join(" and ")).";
# The commit of Ringway that a section was measured with.
def measured_with: [.peers[].version | capture("commit (?<commit>[0-9a-f]+)").commit]
    | if . == [] then "" else " Ringway commit `\(first)`." end;

def section: "## \(.title)", "", "\(.settings | settings)\(measured_with)",
    (if .wan_ceiling == null then empty else "The forwarder alone carries at most " + (.wan_ceiling
        | map("\(.per_second / 1000 | round) kpps (\(.gbit_s | digits(1)) Gbit/s; \(.shape.name))") | join(", ")) + "." end),
    "Quiet: load \(.quiet.load), equal work took \(.quiet.spin_ms.min | round) to \(.quiet.spin_ms.max | round) ms, \(
        .quiet.stolen_percent | round) % of the time went to other guests\(
        if .quiet.doubts == [] then "" else ". **Not quiet: \(.quiet.doubts | join("; "))**" end).", "",
    (. as $all | [section_plots] as $plots | .loads | ordered[] | . as $load | "### \(title)", "", ($all | table($load)), "",
        ($plots[] | select(.load == $load) | "![\(.load)](performance/\(.file))"), ""),
    (.failures | if length == 0 then empty else "Failed: " + (map("\(.peer) \(.load) (\(.error))") | join(", ")) + ".", "" end);

def page($more):
    "# Performance", "",
    "Made by `bench-scripts/report` of what `make bench` measured (preset `\(.preset)`); not written by hand. Medians, with the",
    "smallest and the largest of all rounds in brackets. Both ends are the same program, each on one core. Read ratios: the",
    "absolute numbers are this machine's.", "",
    "\(.machine.cpu), \(.machine.cores) cores, \(.machine.memory_kib / 1048576 | round) GiB; Linux \(.machine.kernel); \(.iperf3
        ); Ringway commit `\(.commit)`; \(.when).", "",
    "## Goals", "", "| | what | goal | measured |", "|---|---|---|---|",
    ((.goals + ($more | map(.goals // []) | add // []))[] | [.verdict, .what, .goal, .measured] | row), "",
    ($more[] | select(.goals) | "The last \(.goals | length) by `bench-scripts/clients`, Ringway commit `\(.commit)`, \(.when).", ""),
    "\"-\": nothing was measured. \"Best peer\": of all the others in the first section.", "",
    ($more[] | .budget // empty | "## Where the time goes", "", budget::page, ""),
    "## Peers", "", ({peers: ([.sections[].peers[]] | unique_by(.name))} | peer_table), "",
    (.sections[] | section);
