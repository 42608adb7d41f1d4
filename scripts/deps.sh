#!/usr/bin/env bash
# Installs what build, run and tests need and this machine lacks, from Debian's packages.
# Usage: deps.sh [build] [run] [test]
set -euo pipefail

want=()
need() { # need COMMAND-OR-PATH PACKAGE
    if [[ $1 == /* ]]; then [[ -e $1 ]] || want+=("$2"); else command -v "$1" >/dev/null || want+=("$2"); fi
}

export PATH=$PATH:/usr/sbin:/sbin
for what in "$@"; do
    case $what in
    build)
        need gcc gcc
        need make make
        need /usr/include/stdlib.h libc6-dev
        need column bsdextrautils
        command -v cargo >/dev/null || { echo "deps.sh: Rust is needed: install it with rustup (https://rustup.rs)" >&2; exit 1; }
        ;;
    run)
        need nft nftables
        need /etc/ssl/certs ca-certificates
        ;;
    test)
        need ip iproute2
        need curl curl
        need openssl openssl
        need crun crun
        need skopeo skopeo
        need umoci umoci
        need debootstrap debootstrap
        need tcpdump tcpdump
        need kdig knot-dnsutils
        need dig bind9-dnsutils
        need jq jq
        need /bin/busybox busybox-static
        need ping iputils-ping
        need mkfs.ext4 e2fsprogs
        ;;
    *) echo "deps.sh: unknown: $what" >&2; exit 2 ;;
    esac
done

if ((${#want[@]})); then
    if [[ $(id -u) != 0 ]]; then
        echo "deps.sh: these packages are missing and only root can install them: ${want[*]}" >&2
        exit 1
    fi
    echo "installing ${want[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${want[@]}" >/dev/null
fi

if [[ " $* " == *" test "* ]] && ! cargo nextest --version >/dev/null 2>&1; then
    echo "installing cargo-nextest"
    cargo install --quiet --locked cargo-nextest
fi
