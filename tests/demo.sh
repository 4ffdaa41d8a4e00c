#!/usr/bin/env bash
# Two sites, each with a worker and a gateway, joined by `causeway wg`; usually run by `make demo`.
# Usage: tests/demo.sh [PROGRAM]
#
# Everything is made inside namespaces of processes, mounts and networks that belong to one process:
# when it ends, however it ends, the kernel removes all of it. So two demos never meet, and this
# machine's own network is never touched.
set -euo pipefail

fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# ---- outside: make the namespaces, and see that they end ------------------------------------

outside() {
    local program
    program=$(realpath -e "${1:-$(dirname "$0")/../target/release/causeway}" 2>/dev/null) ||
        fail "there is no ${1:-target/release/causeway}; build it with: cargo build --release -p cli"
    PATH="$PATH:/usr/sbin:/sbin"
    for needed in ip ping iperf3 wg unshare nsenter; do
        command -v "$needed" >/dev/null || fail "the program $needed is missing; \`make demo\` installs it"
    done
    [ -c /dev/net/tun ] || fail "/dev/net/tun is missing; load the module with: modprobe tun"

    local enter=(unshare --mount --net --pid --fork --kill-child --mount-proc)
    if [ "$(id -u)" != 0 ]; then
        # The kernel lets anyone be root of namespaces of his own, unless it is told not to.
        if works_without_root "$program"; then
            enter+=(--map-root-user)
        elif command -v sudo >/dev/null; then
            echo "The demo needs root for its namespaces and interfaces; sudo may ask for your password." >&2
            sudo -v || fail "sudo did not let us; run it as root"
            exec sudo "$0" "$program"
        else
            fail "it needs root for its namespaces and interfaces, and there is no sudo; run it as root"
        fi
    fi

    # In the background, so that this script hears a signal at once and can pass it on as the end.
    "${enter[@]}" "$0" --inside "$program" </dev/null &
    maker=$!
    trap 'end 130 "Interrupted"' INT
    trap 'end 143 "Ended"' TERM HUP
    local status=0
    wait "$maker" || status=$?
    if [ "$status" != 0 ]; then
        printf '\nThe demo failed; what it had made is gone. The lines above say why.\n' >&2
    fi
    exit "$status"
}

works_without_root() {
    # shellcheck disable=SC2016  # the inner shell expands it
    unshare --map-root-user --mount --net --pid --fork --kill-child --mount-proc \
        sh -c 'mount -t tmpfs none /run && "$0" wg probe' "$1" </dev/null >/dev/null 2>&1
}

end() {
    # Its child, the first process of the namespace, dies with it, and with that one all others.
    kill -KILL "$maker" 2>/dev/null || true
    wait "$maker" 2>/dev/null || true
    printf '\n%s: everything the demo made is gone.\n' "$2" >&2
    exit "$1"
}

# ---- inside: build, show, measure -----------------------------------------------------------

say() { printf '\n%s\n' "$*"; }
on() { nsenter --net="/run/netns/$1" "${@:2}"; }

inside() {
    program=$1
    trap 'exit 130' INT
    # Configuration sockets and names of namespaces live here: ours, not the machine's.
    mount -t tmpfs none /run
    if [ ! /run -ef /var/run ]; then mount -t tmpfs none /var/run; fi
    mkdir /run/demo
    cd /run/demo
    umask 077
    export CAUSEWAY_LOG=warn

    picture
    make_sites
    make_tunnel
    show_ping
    show_transfer
    show_source
    show_gateway
    say "Done. Nothing of it stays on this machine."
}

picture() {
    cat <<'END'
Two private networks, joined by two Causeway gateways. All of it runs on this machine,
in network namespaces that nothing else sees.

        site A, 10.1.0.0/24                            site B, 10.2.0.0/24
  worker-a --------- gateway-a ===== internet ===== gateway-b --------- worker-b
  10.1.0.10       10.1.0.1  192.0.2.1       192.0.2.2  10.2.0.1       10.2.0.10
END
}

