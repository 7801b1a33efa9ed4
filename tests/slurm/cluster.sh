#!/usr/bin/env bash
# A real SLURM on this machine, for tests: controller, one node, munge; everything on loopback.
#
#   tests/slurm/cluster.sh start    install what is missing, configure, start, wait until it answers
#   tests/slurm/cluster.sh status   what runs (exit status 0 if jobs can be submitted)
#   tests/slurm/cluster.sh stop     end the daemons and every job
#   tests/slurm/cluster.sh jobs DIR  how many jobs of a folder's workflow have ended well
#   tests/slurm/cluster.sh node up|kill   the node's daemon alone, for tests of its loss
#
# Debian or Ubuntu, as root, without systemd. No accounting database: the workflow's profile asks
# squeue. A configuration that this script did not write is a real cluster's and is left alone.
set -euo pipefail

conf=/etc/slurm/slurm.conf
gres=/etc/slurm/gres.conf
mark="# Written by Ember's tests/slurm/cluster.sh: a cluster for tests, safe to delete."
state=/var/lib/ember-slurm
logs=/var/log/ember-slurm
node=$(hostname -s)

die() {
  printf 'error: %s\n' "$@" >&2
  exit 1
}

# Poll a command for up to so many seconds.
await() {
  local seconds=$1 what=$2
  shift 2
  for ((i = 0; i < seconds * 10; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  tail -n 20 "$logs"/*.log >&2 2>/dev/null || true
  die "$what does not answer within $seconds s" "read $logs and $0 status"
}

ours() { [[ -r $1 ]] && [[ $(head -n 1 "$1") == "$mark" ]]; }

own_or_absent() {
  [[ ! -e $1 ]] || ours "$1" || die "$1 exists and is not of this script: a real cluster's?" \
    "run this on a machine without SLURM, or move that file away yourself"
}

# The daemon of a PID file, if it lives and is the one named. Where nothing reaps orphans (in many
# containers) a dead one stays as a zombie.
alive() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [[ -n $pid ]] || return 1
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$2" ]] &&
    ! grep -q '^State:.*Z' "/proc/$pid/status" 2>/dev/null
}

finish() {
  alive "$1" "$2" || return 0
  local pid
  pid=$(cat "$1")
  kill -TERM "$pid" 2>/dev/null || true
  for ((i = 0; i < 100; i++)); do
    alive "$1" "$2" || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}

install_packages() {
  local missing=()
  for name in slurmctld slurmd munged sbatch; do
    command -v "$name" >/dev/null || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "no ${missing[*]} here, and no apt-get" \
    "install SLURM's controller, node daemon and client, and munge"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq </dev/null
  # Plugins come as recommendations; without them slurmd finds no topology or task plugin.
  apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client \
    slurm-wlm-basic-plugins munge </dev/null >/dev/null
}

start_munge() {
  munge -n 2>/dev/null | unmunge >/dev/null 2>&1 && return 0
  install -d -o munge -g munge -m 700 /etc/munge /var/lib/munge /var/log/munge
  install -d -o munge -g munge -m 755 /run/munge
  if [[ ! -s /etc/munge/munge.key ]]; then
    (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
    chown munge:munge /etc/munge/munge.key
  fi
  setpriv --reuid munge --regid munge --clear-groups munged </dev/null
  await 20 munge sh -c 'munge -n | unmunge'
}

configure() {
  own_or_absent "$conf"
  own_or_absent "$gres"
  install -d -m 755 /etc/slurm "$state" "$state/ctld" "$state/d" "$logs"
  local cpus memory
  cpus=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)  # which would tell those instead
  memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.95)}' /proc/meminfo)
  cat >"$conf" <<END
$mark
ClusterName=ember
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Also how long a job that is queued again waits before it starts.
AuthInfo=cred_expire=10
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$logs/slurmctld.log
SlurmdLogFile=$logs/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
# Memory limits hold: usage is read every second, and a job over its limit is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=UsePss,OverMemoryKill
# A finished job stays visible to squeue for five minutes.
MinJobAge=300
ReturnToService=2
SlurmdTimeout=20
KillWait=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
# Partition high takes the node from partition low, whose jobs are queued again.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
AccountingStorageType=accounting_storage/none
# One line a finished job, for checks of what really ran here.
JobCompType=jobcomp/filetxt
JobCompLoc=$logs/jobs.txt
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:fake:2 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=24:00:00 PriorityTier=5 PreemptMode=OFF
PartitionName=high Nodes=$node MaxTime=24:00:00 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=$node MaxTime=24:00:00 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=short Nodes=$node MaxTime=00:10:00 PriorityTier=5 PreemptMode=OFF
END
  cat >"$gres" <<END
$mark
Name=gpu Type=fake File=/dev/null,/dev/zero
END
}

in_service() { sinfo -h -n "$node" -o %t | grep -Eqx 'idle|mix|alloc|comp'; }

# What killed step daemons leave: sockets and their job's script. A node that boots anew has neither.
# Slurmd would delete the script whenever it meets the sockets, also the one it has just written
# to run the job again.
forget_killed_jobs() {
  local socket job
  for socket in "$state/d/${node}_"*; do
    [[ -S $socket ]] || continue
    job=${socket##*_}
    job=${job%%.*}
    pgrep -f "^slurmstepd: \\[$job\\." >/dev/null && continue
    rm -rf "$socket" "$state/d/job$(printf %05d "$job")"
  done
}

start_node() {
  if ! alive "$state/slurmd.pid" slurmd; then
    forget_killed_jobs
    slurmd -N "$node" </dev/null
  fi
  in_service || scontrol update nodename="$node" state=resume 2>/dev/null || true
  await 60 "node $node" in_service
}

start() {
  [[ $(id -u) == 0 ]] || die "the cluster for tests needs root"
  own_or_absent "$conf"
  install_packages
  start_munge
  if ! alive "$state/slurmctld.pid" slurmctld; then
    finish "$state/slurmd.pid" slurmd
    rm -rf "$state"
    configure
    slurmctld -c </dev/null
  fi
  await 60 slurmctld scontrol ping
  start_node
  status
}

status() {
  ours "$conf" || die "no cluster of this script here" "start it: $0 start"
  alive "$state/slurmctld.pid" slurmctld || die "slurmctld does not run" "start it: $0 start"
  scontrol ping >/dev/null || die "slurmctld does not answer" "read $logs/slurmctld.log"
  sinfo
  in_service || die "node $node is not in service" "bring it back: $0 node up"
}

stop() {
  ours "$conf" || return 0
  scancel -u root 2>/dev/null || true
  finish "$state/slurmd.pid" slurmd
  finish "$state/slurmctld.pid" slurmctld
  # Clients that find a configuration wait ten seconds for its controller, Snakemake's start too.
  rm -f "$conf" "$gres"
}

# From the record of finished jobs: scontrol forgets them after five minutes.
jobs() {
  ours "$conf" || die "no cluster of this script here" "start it: $0 start"
  local folder
  folder=$(cd "$1" && pwd -P)
  grep -F " WorkDir=$folder " "$logs/jobs.txt" | grep -cF " JobState=COMPLETED " || true
}

case "${1-} ${2-}" in
  "start ") start ;;
  "status ") status ;;
  "stop ") stop ;;
  "node up") start_node ;;
  "node kill")
    alive "$state/slurmd.pid" slurmd && kill -KILL "$(cat "$state/slurmd.pid")"
    ;;
  "jobs "?*) jobs "$2" ;;
  *) die "usage: $0 start|status|stop|jobs DIR|node up|node kill" ;;
esac
