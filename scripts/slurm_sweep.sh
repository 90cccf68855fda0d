#!/usr/bin/env bash
# A sweep over many nodes of a SLURM cluster: an array whose tasks share one study on a shared file system.
#
#   SWEEP_DIR=/shared/sweeps/liver sbatch scripts/slurm_sweep.sh data=msd data.root=/shared/Task03_Liver \
#       optimizer.lr='tag(log, interval(1e-4, 1e-1))' loss='choice(dice_ce, focal)' sweep.n_trials=200
#
# The first task makes the sweep in SWEEP_DIR, or resumes the one that is there; the others join it. Submit again to go
# on, with sweep.n_trials=400 for more trials. A task whose time is nearly up saves its trial and is requeued. A task
# that is preempted (SIGTERM) saves it as well, and SLURM requeues it where the partition does so. Whatever is lost
# otherwise is taken up by another task within minutes. See how it goes: medtrain sweep --report "$SWEEP_DIR"
#
# Change what your cluster needs; options of sbatch on the command line come before these lines.
#SBATCH --job-name=medtrain-sweep
#SBATCH --array=0-7                   # trials at the same time
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1                  # drop it to train on CPUs
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180           # seconds before the end of the time: enough to save a checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

set -euo pipefail

# How medtrain comes into a job on your cluster, for instance:
#   module load cuda
#   source /shared/venvs/medtrain/bin/activate

: "${SWEEP_DIR:?set SWEEP_DIR to a folder on a file system that all nodes share}"
# A journal serves tens of tasks on NFS and Lustre. For hundreds, STORAGE=postgresql://me@dbhost/sweeps
storage=${STORAGE:-$SWEEP_DIR/journal.log}
study=$(basename "$SWEEP_DIR")
task=${SLURM_ARRAY_TASK_ID:-0}
first=${SLURM_ARRAY_TASK_MIN:-$task}
job=${SLURM_JOB_ID:-}
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$task
max_restarts=${MAX_RESTARTS:-50}
wait_s=${WAIT_S:-3600}                # for the first task to start; the others hold their nodes meanwhile
resume_s=600                          # the same, where a sweep is there already
stopped=75                            # medtrain's exit code after a signal, with everything saved

say() { printf '%s task %s: %s\n' "$(date '+%F %T')" "$task" "$*"; }

step='' received='' interrupted=''
# shellcheck disable=SC2317  # the traps call it
pass_on() {
  received=$1 interrupted=yes
  say "SIG$1"
  [[ -z $step ]] || kill -s "$1" "$step" 2>/dev/null || true
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

# Run medtrain as a job step, which also gets the SIGTERM of a preemption; leave its exit code in $code.
run() {
  say "medtrain $*"
  srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" medtrain "$@" &
  step=$!
  [[ -z $received ]] || kill -s "$received" "$step" 2>/dev/null || true
  while true; do
    interrupted='' code=0
    wait "$step" || code=$?
    [[ -n $interrupted ]] || break    # else only the waiting has ended
  done
  step=''
  say "exit code $code"
}

has_trials() { compgen -G "$SWEEP_DIR/trials/*" >/dev/null; }
is_running() { has_trials && grep -q '"status": "running"' "$SWEEP_DIR/status.json" 2>/dev/null; }

# Make the sweep, or go on with it; of the arguments only those that may change come along then.
lead() {
  local words argument
  if [[ ! -f $SWEEP_DIR/config.yaml ]]; then
    words=(sweep "$@" "run.dir=$SWEEP_DIR")
    [[ -z ${STORAGE:-} ]] || words+=("sweep.storage=$STORAGE")
  else
    words=(resume "$SWEEP_DIR")
    for argument in "$@"; do
      case $argument in
        sweep.n_trials=* | sweep.timeout=* | sweep.retries=* | sweep.max_failures=* | sweep.keep_checkpoints=* | sweep.rerun_*=*)
          words+=("$argument")
          ;;
      esac
    done
  fi
  run "${words[@]}"
  if ((code != 0 && code != stopped)) && [[ -n ${SLURM_ARRAY_JOB_ID:-} ]] && ! has_trials; then
    say "there is no sweep to join: the other tasks are cancelled"
    scancel "$SLURM_ARRAY_JOB_ID" || true
  fi
}

# Join the sweep once the first task has it running: before, there is no study, or it has no new trials yet.
follow() {
  local waited=0 limit
  until is_running; do
    limit=$wait_s
    if has_trials; then limit=$resume_s; fi
    if ((waited >= limit)); then break; fi
    sleep 10 &
    wait $! || kill $! 2>/dev/null || true
    if [[ -n $received ]]; then
      code=$stopped
      return
    fi
    waited=$((waited + 10))
  done
  if ! has_trials; then
    say "there is no sweep in $SWEEP_DIR after $waited s"
    exit 1
  fi
  run sweep --worker "$storage" "$study"
}

code=0
if [[ $task == "$first" ]]; then lead "$@"; else follow; fi

# Only the end of the time asks for another turn: after a SIGTERM, SLURM requeues the task or the user cancelled it.
if [[ $received == USR1 ]] && ((code == stopped)); then
  if ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
    say "requeued $max_restarts times already: submit again to go on"
    exit "$code"
  fi
  say "requeued"
  scontrol requeue "$job"
  exit 0
fi
exit "$code"
