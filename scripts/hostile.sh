#!/usr/bin/env bash
# Builds the runtime's test of hostile containers and puts it beside the debug build of hearth, where the test in a guest
# (e2e/tests/it/vm.rs) finds it: target/debug/hearth-hostile. It is never part of a release.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
built=$(cargo test --locked --no-run --message-format=json --workspace --features hearth-runtime/unprotected --test hostile |
    sed -n 's/.*"name":"hostile".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
strip -o "$target/debug/hearth-hostile" "$built"
