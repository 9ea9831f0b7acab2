#!/bin/sh
# The boot guard: a rented pod's first process, at every start of its container (docs/adr/0013-what-ends-a-pod.md).
#
# It says this start's line into the container's log, leaves behind a loop that ends the pod when no watchdog lives for
# PODCTL_GUARD_S, and becomes the image's own start. POSIX sh: dash and busybox run it.
#
#   PODCTL_GUARD_S, PODCTL_GUARD_END                  seconds without a watchdog, then terminate or stop
#   RUNPOD_POD_ID, RUNPOD_API_KEY                     who this is, and the pod's own key; both are RunPod's
#   PODCTL_RUNPOD_API_URL, PODCTL_RUNPOD_GRAPHQL_URL  where the provider is
#   PODCTL_GUARD_DIR, PODCTL_GUARD_TICK_S, PODCTL_START, PODCTL_HOST_KEY, PODCTL_CLOCK_FILE   an emulated pod's
set -u

start=${PODCTL_START:-/start.sh}
host_key=${PODCTL_HOST_KEY:-/etc/ssh/ssh_host_ed25519_key}
grace=${PODCTL_GUARD_S:-900}
end=${PODCTL_GUARD_END:-stop} # the one that destroys nothing
tick=${PODCTL_GUARD_TICK_S:-5}
pod=${RUNPOD_POD_ID:-}
key=${RUNPOD_API_KEY:-}
api=${PODCTL_RUNPOD_API_URL:-https://api.runpod.io/v2}
graphql=${PODCTL_RUNPOD_GRAPHQL_URL:-https://api.runpod.io/graphql}
case $grace in '' | *[!0-9]* | 0?*) grace=900 ;; esac
[ "$end" = terminate ] || end=stop
LOOKS=8        # so many looks at an unchanged heart: after a leap of the clock a watchdog has time to show that it lives
HUNG_S=120     # a watchdog without a heartbeat for so long is killed and started again
GAP_S=120      # a start this soon after the last look is a restart, and the count goes on
TAKE_OVER_S=300 # a watchdog that has been ending the pod for so long gets help

has() { command -v "$1" >/dev/null 2>&1; }

say() { # in the background: a log that nobody takes in must not stop the guard
  (echo "$*" &) 2>/dev/null
  { echo "boot: $*" >>"$dir/log"; } 2>/dev/null
}

trouble() { say "podctl-boot 1 boot=$boot trouble=$*"; }

elapsed() { # $now: seconds that went by, whatever the clock on the wall says
  now='' moved=''
  { read -r now _ </proc/uptime; } 2>/dev/null
  now=${now%%.*}
  case $now in '' | *[!0-9]*) now=$(date +%s) ;; esac
  if [ -n "${PODCTL_CLOCK_FILE:-}" ]; then
    { read -r moved _ <"$PODCTL_CLOCK_FILE"; } 2>/dev/null
    moved=${moved%%.*}
    case $moved in '' | *[!0-9]* | 0?*) ;; *) now=$((now + moved)) ;; esac
  fi
}

nap() { sleep "$tick" 2>/dev/null || sleep 1; }

# --- the way of the container: who it is, then the image's own start ---

