#!/usr/bin/env bash
# Installs what a tier of the work needs: tests/deps.sh TIER
#
#   core     build, `make check`          bench    `make bench`
#   servers  `make check-servers`         exports  consumers of the export formats
#   offload  `make check-offload` (and servers)
#   peers    `make check-peers`
#   demo     `make demo`                  lint     `make lint`
#   bpf      `make bpf`                   check-bpf `make check-bpf`
#   fuzz     `make fuzz`                  aarch64  `make check-aarch64`
#
# Says nothing when nothing is missing. As root on Debian or Ubuntu it installs;
# otherwise it prints one line that says what to install, and fails.
# tests/deps.sh --list TIER prints the packages and installs nothing.
#
# A package counts as present when dpkg has it or when its probe succeeds:
#   cmd:NAME  on PATH      pc:NAME  known to pkg-config     h:FILE  C header
#   py:MODULE importable by $PYTHON     lib:NAME  below /usr/lib/MACHINE
# so a node from elsewhere, or another distribution's libraries, will do.
set -eu

packages='
core     gcc                 cmd:gcc
core     libc6-dev           h:stdio.h
core     make                cmd:make
core     pkg-config          cmd:pkg-config
core     sudo                cmd:sudo
core     git                 cmd:git
core     libunwind-dev       pc:libunwind
core     libelf-dev          pc:libelf
core     libdw-dev           pc:libdw
core     libbpf-dev          pc:libbpf
core     libncurses-dev      pc:ncursesw
core     libinih-dev         pc:inih
core     scdoc               cmd:scdoc
core     libjansson-dev      pc:jansson
core     libzstd-dev         pc:libzstd
core     libiberty-dev       h:libiberty/demangle.h
core     uthash-dev          h:uthash.h
core     libcmocka-dev       pc:cmocka
core     libuv1-dev          pc:libuv
core     libevent-dev        pc:libevent
core     libev-dev           h:ev.h
core     libglib2.0-dev      pc:glib-2.0
core     libsystemd-dev      pc:libsystemd
core     valgrind            cmd:valgrind
core     procps              cmd:ps
core     tmux                cmd:tmux
core     python3             cmd:python3
core     python3-dev         pc:python3
core     openssl             cmd:openssl
core     python3-pytest      py:pytest
core     python3-pytest-rerunfailures  py:pytest_rerunfailures
core     python3-pytest-xdist  py:xdist
core     python3-uvloop      py:uvloop
core     python3-greenlet    py:greenlet
core     python3-jsonschema  py:jsonschema
core     python3-pip         py:pip
core     python3-paramiko    py:paramiko
core     openssh-client      cmd:ssh
core     curl                cmd:curl
core     gcc-multilib        h:gnu/stubs-32.h
core     musl-tools          cmd:musl-gcc
core     libcap2-bin         cmd:setcap
core     libjemalloc2        lib:libjemalloc.so.2
core     libeatmydata1       lib:libeatmydata.so
core     libfaketime         lib:faketime/libfaketime.so.1

servers  redis-server        cmd:redis-server
servers  redis-tools         cmd:redis-benchmark
servers  nginx               cmd:nginx
servers  memcached           cmd:memcached
servers  nodejs              cmd:node
servers  haproxy             cmd:haproxy
servers  wrk                 cmd:wrk
servers  gunicorn            cmd:gunicorn
servers  python3-aiohttp     py:aiohttp
servers  python3-uvloop      py:uvloop
servers  tor                    cmd:tor
servers  unbound                cmd:unbound
servers  libev-perl             none
servers  bind9                  cmd:named
servers  bind9-dnsutils         cmd:dig
servers  bind9-utils            cmd:rndc
servers  transmission-daemon    cmd:transmission-daemon
servers  transmission-cli       cmd:transmission-remote
servers  nghttp2-server         cmd:nghttpd
servers  nghttp2-client         cmd:nghttp
servers  dbus-daemon            cmd:dbus-daemon
servers  libglib2.0-bin         cmd:gdbus
servers  dconf-service          none
servers  dconf-cli              cmd:dconf
servers  systemd                cmd:journalctl
servers  systemd-journal-remote none
servers  curl                   cmd:curl
servers  libfuse3-dev           h:fuse3/fuse_opt.h
servers  libpython3.11-testsuite py:test.test_asyncio.test_base_events

offload  systemd-container       none
offload  python3-aiohttp         py:aiohttp
offload  python3-uvloop          py:uvloop
offload  python3-greenlet        py:greenlet
offload  python3-aiofiles        py:aiofiles
offload  python3-pyodbc          py:pyodbc
offload  unixodbc                cmd:isql
offload  libsqliteodbc           lib:odbc/libsqlite3odbc.so
offload  python3-psycopg2        py:psycopg2
offload  postgresql              cmd:psql
offload  python3-mysqldb         py:MySQLdb
offload  mariadb-server          cmd:mariadbd
offload  python3-ldap            py:ldap
offload  slapd                   cmd:slapd

