# Test cases: what each asks for, and how it went.
# shellcheck shell=bash disable=SC2154 # options are set by tests/vm/run

# The wanted cases, a line each: the name and what it asks for, as assignments. Those that take long come first, so
# that all guests are done at about the same time.
wanted() {
  local name needs
  "$guest" needs | sed -E 's/.* seconds=([0-9]+) .*/\1 &/' | sort -s -rn -k 1,1 | while read -r _ name needs; do
    if [ ${#names[@]} -gt 0 ]; then
      [[ " ${names[*]} " != *" $name "* ]] || echo "$name $needs"
    elif [[ " $needs " == *" $only "* ]] || [ -z "$only" ]; then
      echo "$name $needs"
    fi
  done
}

# Whether the time that --within gave to all is over.
is_over() { [ -n "$within" ] && [ "$SECONDS" -ge "$within" ]; }
no_time="no time left"

# A result's line, of which scripts/test makes its table.
report() { # name result seconds why
  printf '%-28s %-5s %s %4d s%s\n' "$1" "$kernel" "$2" "$3" "${4:+  ($4)}"
}

# Reports a case that has not run because time was over.
report_unrun() { report "$1" FAIL 0 "not run: $no_time"; }

# Runs one boot of a case whose needs are set: of `kills` + 1 boots all but the last end by a kill, when the
# guest says `rig: kill me in 1.5 s`. Sets `wrong`.
boot() { # name number disk..
  local name=$1 boot=$2 log=$logs/$1.log deadline=$((SECONDS + timeout)) machine asked status killed=''
  shift 2
  (machine "file,append=on,path=$log" "$logs/$name.dmesg" "$mem" "job=$name boot=$boot user=$user" "$@") &
  machine=$!
  while kill -0 $machine 2>/dev/null; do
    sleep 0.2
    asked=$(grep -a '^rig: kill me in ' "$log" 2>/dev/null | sed -n "$((boot + 1))s/[^0-9.]//gp")
    if [ -n "$asked" ] && [ "$boot" -lt "$kills" ]; then
      sleep "$asked"
      kill -9 $machine && killed=yes
      break
    elif [ "$SECONDS" -ge "$deadline" ]; then
      kill -9 $machine
      wrong="not done after $timeout s"
      break
    elif is_over; then
      kill -9 $machine
      wrong=$no_time
      break
    fi
  done
  # The shell would print that it was killed.
  wait $machine 2>/dev/null
  status=$(status_of $?)
  if [ -n "$killed$wrong" ]; then
    return
  elif [ "$boot" -lt "$kills" ]; then
    wrong="ended before it was killed"
  elif [ "$status" = none ]; then
    wrong="the machine went down"
  elif [ "$status" != 0 ]; then
    wrong="ended with status $status"
  fi
}

# Runs a case in as many boots as it takes, reports it, and adds its result to $scratch/results.
run_case() { # name need..
  local name=$1 start=$SECONDS result=PASS wrong='' said boot again disk paths=()
  local seconds timeout mem disks disk_size kills user since allow
  shift
  local "$@"
  mem=${memory:-$mem}
  rm -f "$logs/$name".{log,dmesg}
  if ! printf '%s\n' "$since" "$kernel" | sort -V -C; then
    result=SKIP wrong="needs a kernel since $since"
  else
    mkdir "$scratch/$name"
    for ((disk = 0; disk < disks; disk++)); do
      paths+=("$scratch/$name/disk$disk")
      truncate -s "$disk_size" "${paths[-1]}"
    done
    for ((boot = 0; boot <= kills && ${#wrong} == 0; boot++)); do
      cp "$logs/$name.dmesg" "$scratch/$name/dmesg" 2>/dev/null || : >"$scratch/$name/dmesg"
      boot "$name" "$boot" "${paths[@]}"
      # An emulated machine that does not get as far as its first process says nothing of the case.
      for again in 1 2 3; do
        [ -n "$wrong" ] && ! is_over && [ "$(grep -ac 'as init process' "$logs/$name.dmesg")" -le "$boot" ] || break
        echo "$name: the machine did not come up ($wrong), try $again of 3"
        cp "$scratch/$name/dmesg" "$logs/$name.dmesg"
        wrong=''
        boot "$name" "$boot" "${paths[@]}"
      done
      said=$(grep -aE "$complaints" "$logs/$name.dmesg" | grep -avE -m 1 "${allow:-^$}")
      [ -z "$said" ] || wrong="${wrong:+$wrong; }the kernel said: $said"
    done
    [ -z "$wrong" ] || result=FAIL
    rm -rf "${scratch:?}/$name"
  fi
  {
    report "$name" "$result" $((SECONDS - start)) "$wrong"
    if [ "$result" = PASS ]; then
      grep -a '^ *SKIP: ' "$logs/$name.log" | sed "s/^ *SKIP: /SKIP: in the guest ($kernel): /" | sort -u
    elif [ "$result" = SKIP ]; then
      echo "SKIP: in the guest ($kernel): $name $wrong"
    else
      # What a test of many says may be far from the end.
      grep -a -A 2 'panicked at ' "$logs/$name.log" | sed 's/^/    ! /'
      tail -n 60 "$logs/$name.log" | sed 's/^/    | /'
      echo "    the rest: ${logs#"$PWD"/}/$name.{log,dmesg}"
    fi
  } >"$scratch/$name.report" 2>&1
  cat "$scratch/$name.report"
  echo "$result" >>"$scratch/results"
}
