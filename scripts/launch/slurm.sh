#!/bin/bash
# Trains with all GPUs of several machines of a Slurm cluster. From the folder of the project:
#
#     sbatch scripts/launch/slurm.sh --config=configs/traffic.py --workdir=runs/traffic
#
# Every machine needs the project, its virtual environment and the images under the same paths. The
# processes find each other by what srun tells them; there, JAX gives each of them one GPU, so the
# tasks of a node are as many as its GPUs. Without GPUs, delete --gpus-per-node and set
# --ntasks-per-node=1.
#
# Two minutes before the time is up, and when the job is preempted, every process gets SIGTERM; all
# save the same step and exit with 130, and the job is put back into the queue and goes on from there.
# It is too, up to 20 times, when a process is killed (137), as for lack of memory. scancel ends it for
# good, and so do the exit codes 1 and 2.

#SBATCH --job-name=tlflax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=tlflax-%j.log

cancelled=
trap 'cancelled=yes' TERM # scancel signals this script too; --signal does not

srun "${PYTHON:-.venv/bin/python}" -m tlflax.train "$@"
code=$?

if [[ -z $cancelled ]] && ((code == 130 || (code == 137 && ${SLURM_RESTART_COUNT:-0} < 20))); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
