#!/bin/sh
# Installs the Debian packages the tests need when run as root; otherwise says which are missing and what that skips.
set -eu
list=$(dirname "$0")/debian_packages.txt
missing=""
for package in $(sed 's/#.*//' "$list"); do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing Debian packages:$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "not root: these Debian packages are missing, and the tests named beside them are skipped:"
  for package in $missing; do grep "^$package" "$list"; done
fi
