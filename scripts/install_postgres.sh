#!/usr/bin/env bash
# Installs PostgreSQL from Debian's packages, for tests/faults/test_server_postgres.py (skipped where it is absent).
set -euo pipefail
command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql
}