make_sites() {
    for name in worker-a gateway-a gateway-b worker-b; do
        ip netns add "$name"
        on "$name" ip link set lo up
    done
    wire worker-a 10.1.0.10/24 gateway-a 10.1.0.1/24 lan
    wire worker-b 10.2.0.10/24 gateway-b 10.2.0.1/24 lan
    wire gateway-a 192.0.2.1/24 gateway-b 192.0.2.2/24 internet
    # The workers know nothing of tunnels: their gateway is their way to everywhere.
    on worker-a ip route add default via 10.1.0.1
    on worker-b ip route add default via 10.2.0.1
    for gateway in gateway-a gateway-b; do
        on "$gateway" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    done
}

# wire NAME ADDRESS NAME ADDRESS INTERFACE
wire() {
    ip link add "$5" netns "$1" type veth peer name "$5" netns "$3"
    on "$1" ip address add "$2" dev "$5"
    on "$3" ip address add "$4" dev "$5"
    on "$1" ip link set "$5" up
    on "$3" ip link set "$5" up
}

make_tunnel() {
    for site in a b; do
        wg genkey >"$site.private"
        wg pubkey <"$site.private" >"$site.public"
    done
    gateway a b 192.0.2.2 10.2.0.0/24
    gateway b a 192.0.2.1 10.1.0.0/24
}

# gateway SITE OTHER_SITE OTHER_GATEWAY OTHER_PREFIX
gateway() {
    local interface="tunnel-$1" names="gateway-$1"
    say "gateway-$1: causeway wg $interface, then the usual wg and ip:"
    # It goes to the background once the interface can be configured.
    on "$names" "$program" wg "$interface" || fail "gateway-$1 did not start"
    show "$names" wg set "$interface" listen-port 51820 private-key "$1.private" \
        peer "$(cat "$2.public")" endpoint "$3:51820" allowed-ips "$4"
    show "$names" ip link set "$interface" up
    show "$names" ip route add "$4" dev "$interface"
}

# Prints a command and runs it.
show() {
    printf '  $ %s\n' "${*:2}"
    on "$@"
}

show_ping() {
    say "worker-a pings worker-b by its private address, through both gateways:"
    # The first packet waits for the tunnel's handshake.
    on worker-a ping -q -c 1 -W 5 10.2.0.10 >ping.log ||
        { cat ping.log; fail "worker-b does not answer worker-a"; }
    on worker-a ping -c 3 -i 0.3 -W 2 10.2.0.10 | sed -n 's/^/  /; /bytes from\|rtt/p'
}

show_transfer() {
    say "worker-a sends to worker-b for 5 seconds over one TCP connection:"
    on worker-b iperf3 --server --one-off --forceflush --logfile server.log &
    for _ in $(seq 50); do
        if grep -q listening server.log 2>/dev/null; then break; fi
        sleep 0.1
    done
    on worker-a iperf3 --client 10.2.0.10 --time 5 --format m >client.log 2>&1 ||
        { cat client.log; fail "the transfer failed"; }
    awk '/receiver/ { for (i = 1; i < NF; i++) if ($(i + 1) == "Mbits/sec") rate = $i }
         END { if (rate == "") exit 1
               printf "  %.2f Gb/s. Both workers, both gateways and all encryption shared this machine'\''s %d cores.\n", rate / 1000, cores }' \
        cores="$(nproc)" client.log || { cat client.log; fail "the transfer has no result"; }
}

show_source() {
    say "worker-b saw the connection come from worker-a's own address, not from a gateway:"
    local line
    line=$(grep -m 1 '^Accepted connection from' server.log || true)
    printf '  %s\n' "$line"
    case $line in
    *" 10.1.0.10,"*) ;;
    *) fail "that is not worker-a's address 10.1.0.10" ;;
    esac
}

show_gateway() {
    say "gateway-a, as \`wg show\` sees it:"
    on gateway-a wg show tunnel-a | sed 's/^/  /'
}

if [ "${1:-}" = --inside ]; then
    inside "$2"
else
    outside "$@"
fi
