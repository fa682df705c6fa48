#!/bin/sh
# Keep upstreams.conf in the current folder, and the nginx that runs from it, to the servers that are
# ready:
#
#     sh upstreams.sh ADDRESS=READINESS …
#     sh upstreams.sh 127.0.0.1:8080=http://127.0.0.1:8083/ready 127.0.0.1:9080=http://127.0.0.1:9083/ready
#
# Once, with ONCE=1, before nginx starts; then for as long as it runs. Where none is ready, all are
# kept: one that answers late is better than none. A server that is stopped by
# `classifier stop --grace 5` is out of the file before it ends, with two servers; with more, give it
# 2.5 seconds for each.
set -eu

# Whether a server is ready. One that is connected to and says nothing for 2 seconds has much to do:
# with that it is what it was, for it takes up to 10 to find out whether it still answers.
ready() {
    told=$(curl -fs --noproxy '*' --max-time 2 -o /dev/null -w '%{time_connect}' "$1") && return
    [ $? = 28 ] && [ "$told" != 0.000000 ] && grep -qxF "$2" upstreams.conf 2> /dev/null
}

look() {
    found= all=
    for pair in "$@"; do
        line="server ${pair%%=*} max_fails=0;"
        all="$all$line
"
        if ready "${pair#*=}" "$line"; then
            found="$found$line
"
        fi
    done
    printf '%s' "${found:-$all}" > upstreams.new
    if cmp -s upstreams.new upstreams.conf; then
        rm upstreams.new
    else
        mv upstreams.new upstreams.conf
        if [ -s nginx.pid ]; then kill -HUP "$(cat nginx.pid)" || :; fi
    fi
}

look "$@"
while [ -z "${ONCE:-}" ]; do
    sleep 0.5
    look "$@"
done