peers    redis-server            cmd:redis-server
peers    nginx                   cmd:nginx
peers    memcached               cmd:memcached
peers    mosquitto               cmd:mosquitto
peers    haproxy                 cmd:haproxy
peers    postgresql              cmd:psql
peers    bash                    cmd:bash
peers    git                     cmd:git
peers    gcc                     cmd:gcc
peers    perl                    cmd:perl
peers    curl                    cmd:curl
peers    openssh-server          cmd:sshd
peers    libglib2.0-tests        none
peers    libpython3.11-testsuite none

demo     redis-server        cmd:redis-server
demo     redis-tools         cmd:redis-cli
demo     python3             cmd:python3

bench    redis-server        cmd:redis-server
bench    redis-tools         cmd:redis-benchmark
bench    nginx               cmd:nginx
bench    memcached           cmd:memcached
bench    nodejs              cmd:node
bench    wrk                 cmd:wrk
bench    strace              cmd:strace
bench    linux-perf          cmd:perf
bench    bpftrace            cmd:bpftrace
bench    uftrace             cmd:uftrace

check-bpf musl-tools        cmd:musl-gcc
check-bpf golang-go         cmd:go
check-bpf redis-server      cmd:redis-server
check-bpf nginx             cmd:nginx
check-bpf nodejs            cmd:node
check-bpf util-linux        cmd:setpriv
check-bpf curl              cmd:curl

bpf      clang               cmd:clang
bpf      llvm                cmd:llvm-strip
bpf      libbpf-dev          pc:libbpf

lint     clang-format        cmd:clang-format
lint     clang-tidy          cmd:clang-tidy
lint     cppcheck            cmd:cppcheck
lint     shellcheck          cmd:shellcheck

aarch64  gcc-aarch64-linux-gnu   cmd:aarch64-linux-gnu-gcc
aarch64  g++-aarch64-linux-gnu   cmd:aarch64-linux-gnu-g++
aarch64  qemu-user               cmd:qemu-aarch64

fuzz     clang               cmd:clang
fuzz     libclang-rt-dev     cmd:clang

exports  jq                  cmd:jq
exports  curl                cmd:curl
exports  python3-jsonschema  py:jsonschema
exports  nodejs              cmd:node
exports  libxml2-utils       cmd:xmllint
exports  prometheus          cmd:promtool
exports  chromium            cmd:chromium
exports  rsyslog             cmd:rsyslogd
exports  prometheus-node-exporter  cmd:prometheus-node-exporter
exports  npm                 cmd:npm
exports  golang-go           cmd:go
exports  python3-junitparser py:junitparser
'

usage() {
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

list=no
if [ "${1-}" = --list ]; then
    list=yes
    shift
fi
[ $# = 1 ] || usage
tier=$1
rows=$(printf '%s\n' "$packages" | awk -v tier="$tier" '$1 == tier { print $2, $3 }')
[ -n "$rows" ] || usage
names=$(printf '%s\n' "$rows" | awk '{ printf "%s%s", sep, $1; sep = " " }')
if [ $list = yes ]; then
    echo "$names"
    exit 0
fi

# Daemons live in /usr/sbin, which a plain user's PATH may lack.
PATH=$PATH:/usr/sbin:/sbin

probe() {
    local what=${1#*:}
    case $1 in
    cmd:*) command -v "$what" >/dev/null ;;
    pc:*) pkg-config --exists "$what" 2>/dev/null ;;
    h:*) printf '#include <stddef.h>\n#include <%s>\n' "$what" | cc -fsyntax-only -x c - 2>/dev/null ;;
    none) return 1 ;;
    lib:*) [ -e "/usr/lib/$(uname -m)-linux-gnu/$what" ] || [ -e "/usr/lib64/$what" ] ;;
    py:*) "${PYTHON:-/usr/bin/python3}" -c "import $what" 2>/dev/null ;;
    esac
}

installed=' '
if command -v dpkg-query >/dev/null; then
    # shellcheck disable=SC2086 # one word a package
    installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package}\n' $names 2>/dev/null |
        sed -n 's/^installed://p' | tr '\n' ' ')"
fi
missing=
while read -r package check; do
    case $installed in *" $package "*) continue ;; esac
    probe "$check" || missing="$missing $package"
done <<ROWS
$rows
ROWS
missing=${missing# }
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "unblock needs, under this system's own names: $missing (named here as Debian does)" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "sudo apt-get install --no-install-recommends $missing" >&2
    exit 1
fi

# Servers are wanted as programs, not as services: nothing is started.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
install_missing() {
    # shellcheck disable=SC2086 # one word a package
    apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 $missing >"$log" 2>&1 </dev/null
}
echo "  APT     $missing"
if ! install_missing; then
    # The package lists are missing or old.
    apt-get update -q -o DPkg::Lock::Timeout=300 >>"$log" 2>&1 || true
    if ! install_missing; then
        tail -n 20 "$log" >&2
        echo "tests/deps.sh: apt-get could not install: $missing (whole output: $log)" >&2
        exit 1
    fi
fi
rm -f "$log"
