#!/bin/sh
# The folder arrow: kernels <- loader <- engine <- abliterate <- bench, tests. A header may be included only from its own
# folder or from a folder to the right of it.
rank() { case $1 in kernels) echo 1;; loader) echo 2;; engine) echo 3;; abliterate) echo 4;; *) echo 5;; esac; }
bad=0
for file in kernels/*.[ch]* loader/*.[ch] engine/*.[ch] abliterate/*.[ch] bench/*.[ch] tests/*.[ch]; do
    [ -f "$file" ] || continue
    here=${file%%/*}
    for header in $(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$file"); do
        for where in kernels loader engine abliterate bench tests; do
            [ -f "$where/$header" ] || continue
            if [ "$where" != "$here" ] && [ "$(rank $where)" -ge "$(rank $here)" ]; then
                echo "$file includes $where/$header, which is to its right"
                bad=1
            fi
        done
    done
done
exit $bad
