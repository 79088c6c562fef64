# The second boot: the shutdown before it unmounted, and so committed.
systemctl is-active dmtest-dm.automount
is "what the shutdown committed" "$(timeout 30 cat /dmtest/dm/census/labels/latest/c)" 3
is "bundles" "$(bundles)" 3
is "the journal of the last boot" "$(journal -b -1 -t datamon DATAMON_MOUNT=/dmtest/dm | grep -c '^mounted prod ')" 2
is "its end" "$(journal -b -1 -t datamon DATAMON_MOUNT=/dmtest/dm | tail -n 1)" "unmounted prod"

# A store without a network: in time, by name, and the boot went on.
has_ended() { [ "$(systemctl show -p Result --value dmtest-away.mount)" = exit-code ]; }
until_true "the end of the mount of an away store" has_ended
away=$(journal -b -u dmtest-away.mount)
grep -q 'datamon: away: .*store.invalid\|datamon: away: .*no credentials' <<<"$away" || is "the away store" "$away" "told"
is "no process is left of it" "$(grep -c 'remains running' <<<"$away" || true)" 0
status=0 && start=$SECONDS
said=$(AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b mount /dmtest/away 2>&1) || status=$?
is "exit status without a network" $status 32
grep -q '^datamon: away: .*the store does not answer' <<<"$said" || is "the message" "$said" "the store does not answer"
[ $((SECONDS - start)) -le 8 ] || is "seconds" $((SECONDS - start)) "about 3"

# SIGTERM: nothing is committed, nothing lost; a look mounts it again.
echo 4 >$staging/d
kill -TERM "$(daemon)"
is_mounted() { [ "$(mounted /dmtest/dm)" = 1 ]; }
is_away() { ! is_mounted; }
until_true "the end of a daemon by SIGTERM" is_away
is "staged before SIGTERM" "$(timeout 30 cat $staging/d)" 4
is "bundles after SIGTERM" "$(bundles)" 3
is "why it ended" "$(journal -b -t datamon | grep -c 'what changed stays staged')" 1

# SIGKILL: the mount stays, dead; systemd takes it away and a look mounts it again.
echo 5 >$staging/e
kill -KILL "$(daemon)"
until_true "the end of a daemon by SIGKILL" sh -c '! ls /dmtest/dm'
systemctl stop dmtest-dm.mount
is "staged before SIGKILL" "$(timeout 30 cat $staging/e)" 5

# SIGSTOP: umount says where the connection is, in time, and all goes on after SIGCONT.
stopped=$(daemon) && status=0 && start=$SECONDS
kill -STOP "$stopped"
minor=$(findmnt -n -o MAJ:MIN -t fuse.datamon /dmtest/dm | tr -d ' ' | cut -d: -f2)
said=$(umount /dmtest/dm 2>&1) || status=$?
is "exit status of a stopped mount's umount" $status 32
is "where it can be ended" "$(grep -c "echo 1 > /sys/fs/fuse/connections/$minor/abort" <<<"$said")" 1
[ $((SECONDS - start)) -le 12 ] || is "seconds" $((SECONDS - start)) "about 10"
kill -CONT "$stopped"
is "after SIGCONT" "$(timeout 30 cat $staging/e)" 5
is "bundles after all that" "$(bundles)" 3
echo 6 >$staging/f
kill -STOP "$(daemon)"
