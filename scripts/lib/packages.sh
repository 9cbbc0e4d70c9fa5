# Sourced: asks for what is missing by the name of the package that holds it, and offers to install it.

# ask_install PACKAGE... : installs Debian packages after a yes (or at once with COATI_YES=1), else says how.
ask_install() {
  local command="apt-get install -y $*"
  [ "$(id -u)" = 0 ] || command="sudo $command"
  printf 'coati: missing Debian package(s): %s\n' "$*" >&2
  if command -v apt-get >/dev/null 2>&1; then
    local answer=n
    if [ "${COATI_YES:-}" = 1 ] || [ "${CI:-}" = true ]; then
      answer=y
    elif [ -t 0 ]; then
      read -r -p "coati: run '$command' now? [y/N] " answer
    fi
    case $answer in
      y | Y | yes)
        local sudo=
        [ "$(id -u)" = 0 ] || sudo=sudo
        { $sudo apt-get update -q && $sudo apt-get install -y -q "$@"; } >&2 && return 0
        ;;
    esac
  fi
  printf 'hint: install with `%s`, then run this again (COATI_YES=1 answers yes)\n' "$command" >&2
  exit 1
}

need_program() { # PROGRAM PACKAGE
  command -v "$1" >/dev/null 2>&1 || ask_install "$2"
}

need_cxx() {
  command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || ask_install g++
}

need_pip() {
  python3 -m pip --version >/dev/null 2>&1 || ask_install python3-pip python3-venv
}

need_cargo() {
  command -v cargo >/dev/null 2>&1 && return 0
  printf 'coati: no Rust toolchain found (cargo is not on PATH)\nhint: install one with rustup, or `apt-get install cargo`; version 1.89 or newer is needed\n' >&2
  exit 1
}