main() {
  elapsed
  began=$now mask=$(umask)
  umask 077
  boot=$(od -An -N4 -tx1 /dev/urandom 2>/dev/null | tr -d ' \n')
  [ ${#boot} -eq 8 ] || boot=$(printf '%08x' "$(($(date +%s) ^ ($$ << 16) & 0xffffffff))" | cut -c1-8)
  dir=''
  for d in "${PODCTL_GUARD_DIR:-/dev/shm/podctl-guard}" /tmp/podctl-guard; do
    mkdir -p "$d" 2>/dev/null && chmod 700 "$d" 2>/dev/null && [ -w "$d" ] && dir=$d && break
  done
  if [ -n "$dir" ]; then # what an earlier start left is of no worth: its orders were for its own time
    for d in armed claims fetched holds alive verdict.json ending.json watch.json evidence tool log; do rm -rf "${dir:?}/$d"; done
    mkdir -p "$dir/claims" "$dir/fetched"
    printf '{"schema": 1, "boot": "%s", "started_at": %s, "uptime_s": %s, "grace_s": %s, "end": "%s"}\n' \
      "$boot" "$(date +%s)" "$began" "$grace" "$end" >"$dir/.boot" && mv -f "$dir/.boot" "$dir/boot.json"
  else
    dir=/nonexistent # the count goes on without one
    trouble "no folder for the guard can be made in /dev/shm or /tmp"
  fi
  make_key # here, before the image's start looks for one: two makers at once end with one key and two stories
  if has setsid && [ -r "$0" ]; then
    PODCTL_BOOT='' setsid sh "$0" guard "$boot" "$dir" "$began" </dev/null &
  else
    (guard) </dev/null &
  fi
  umask "$mask"
  unset PODCTL_BOOT
  # shellcheck disable=SC2093
  [ -x "$start" ] && [ ! -d "$start" ] && exec "$start"
  serve
}

serve() { # an image without a start of its own: sshd, for the container's life
  trap 'exit 0' TERM
  home=${HOME:-/root}
  if [ -n "${PUBLIC_KEY:-}" ]; then
    (umask 077 && mkdir -p "$home/.ssh" && printf '%s\n' "$PUBLIC_KEY" >>"$home/.ssh/authorized_keys")
    chmod 700 "$home/.ssh" && chmod 600 "$home/.ssh/authorized_keys"
  fi
  mkdir -p /run/sshd 2>/dev/null
  while :; do
    sshd=$(command -v sshd || echo /usr/sbin/sshd)
    if [ -x "$sshd" ] && [ -s "$host_key" ]; then # neither may be there until it has been installed
      "$sshd" -D -e -o "HostKey=$host_key" &
      wait $!
    fi
    sleep 5 &
    wait $!
  done
}

# --- the loop that stays ---

guard() {
  trap '' PIPE HUP
  trap : INT TERM # whoever stops the pod stops it; a stray signal does not
  umask 077
  { echo -500 >/proc/self/oom_score_adj; } 2>/dev/null
  kernel='' was='' seen_at='' seen_last='' watchdog='' back_off=0 retry=0 line='' known='' kept='' looks=0 beat=''
  { read -r kernel </proc/sys/kernel/random/boot_id; } 2>/dev/null
  if [ -n "${PODCTL_GUARD_DIR:-}" ]; then seen=$dir.seen; else seen=/tmp/podctl-guard.seen; fi
  elapsed
  last=$began announced=$now changed=$now ending=''
  # a container that dies and is started again must not get a new grace each time: where its disk is kept, so is the count
  { read -r was seen_at seen_last <"$seen"; } 2>/dev/null
  case "$seen_at$seen_last" in '' | *[!0-9]*) was='' ;; esac
  if [ -n "$kernel" ] && [ "$was" = "$kernel" ] && [ "$now" -ge "$seen_at" ] && [ $((now - seen_at)) -le $GAP_S ]; then
    last=$seen_last
  fi
  if [ -z "$pod" ] || [ -z "$key" ]; then
    trouble "RUNPOD_POD_ID or RUNPOD_API_KEY is not set on this pod: nothing here can end it"
  fi
  case $key in *[\"\\]* | *"
"*) trouble "RUNPOD_API_KEY holds a character that no key has" && key='' ;; esac
  install &
  while :; do
    lap
    nap
  done
}

lap() {
  elapsed
  still_ours || exit 0
  say_who
  watch
  if [ "$now" != "$kept" ]; then # replaced whole: killed in the middle of a write, the container would lose its count
    { echo "$kernel $now $last" >"$seen.new" && mv -f "$seen.new" "$seen"; } 2>/dev/null
    kept=$now
  fi
  if [ $((now - last)) -ge "$grace" ] && { [ $looks -ge $LOOKS ] || [ ! -s "$dir/armed" ]; }; then
    end_pod "$end" "no watchdog has lived on this pod for $grace s"
  fi
  if [ -n "$ending" ] && [ $((now - ending)) -ge $TAKE_OVER_S ]; then
    how=$end
    grep -q '"how": "terminate"' "$dir/ending.json" && how=terminate
    grep -q '"how": "stop"' "$dir/ending.json" && how=stop
    end_pod "$how" "the watchdog has not managed to end this pod"
  fi
}

still_ours() { # a container's restart in the same folder has a guard of its own
  { read -r line <"$dir/boot.json"; } 2>/dev/null || return 0
  case $line in *"$boot"*) ;; *) return 1 ;; esac
}

