#!/bin/sh
# Stands in for `python3 -m pip download ... -d DIR REQUIREMENT`. A test links to it from a
# directory with the files `mode` and `wheel`; arguments are noted in `calls`.
here=$(dirname "$0")
echo "$@" >>"$here/calls"
while [ $# -gt 1 ]; do
    [ "$1" = -d ] && dir=$2
    shift
done
wheel=$dir/fake-1.0-py3-none-any.whl
case $(cat "$here/mode") in
ok)
    cp "$here/wheel" "$wheel"
    ;;
slow)
    head -c 500 "$here/wheel" >"$TMPDIR/part"
    sleep 0.5
    cp "$here/wheel" "$wheel"
    ;;
half)
    head -c 500 "$here/wheel" >"$wheel"
    kill -9 $$
    ;;
no-pip)
    echo "$0: No module named pip" >&2
    exit 1
    ;;
offline)
    echo "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken" >&2
    echo "ERROR: No matching distribution found for $1" >&2
    exit 1
    ;;
unknown)
    echo "ERROR: Could not find a version that satisfies the requirement $1 (from versions: none)" >&2
    echo "ERROR: No matching distribution found for $1" >&2
    exit 1
    ;;
nothing) ;;
esac
