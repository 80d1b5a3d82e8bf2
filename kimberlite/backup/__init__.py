"""Backup and restore: the log of one replica as plain files, and a new cluster from them.

    source.py     what a replica's disk holds for certain, read beside the running process
    manifest.py   what is in a backup, with digests; written last, it is the backup's commit point
    targets.py    where backups are: a directory, one archive, S3-compatible object storage
    take.py       from a source to a target, only what is new
    restore.py    from a target to the data of one replica of a new cluster, verified

A backup holds committed operations only: what is committed does not change any more, so that nothing has to
be stopped or locked. An entries file holds the journal's entries one after another, each a header and its
body, without padding; the checkpoint file is the replica's own.
"""
