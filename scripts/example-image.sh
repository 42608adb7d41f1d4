#!/usr/bin/env bash
# Builds the example app and packs it into an OCI image beside the hearth binary, where `hearth up` looks:
# target/PROFILE/hearth-examples/NAME/{image.tar,app.yaml,install.yaml}. Usage: example-image.sh release|debug
set -euo pipefail
cd "$(dirname "$0")/.."
profile=$1
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}

flags=()
[[ $profile == release ]] && flags=(--release)
# Static, so that the image holds one file. With --target, proc-macros and build scripts stay dynamic.
CARGO_TARGET_DIR="$target/static" RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked "${flags[@]}" -p notes --target "$host"

out=$target/$profile/hearth-examples/notes
mkdir -p "$out"
cp examples/notes/app.yaml examples/notes/install.yaml "$out/"
"$target/$profile/hearth" image build --tag hearth.dev/notes:1.0.0 \
    --copy "$target/static/$host/$profile/notes:/notes:0755" --entrypoint /notes --env NOTES_DATA=/data \
    --port 8080/tcp --output "$out/image.tar"
