# Hosts and what joins them (sourced, after lab.sh). A peer NAME gets hosts client-NAME and gateway-NAME; server-NAME
# behind the gateway if there shall be one; wan-NAME between the two if the link is a long one.
# shellcheck shell=bash disable=SC2034,SC2154 # variables that are shared between these files

link=veth mtu=1500 behind='' delay=20ms loss=1%

# Packets of full size go over a veth as they are; a network card cuts them first, and the receiver puts them together.
link_like_a_card() { # ROLE INTERFACE
    [ "$link" = nic ] || return 0
    lab_in "$1" ethtool -K "$2" tso off tx-udp-segmentation off gro on
}

link_join() { # ROLE INTERFACE ADDRESS/LENGTH ROLE INTERFACE ADDRESS/LENGTH
    lab_link "$@"
    lab_in "$1" ip link set "$2" mtu "$mtu"
    lab_in "$4" ip link set "$5" mtu "$mtu"
    link_like_a_card "$1" "$2"
    link_like_a_card "$4" "$5"
}

# Makes the hosts of a peer. Sets client, gateway and server (roles), outer (the gateway's address for the client) and
# target (the server's, or nothing if that is the gateway itself).
link_hosts() { # NAME LOG
    client=client-$1 gateway=gateway-$1 server=gateway-$1 outer=198.18.0.1 target=''
    lab_namespace "$client"
    lab_namespace "$gateway"
    if [ "$link" = wan ]; then
        lab_namespace "wan-$1"
        link_join "$client" e0 198.18.0.2/24 "wan-$1" e0 198.18.0.1/24
        link_join "wan-$1" e1 198.18.1.2/24 "$gateway" e0 198.18.1.1/24
        lab_start "wan-$1" "$2" "$ringway" bench link --listen 198.18.0.1:51820 --to 198.18.1.1:51820 \
            --delay "$delay" --loss "$loss"
    else
        link_join "$client" e0 198.18.0.2/24 "$gateway" e0 198.18.0.1/24
    fi
    [ -n "$behind" ] || return 0
    server=server-$1 target=198.19.0.2
    lab_namespace "$server"
    link_join "$server" e0 198.19.0.2/24 "$gateway" e1 198.19.0.1/24
    lab_in "$gateway" sysctl -qw net.ipv4.ip_forward=1
    lab_in "$server" ip route add 100.64.0.0/10 via 198.19.0.1
    lab_in "$server" ip route add 198.18.0.0/24 via 198.19.0.1
}
