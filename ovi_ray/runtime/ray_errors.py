"""Classifies Ray's exceptions: a crashed process, a lost or unfit machine, or an object that is gone."""

import re

import ray
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError, RayError

_UNFIT = re.compile(r"(?:ovi_ray\.errors\.NodeUnfit|ModuleNotFoundError|ImportError): (.+)")
_LOW_MEMORY = re.compile(r"node running low on memory.*? was ([\d.]+ ?GB) used / ([\d.]+ ?GB) limit", re.DOTALL)
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*: ", re.MULTILINE)
_NODE_DEATHS = ("its node has died", "actor's node was terminated")  # Ray has no error code for it


def is_worker_loss(error: RayError) -> bool:
    """Whether the worker that a task was given to is gone, or out of reach.

    Ray ends workers where a node runs low on host memory: all that they were given then fails as out of memory, in Ray's words,
    while one that lives reports what it ran out of.
    """
    return isinstance(error, RayActorError | NodeDiedError) or was_ended_for_memory(error)


def was_ended_for_memory(error: RayError) -> bool:
    """Whether Ray ended a worker because its node ran low on host memory."""
    return isinstance(error, OutOfMemoryError)


def is_crash(error: RayError) -> bool:
    """Whether a worker's process died at what it did. A node that dies is unreachable before Ray declares it dead."""
    return was_ended_for_memory(error) or (isinstance(error, ActorDiedError) and not is_node_loss(error))


def is_node_loss(error: RayError) -> bool:
    """Whether an actor went down with its node, or was preempted."""
    is_preempted = isinstance(error, ActorDiedError) and error.preempted
    is_named = isinstance(error, ActorDiedError) and any(words in str(error) for words in _NODE_DEATHS)
    return isinstance(error, NodeDiedError) or is_preempted or is_named


def unfit_reason(error: RayError) -> str:
    """Why the node of an actor that did not start cannot serve the job; empty if it is not the node's fault."""
    found = _UNFIT.fullmatch(reason(error)) if isinstance(error, ActorDiedError) else None
    return found[1] if found else ""


def can_be_fetched(ref: ray.ObjectRef, timeout_s: float) -> bool:
    """Whether an object still exists. It is fetched, because `ray.wait` reports lost objects as ready."""
    try:
        ray.get(ref, timeout=timeout_s)
    except RayError:
        return False
    return True


def reason(error: RayError) -> str:
    """Why a worker died, in one line; Ray's own text may have hundreds, with the processes of everyone on the node."""
    if found := _LOW_MEMORY.search(str(error)):
        return f"Ray killed it, because its node ran low on memory: {found[1]} of {found[2]} were in use"
    text = str(error).strip()
    *_, start = (text.rfind("\n") + 1, *(match.start() for match in _EXCEPTION.finditer(text)))
    return " ".join(text[start:].split())
