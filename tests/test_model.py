"""A tree on three nodes does what a directory on one machine does, also when nodes are killed and links are cut in
between.

Random operations, each on a node that is chosen at random, are done on a local directory, too; what they return and the
whole trees are compared. Between them nodes are killed and mounted again, links cut and mended. What an operation may
do that failed for such a reason is decided by `unclear`. A seed that fails is told and reproduces the operations:
`pytest tests/test_model.py --seeds 1 --first-seed SEED`.
"""

import errno
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import agent, wait_for
from harness.agents import Agent, random_operation

STEPS = 60
# Of the steps: so many are a node that is killed, or a link that is cut.
FAULTS = 2
# Clusters at the same time.
AT_ONCE = 4
# What an operation ends with that a fault has stopped.
STOPPED = {"EIO", "ENOTCONN", "ECONNABORTED", "ESTALE", "ETIMEDOUT", "EINTR", "no answer"}
BACK_WITHIN_S = 60
# Until what one node changed is seen by another (SEMANTICS.md says "within moments").
MOMENTS_S = 0.5
MEANS_NOTHING_NEW = {"read", "attributes", "list"}


class Model:
    """The cluster's directory and the local one that it is compared with."""

    def __init__(self, cluster, local, seed):
        self.cluster = cluster
        self.local = local
        self.dice = random.Random(seed)
        self.base = f"/ks/seed{seed}"
        self.history = [f"seed {seed}"]
        cluster[1].exec(["mkdir", self.base])
        self.agents = [Agent(node, self.base) for node in cluster.nodes]

    def told(self):
        return "\n".join(self.history[-30:])

    def step(self):
        operation = random_operation(self.dice)
        chosen = self.dice.choice(self.agents)
        got = chosen(*operation)
        self.history.append(f"{chosen.node.name} {str(operation)[:100]} -> {str(got)[:60]}")
        self.compare(chosen, operation, got)

    def compare(self, chosen, operation, got):
        """Does it on the model, too. What another node has just changed is seen within moments: where nothing was done
        that should have been, or an old state was seen, it is tried again."""
        expected = agent.apply(self.local, operation[0], operation[1:])
        has_done_nothing = operation[0] in MEANS_NOTHING_NEW or (
            isinstance(got, str) and got in errno.errorcode.values()
        )
        if got != expected and has_done_nothing:
            time.sleep(MOMENTS_S)
            got = chosen(*operation)
            self.history.append(f"again: {str(got)[:60]}")
        assert got == expected, f"{self.told()}\nexpected {str(expected)[:60]}"

    def faulty_steps(self, number, break_it, mend_it):
        """Some operations of the others while node `number` is broken, up to the first that fails for that reason."""
        break_it()
        unclear = []
        for _ in range(self.dice.randrange(1, 4)):
            operation = random_operation(self.dice)
            healthy = [one for one in self.agents if one.node.number != number]
            chosen = self.dice.choice(healthy)
            got = chosen(*operation)
            self.history.append(f"broken {number}: {chosen.node.name} {str(operation)[:100]} -> {str(got)[:60]}")
            if isinstance(got, str) and got in STOPPED:
                # It has been done or it has not; which, the tree tells afterwards. No further ones: they would hide it.
                if operation[0] not in MEANS_NOTHING_NEW:
                    unclear.append(operation)
                    break
                continue
            self.compare(chosen, operation, got)
        mend_it()
        self.settle(unclear)

    def settle(self, unclear):
        """Once everything is back, the tree is the model's, with or without what was unclear."""
        possible = [agent.tree(self.local)]
        for operation in unclear:
            agent.apply(self.local, operation[0], operation[1:])
            possible.append(agent.tree(self.local))
        (tree,) = wait_for(
            lambda: self.trees_that_agree(), BACK_WITHIN_S, f"the nodes agree\n{self.told()}", every_s=0.5
        )
        assert tree in possible, f"{self.told()}\n{difference(tree, possible)}"
        if tree != possible[-1]:
            # It was not done.
            self.make_local_like(tree)

    def trees_that_agree(self):
        trees = [one("tree") for one in self.agents]
        assert all(isinstance(tree, dict) for tree in trees), trees
        assert trees[0] == trees[1] == trees[2], difference(trees[0], trees[1:])
        return trees[:1]

    def make_local_like(self, tree):
        """The model takes the state that the tree has."""
        shutil.rmtree(self.local)
        self.local.mkdir()
        copied = self.cluster[1].home / "copy"
        self.cluster[1].exec(["cp", "-a", self.base, copied])
        for entry in copied.iterdir():
            shutil.move(entry, self.local / entry.name)
        shutil.rmtree(copied)
        assert agent.tree(self.local) == tree

    def fault(self):
        number = self.dice.choice([2, 3])
        node = self.cluster[number]
        if self.dice.random() < 0.5:

            def start_again():
                self.agents[number - 1].close()
                node.restart()
                self.agents[number - 1] = Agent(node, self.base)

            self.history.append(f"{node.name} is killed")
            self.faulty_steps(number, node.kill9, start_again)
        else:
            self.history.append(f"{node.name} is cut off")
            pause_s = self.dice.uniform(0, 3)

            def mend():
                time.sleep(pause_s)
                self.cluster.hosts.mend(number)

            self.faulty_steps(number, lambda: self.cluster.hosts.cut(number), mend)

    def close(self):
        for one in self.agents:
            one.close()


def difference(tree, others):
    """The entries that are not the same."""
    lines = []
    for other in others:
        for path in sorted(set(tree) | set(other)):
            if tree.get(path) != other.get(path):
                lines.append(f"{path}: {str(tree.get(path))[:150]} | {str(other.get(path))[:150]}")
        lines.append("--")
    return "\n".join(lines)


def run_seed(cluster, local, seed):
    local.mkdir()
    model = Model(cluster, local, seed)
    faults = set(model.dice.sample(range(STEPS), FAULTS))
    try:
        for step in range(STEPS):
            if step in faults:
                model.fault()
            else:
                model.step()
        model.settle([])
    except BaseException:
        print(f"\nseed {seed} failed: --seeds 1 --first-seed {seed}\n{model.told()}")
        raise
    finally:
        model.close()
        cluster[1].exec(["rm", "-rf", model.base])


@pytest.mark.timeout(900)
@pytest.mark.long_timeout(20000)
def test_random_operations_with_faults_between(make_cluster, tmp_path, seeds):
    """Mostly waiting, for what is cut off or starts again: so several clusters go through them at once."""
    clusters = [make_cluster(3).start() for _ in range(min(AT_ONCE, len(seeds)))]
    waiting = iter(seeds)
    taking = threading.Lock()
    has_failed = threading.Event()

    def go_through(cluster):
        while not has_failed.is_set():
            with taking:
                seed = next(waiting, None)
            if seed is None:
                return
            try:
                run_seed(cluster, tmp_path / str(seed), seed)
            except BaseException:
                has_failed.set()
                raise

    with ThreadPoolExecutor(len(clusters)) as pool:
        for done in [pool.submit(go_through, cluster) for cluster in clusters]:
            done.result()
