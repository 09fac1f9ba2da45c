# The budget that bench-scripts/budget has measured, and Markdown of it.
include "tables";

# Each value once, in the order of coming.
def in_order: reduce .[] as $value ([]; if index([$value]) then . else . + [$value] end);

# Lines {peer, load, ns: {client, gateway}, samples} of all rounds -> a list of loads with ns of each end, peer and stage.
def budget: . as $all | map(.load) | in_order | map(. as $load | {$load, peers: ($all | map(.peer) | in_order | map(. as $peer
    | {$peer, ends: ($all | map(select(.load == $load and .peer == $peer)) as $lines | ["client", "gateway"] | map(. as $side
        | ($lines | map(.ns[$side]) | spread) as $ns
        | ($lines | map(.samples[] | select(.side == $side))) as $samples
        | ($samples | map(.samples) | add) as $all
        | {key: $side, value: {ns: $ns, samples: $all, stages: ($samples | group_by(.stage)
            | map({key: .[0].stage, value: ((map(.samples) | add) / $all * $ns.median)}) | from_entries)}}) | from_entries)}))});

# One table for each load and end: stages by the most that any peer spends there.
def page: "Nanoseconds of processor time per packet (a full segment, or a datagram that arrived); medians of \(.rounds) rounds, shares by samples of",
    "0.25 ms of the processor's clock. Ringway commit `\(.commit)`, \(.machine.when). Quiet: load \(.quiet.load)\(
        if .quiet.doubts == [] then "" else ". **Not quiet: \(.quiet.doubts | join("; "))**" end).",
    (.loads[] | .load as $load | .peers as $peers | ["client", "gateway"][] | . as $side
    | ([$peers[].ends[$side].stages | to_entries[]] | group_by(.key) | sort_by(-(map(.value) | max)) | map(.[0].key)) as $stages
    | "", "### Budget: \($load | title | sub("^TCP, 1 stream$"; "TCP, 1 stream, 1368 bytes a segment")), \($side)", "",
      (["stage"] + ($peers | map(.peer)) | row), (["---"] + ($peers | map("---:")) | row),
      (["**all**"] + ($peers | map(.ends[$side].ns | "**\(cell(0))**")) | row),
      ($stages[] | . as $stage | [$stage] + ($peers | map(.ends[$side].stages[$stage] // 0 | round | tostring)) | row));
