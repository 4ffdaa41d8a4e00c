#!/usr/bin/env bash
# Runs every test of the workspace as root and adds up what the runners report.
# The last line is "N passed, N failed"; with CI set, a skipped test fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin"

# Laboratory tests run the release binary: the one that ships.
export CAUSEWAY_BIN=${CAUSEWAY_BIN:-$PWD/target/release/causeway}
[ -n "${CI:-}" ] && unset CAUSEWAY_SKIP_PRIVILEGED

as_root=()
if [ "$(id -u)" != 0 ] && [ "${CAUSEWAY_SKIP_PRIVILEGED:-}" != 1 ]; then
    if ! command -v sudo >/dev/null; then
        echo "test: the tests make network namespaces and need root: run as root, install sudo, or leave them out with CAUSEWAY_SKIP_PRIVILEGED=1 make test" >&2
        exit 1
    fi
    # Only the built tests run as root; cargo and what it writes stay ours.
    as_root=(--config "target.'cfg(all())'.runner=['sudo','--preserve-env','env','PATH=$PATH']")
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# --show-output puts the words of passed tests into the log, where skipped ones name themselves;
# the screen is spared them.
cargo test --workspace --no-fail-fast "${as_root[@]}" "$@" -- --show-output </dev/null |
    tee "$log" |
    awk '/^successes:$/ { quiet = 1 } /^(failures:|test result:.*)$/ { quiet = 0 } !quiet { print; fflush() }' ||
    status=$?

sum() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i == word ";") n += $(i - 1) } END { print n + 0 }' "$log"; }
passed=$(sum passed)
failed=$(sum failed)
ignored=$(sum ignored)
skipped=$(grep -c '^SKIPPED' "$log" || true)

if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
    echo "test: a test program did not build, or ended without a result; see above" >&2
fi
if [ "$((skipped + ignored))" -gt 0 ]; then
    grep -E '^SKIPPED|\.\.\. ignored' "$log" || true
    echo "$((skipped + ignored)) skipped (counted as passed where they say SKIPPED)"
    if [ -n "${CI:-}" ]; then
        echo "test: nothing may be skipped when CI is set" >&2
        status=1
    fi
fi
echo "$passed passed, $failed failed"
[ "$status" = 0 ] && [ "$passed" -gt 0 ]
