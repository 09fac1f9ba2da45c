# The programs that are compared (sourced, after lab.sh and links.sh), each at its best known setting. Every one makes
# the tunnel wg0 with 100.64.0.2 at the client and 100.64.0.1 at the gateway, over UDP port 51820.
# shellcheck shell=bash disable=SC2034,SC2154 # variables that are shared between these files

# What runs it (the interface follows), how it is set, what is to be known about it.
declare -A peer_command=() peer_how=() peer_note=()

peer_add() { # NAME HOW COMMAND
    peer_how[$1]=$2 peer_command[$1]=$3
}

# The words that run a program of Debian packages that bench-scripts/deps has unpacked, or that is installed.
peer_unpacked() { # NAME PATH
    local place=$target_dir/tools/$1
    if [ -x "$place/$2" ]; then
        echo "env LD_LIBRARY_PATH=$(printf '%s:' "$place"/usr/lib/*-linux-gnu "$place"/lib/*-linux-gnu) $place/$2"
    else
        echo "${2##*/}"
    fi
}

peer_ours="env RINGWAY_WORKERS=1 RINGWAY_IO=uring"
peer_add plain 'no tunnel' ''
peer_add null 'Ringway without a data cipher, one worker' "$peer_ours $target_dir/release/ringway-null -f"
peer_add ringway 'one worker' "$peer_ours $ringway -f"
peer_add ringway-aes 'one worker, AES-256-GCM by HELLO' "$peer_ours RINGWAY_HELLO=1 $ringway -f"
peer_add ringway-poll 'one worker, --io poll' "env RINGWAY_WORKERS=1 RINGWAY_IO=poll $ringway -f"
peer_add metrics "one worker, metrics on, the gateway's read each second" \
    "$peer_ours RINGWAY_METRICS=127.0.0.1:9586 $ringway -f"
peer_add boringtun '-t 1' "$target_dir/tools/bin/boringtun-cli -f -t 1 --disable-drop-privileges"
peer_add boringtun-stock 'as it comes (4 threads)' "$target_dir/tools/bin/boringtun-cli -f --disable-drop-privileges"
peer_add gotatun 'one worker thread' "env TOKIO_WORKER_THREADS=1 $target_dir/tools/bin/gotatun -f --disable-drop-privileges -v error"
peer_add gotatun-stock 'as it comes' "$target_dir/tools/bin/gotatun -f --disable-drop-privileges -v error"
peer_add wireguard-go 'GOMAXPROCS=1' \
    "env WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD=1 LOG_LEVEL=error GOMAXPROCS=1 wireguard-go -f"
peer_add openvpn 'AES-256-GCM, UDP, fast-io, buffers of 1 MiB, no DCO' "$(peer_unpacked openvpn usr/sbin/openvpn)"
peer_add fastd 'salsa2012+umac, tun' "$(peer_unpacked fastd usr/bin/fastd)"
peer_note[wireguard-go]='of 2022, before its offloads: no claim rests on it'

# The program itself: the first word that sets no variable.
peer_program() { # NAME
    local word
    for word in ${peer_command[$1]}; do
        case $word in env | *=*) ;; *) echo "$word"; return ;; esac
    done
}

peer_is_here() { # NAME
    [ -z "${peer_command[$1]}" ] || command -v "$(peer_program "$1")" >/dev/null
}

# Name, setting, version and date of a peer as a JSON object.
peer_about() { # NAME
    local program version date=''
    program=$(peer_program "$1")
    # shellcheck disable=SC2086 # words of a command line
    case $1 in
        plain) version="Linux $(uname -r)" ;;
        wireguard-go)
            version=$(dpkg-query -W -f '${Version}' wireguard-go 2>/dev/null || wireguard-go --version 2>/dev/null | sed 1q)
            date=$(sed -nE 's/.*(20[0-9]{2})([01][0-9])([0-3][0-9]).*/\1-\2-\3/p' <<<"$version") ;;
        *) version=$( (${peer_command[$1]%%"$program"*}"$program" --version 2>&1 || true) |
            sed '1!d; s/ [^ ]*-linux-gnu.*//') ;;
    esac
    case $1 in
        null | ringway* | metrics)
            version="$version, commit $(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
            date=$(git log -1 --format=%cs 2>/dev/null || true) ;;
        openvpn | fastd) date="package of $(peer_debian_date "$1")" ;;
        boringtun*) [[ $version != *' 0.7.1' ]] || date=2026-05-01 ;;
    esac
    # Where the version says no date: that of the file, which is when it was built here.
    [ -n "$date" ] || [ -z "$program" ] || date="built $(date -u -r "$(command -v "$program")" +%F)"
    jq -nc --arg how "${peer_how[$1]}" --arg version "$version" --arg date "$date" --arg note "${peer_note[$1]:-}" \
        '{$how, $version, $date, $note}'
}

# Date of the newest entry in the package's changelog.
peer_debian_date() { # PACKAGE
    local log
    for log in "$target_dir/tools/$1/usr/share/doc/$1/"changelog.Debian*.gz "/usr/share/doc/$1/"changelog.Debian*.gz; do
        [ -f "$log" ] || continue
        date -u -d "$(zcat "$log" | sed -n 's/^ -- .*>  //p' | sed 1q)" +%F
        return
    done
}

