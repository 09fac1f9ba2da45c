# Namespaces for the scripts beside this file (sourced): ringway-<pid>-<role>, each with a mount namespace in which
# /var/run is empty, so that every host may have its own wg0. What was made is removed at exit, however that comes.

lab_holders=()  # pids, one per namespace, that keep it and its mounts alive
lab_children=() # pids of everything else that was started
declare -A lab_holder=()

# Ends the script with a reason. 77 says: not permitted here.
lab_refuse() {
    echo "$1" >&2
    exit 77
}

lab_needs_root() {
    [ "$(id -u)" = 0 ] || lab_refuse "$1 needs root: it makes network namespaces and TUN devices. Try: sudo make $1"
    [ -c /dev/net/tun ] || lab_refuse "There is no /dev/net/tun. Load the module (modprobe tun), or give the container the device (--device /dev/net/tun)."
    if ! unshare --net --mount true 2>/dev/null; then
        lab_refuse "Network namespaces are not permitted here. In a container: run it with --privileged, or with CAP_SYS_ADMIN and CAP_NET_ADMIN."
    fi
    if ! unshare --net ip tuntap add dev probe mode tun 2>/dev/null; then
        lab_refuse "TUN devices are not permitted here (/dev/net/tun cannot be used). In a container: --device /dev/net/tun --cap-add NET_ADMIN."
    fi
}

# Removes what runs left behind whose process has ended: namespaces ringway-<pid>-* and the programs in them.
lab_sweep() {
    local namespace pid
    while read -r namespace _; do
        [[ $namespace =~ ^ringway-([0-9]+)- ]] || continue
        [ -d "/proc/${BASH_REMATCH[1]}" ] && continue
        echo "Removing what an earlier run left: $namespace"
        for pid in $(ip netns pids "$namespace"); do kill -KILL "$pid" 2>/dev/null || true; done
        ip netns delete "$namespace" || true
    done < <(ip netns list 2>/dev/null)
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

lab_key() { # ROLE INTERFACE PORT: sets a fresh private key and prints the public one
    local private
    private=$(wg genkey)
    lab_in "$1" wg set "$2" listen-port "$3" private-key /dev/stdin <<<"$private"
    wg pubkey <<<"$private"
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
