#!/usr/bin/env bash
# Installs what the demo, the tests and the benchmarks need and what is missing here.
# Usage: tests/setup.sh demo|test
set -euo pipefail
cd "$(dirname "$0")/.."
# Debian keeps half of these programs where only root's PATH leads.
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin"

# The one list: program, Debian package, and "demo" if the demo needs it too.
programs='
cc            build-essential  demo
ip            iproute2
ping          iputils-ping
iperf3        iperf3
wg            wireguard-tools
unshare       util-linux
ps            procps
sysctl        procps
nft           nftables
conntrack     conntrack
iptables      iptables
ethtool       ethtool
tcpdump       tcpdump
socat         socat
etcd          etcd-server
mariadbd      mariadb-server-core
mariadb       mariadb-client-core
wireguard-go  wireguard-go
openssl       openssl
'
# Other WireGuards to talk with: program, crate, version.
peers='
boringtun-cli  boringtun-cli  0.7.1
gotatun        gotatun-cli    0.10.2
'
# A current wireguard-go, where one lies beside the project; Debian's is from before its offloads.
packages_beside=(../shared/peers/wireguard-go*.deb)

purpose=${1:-test}

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

missing_packages() {
    while read -r program package needed_by; do
        [ -n "$program" ] || continue
        [ "$purpose" = demo ] && [ "$needed_by" != demo ] && continue
        [ "$program" = wireguard-go ] && [ -e "${packages_beside[0]}" ] && continue
        has "$program" || echo "$package"
    done <<<"$programs" | sort -u
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] && return
    has apt-get || fail "these Debian packages are missing, and there is no apt-get to install them: ${missing[*]}; install what corresponds to them here"
    local root=()
    if [ "$(id -u)" != 0 ]; then
        has sudo || fail "these packages are missing: ${missing[*]}; install them as root (apt-get install ${missing[*]}), then try again"
        root=(sudo)
    fi
    say "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >&2
}

install_peers() {
    while read -r program crate version; do
        [ -n "$program" ] || continue
        has "$program" && continue
        say "installing $crate $version"
        # Without the author's lock file where that no longer builds.
        cargo install --quiet --locked "$crate@$version" || cargo install --quiet "$crate@$version"
    done <<<"$peers"
    if [ -e "${packages_beside[0]}" ]; then
        local into
        into=target/peers/$(basename "${packages_beside[0]}" .deb)
        if [ ! -x "$into/usr/bin/wireguard-go" ]; then
            mkdir -p "$into"
            dpkg-deb -x "${packages_beside[0]}" "$into"
        fi
    fi
}

require_tun() {
    [ -c /dev/net/tun ] && return
    if [ "$(id -u)" = 0 ]; then
        modprobe tun 2>/dev/null || true
        if [ ! -c /dev/net/tun ]; then
            mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200 2>/dev/null || true
        fi
    fi
    # The demo says itself what it misses.
    [ "$purpose" = demo ] || [ -c /dev/net/tun ] || fail "/dev/net/tun is missing: load the module (modprobe tun), or start the container with --device /dev/net/tun"
}

require_root() {
    [ "$(id -u)" = 0 ] || [ "${CAUSEWAY_SKIP_PRIVILEGED:-}" = 1 ] || has sudo ||
        fail "the tests make network namespaces and need root: run as root, install sudo, or leave them out with CAUSEWAY_SKIP_PRIVILEGED=1 make test"
}

has cargo || fail "there is no Rust toolchain here for this user; install Rust 1.95 or newer with rustup. If another user has one, run make as that user: sudo is used where it is needed"
[ "$purpose" = demo ] || require_root
install_packages
require_tun
[ "$purpose" = demo ] || install_peers
