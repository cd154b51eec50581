"""Several processes: collectives, who computes what, and messages that merge statistics."""
