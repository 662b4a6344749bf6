# Sourced by scripts that drive a browser: browser_tools NAME PACKAGES... installs playwright-core and packages from npm below
# Cargo's target directory, copies scripts/browser.mjs and scripts/NAME.mjs there, and sets `home` to that folder. `here` is
# the repository.

browser_tools() {
  name=$1
  shift
  home=${CARGO_TARGET_DIR:-$here/target}/$name
  mkdir -p "$home"
  home=$(cd "$home" && pwd)
  set -- playwright-core@1.65.1 "$@"
  if [ "$(cat "$home/packages" 2> /dev/null)" != "$*" ]; then
    echo '{"private": true}' > "$home/package.json"
    (cd "$home" && npm install --silent --no-audit --no-fund "$@")
    echo "$*" > "$home/packages"
  fi
  cp "$here/scripts/browser.mjs" "$here/scripts/$name.mjs" "$home/"
}
