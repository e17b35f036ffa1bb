#!/bin/bash
# Make the virtual environment that `make` runs in: setup.sh VENV. PYTHON names the interpreter.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) are the user's and are left alone.
set -euo pipefail

venv=$1
python=${PYTHON:-python3}
package=diffusion_policy_ros
extras=policy,sim,bags,lerobot,train,test,dev

fail() {
  echo "$package: $*" >&2
  exit 1
}

# Install a system package where that needs no password, else say what to type.
system_package() {
  local why=$1 name=$2 sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
  if command -v apt-get >/dev/null && "${sudo[@]}" true 2>/dev/null; then
    echo "$package: $why: installing $name with apt-get"
    { "${sudo[@]}" apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq "$name"; } >&2 && return
  fi
  fail "$why. Type: sudo apt-get install $name"
}

has() { "$python" -c "$1" >/dev/null 2>&1; }

command -v "$python" >/dev/null || fail "$python is missing. Type: sudo apt-get install python3 python3-venv"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.1[0-3]) ;;
  *) fail "$python is Python $version, expected 3.10 to 3.13; name one with PYTHON=python3.x" ;;
esac
[ "$(uname -sm)" = 'Linux x86_64' ] || fail "this is $(uname -sm), expected Linux x86_64"

case ${ROS_DISTRO:-} in
  '') ;;
  jazzy | kilted | lyrical | rolling)
    has 'import rclpy' ||
      fail "ROS_DISTRO is $ROS_DISTRO but $python cannot import rclpy. Type: source /opt/ros/$ROS_DISTRO/setup.bash"
    ;;
  *) fail "ROS 2 $ROS_DISTRO is sourced, expected jazzy, kilted, lyrical or rolling; or a shell without ROS" ;;
esac

has 'import ensurepip, venv' || system_package 'venv is missing' "python$version-venv"
if [ "${MUJOCO_GL:-osmesa}" = osmesa ] &&
  ! has 'import ctypes.util; assert ctypes.util.find_library("OSMesa")'; then
  system_package 'OSMesa is missing (MuJoCo draws with it; with a GPU, MUJOCO_GL=egl does without)' libosmesa6
fi

constraints=lock/constraints.txt
if [ -n "${ROS_DISTRO:-}" ]; then
  "$python" -m venv --system-site-packages "$venv"
  # Messages that were compiled against NumPy 1 cannot be used with NumPy 2.
  if has 'import numpy; assert numpy.__version__.startswith("1.")'; then
    constraints=$venv/constraints.txt
    sed 's/==.*//' lock/numpy1.txt | grep -v '^#' | sed 's/.*/^&==/' |
      grep -v -f - lock/constraints.txt | cat - lock/numpy1.txt >"$constraints"
  fi
else
  "$python" -m venv "$venv"
  extras=$extras,jazzy
fi

echo "$package: installing into $venv (once; minutes, and some gigabytes with CUDA's libraries)"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -c "$constraints" "$@"; }
pip --quiet --upgrade pip setuptools wheel
pip --no-build-isolation --editable ".[$extras]"

# The system's ros2 and colcon run with the system's Python, which does not see this environment.
if [ -n "${ROS_DISTRO:-}" ]; then
  bin=$(cd "$venv/bin" && pwd)
  for tool in ros2=ros2cli.cli colcon=colcon_core.command; do
    "$bin/python" -c "import ${tool#*=}" 2>/dev/null || continue
    printf '#!%s/python\nimport sys\nfrom %s import main\nsys.exit(main())\n' \
      "$bin" "${tool#*=}" >"$bin/${tool%=*}"
    chmod +x "$bin/${tool%=*}"
  done
fi

# An editable install has neither share/ nor lib/<package>, where ROS looks.
share=$venv/share
mkdir -p "$share/ament_index/resource_index/packages" "$share/$package" "$venv/lib/$package"
ln -sfn "$PWD/resource/$package" "$share/ament_index/resource_index/packages/$package"
for name in package.xml launch config; do ln -sfn "$PWD/$name" "$share/$package/$name"; done
"$venv/bin/python" -c "
from importlib.metadata import distribution
print(*(script.name for script in distribution('$package').entry_points), sep='\n')" |
  while read -r name; do ln -sfn "../../bin/$name" "$venv/lib/$package/$name"; done