say_who() { # again for ten minutes: a look at the log reads its end
  type='' blob=''
  { read -r type blob _ <"$host_key.pub"; } 2>/dev/null
  [ -n "$blob" ] || return 0 # it may still have to be installed
  [ "$type $blob" != "$known" ] || { [ $((now - began)) -le 600 ] && [ $((now - announced)) -ge 60 ]; } || return 0
  known="$type $blob" announced=$now
  say "podctl-boot 1 boot=$boot dir=$dir key=$known"
}

make_key() {
  if [ ! -s "$host_key" ] && has ssh-keygen; then
    (umask 022 && mkdir -p "${host_key%/*}")
    ssh-keygen -q -t ed25519 -N '' -C pod -f "$host_key" </dev/null >/dev/null 2>&1 || trouble "ssh-keygen cannot make $host_key"
  fi
  if [ -s "$host_key" ] && [ ! -s "$host_key.pub" ] && has ssh-keygen; then
    ssh-keygen -y -P '' -f "$host_key" >"$host_key.pub" 2>/dev/null </dev/null
  fi
  [ ! -e "$host_key.pub" ] || chmod 644 "$host_key.pub"
}

install() { # what podctl needs and the image lacks; in the background, since a mirror may hang
  need=''
  has tmux || need="$need tmux"
  has rsync || need="$need rsync"
  has sshd || [ -x /usr/sbin/sshd ] || need="$need openssh-server"
  has ssh-keygen || case $need in *ssh*) ;; *) need="$need openssh-client" ;; esac
  [ -n "$need" ] || return 0
  if ! has apt-get; then
    trouble "this image lacks$need and has no apt-get: choose an image that has them"
    return 0
  fi
  say "boot guard: installs$need"
  # shellcheck disable=SC2086
  if (
    umask 022
    export DEBIAN_FRONTEND=noninteractive
    unset RUNPOD_API_KEY # packages run code of strangers while they install
    apt-get -q -o DPkg::Lock::Timeout=120 update && apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends $need
  ) </dev/null >"$dir/install.log" 2>&1; then
    say "boot guard: installed$need"
    make_key
  else
    trouble "apt-get could not install$need: $(tail -n 1 "$dir/install.log" | tr -cd '[:print:]' | cut -c1-200)"
  fi
}

watch() { # the watchdog: does it live, and is it to be started
  new=''
  { read -r new <"$dir/alive"; } 2>/dev/null
  if [ -n "$new" ] && [ "$new" != "$beat" ]; then
    beat=$new last=$now changed=$now looks=0 back_off=0
  else
    looks=$((looks + 1))
  fi
  [ -n "$ending" ] || [ ! -s "$dir/ending.json" ] || { ending=$now && say "boot guard: the watchdog ends this pod: $(head -c 500 "$dir/ending.json" | tr -cd '[:print:]')"; }
  if [ -n "$watchdog" ] && kill -0 "$watchdog" 2>/dev/null; then
    [ $((now - changed)) -ge $HUNG_S ] && [ $looks -ge $LOOKS ] || return 0
    say "boot guard: the watchdog hangs, and is killed"
    kill -9 "$watchdog" 2>/dev/null
    wait "$watchdog" 2>/dev/null
  fi
  if [ -n "$watchdog" ]; then
    wait "$watchdog" 2>/dev/null
    say "boot guard: the watchdog ended (exit code $?), the next one comes in $back_off s"
    watchdog='' retry=$((now + back_off))
  fi
  [ -s "$dir/armed" ] && [ "$now" -ge $retry ] || return 0
  python='' program=''
  { { read -r python && read -r program; } <"$dir/armed"; } 2>/dev/null
  [ -n "$program" ] || return 0
  "$python" -I -S "$program" watch "$dir" </dev/null >>"$dir/log" 2>&1 &
  watchdog=$! changed=$now looks=0
  back_off=$((back_off * 2 + 1))
  [ $back_off -le 60 ] || back_off=60
}

# --- ending the pod ---

end_pod() { # HOW WHY: again every minute for as long as we live, since a provider may say yes and do nothing
  how=$1 why=$2 round=0
  say "boot guard: $why: $how"
  while :; do
    round=$((round + 1)) tried='' accepted=''
    by_all_routes "$how"
    [ "$how" = stop ] || { [ -n "$accepted" ] && [ $round -lt 4 ]; } || by_all_routes stop
    printf '{"schema": 1, "boot": "%s", "by": "boot guard", "why": "%s", "how": "%s", "at": %s, "round": %s, "tried": [%s]}\n' \
      "$boot" "$why" "$how" "$(date +%s)" $round "$tried" >"$dir/.ending" && mv -f "$dir/.ending" "$dir/ending.json"
    elapsed
    until=$((now + 60))
    while [ "$now" -lt $until ]; do
      nap
      elapsed
      still_ours || exit 0
    done
  done
}

