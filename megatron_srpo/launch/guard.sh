#!/bin/bash
# Runs on a node of the job, beside the roles: gives the job back to the queue when its first node is lost.
# Slurm itself does so only for jobs without --no-kill.

first=$1 launch=$2
while sleep 15; do
    nodes=$(squeue --noheader --jobs="$SLURM_JOB_ID" --states=RUNNING --format=%N)
    [[ -n $nodes ]] || continue # the controller may be restarting
    up=$(sinfo --noheader --Node --nodes="$nodes" --format="%N %t" | awk '$2 !~ /^down/ { print $1 }')
    if [[ -n $up ]] && ! grep -qx "$first" <<<"$up"; then
        echo "$(date '+%F %T') the job's first node $first is lost; requeued"
        trap '' TERM
        # Or the servers of this slice would keep the nodes that the next one waits for.
        touch "$launch/servers/close"
        [[ -s $launch/replacements ]] && xargs scancel <"$launch/replacements"
        scontrol requeue "$SLURM_JOB_ID"
        exit
    fi
done
