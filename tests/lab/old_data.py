"""Data as the first release left it on a disk: a superblock of version 2, no identity, a log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kimberlite._fast import events
from kimberlite._fast.framing import make_header
from kimberlite.config import CONFIG_NAME, Config
from kimberlite.node.format import make_directory, write_config
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.store import Store, format_store
from kimberlite.types import Operation, ViewState, root_header
from lab.entries import prepare


def make_old_data(config: Config, data: Path, appended: Sequence[bytes], view: int = 4) -> None:
    """The data of the replica that `config` describes, with these events, each in an operation of its own. All of them
    are known to be committed but the last."""
    make_directory(data)
    disk = FileDisk(data, mode=config.storage.mode, unsafe=config.storage.unsafe)
    format_store(
        disk,
        make_header,
        cluster=config.cluster_id,
        replica=config.cluster.replica,
        replica_count=config.replica_count,
        segment_bytes=config.storage.segment_bytes,
    )
    store = Store(disk, make_header)
    store.recover()
    last = root_header(make_header, config.cluster_id)
    store.set_view_state(1, ViewState(view, view, suffix=(last,)))
    for position, event in enumerate(appended):
        message = prepare(
            last,
            events.build([event]),
            view=view,
            replicas=config.replica_count,
            cluster=config.cluster_id,
            commit=position,
            operation=Operation.APPLY,
            client=b"c" * 16,
            session=1,
            request=position + 1,
            count=1,
        )
        store.append(2, [message])
        last = message.header
    disk.flush()
    store.completions()
    store.close()
    write_config(config, data / CONFIG_NAME)
