"""The workdir, on a disk or in a bucket: stage folders, fingerprints, checkpoints, locks."""
