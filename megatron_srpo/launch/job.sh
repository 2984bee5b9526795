# From here to the srun below, which starts the ranks, every job is the same (megatron_srpo/launch/job.sh):
# it starts the servers, looks after them while the ranks run, and decides at the end whether the job goes on.

srpo_say() { printf '%(%F %T)T launch: %s\n' -1 "$*"; }

# The address at which other nodes reach a node: the one that Slurm uses itself.
srpo_address() {
    local name
    name=$(scontrol show node -o "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    getent ahostsv4 "${name:-$1}" | awk '$1 !~ /^127\./ { print $1; exit }'
}

# What the run says of itself; nothing if this slice has not got so far.
srpo_status() { # FIELD
    local text
    text=$(cat "$SRPO_RUN/status.json" 2>/dev/null) || return 0
    [[ $text == *"\"job\": \"$SRPO_SLICE\""* ]] || return 0
    sed -n "s/.*\"$1\": \"\{0,1\}\([^\",}]*\).*/\1/p" <<<"$text"
}

# The nodes that the job still has, nothing if nobody can say. With --no-kill, Slurm takes lost nodes off the job's
# list, but (22.05) not when somebody has changed their number; so those that are down are taken off here.
srpo_present() {
    sinfo --noheader --Node --nodes="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N)" --format="%N %t" |
        awk '$2 !~ /^down/ { print $1 }' | sort -u
}

srpo_end_servers() {
    [[ -d $SRPO_SERVERS ]] && touch "$SRPO_SERVERS/close"
    [[ -s $SRPO_LAUNCH/replacements ]] && xargs scancel <"$SRPO_LAUNCH/replacements" 2>/dev/null
    rm -f "$SRPO_LAUNCH/replacements"
}

srpo_requeue() { # REASON
    local restarts=${SLURM_RESTART_COUNT:-0} step
    if [[ -n $srpo_cancelled || -e $SRPO_LAUNCH/cancelled ]]; then
        srpo_say "not requeued: the job was cancelled"
        return
    fi
    if ((restarts >= SRPO_MAX_REQUEUES)); then
        srpo_say "not requeued ($1): this was slice $((restarts + 1)) of slurm.max_requeues + 1"
        return
    fi
    step=$(srpo_status step)
    echo "${step:-none}" >>"$SRPO_LAUNCH/requeues"
    if [[ $(tail -n 4 "$SRPO_LAUNCH/requeues" | uniq -c | awk '{ print $1 }') == 4 ]]; then
        srpo_say "not requeued ($1): three requeues in a row have not finished one step more"
        return
    fi
    srpo_say "requeued: $1 (slice $((restarts + 1)), step ${step:-unknown})"
    trap '' TERM
    scontrol requeue "$SLURM_JOB_ID" && sleep 60 # Slurm ends this script
}

# With --no-kill, Slurm lets a job run on whose first node, with this script, is lost. Others look out for that.
srpo_guard() {
    local index left=3
    for ((index = 1; index < SRPO_ALL_NODES && left > 0; index++, left--)); do
        srun --overlap --no-kill --nodes=1 --ntasks=1 --nodelist="${SRPO_NODES[$index]}" --open-mode=append \
            --output="$SRPO_LAUNCH/logs/guard-${SRPO_NODES[$index]}_$SRPO_SLICE.out" \
            bash "$SRPO_LAUNCH/guard.sh" "${SRPO_NODES[0]}" "$SRPO_LAUNCH" 2>/dev/null &
    done
}

srpo_serve() { # INDEX of a node: start its servers
    local node=${SRPO_NODES[$1]} slot=$((($1 - SRPO_FIRST_SERVER) * SRPO_SERVERS_PER_NODE))
    srun --overlap --no-kill --nodes=1 --ntasks=1 --nodelist="$node" --open-mode=append \
        --output="$SRPO_LAUNCH/logs/server-${node}_$SRPO_SLICE.out" \
        "${SRPO_CONTAINER[@]}" bash "$SRPO_LAUNCH/server.sh" "$slot" &
    srpo_pid[$1]=$!
}

srpo_forget_job() { # else sbatch would take this job's shape for that of the next
    local name
    for name in "${!SLURM_@}" "${!SBATCH_@}"; do
        [[ $name == SLURM_CONF ]] || unset "$name"
    done
}

srpo_replace() { # INDEX of a node that is gone: its servers start again in a job of their own, which joins in
    local first=$((($1 - SRPO_FIRST_SERVER) * SRPO_SERVERS_PER_NODE)) slot id
    for ((slot = first; slot < first + SRPO_SERVERS_PER_NODE; slot++)); do
        rm -f "$SRPO_SERVERS/server-$(printf %03d "$slot").json"
    done
    ((SRPO_REPLACE)) || return 0
    id=$(srpo_forget_job; sbatch --parsable "${SRPO_REPLACEMENT[@]}" \
        --output="$SRPO_LAUNCH/logs/server-slot${first}_%j.out" "$SRPO_LAUNCH/replacement.sh" "$first")
    if [[ -n $id ]]; then
        echo "${id%%;*}" >>"$SRPO_LAUNCH/replacements"
        srpo_say "the servers of ${SRPO_NODES[$1]} start again in job ${id%%;*}"
    fi
}

srpo_look_after() { # INDEX NODES: is a node's step still there?
    local index=$1 node=${SRPO_NODES[$1]} status
    if ! grep -qx "$node" <<<"$2"; then
        srpo_say "node $node is lost"
        kill "${srpo_pid[$index]}" 2>/dev/null
        srpo_pid[$index]=gone
        srpo_replace "$index"
    elif ! kill -0 "${srpo_pid[$index]}" 2>/dev/null; then
        wait "${srpo_pid[$index]}"
        status=$?
        if ((++srpo_failures[index] > SRPO_SERVER_STARTS)); then
            srpo_say "the servers of $node have ended $SRPO_SERVER_STARTS times; they are given up"
            srpo_pid[$index]=gone
        else
            srpo_say "the servers of $node ended with status $status; starting them again"
            srpo_serve "$index"
        fi
    fi
}

srpo_watch() {
    local present end index
    local -a srpo_pid srpo_failures
    end=$(date -d "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)" +%s 2>/dev/null)
    for ((index = SRPO_FIRST_SERVER; index < SRPO_FIRST_SERVER + SRPO_SERVER_NODES; index++)); do
        srpo_serve "$index"
    done
    ((SRPO_ALL_NODES > SRPO_TRAIN_NODES)) && srpo_guard
    while sleep "$SRPO_POLL"; do
        if [[ -n $end ]] && (($(date +%s) > end - SRPO_STOP_BEFORE / 10)); then
            srpo_requeue "the time limit came before the run had saved; it goes on from its last checkpoint"
        fi
        ((SRPO_SERVER_NODES)) || continue
        present=$(srpo_present)
        [[ -n $present ]] || continue # the controller may be restarting
        for index in "${!srpo_pid[@]}"; do
            [[ ${srpo_pid[$index]} == gone ]] || srpo_look_after "$index" "$present"
        done
    done
}

srpo_lost() { # name the nodes with ranks that are gone; Slurm may take some seconds to say so
    local try index present lost
    for try in 1 2 3; do
        present=$(srpo_present) lost=
        for ((index = 0; index < SRPO_TRAIN_NODES; index++)); do
            grep -qx "${SRPO_NODES[$index]}" <<<"$present" || lost+=" ${SRPO_NODES[$index]}"
        done
        [[ -n $present && -n $lost ]] && break
        sleep 5
    done
    echo "$lost"
}

srpo_end() {
    local status=$? state lost=
    set +e
    trap - EXIT
    kill "$srpo_watcher" 2>/dev/null
    srpo_end_servers
    state=$(srpo_status state)
    ((status)) && lost=$(srpo_lost)
    srpo_say "the ranks ended with status $status, the run is ${state:-not begun}"
    if [[ $state == stopped && $(srpo_status reason) == *"file 'stop'"* ]]; then
        srpo_say "it was stopped by somebody's file; launch it again to go on"
    elif [[ $state == stopped ]]; then
        srpo_requeue "it was stopped and has saved"
    elif ((status)) && [[ -n $lost ]]; then
        srpo_requeue "lost$lost"
    elif ((status && ${SLURM_RESTART_COUNT:-0} < SRPO_RETRIES)); then
        srpo_requeue "slurm.retries = $SRPO_RETRIES"
    elif [[ $status == 0 && $state != finished ]]; then
        status=1
    fi
    [[ $state == stopped && $status == 0 ]] && status=75
    exit "$status"
}

unset SLURM_UNBUFFEREDIO # nemo-run sets it; it gives tasks a terminal, and they would draw progress bars into logs
srpo_cancelled=
SRPO_SLICE=${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}
mapfile -t SRPO_NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# The controller may give an address late on clouds; without one the ranks could not find each other.
SRPO_HEAD=$(srpo_address "${SRPO_NODES[0]}")
SRPO_PORT=$((10000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 10000))
export SRPO_SLICE SRPO_HEAD="${SRPO_HEAD:-${SRPO_NODES[0]}}" SRPO_PORT
srpo_end_servers # those of an earlier slice whose first node was lost
rm -rf "$SRPO_SERVERS"
mkdir -p "$SRPO_SERVERS"
srpo_say "slice $SRPO_SLICE on ${SRPO_NODES[*]}; rendezvous at $SRPO_HEAD:$SRPO_PORT"
((${#SRPO_NODES[@]} == SRPO_ALL_NODES)) || srpo_requeue "got ${#SRPO_NODES[@]} of $SRPO_ALL_NODES nodes"
srpo_watch &
srpo_watcher=$!
trap srpo_end EXIT
trap 'srpo_cancelled=1' TERM # of preemption and time limits only the steps are told, not this shell
