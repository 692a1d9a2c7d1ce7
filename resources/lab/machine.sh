# The machine: its QEMU process, its streams, its end. Sourced by lab.
#
# Four serial ports lead out of it: out, err, status, and in where standard input is connected. QEMU makes what it
# writes to non-blocking, which would also change the caller's terminal or pipe: a cat stands between.

# Folders of earlier labs that were killed with SIGKILL; a running lab holds its lock.
remove_stale_runs() {
  local stale lock
  for stale in "${TMPDIR:-/tmp}"/amphi-lab.*; do
    [[ -f $stale/lock && -O $stale ]] || continue
    { exec {lock}<"$stale/lock"; } 2>/dev/null || continue
    ! flock -n "$lock" || rm -rf "$stale"
    exec {lock}<&-
  done
}

# A folder of this lab's, locked.
make_run() {
  while :; do
    run=$(mktemp -d "${TMPDIR:-/tmp}/amphi-lab.XXXXXX")
    exec {held}>"$run/lock"
    flock "$held"
    # Before that, another lab may have taken it for a stale one.
    [[ ! $run/lock -ef /dev/fd/$held ]] || return 0
    exec {held}>&-
  done
}

stop_machine() {
  trap - EXIT
  trap '' INT TERM HUP
  [[ -z ${machine:-} ]] || kill -TERM "$machine" 2>/dev/null || true
  [[ -z ${machine:-} ]] || wait "$machine" 2>/dev/null || true
  [[ -z ${feeder:-} ]] || kill "$feeder" 2>/dev/null || true
  rm -rf "$run"
}

# write_job COMMAND...: the script that the machine runs.
write_job() {
  local entry
  echo "export HOME=/root USER=root TERM=dumb AMPHI_LAB=1 PATH=$(printf %q "$PATH")"
  for entry in "${environment[@]}"; do printf 'export %s=%q\n' "${entry%%=*}" "${entry#*=}"; done
  printf 'cd -- %q || exit 125\n' "$PWD"
  printf 'exec --'
  printf ' %q' "$@"
  echo
}

# shown_paths PATH...: the entries of the machine's memory file systems that must show the host's instead.
shown_paths() {
  local path base rest
  for path; do
    for base in /tmp /run /dev/shm; do
      rest=${path#"$base"/}
      [[ $rest == "$path" ]] || echo "$base/${rest%%/*}"
    done
  done | sort -u | paste -sd, -
}

run_machine() {
  local shown accelerator drives=() inputs=() i in caller_in
  feeder=''
  exec {in}</dev/null
  remove_stale_runs
  make_run
  trap stop_machine EXIT
  trap 'stop_machine; exit 130' INT
  trap 'stop_machine; exit 143' TERM
  trap 'stop_machine; exit 129' HUP

  folder "the current folder" "$PWD" >/dev/null
  write_job "$@" >"$run/job"
  (cd "$run" && echo job | cpio --quiet -o -H newc) | cat "$initramfs" - >"$run/initrd"

  shown=$(shown_paths "$(realpath "$PWD")" "$cache" "$(realpath "$(type -P -- "$1" || echo /)")")
  for i in "${!writable[@]}"; do
    drives+=(-fsdev "local,id=writable$i,path=${writable[i]},security_model=passthrough,multidevs=remap"
      -device "virtio-9p-pci,fsdev=writable$i,mount_tag=writable$i")
  done
  # Processors emulated in parallel corrupt each other's state where guests are nested: see README.md.
  accelerator=(-accel tcg,thread=single,tb-size=512)
  [[ -z $count ]] || accelerator+=(-icount shift=0,sleep=on)

  if [[ -n $stdin ]]; then
    exec {caller_in}<&0 {in}<&-
    exec {in}< <(exec cat <&"$caller_in") && feeder=$!
    exec {caller_in}<&-
    inputs=(-chardev stdio,id=in,signal=off -device virtserialport,chardev=in,name=in)
  fi
  # Each cat gets its own pipe only: one that held another's would keep it from ending.
  exec {out}> >(trap '' INT TERM; exec cat {in}<&- {held}>&-) && local out_cat=$!
  exec {err}> >(trap '' INT TERM; exec cat >&2 {in}<&- {held}>&- {out}>&-) && local err_cat=$!

  # The death of this script, however it comes, ends the machine too.
  setpriv --pdeathsig TERM -- timeout --foreground -k 5 "$limit" "${qemu[@]}" \
    -name amphi-lab -M q35 "${accelerator[@]}" -cpu EPYC,+svm,+npt -smp "$cpus" -m "$memory" \
    -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$vmlinuz" -initrd "$run/initrd" \
    -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on no_timer_check lab.cache=$cache lab.shown=$shown lab.writable=$(IFS=,; echo "${writable[*]}")" \
    -serial "file:$run/console" \
    -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=host,mount_tag=host \
    "${drives[@]}" \
    -device virtio-serial-pci \
    -add-fd "fd=$out,set=1" -chardev file,id=out,append=on,path=/dev/fdset/1 -device virtserialport,chardev=out,name=out \
    -add-fd "fd=$err,set=2" -chardev file,id=err,append=on,path=/dev/fdset/2 -device virtserialport,chardev=err,name=err \
    -chardev "file,id=status,path=$run/status" -device virtserialport,chardev=status,name=status \
    "${inputs[@]}" \
    -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
    <&"$in" >/dev/null 2>"$run/qemu" &
  machine=$!
  local ended=0 status
  wait "$machine" || ended=$?
  machine=
  exec {out}>&- {err}>&- {in}<&-
  [[ -z $feeder ]] || kill "$feeder" 2>/dev/null || true
  wait "$out_cat" "$err_cat" || true

  status=$(cat "$run/status" 2>/dev/null || true)
  if [[ -n $console || -z $status ]]; then
    grep -v "TCG doesn't support" "$run/qemu" >&2 || true
    tail -n 60 "$run/console" >&2 || true
  fi
  if ((ended == 124 || ended == 137)) && [[ -z $status ]]; then
    say "error: the time limit of $limit s was over before the command ended"
    exit 124
  fi
  [[ $status =~ ^[0-9]+$ ]] || die "the machine stopped before the command ended; its console is above"
  exit "$status"
}
