# helpers.sh: counting, and what most shell tests ask. Sourced from the root of the repository, by its name: . tests/helpers.sh
# The last command of a test is `end`. tests/run_all.sh adds up the lines it prints.
passed=0 failed=0 skipped=0 always=
test=$(basename "$0")
ok() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAIL $test: $*"; }
skip() { skipped=$((skipped + 1)); echo "SKIP $test: $*"; }
same() { if [ "$2" = "$3" ]; then ok; else fail "$1: '$2', expected '$3'"; fi; }     # WHAT IT-IS EXPECTED
has() { case $2 in *"$3"*) ok;; *) fail "$1: '$2' does not hold '$3'";; esac; }        # WHAT TEXT PART
lacks() { case $2 in *"$3"*) fail "$1: '$2' holds '$3'";; *) ok;; esac; }
end() {
    echo "$test: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

# bad STATUS PATTERN ARGS...: the program $A refuses ARGS with one line on stderr that holds PATTERN and nothing on stdout, and leaves
# no file in $tmp, where its output goes (.out, .err). $always: an option that every call gets.
bad() {
    want=$1 pattern=$2
    shift 2
    before=$(ls "$tmp")
    "$A" "$@" $always > "$tmp/.out" 2> "$tmp/.err" < /dev/null
    same "$*: exit status, lines, stdout" "$? $(wc -l < "$tmp/.err") $(wc -c < "$tmp/.out")" "$want 1 0"
    has "$*" "$(cat "$tmp/.err")" "$pattern"
    same "$*: files" "$(ls "$tmp")" "$before"
}
