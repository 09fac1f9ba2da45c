# What tunnels are loaded with (sourced, after lab.sh, links.sh and peers.sh). Each load leaves one JSON object in
# WORK/load, or fails with the reason in load_error.
#
#   tcp-N, tcp-N-back     N streams (cubic) to the server, or from it
#   flood-N               UDP datagrams of N bytes as fast as they go
#   paced-N               the same at 300 Mbit/s
#   ping-busy             pings, 10 ms apart, while one TCP stream runs
#   ping-idle             pings, 25 ms apart, in turns of a second with all tunnels up (compare takes care of it)
# shellcheck shell=bash disable=SC2034,SC2154 # variables that are shared between these files

seconds=5 pin=all load_error=''
pings_in_turn=40

load_is_known() { # LOAD
    [[ $1 =~ ^(tcp-[1-9][0-9]*(-back)?|(flood|paced)-[1-9][0-9]*|ping-(idle|busy))$ ]]
}

# About how many seconds a load takes.
load_takes() { # LOAD
    case $1 in ping-idle) echo 0 ;; flood-* | paced-*) echo $((udp_seconds + 1)) ;; *) echo $((seconds + 1)) ;; esac
}

# The words of a command that runs on the core of one end, if --pin says so of programs or of iperf3 and ping (all).
on_core() { # programs|all END(0|1) COMMAND...
    local what=$1 end=$2
    shift 2
    if [ "$pin" = "$what" ] || [ "$pin" = all ]; then
        echo taskset -c "${cores[$end]}" "$@"
    else
        echo "$@"
    fi
}

# Notes the processor time that the tunnel has used, if there is one.
load_note_used() {
    [ -n "$client_pid" ] || return 0
    client_used=$(lab_used "$client_pid")
    gateway_used=$(lab_used "$gateway_pid")
}

# Sets client_ms and gateway_ms: processor time since then, null without a tunnel.
load_since_used() {
    client_ms=null gateway_ms=null
    [ -n "$client_pid" ] || return 0
    client_ms=$(($(lab_used "$client_pid") - client_used))
    gateway_ms=$(($(lab_used "$gateway_pid") - gateway_used))
}

# One iperf3 test against the server; what it says is in WORK/iperf3.json.
load_iperf3() { # WORK SECONDS OPTIONS...
    local work=$1 limit=$(($2 + 20)) status=0 listener
    # shellcheck disable=SC2046 # words of a command line
    lab_iperf3_server "$server" "$work/iperf3.log" $(on_core all 1 iperf3) || return 1
    listener=$lab_pid
    load_note_used
    # shellcheck disable=SC2046 # words of a command line
    lab_in "$client" timeout "$limit" $(on_core all 0 iperf3 -J -c "$to" -t "$2" "${@:3}") >"$work/iperf3.json" 2>"$work/iperf3-client.log" ||
        status=$?
    load_since_used
    if [ $status != 0 ]; then
        load_error=$(jq -r '.error // empty' "$work/iperf3.json" 2>/dev/null || true)
        load_error=${load_error:-iperf3 did not end within $limit s}
    fi
    # The server has gone when its port is free for the next one. What it waits for may be lost in a flood.
    timeout 3 tail --pid="$listener" -f /dev/null || kill "$listener" 2>/dev/null || true
    lab_await
    return $status
}

# jq: what a load cost, with $gigabytes; null without a tunnel.
# shellcheck disable=SC2016 # variables of jq
load_costs='def per_gb: if . == null or $gigabytes == 0 then null else . / 1000 / $gigabytes end;
    {client_s_per_gb: ($client | per_gb), gateway_s_per_gb: ($gateway | per_gb)}'

load_tcp() { # WORK STREAMS [-R]
    load_iperf3 "$1" "$seconds" -C cubic -P "$2" ${3:+"$3"} || return 1
    jq -c --argjson client "$client_ms" --argjson gateway "$gateway_ms" "
        (.end.sum_received.bytes / 1e9) as \$gigabytes | .end as \$after | $load_costs
        | . + {gbit_s: (\$after.sum_received.bits_per_second / 1e9), retransmits: \$after.sum_sent.retransmits}
        " "$1/iperf3.json" >"$1/load"
}

load_udp() { # WORK RATE BYTES
    local disorder
    load_iperf3 "$1" "$udp_seconds" -u -b "$2" -l "$3" || return 1
    # Only the server knows, and says so nowhere else. Nothing, if it was not heard to the end.
    disorder=$(awk '/received out-of-order/ { n = $(NF - 3) } / receiver$/ { done = 1 } END { print done ? n + 0 : "null" }' \
        "$1/iperf3.log")
    jq -c --argjson disorder "$disorder" --argjson client "$client_ms" --argjson gateway "$gateway_ms" "
        .start.test_start.blksize as \$size | .end as \$after | (\$after.sum.packets - \$after.sum.lost_packets) as \$came
        | (\$came * \$size / 1e9) as \$gigabytes | $load_costs
        | . + {kpps: (\$came / \$after.sum.seconds / 1000), gbit_s: (\$gigabytes * 8 / \$after.sum.seconds),
               lost_percent: \$after.sum.lost_percent, out_of_order: \$disorder}
        " "$1/iperf3.json" >"$1/load"
}

# Round trips in microseconds, one a line.
load_ping() { # COUNT SECONDS-BETWEEN
    # shellcheck disable=SC2046 # words of a command line
    { lab_in "$client" timeout 60 $(on_core all 0 ping -n -c "$1" -i "$2" -W 2 "$to") || true; } |
        sed -n 's/.*time=\([0-9.]*\) ms/\1/p' | awk '{ printf "%.0f\n", $1 * 1000 }'
}

load_ping_busy() { # WORK
    local pings count=$((seconds * 100)) status=0
    { sleep 0.5; load_ping $count 0.01 >"$1/pings"; } &
    pings=$!
    lab_children+=("$pings")
    load_iperf3 "$1" $((seconds + 1)) -C cubic || status=$?
    wait "$pings" || true
    unset 'lab_children[-1]'
    [ $status = 0 ] || return 1
    jq -sc --argjson sent $count --slurpfile iperf3 "$1/iperf3.json" \
        '{us: ., lost: ($sent - length), gbit_s: ($iperf3[0].end.sum_received.bits_per_second / 1e9)}' "$1/pings" >"$1/load"
}

load_run() { # LOAD WORK
    local kind=${1%%-*} rest=${1#*-}
    load_error=''
    case $1 in
        tcp-*-back) load_tcp "$2" "${rest%-back}" -R ;;
        tcp-*) load_tcp "$2" "$rest" ;;
        flood-*) load_udp "$2" 0 "$rest" ;;
        paced-*) load_udp "$2" 300M "$rest" ;;
        ping-busy) load_ping_busy "$2" ;;
        *) load_error="no such load: $kind" && return 1 ;;
    esac
}
