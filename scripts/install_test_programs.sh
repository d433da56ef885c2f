#!/usr/bin/env bash
# Installs what some tests need beside Python, from Debian's packages: PostgreSQL, Node with npm, Chromium. Those tests are
# skipped where it is absent; so this only says what it could not do, and never fails.
set -uo pipefail

packages=()
command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || packages+=(postgresql)
command -v npm >/dev/null || packages+=(nodejs npm)
command -v chromium >/dev/null || packages+=(chromium)
((${#packages[@]})) || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, so their tests are skipped: ${packages[*]} (needs root and apt-get)"
    exit 0
fi
if [ ! -e /etc/postgresql-common ]; then # the tests start a server of their own: no other one is wanted
    mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi
export DEBIAN_FRONTEND=noninteractive
timeout 60 apt-get -qq update >/dev/null 2>&1 || { echo "apt-get finds no packages: not installed: ${packages[*]}"; exit 0; }
for package in "${packages[@]}"; do # one by one: an absent one does not keep the others away
    ((SECONDS < 120)) && timeout 120 apt-get -qq install -y --no-install-recommends "$package" >/dev/null 2>&1 ||
        echo "not installed: $package"
done
exit 0