by_all_routes() { # WHAT: the first that is accepted will do at first; once that proved empty, each is tried
  mutation=podStop old='stop pod' new1='pod stop' new2=''
  [ "$1" = stop ] || { mutation=podTerminate old='remove pod' new1='pod delete' new2='pod remove'; }
  for route in v2 graphql runpodctl; do
    case $route in
      v2) post "$api/pods/$pod/action" "{\"action\":\"$1\"}" ;;
      graphql)
        select=' { id desiredStatus }'
        [ "$1" = stop ] || select=''
        post "$graphql" "{\"query\":\"mutation { $mutation(input: { podId: \\\"$pod\\\" })$select }\"}"
        case $answer in 2*'"errors"'*) answer="refused: ${answer#*'"errors"'}" ;; esac
        ;;
      runpodctl) by_runpodctl "$old" || by_runpodctl "$new1" || { [ -n "$new2" ] && by_runpodctl "$new2"; } ;;
    esac
    short=${answer%%"$nl"*}
    case $answer in 2*) accepted=1 short=${short%% *} ;; esac # a yes may come with the pod's environment: no word of it
    case $short in *"${key:-$nl}"*) short='(an answer that holds the key)' ;; esac
    short=$(printf %s "$short" | tr -cd '[:print:]' | tr -d '\042\134' | cut -c1-160) # no quote, no backslash
    say "boot guard: $1 by $route: $short"
    tried="$tried${tried:+, }{\"route\": \"$route\", \"answer\": \"$1: $short\"}"
    [ -z "$accepted" ] || [ $round -gt 1 ] || return 0
  done
}

nl='
'

post() { # URL BODY: $answer becomes the status, a blank, and what was said. The key goes over stdin, never in an argv
  answer='no key'
  [ -n "$key" ] && [ -n "$pod" ] || return 0
  if has curl; then
    answer=$(printf 'header = "Authorization: Bearer %s"\n' "$key" | curl -sS -K - -X POST --connect-timeout 10 --max-time 20 \
      -A podctl-guard -H 'Content-Type: application/json' --data "$2" -w '\n%{http_code}' "$1" 2>&1)
  else
    python=python3
    { read -r python <"$dir/armed"; } 2>/dev/null
    answer=$("$python" -I -c "$by_python" "$1" "$2" 2>&1)
  fi
  answer="${answer##*"$nl"} $(printf %s "${answer%"$nl"*}" | tr '\n' ' ' | cut -c1-2000)"
}

# shellcheck disable=SC2016
by_python='import os, signal, sys, urllib.error, urllib.request
signal.alarm(25)
class Stay(urllib.request.HTTPRedirectHandler):
    redirect_request = lambda *a: None
headers = {"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"], "Content-Type": "application/json", "User-Agent": "podctl-guard"}
try:
    answer = urllib.request.build_opener(Stay).open(urllib.request.Request(sys.argv[1], sys.argv[2].encode(), headers), timeout=20)
except urllib.error.HTTPError as e:
    answer = e
except Exception as e:
    print(e, "000", sep="\n")
    sys.exit()
print(answer.read(4000).decode("utf-8", "replace"), answer.code, sep="\n")'

by_runpodctl() { # "VERB NOUN": $answer as of post
  answer='no runpodctl'
  has runpodctl && [ -n "$pod" ] || return 0
  # shellcheck disable=SC2086
  answer=$( # in memory: whatever it says, no file holds it
    runpodctl $1 "$pod" </dev/null 2>&1 &
    asked=$!
    (sleep 30 && kill -9 $asked) >/dev/null 2>&1 &
    if wait $asked; then printf '\n200'; else printf '\nexit'; fi
    kill $!
  ) 2>/dev/null
  said=${answer%"$nl"*}
  answer="${answer##*"$nl"} ${said##*"$nl"}"
  case $answer in 2*) ;; *) return 1 ;; esac
}

if [ "${1:-}" = guard ]; then
  boot=$2 dir=$3 began=$4
  guard
fi
main
