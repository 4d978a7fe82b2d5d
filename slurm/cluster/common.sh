# shellcheck shell=bash
# What up, down and node share: the folder's layout, starting and stopping its daemons.

# A folder without this file was not made by `up`, and nothing in it is ever removed.
# shellcheck disable=SC2034
MARKER=.ssmll-slurm

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

refuse() {
  say "$*"
  exit 2
}

# Set and check $folder. The sockets under it must stay below the kernel's 108 characters.
set_folder() {
  folder=$(realpath -m -- "$1")
  [[ $folder =~ ^/[A-Za-z0-9._/-]+$ ]] ||
    refuse "--folder $folder: only letters, digits and ._/- are possible in Slurm's files"
  ((${#folder} <= 60)) ||
    refuse "--folder $folder: ${#folder} characters, at most 60 (the sockets' paths are limited)"
}

need_root() {
  [[ $(id -u) == 0 ]] || refuse "must run as root (slurmd starts jobs for others): try sudo $0"
}

# One up or down at a time; the lock is on the folder itself and goes with the process.
# Descriptor 9 is closed for every daemon, or the lock would live as long as the cluster.
lock_folder() {
  while true; do
    exec 9<"$folder" || refuse "$folder cannot be opened"
    flock 9
    # Whoever held it before may have removed it.
    [[ /proc/self/fd/9 -ef $folder ]] && return
    mkdir -p "$folder"
  done
}

# The daemons get an environment of their own: nothing of a surrounding job or shell reaches them.
# MYSQL_UNIX_PORT is how libmariadb, inside slurmdbd, is told of a socket that is not the system's.
daemon() {
  env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    SLURM_CONF="$folder/slurm.conf" MYSQL_UNIX_PORT="$folder/run/mariadbd.sock" \
    "$@" </dev/null >>"$folder/log/start.log" 2>&1 3>&- 9<&-
}

start_node() { daemon slurmd -f "$folder/slurm.conf" -N "$1"; }

# ours PID NAME: is this process the daemon NAME of this folder? Pids are reused, after a reboot
# at the latest, so a pid file alone is no reason to kill.
ours() {
  [[ $1 =~ ^[0-9]+$ && $(cat "/proc/$1/comm" 2>/dev/null) == "$2" ]] &&
    cat "/proc/$1/cmdline" "/proc/$1/environ" 2>/dev/null | tr '\0' '\n' | grep -qF "$folder/"
}

# pid_of FILE: the pid in run/FILE.pid where that daemon lives (slurmd-n1 -> slurmd), else fails.
pid_of() {
  local pid
  pid=$(cat "$folder/run/$1.pid" 2>/dev/null) && ours "$pid" "${1%%-*}" && echo "$pid"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

gone() { ! pid_of "$1" >/dev/null; }

# The steps and the jobs' processes on the nodes: both outlive slurmd. SLURMD_NODENAME is set on
# nodes only, so the shell of someone who exported SLURM_CONF, or who is inside salloc, is spared.
kill_jobs() {
  local process pid
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [[ $pid == "$$" ]] && continue
    if ours "$pid" slurmstepd || { tr '\0' '\n' <"$process/environ" |
      awk -v conf="SLURM_CONF=$folder/slurm.conf" \
        '$0 == conf {c = 1} /^SLURMD_NODENAME=/ {n = 1} END {exit !(c && n)}'; } 2>/dev/null; then
      kill -KILL "$pid" 2>/dev/null
    fi
  done
}

# Stop whatever of this folder lives, and empty the folder. The order spares time: the controller
# first, so that it does not requeue what dies; the database after its only client.
stop_all() {
  local file name pid
  for name in slurmctld slurmd slurmdbd mariadbd munged; do
    for file in "$folder/run/$name".pid "$folder/run/$name"-*.pid; do
      file=${file##*/}
      pid=$(pid_of "${file%.pid}") && kill -TERM "$pid"
    done
    for file in "$folder/run/$name".pid "$folder/run/$name"-*.pid; do
      file=${file##*/}
      file=${file%.pid}
      if ! wait_for 10 gone "$file" && pid=$(pid_of "$file"); then
        say "$file ignored SIGTERM for 10 s: killed"
        kill -KILL "$pid"
        wait_for 5 gone "$file"
      fi
    done
    [[ $name == slurmd ]] && kill_jobs
  done
  find "$folder" -mindepth 1 -delete
}
