#!/bin/sh
# Every option that a program's --help names is in its manual page, and the other way round.
RUN=${RUN:-bin/run}
. tests/helpers.sh
LC_ALL=C
export LC_ALL
bin=$(dirname "$RUN")
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
options() { grep -oE '(^|[ |(,/:;])--?[a-zA-Z][a-zA-Z0-9-]*' | grep -oE -- '--?[a-zA-Z].*' | grep -vxE -- '-h|--help' | sort -u; }
page() { sed 's/\\f[A-Z]//g; s/\\-/-/g; s/"//g' "$1" | options; } # without fonts; \- is a hyphen

check() { # PROGRAM, PAGE, options of other programs and longer names that only the page has; $tmp/text: the help
    options < "$tmp/text" > "$tmp/help"
    page "$2" > "$tmp/page"
    lacking=$(comm -23 "$tmp/help" "$tmp/page" | tr '\n' ' ') more=$(comm -13 "$tmp/help" "$tmp/page" | grep -vxE -- "$3" | tr '\n' ' ')
    if [ "$(wc -l < "$tmp/help")" -gt 10 ] && [ -z "$lacking" ]; then ok; else fail "$2 lacks: $lacking"; fi
    if [ -z "$more" ]; then ok; else fail "$1 --help lacks: $more"; fi
}
"$bin/run" --help > "$tmp/text"
check run engine/run.1 --override-tensor
for command in --help synth kernels roofline calibrate experts; do "$bin/bench" $command --help; done > "$tmp/text"
check bench bench/bench.1 --direction
for command in --help extract report map search edit undo verify diff export; do "$bin/abliterate" $command --help; done > "$tmp/text"
check abliterate abliterate/abliterate.1 -
end
