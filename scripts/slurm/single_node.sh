#!/usr/bin/env bash
# A SLURM of one node on this machine, to test sweeps. It shares no ports, keys or state with any other SLURM.
#
#   scripts/slurm/single_node.sh install        Debian's slurm-wlm and munge, by apt-get, as root
#   scripts/slurm/single_node.sh start FOLDER   configuration, logs and state go to FOLDER
#   export SLURM_CONF=FOLDER/slurm.conf         then sinfo, sbatch, squeue and hydra/launcher=slurm mean this one
#   scripts/slurm/single_node.sh stop FOLDER
set -euo pipefail

SECONDS_TO_START=30
SECONDS_TO_STOP=15
DAEMONS="slurmd slurmctld munged" # in the order in which they are stopped

fail() {
    echo "error: $*" >&2
    exit 2
}

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
}

install_packages() {
    command -v apt-get >/dev/null || fail "no apt-get here; install SLURM and munge with the package manager of this system"
    [ "$(id -u)" = 0 ] || fail "install needs root"
    local quiet=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    "${quiet[@]}" update
    "${quiet[@]}" install -y --no-install-recommends slurm-wlm munge
}

free_port() {
    local port
    while true; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

write_configuration() {
    local host
    host=$(uname -n)
    host=${host%%.*}
    cat >"$folder/slurm.conf" <<END
ClusterName=single
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName=node NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP
END
}

start() {
    local program
    for program in $DAEMONS sinfo; do
        command -v "$program" >/dev/null || fail "$program is not installed; run $0 install"
    done
    [ ! -e "$folder/slurm.conf" ] || fail "$folder: has a SLURM already; stop it and delete the folder"
    mkdir -p "$folder/state" "$folder/spool"
    chmod 700 "$folder"
    folder=$(cd "$folder" && pwd)
    write_configuration
    export SLURM_CONF="$folder/slurm.conf"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" 2>"$folder/munged.out" ||
        fail "munged did not start: $(tail -n 1 "$folder/munged.out")"
    slurmctld >"$folder/slurmctld.out" 2>&1 || fail "slurmctld did not start: $(tail -n 1 "$folder/slurmctld.out")"
    slurmd -N node >"$folder/slurmd.out" 2>&1 || fail "slurmd did not start: $(tail -n 1 "$folder/slurmd.out")"
    for _ in $(seq $((5 * SECONDS_TO_START))); do
        [ "$(sinfo --noheader --format=%T 2>/dev/null)" != idle ] || return 0
        sleep 0.2
    done
    stop
    fail "the node is not idle after $SECONDS_TO_START s; see $folder/slurmctld.log and $folder/slurmd.log"
}

stop() {
    local daemon pid
    if [ -S "$folder/munge.socket" ] && [ -f "$folder/slurm.conf" ]; then
        SLURM_CONF="$folder/slurm.conf" scancel --user="$(id -un)" --full --signal=KILL 2>/dev/null || true
    fi
    for daemon in $DAEMONS; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ] || continue
        kill "$pid" 2>/dev/null || true
        for _ in $(seq $((5 * SECONDS_TO_STOP))); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.2
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
}

case "${1:-}" in
install) install_packages ;;
start | stop)
    [ $# = 2 ] || usage
    folder=$2
    "$1"
    ;;
*) usage ;;
esac
