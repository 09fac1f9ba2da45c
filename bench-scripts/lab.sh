# Namespaces for the scripts beside this file (sourced): ringway-<pid>-<role>, each with a mount namespace in which
# /var/run is empty, so that every host may have its own wg0. What was made is removed at exit, however that comes.
# shellcheck shell=bash disable=SC2034 # variables that are shared between these files

lab_holders=()  # pids, one per namespace, that keep it and its mounts alive
lab_children=() # pids of everything else that was started
lab_scratches=() # directories
declare -A lab_holder=()

# Inherited by whatever a script starts, so that what is left of it can be told from everybody else's.
export RINGWAY_LAB=$$

# Where builds are, and the Ringway that runs: a release build, or one named by RINGWAY=PATH.
target_dir=${CARGO_TARGET_DIR:-target}
case $target_dir in /*) ;; *) target_dir=$PWD/$target_dir ;; esac
ringway=${RINGWAY:-$target_dir/release/ringway}

# Ends the script with a reason. 77 says: not permitted here.
lab_refuse() {
    echo "$1" >&2
    exit 77
}

# Refuses, with what to do about it, where there can be no namespaces or no TUN devices.
lab_needs_root() { # TARGET of the Makefile
    [ "$(id -u)" = 0 ] || lab_refuse "make $1 needs root: it makes network namespaces and TUN devices. Try: sudo make $1"
    [ -c /dev/net/tun ] || lab_refuse "There is no /dev/net/tun. Load the module (modprobe tun), or give the container \
the device (--device /dev/net/tun)."
    unshare --net --mount mount -t tmpfs tmpfs /tmp 2>/dev/null || lab_refuse "Network and mount namespaces are not \
permitted here. In a container: run it with --privileged, or with CAP_SYS_ADMIN and CAP_NET_ADMIN."
    unshare --net ip tuntap add dev probe mode tun 2>/dev/null || lab_refuse "TUN devices are not permitted here \
(/dev/net/tun cannot be used). In a container: --device /dev/net/tun --cap-add NET_ADMIN."
}

# Makes a directory for files of this run, removed at exit, and puts its path into the variable NAME. What ends with
# .log there is shown if the script fails.
lab_scratch() { # NAME
    printf -v "$1" %s "$(mktemp -d "${TMPDIR:-/tmp}/ringway-$$-XXXXXX")"
    lab_scratches+=("${!1}")
}

# Removes what runs left behind whose process has ended: namespaces ringway-<pid>-* with the programs and links in
# them, and directories of that name for temporary files. A link between two of the namespaces goes with them.
lab_sweep() {
    local namespace path pid
    while read -r namespace _; do
        lab_is_dead "$namespace" || continue
        echo "Removing what an earlier run left: $namespace"
        for pid in $(ip netns pids "$namespace" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
        ip netns delete "$namespace" || true
    done < <(ip netns list 2>/dev/null)
    for path in "${TMPDIR:-/tmp}"/ringway-*-*; do
        [ -O "$path" ] && [ ! -L "$path" ] && lab_is_dead "${path##*/}" || continue
        echo "Removing what an earlier run left: $path"
        rm -rf -- "$path"
    done
}

# True for a name ringway-<pid>-... whose process has ended.
lab_is_dead() { # NAME
    [[ $1 =~ ^ringway-([0-9]+)- ]] && [ ! -d "/proc/${BASH_REMATCH[1]}" ]
}

# What must be the same before and after a run: named namespaces, links of this machine's own namespace, and programs
# that this script has started. Namespaces of other runs come and go; they are not looked at.
lab_traces() {
    local name pid
    while read -r name _; do
        [[ $name =~ ^ringway-([0-9]+)- ]] && [ "${BASH_REMATCH[1]}" != $$ ] || echo "namespace $name"
    done < <(ip netns list 2>/dev/null | sort)
    ip -o link show | awk -F': ' '{ print "link " $2 }' | sort
    for pid in $(grep -lsxz "RINGWAY_LAB=$$" /proc/[0-9]*/environ | grep -oE '[0-9]+'); do
        name=$(cat "/proc/$pid/comm" 2>/dev/null) && echo "process $pid $name"
    done | grep -vE ' (grep|sort|awk|cat)$' || true
}

lab_namespace() { # ROLE
    local namespace="ringway-$$-$1" ready
    ip netns add "$namespace"
    exec {ready}< <(exec ip netns exec "$namespace" sh -c \
        'mount -t tmpfs tmpfs "$(readlink -f /var/run)" && mkdir -p /var/run/wireguard && echo ready; exec sleep infinity')
    lab_holder[$1]=$!
    lab_holders+=("$!")
    read -r -u "$ready" _
    exec {ready}<&-
    lab_in "$1" ip link set lo up
}

