#!/usr/bin/env bash
# Fuzzes a decoder with libFuzzer: fuzz.sh TARGET [SECONDS]; without a target, lists them.
# What it finds is kept in target/fuzz/corpus/TARGET; an input that crashes is kept beside it and printed.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)
target=${1:-}
if [[ -z $target ]] || ! grep -qx "$target" <<<"$targets"; then
    printf 'fuzz.sh: choose one of:\n%s\n' "$targets" >&2
    exit 2
fi
# What else of the house it is built with.
features=$(sed -n "/^name = \"$target\"$/,/^$/s/^required-features = \[\"\(.*\)\"\]$/\1/p" fuzz/Cargo.toml)
command -v c++ >/dev/null || { echo "fuzz.sh: libFuzzer is C++: install g++ or clang" >&2; exit 1; }

# The coverage that libFuzzer steers by, on a stable compiler.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
folder=${CARGO_TARGET_DIR:-target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, build scripts and macros are built without these flags.
cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$folder" --bin "$target" --features "$features"
mkdir -p "$folder/corpus/$target"
seeds=()
[[ -d fuzz/seeds/$target ]] && seeds=("fuzz/seeds/$target")
exec "$folder/$host/release/$target" -max_total_time="${2:-60}" -max_len=65536 -rss_limit_mb=1024 \
    -artifact_prefix="$folder/corpus/" "$folder/corpus/$target" "${seeds[@]}"
