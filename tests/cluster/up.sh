#!/bin/bash
# Brings up a real Slurm on this machine: 4 nodes, accounting, a preemptible partition. Needs root on Debian.
#   tests/cluster/up.sh [ROOT]      ROOT: where everything lives, default .cluster beside this repository's README
# Ports are picked at random below the ephemeral range, so that several clusters can live side by side. After it: source ROOT/env.sh
# Nodes are slurmd processes of one host (Debian's slurmd has multiple-slurmd), each in a UTS namespace of its own, so
# that its host name is its node name. Nothing is confined: no cgroups, and CPUs are those that slurm.conf claims.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ROOT=$(realpath -m "${1:-$here/../../.cluster}")
NODES=4 CPUS=8 MEM=4000
[ "$(id -u)" = 0 ] || { echo "cluster-up: must be root (own host names for nodes need it)"; exit 2; }
"$here/../install_packages.sh"
[ ! -e "$ROOT/env.sh" ] || { echo "cluster-up: $ROOT is in use; run tests/cluster/down.sh $ROOT"; exit 2; }
P=${BASEPORT:-$((8000 + RANDOM % 120 * 100))} # below the ports of ranks
CLUSTER=test$P
mkdir -p "$ROOT"/{etc,log,run,state,spool,tmp}
chmod 755 "$ROOT"
chmod 1777 "$ROOT/run" # the mysql user puts its socket there
for n in $(seq $NODES); do
  mkdir -p "$ROOT/spool/node$n" "$ROOT/tmp/node$n"
  grep -qE "[[:space:]]node$n\$" /etc/hosts || echo "127.0.1.$n node$n" >>/etc/hosts
done

cat >"$ROOT/etc/slurm.conf" <<CONF
ClusterName=$CLUSTER
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$P
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it starts again (default 120 s, which less than 5 gives too)
AuthInfo=socket=$ROOT/run/munge.socket,cred_expire=5
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
TmpFS=$ROOT/tmp/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
# the warning signal of a job (--signal) comes when its preemption grace time begins
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=300
FirstJobId=${FIRST_JOB_ID:-1}
SlurmdTimeout=20
# 2 crashed slurmctld 22.05 when a job was requeued onto the node that had been set down
ReturnToService=1
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
Prolog=$ROOT/etc/prolog
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((P + 91))
# AuthInfo does not cover slurmdbd: without this line its clients retry for ever
AccountingStoragePass=$ROOT/run/munge.socket
DefMemPerCPU=100
CONF
for n in $(seq $NODES); do
  echo "NodeName=node$n NodeHostname=node$n NodeAddr=127.0.1.$n Port=$((P + n)) CPUs=$CPUS RealMemory=$MEM State=UNKNOWN"
done >>"$ROOT/etc/slurm.conf"
cat >>"$ROOT/etc/slurm.conf" <<CONF
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=5 PreemptMode=OFF State=UP
PartitionName=preempt Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
CONF
# a node that a test calls broken cannot start a job
printf '#!/bin/bash\n[ ! -e "%s/run/broken-$(hostname)" ]\n' "$ROOT" >"$ROOT/etc/prolog"
chmod 755 "$ROOT/etc/prolog"
cat >"$ROOT/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$ROOT/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((P + 91))
SlurmUser=root
LogFile=$ROOT/log/slurmdbd.log
PidFile=$ROOT/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((P + 90))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommitDelay=1
CONF
chmod 600 "$ROOT/etc/slurmdbd.conf"
# not autodetect, which ends slurmd where no cgroup filesystem is mounted; nothing here uses cgroups
echo "CgroupPlugin=cgroup/v1" >"$ROOT/etc/cgroup.conf"
echo "export SLURM_CONF=$ROOT/etc/slurm.conf" >"$ROOT/env.sh"
export SLURM_CONF="$ROOT/etc/slurm.conf"
failed() {
  echo "cluster-up: failed at line $1; the logs in $ROOT/log end with:"
  tail -n 3 "$ROOT"/log/*.log
  "$here/down.sh" "$ROOT" --keep
}
trap 'failed $LINENO' ERR

dd if=/dev/urandom of="$ROOT/run/munge.key" bs=128 count=1 status=none
chmod 600 "$ROOT/run/munge.key"
munged --force --key-file="$ROOT/run/munge.key" --socket="$ROOT/run/munge.socket" --pid-file="$ROOT/run/munged.pid" \
  --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/run/munged.seed"

# MariaDB with everything made small: 110 MB instead of 400
SOCK="$ROOT/run/mysqld.sock"
mkdir -p "$ROOT/db" && chown mysql: "$ROOT/db"
mariadb-install-db --no-defaults --user=mysql --datadir="$ROOT/db" --skip-test-db >"$ROOT/log/mariadb-install.log" 2>&1
mariadbd --no-defaults --user=mysql --datadir="$ROOT/db" --socket="$SOCK" --bind-address=127.0.0.1 --port=$((P + 90)) \
  --pid-file="$ROOT/db/mariadbd.pid" --innodb-buffer-pool-size=32M --innodb-log-file-size=16M \
  --innodb-lock-wait-timeout=900 --performance-schema=OFF --key-buffer-size=1M --max-connections=30 --skip-log-bin \
  >"$ROOT/log/mariadbd.log" 2>&1 </dev/null &
sql() { mariadb --no-defaults -S "$SOCK" -e "$1"; }
for _ in $(seq 100); do sql 'select 1' >/dev/null 2>&1 && break; sleep 0.1; done
sql "create database slurm_acct_db; create user 'slurm'@'localhost' identified by 'slurm';
     create user 'slurm'@'127.0.0.1' identified by 'slurm';
     grant all on slurm_acct_db.* to 'slurm'@'localhost'; grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
slurmdbd
for _ in $(seq 40); do timeout 5 sacctmgr -n list cluster >/dev/null 2>&1 && break; sleep 0.1; done
sacctmgr -i add cluster "$CLUSTER" >/dev/null
sacctmgr -i add account ml cluster="$CLUSTER" >/dev/null
sacctmgr -i add user root account=ml >/dev/null

slurmctld
for n in $(seq $NODES); do unshare --uts bash -c "hostname node$n; exec slurmd -N node$n"; done
idle() { sinfo -h -N -p batch -t idle -o %N 2>/dev/null | wc -l; }
for _ in $(seq 200); do [ "$(idle)" = $NODES ] && break; sleep 0.1; done
[ "$(idle)" = $NODES ]
echo "$NODES nodes idle. Use it: source $ROOT/env.sh; end it: tests/cluster/down.sh $ROOT"
