# What measurements run on (sourced): its processors, and whether anything else keeps them busy.
# shellcheck shell=bash disable=SC2034,SC2154 # variables that are shared between these files

# Sets cores: processors that this shell may use, one of each core first. The first is the client's, the second the
# gateway's.
machine_cores() {
    local may_use
    may_use=",$(taskset -cp $$ | sed 's/.*: //' | tr , '\n' |
        awk -F- '{ for (n = $1; n <= ($2 == "" ? $1 : $2); n++) printf "%d,", n }')"
    mapfile -t cores < <(lscpu -p=CPU,CORE,SOCKET | awk -F, -v may="$may_use" '
        !/^#/ && index(may, "," $1 ",") { if (seen[$2 "," $3]++) twins[++m] = $1; else own[++n] = $1 }
        END { for (i = 1; i <= n; i++) print own[i]; for (i = 1; i <= m; i++) print twins[i] }')
}

# Microseconds that a fixed piece of work takes on a processor.
machine_spin() { # PROCESSOR
    local begin=${EPOCHREALTIME//[!0-9]/}
    taskset -c "$1" awk 'BEGIN { for (n = 0; n < 1000000; n++) x += n % 7 }'
    echo $((${EPOCHREALTIME//[!0-9]/} - begin))
}

# How quiet it is, as JSON on standard output. What makes measurements doubtful is said on standard error.
machine_quiet() { # FILE for the times of the spin test
    local core before after
    before=$(awk '/^cpu / { print $9 }' /proc/stat)
    for _ in 1 2 3 4 5 6; do
        for core in "${cores[@]:0:2}"; do machine_spin "$core"; done
    done >"$1"
    after=$(awk '/^cpu / { print $9 }' /proc/stat)
    jq -sc --arg load "$(cut -d ' ' -f 1-3 /proc/loadavg)" --argjson stolen $(((after - before) * 1000 / $(getconf CLK_TCK))) '
        sort | map(. / 1000) | {load: $load, spin_ms: {median: .[length / 2 | floor], min: first, max: last},
            stolen_percent: (100 * $stolen / add)}
        | .doubts = ([(if ($load | split(" ")[0] | tonumber) > 0.7 then "its load is \($load)" else empty end),
            (if .spin_ms.max > 1.25 * .spin_ms.median then
                "equal work took \(.spin_ms.min | round) to \(.spin_ms.max | round) ms" else empty end),
            (if .stolen_percent > 2 then "its host took \(.stolen_percent | round) % of the time" else empty end)])
        ' "$1" | tee "$1.json"
    jq -r '.doubts[] | "  This machine is not quiet: \(.). Read ratios, and no small ones."' "$1.json" >&2
}

# This machine in a JSON object.
machine_about() {
    jq -nc --arg when "$(date -u +%FT%TZ)" --arg kernel "$(uname -r)" --argjson cores "$(nproc)" \
        --arg cpu "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" \
        --argjson memory_kib "$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)" '{$when, $kernel, $cpu, $cores, $memory_kib}'
}
