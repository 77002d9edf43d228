"""When Ray can place a worker on no node."""

import pytest

from ovi_ray.runtime.unplaceable import Asked, Node, PlaceFinder, held_by


def node(*, name="n", cpus=4.0, gpus=0.0, **labels):
    added = {f"node:{name}": 1.0, "node:__internal_head__": 1.0, "memory": 5e9, "object_store_memory": 5e9}
    return Node(node_id=name, resources={**added, "GPU": gpus, "CPU": cpus}, labels={**labels, "ray.io/node-id": name})


def asked(*, cpus=1.0, gpus=0.0, **labels):
    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    return Asked(resources=resources, labels={name.replace("_", "/"): value for name, value in labels.items()})


def finder(*nodes, infeasible=None, **options):
    return PlaceFinder(nodes=lambda: nodes, infeasible=lambda: infeasible, **options)


@pytest.mark.parametrize(
    ("wanted", "nodes", "expected"),
    [
        (asked(), [node()], True),
        (asked(gpus=1), [node()], False),
        (asked(gpus=1), [node(cpus=0, gpus=8), node(cpus=8)], False),  # not on one node
        (asked(vendor="amd"), [node(vendor="nvidia")], False),
        (asked(vendor="amd"), [node()], False),
        (asked(vendor="amd"), [node(vendor="nvidia"), node(vendor="amd")], True),
        (asked(vendor="in(amd,intel)"), [node(vendor="intel")], True),
        (asked(vendor="!in(amd,nvidia)"), [node(vendor="amd")], False),
        (asked(vendor="!in(amd,nvidia)"), [node()], True),
        (asked(vendor="!amd"), [node(vendor="amd")], False),
        (asked(), [], False),
    ],
)
def test_a_worker_has_a_place_where_one_node_has_all_that_it_asks_for(wanted, nodes, expected):
    assert finder(*nodes).has_place(wanted, {}) is expected


def test_what_other_workers_of_the_job_hold_is_no_place():
    held = held_by([("n", {"CPU": 1.0, "GPU": 1.0}), ("n", {"CPU": 3.0})])
    assert held == {"n": {"CPU": 4.0, "GPU": 1.0}}
    assert not finder(node(gpus=8)).has_place(asked(gpus=1), held)
    assert finder(node(gpus=8, cpus=5.0)).has_place(asked(gpus=1), held)
    assert finder(node(gpus=8), node(name="m", gpus=1)).has_place(asked(gpus=1), held)


@pytest.mark.parametrize(
    ("is_elastic", "infeasible", "expected"),
    [
        (False, None, False),
        (True, None, True),
        (False, [], True),
        (True, [asked(gpus=1, vendor="in(amd)")], False),
        (True, [asked(gpus=2, vendor="in(amd)"), asked(gpus=1), asked(gpus=1, vendor="!in(amd)")], True),
    ],
)
def test_an_autoscaler_may_bring_a_place_unless_it_says_that_it_cannot(is_elastic, infeasible, expected):
    places = finder(node(), infeasible=infeasible, is_elastic=is_elastic)
    assert places.has_place(asked(gpus=1, vendor="amd"), {}) is expected


def test_a_head_that_does_not_answer_is_no_reason_to_give_a_slot_up():
    def gone():
        raise RuntimeError("the head is gone")

    assert PlaceFinder(nodes=gone, infeasible=lambda: None).has_place(asked(), {})
    assert PlaceFinder(nodes=list, infeasible=gone).has_place(asked(), {})


def test_equal_nodes_are_told_together_without_what_ray_adds():
    nodes = finder(node(gpus=2, vendor="nvidia"), node(name="m", gpus=2, vendor="nvidia"), node(name="head"))
    assert nodes.nodes_in_words() == "2 nodes with CPU 4, GPU 2, vendor=nvidia; 1 node with CPU 4, GPU 0"
