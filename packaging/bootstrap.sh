# shellcheck shell=bash
# Sourced by packaging/demo and tests/run: what a fresh Debian or Ubuntu machine lacks, and a virtual environment.

# The checkout this file belongs to.
CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() {
    printf '%s\n' "$*" >&2
}

# need_packages PACKAGE... : installs those that are missing; "PACKAGE?" may be unavailable.
need_packages() {
    local word package missing=() sudo=()
    for word in "$@"; do
        package=${word%\?}
        if dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
            continue
        fi
        missing+=("$word")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "not installed: ${missing[*]%\?}; this machine has no apt-get, so please install them"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "not installed: ${missing[*]%\?}; install them as root, or install sudo"
            return 1
        fi
        sudo=(sudo)
    fi
    say "installing with ${sudo[*]:+sudo }apt-get: ${missing[*]%\?}"
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2)
    quietly "${apt[@]}" update
    local wanted=()
    for word in "${missing[@]}"; do
        package=${word%\?}
        if [ "$word" = "$package" ] || apt-cache show "$package" >/dev/null 2>&1; then
            wanted+=("$package")
        fi
    done
    [ ${#wanted[@]} -gt 0 ] || return 0
    # --no-install-recommends and --no-remove: runit here is a supervisor, and must never become this machine's init.
    quietly "${apt[@]}" install --yes --no-install-recommends --no-remove "${wanted[@]}"
}

# Runs a command and shows what it printed only if it fails.
quietly() {
    local log code=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || code=$?
    [ "$code" -eq 0 ] || cat "$log" >&2
    rm -f "$log"
    return "$code"
}

# make_venv EXTRA : CHECKOUT/.venv with bootagent[EXTRA] in it, made or brought up to date; quick if it is.
make_venv() {
    local venv=$CHECKOUT/.venv extra=$1 stamp python
    # Settings for somebody's own environment that would lead pip, or the python in it, out of this one.
    unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV PIP_NO_DEPS PIP_DRY_RUN PYTHONHOME PYTHONPATH
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
    python=$(find_python) || return 1
    stamp=$venv/installed-$extra
    if [ "$(cat "$venv/checkout" 2>/dev/null)" != "$CHECKOUT" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        # None yet, or one that its python, or the checkout, has moved away from.
        say "making a virtual environment in $venv"
        "$python" -m venv --clear "$venv"
        printf '%s\n' "$CHECKOUT" >"$venv/checkout"
    elif [ -f "$stamp" ] && [ ! "$CHECKOUT/pyproject.toml" -nt "$stamp" ]; then
        return 0
    fi
    say "installing bootagent[$extra] into $venv"
    "$venv/bin/python" -m pip install -qq --editable "${CHECKOUT}[$extra]"
    touch "$stamp"
}

find_python() {
    local name
    # The system's own first: the users that services run as must be able to run it too.
    for name in /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
    done
    say "bootagent needs Python 3.10 or newer; this machine has $(python3 --version 2>&1)"
    return 1
}
