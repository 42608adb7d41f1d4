#!/usr/bin/env bash
# Installs what build, run, tests and benchmarks need and this machine lacks, from Debian's packages.
# Usage: deps.sh [build] [run] [test] [bench] [fuzz]
set -euo pipefail
cd "$(dirname "$0")/.."

# Packages that are unpacked here and not installed: a kernel would be booted, a web server or registry would be started.
unpacked=${CARGO_TARGET_DIR:-target}/debian

want=()
need() { # need COMMAND-OR-PATH PACKAGE
    if [[ $1 == /* ]]; then [[ -e $1 ]] || want+=("$2"); else command -v "$1" >/dev/null || want+=("$2"); fi
}
unpack=()
need_unpacked() { # need_unpacked FILE-PATTERN FOLDER PACKAGE
    compgen -G "$unpacked/$2/$1" >/dev/null || unpack+=("$2=$3")
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
        need pgrep procps
        need ip iproute2
        need curl curl
        need openssl openssl
        need skopeo skopeo
        need htpasswd apache2-utils
        command -v docker-registry >/dev/null || need_unpacked usr/bin/docker-registry docker-registry docker-registry
        need umoci umoci
        need debootstrap debootstrap
        need tcpdump tcpdump
        need knotd knot
        need kdig knot-dnsutils
        need dig bind9-dnsutils
        need delv bind9-dnsutils
        need unbound-host unbound-host
        need pebble pebble
        need unbound unbound
        command -v caddy >/dev/null || need_unpacked usr/bin/caddy caddy caddy
        need /bin/busybox busybox-static
        need ping iputils-ping
        need mkfs.ext4 e2fsprogs
        need mkfs.xfs xfsprogs
        need pgrep procps
        need hostname hostname
        if [[ $(uname -m) == x86_64 ]]; then
            need qemu-system-x86_64 qemu-system-x86
            need_unpacked 'boot/vmlinuz-*' linux-image linux-image-cloud-amd64
        fi
        ;;
    bench)
        need pgrep procps
        need curl curl
        need openssl openssl
        need /bin/busybox busybox-static
        need crun crun
        need skopeo skopeo
        need umoci umoci
        command -v docker-registry >/dev/null || need_unpacked usr/bin/docker-registry docker-registry docker-registry
        need /usr/share/containers/seccomp.json golang-github-containers-common
        need h2load nghttp2-client
        need etcd etcd-server
        need dnsperf dnsperf
        need knotd knot
        need kdig knot-dnsutils
        need nft nftables
        need ip iproute2
        command -v nginx >/dev/null || need_unpacked usr/sbin/nginx nginx nginx
        ;;
    fuzz) need c++ g++ ;;
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

# A package by its folder and name; of one that only stands for another (linux-image-cloud-amd64), that other.
fetch() { # fetch FOLDER PACKAGE
    local folder=$1 package=$2 work real
    real=$(apt-cache depends --important "$package" | sed -n "s/^  Depends: \(${package%-cloud-*}-[0-9].*\)/\1/p" | head -n 1)
    package=${real:-$package}
    echo "unpacking $package"
    mkdir -p "$unpacked"
    work=$(mktemp -d "$unpacked/fetching.XXXXXX")
    (cd "$work" && apt-get -o APT::Sandbox::User=root download -qq "$package" && dpkg-deb -x ./*.deb root) ||
        { rm -rf "$work"; echo "deps.sh: cannot fetch Debian's package $package, which the tests need" >&2; exit 1; }
    rm -rf "${unpacked:?}/$folder"
    mv "$work/root" "$unpacked/$folder"
    rm -rf "$work"
}
if ((${#unpack[@]})); then
    # The package lists may be too old to say where a package is.
    if ((${#want[@]} == 0)) && [[ $(id -u) == 0 ]]; then apt-get update -qq; fi
    for one in "${unpack[@]}"; do fetch "${one%%=*}" "${one#*=}"; done
fi

if [[ " $* " == *" test "* ]] && ! cargo nextest --version >/dev/null 2>&1; then
    echo "installing cargo-nextest"
    cargo install --quiet --locked cargo-nextest
fi
