"""Planted bugs: who is a member, and how a cluster is born."""

from __future__ import annotations

from kimberlite.types import Command, Header, Message
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import birth, identity
from kimberlite.vsr.identity import Life
from kimberlite.vsr.members import Membership
from kimberlite.vsr.record import Record
from kimberlite.vsr.state import State

EVIDENCE = (Command.DO_VIEW_CHANGE, Command.START_VIEW_CHANGE)


@canary("a cluster is born when most of its replicas say what they are bound to")
def _formed_by_a_quorum() -> list[Patch]:
    def may_form(s: State) -> bool:
        own = s.own
        digest = own.identity.digest if own.identity is not None else b""
        said = sum(bound == digest for bound in own.bound.values())
        return said + 1 >= s.membership.quorums.replication

    return [(birth, "may_form", may_form)]


@canary("a cluster is born in one phase: when all were heard, whatever they have heard")
def _born_in_one_phase() -> list[Patch]:
    return [(birth, "may_form", lambda s: True)]


@canary("what a replica is bound to is said before it is on the disk")
def _bound_before_durable() -> list[Patch]:
    original = birth._go_on

    def go_on(s: State) -> None:
        before = s.outbox.promise
        original(s)
        if s.outbox.promise != before:
            message = identity.sign_of_life(s)
            for replica in s.peers:
                s.pass_on(replica, message)

    return [(birth, "_go_on", go_on)]


def _unchecked(commands: tuple[Command, ...]) -> list[Patch]:
    original = identity.is_let_in

    def is_let_in(s: State, message: Message) -> bool:
        if message.header.command in commands and s.own.is_formed and message.header.epoch:
            return True
        return original(s, message)

    return [(identity, "is_let_in", is_let_in)]


@canary("an acknowledgement counts whatever disk it speaks of")
def _incarnation_unchecked_in_acks() -> list[Patch]:
    return _unchecked((Command.PREPARE_OK,))


@canary("evidence counts whatever disk it speaks of")
def _incarnation_unchecked_in_evidence() -> list[Patch]:
    return _unchecked(EVIDENCE)


@canary("what a life says that is over counts")
def _old_life_counted() -> list[Patch]:
    original = identity.life_of

    def life_of(s: State, header: Header) -> Life:
        found = original(s, header)
        return Life.CURRENT if found in (Life.OLD, Life.COPY) else found

    return [(identity, "life_of", life_of)]


@canary("a new disk is taken for the one before it")
def _new_disk_is_a_member() -> list[Patch]:
    original = identity.sender_of

    def sender_of(record: Record | None, header: Header) -> identity.Sender:
        found = original(record, header)
        return identity.Sender.MEMBER if found is identity.Sender.OTHER else found

    return [(identity, "sender_of", sender_of)]


@canary("data of the first release goes on in the view it was in, which another replica led than leads it now")
def _view_kept_at_conversion() -> list[Patch]:
    return [(birth, "view_of_birth", lambda view: view)]


@canary("what a disk of the first release says that it never acknowledged is believed")
def _old_disk_is_believed() -> list[Patch]:
    return [(Membership, "is_in_doubt", lambda self, view: False)]


@canary("what a disk of the first release never acknowledged is believed once a view has begun after the birth")
def _old_disk_is_believed_after_a_view() -> list[Patch]:
    original = Membership.may_drop

    def may_drop(self: Membership, nacks: int, evidence: int, made: int, has_copy: bool) -> bool:
        return original(self._replace(is_converted=False), nacks, evidence, made, has_copy)

    return [(Membership, "may_drop", may_drop)]
