# The third boot: the daemon was stopped when the machine was shut down.
is "staged before a shutdown with a stopped daemon" "$(timeout 30 cat $staging/f)" 6
is "all that is staged" "$(listed $staging)" "a b c d e f "
is "bundles" "$(bundles)" 3