lab_in() { # ROLE COMMAND...
    local role=$1
    shift
    nsenter -m -n -t "${lab_holder[$role]}" -- "$@"
}

lab_link() { # ROLE INTERFACE ADDRESS/LENGTH ROLE INTERFACE ADDRESS/LENGTH
    ip link add "$2" netns "ringway-$$-$1" type veth peer name "$5" netns "ringway-$$-$4"
    lab_in "$1" ip address add "$3" dev "$2"
    lab_in "$4" ip address add "$6" dev "$5"
    lab_in "$1" ip link set "$2" up
    lab_in "$4" ip link set "$5" up
}

# Starts a program on a host; its pid is then in lab_pid, its words in LOG.
lab_start() { # ROLE LOG COMMAND...
    local role=$1 log=$2
    shift 2
    nsenter -m -n -t "${lab_holder[$role]}" -- "$@" >"$log" 2>&1 </dev/null &
    lab_pid=$!
    lab_children+=("$lab_pid")
}

# Starts a WireGuard program in the foreground on a host and waits for its configuration socket.
lab_daemon() { # ROLE LOG COMMAND... INTERFACE
    local role=$1 log=$2 interface="${*: -1}" tries=0
    lab_start "$@"
    until lab_in "$role" test -S "/var/run/wireguard/$interface.sock"; do
        if ! kill -0 "$lab_pid" 2>/dev/null || [ $((tries += 1)) -gt 100 ]; then
            echo "This did not start on $role: ${*:3}" >&2
            cat "$log" >&2
            return 1
        fi
        sleep 0.05
    done
}

# Waits until a program that was started has made its interface and, with `up`, has set it up.
lab_interface() { # ROLE INTERFACE [up]
    local tries=0
    until lab_in "$1" ip -o link show dev "$2" ${3:+"$3"} 2>/dev/null | grep -q .; do
        [ $((tries += 1)) -le 100 ] || { echo "There is no $2 on $1" >&2; return 1; }
        sleep 0.05
    done
}

# Starts an iperf3 server for one test on a host and waits until it listens: one that serves a second test may still be
# busy with the first.
lab_iperf3_server() { # ROLE LOG COMMAND... (iperf3, or a prefix and iperf3)
    local tries=0
    # What an earlier one said is there until the new one has begun.
    rm -f -- "$2"
    lab_start "$@" -s -1 --forceflush
    until grep -qs listening "$2"; do
        [ $((tries += 1)) -le 200 ] || { echo "iperf3 does not listen on $1" >&2; return 1; }
        sleep 0.05
    done
}

# Waits for the program that was started last.
lab_await() {
    wait "$lab_pid" || true
    unset 'lab_children[-1]'
}

lab_key() { # ROLE INTERFACE PORT: sets a fresh private key and prints the public one
    local private
    private=$(wg genkey)
    lab_in "$1" wg set "$2" listen-port "$3" private-key /dev/stdin <<<"$private"
    wg pubkey <<<"$private"
}

# Milliseconds of processor time that a process has used, or one of its threads. Fields 14 and 15 of stat, after the name
# in brackets.
lab_used() { # PID[/task/TID]
    sed 's/^.*) //' "/proc/$1/stat" | awk -v ticks="$(getconf CLK_TCK)" '{ printf "%d\n", ($12 + $13) * 1000 / ticks }'
}

# Resident KiB of a process.
lab_resident() { # PID
    awk '/^VmRSS/ { print $2 }' "/proc/$1/status"
}

# Ends every process and namespace of this lab; it may be made again afterwards.
lab_end() {
    local pid namespace
    for pid in "${lab_children[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${lab_children[@]}"; do
        timeout 3 tail --pid="$pid" -f /dev/null || kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    for pid in "${lab_holders[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    while read -r namespace _; do
        [[ $namespace == "ringway-$$-"* ]] && ip netns delete "$namespace"
    done < <(ip netns list 2>/dev/null)
    lab_holders=() lab_children=() lab_holder=()
}

# At the end, however it comes: shows what the programs said if it was no good end, and removes everything.
lab_leave() {
    local status=$? directory file
    lab_end
    for directory in "${lab_scratches[@]}"; do
        for file in "$directory"/*.log; do
            [ "$status" != 0 ] && [ -s "$file" ] || continue
            echo "--- ${file##*/} ended with:" >&2
            tail -n 15 "$file" >&2
        done
        rm -rf -- "$directory"
    done
}
trap lab_leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