# Starts the tunnel between the hosts that link_hosts made, each end's program on the core that on_core says, its words
# in WORK/ROLE.log. Sets client_pid, gateway_pid and to, the address of the server.
peer_up() { # NAME WORK
    client_pid='' gateway_pid='' to=${target:-100.64.0.1}
    case $1 in
        plain)
            to=${target:-$outer}
            [ -z "$target" ] || lab_in "$client" ip route add 198.19.0.0/24 via "$outer"
            return ;;
        openvpn) peer_up_openvpn "$2" ;;
        fastd) peer_up_fastd "$2" ;;
        *) peer_up_wireguard "$1" "$2" ;;
    esac
    [ -z "$target" ] || lab_in "$client" ip route add 198.19.0.0/24 dev wg0
}

peer_up_wireguard() { # NAME WORK
    local client_key gateway_key
    # shellcheck disable=SC2046,SC2086 # words of a command line
    lab_daemon "$client" "$2/$client.log" $(on_core programs 0 ${peer_command[$1]}) wg0
    client_pid=$lab_pid
    # shellcheck disable=SC2046,SC2086 # words of a command line
    lab_daemon "$gateway" "$2/$gateway.log" $(on_core programs 1 ${peer_command[$1]}) wg0
    gateway_pid=$lab_pid
    client_key=$(lab_key "$client" wg0 51821)
    gateway_key=$(lab_key "$gateway" wg0 51820)
    lab_in "$gateway" ip address add 100.64.0.1/10 dev wg0
    lab_in "$client" ip address add 100.64.0.2/10 dev wg0
    lab_in "$gateway" ip link set wg0 mtu $((mtu - 80)) up
    lab_in "$client" ip link set wg0 mtu $((mtu - 80)) up
    lab_in "$gateway" wg set wg0 peer "$client_key" allowed-ips 100.64.0.2/32
    lab_in "$client" wg set wg0 peer "$gateway_key" allowed-ips 100.64.0.0/10,198.19.0.0/24 endpoint "$outer:51820"
}

# Point to point with TLS and each other's certificate, which is what a static key cannot have: an AEAD.
peer_up_openvpn() { # WORK
    local end options
    for end in client gateway; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$end" \
            -keyout "$1/openvpn-$end.key" -out "$1/openvpn-$end.pem" 2>/dev/null
    done
    options=(--dev wg0 --dev-type tun --proto udp --tun-mtu $((mtu - 80)) --mssfix 0 --data-ciphers AES-256-GCM
        --disable-dco --sndbuf 1048576 --rcvbuf 1048576 --txqueuelen 1000 --fast-io --allow-compression no --verb 1)
    peer_openvpn_end gateway 1 "$1" client "${options[@]}" --ifconfig 100.64.0.1 100.64.0.2 --tls-server --dh none \
        --lport 51820
    gateway_pid=$lab_pid
    peer_openvpn_end client 0 "$1" gateway "${options[@]}" --ifconfig 100.64.0.2 100.64.0.1 --tls-client --nobind \
        --remote "$outer" 51820
    client_pid=$lab_pid
}

peer_openvpn_end() { # END CORE WORK OTHER-END OPTIONS...
    local end=$1 core=$2 work=$3 other=$4
    shift 4
    # shellcheck disable=SC2046,SC2086 # words of a command line
    lab_start "${!end}" "$work/${!end}.log" $(on_core programs "$core" ${peer_command[openvpn]}) "$@" \
        --cert "$work/openvpn-$end.pem" --key "$work/openvpn-$end.key" --peer-fingerprint \
        "$(openssl x509 -in "$work/openvpn-$other.pem" -noout -fingerprint -sha256 | sed 's/.*=//')"
    lab_interface "${!end}" wg0 up
}

peer_up_fastd() { # WORK
    local end other key
    for end in client gateway; do
        # shellcheck disable=SC2086 # words of a command line
        key=$(${peer_command[fastd]} --generate-key --machine-readable 2>/dev/null)
        echo "secret \"$key\";" >"$1/fastd-$end.conf"
        # shellcheck disable=SC2086 # words of a command line
        ${peer_command[fastd]} --config "$1/fastd-$end.conf" --show-key --machine-readable >"$1/fastd-$end.key" 2>/dev/null
    done
    for end in client gateway; do
        [ "$end" = client ] && other=gateway || other=client
        {
            echo "mode tun; interface \"wg0\"; mtu $((mtu - 80)); method \"salsa2012+umac\"; log level warn;"
            [ "$end" = client ] || echo 'bind 0.0.0.0:51820;'
            echo "peer \"$other\" { key \"$(cat "$1/fastd-$other.key")\";"
            [ "$end" = gateway ] || echo "remote $outer:51820;"
            echo '}'
        } >>"$1/fastd-$end.conf"
        # shellcheck disable=SC2046,SC2086 # words of a command line
        lab_start "${!end}" "$1/${!end}.log" $(on_core programs $([ "$end" = client ] && echo 0 || echo 1) \
            ${peer_command[fastd]}) --config "$1/fastd-$end.conf"
        printf -v "${end}_pid" %s "$lab_pid"
        lab_interface "${!end}" wg0
    done
    lab_in "$gateway" ip address add 100.64.0.1/10 dev wg0
    lab_in "$client" ip address add 100.64.0.2/10 dev wg0
    lab_in "$gateway" ip link set wg0 up
    lab_in "$client" ip link set wg0 up
}
