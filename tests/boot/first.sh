# The first boot: nothing is there but the programs and fstab.
datamon context create prod --store file:///dmtest/store
# Another one, whose store is where this machine cannot get to.
sed 's#file:///dmtest/store#s3://bucket/prefix#' /etc/datamon/contexts.d/prod.toml >/etc/datamon/contexts.d/away.toml
is "after network and automount" "$(systemctl show -p After dmtest-dm.mount | grep -c network-online.target)" 1
is "mounts before anybody looked" "$(mounted /dmtest/dm)" 0
timeout 30 ls /dmtest/dm
is "a look mounts it" "$(findmnt -n -o SOURCE -t fuse.datamon /dmtest/dm)" prod
is "what status says of the log" "$(grep '^log:' /dmtest/dm/.datamon/status)" \
    "log: journal (journalctl -t datamon DATAMON_MOUNT=/dmtest/dm)"
# Before the network goes the mount goes, also now that it is mounted.
is "still after the network" "$(systemctl show -p After dmtest-dm.mount | grep -c network-online.target)" 1
mkdir /dmtest/dm/census
echo 1 >$staging/a
sync $staging
mkdir /dmtest/dm/census/labels/v1
is "a version that a look mounts" "$(timeout 30 cat /dmtest/census/a)" 1
has_gone() { [ "$(mounted /dmtest/census)" = 0 ]; }
until_true "the end of a mount that nobody looks into" has_gone
is "a version that a look mounts again" "$(timeout 30 cat /dmtest/census/a)" 1

echo 2 >$staging/b
systemctl stop dmtest-dm.mount
is "mounts after a stop" "$(mounted /dmtest/dm)" 0
is "stopping commits" "$(timeout 30 ls /dmtest/dm/census/bundles | wc -l)" 2
echo 3 >$staging/c
