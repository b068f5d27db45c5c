"""Items over actors, with a simulated clock and simulated actors: who gets what, who is away, who is far too slow."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace

import pytest

from rayinf.data.shards import Shard
from rayinf.engine import ray_calls, ray_spread
from rayinf.engine.deadline import Deadline
from rayinf.engine.job import Chunk
from rayinf.engine.ray_pool import Slots
from rayinf.engine.ray_spread import InTurn, Waiting, few_runs, spread


class Cluster:
    """Actors that do a call after the other, at one speed each; an actor that is away does nothing.

    Attributes:
        seconds: that an actor takes for a key; 1 where nothing is said.
        events: by the moment, actors that go away (False) or come back (True).
        joining: by the moment, actors that join.
        leaving: by the moment, actors that leave for good, with an error for each of their calls.
    """

    def __init__(self, monkeypatch, count, seconds=None, events=(), joining=(), leaving=()):
        self.now, self.sent, self.done = 0.0, [], []
        self.actors = [SimpleNamespace(_actor_id=k) for k in range(count)]
        self.seconds = seconds or {}
        self.events, self.gone = sorted(events), set()
        self.joining, self.leaving, self.lost = sorted(joining), sorted(leaving), set()
        self.queues = {k: [] for k in range(count)}
        self.left = {}
        self.cancelled = set()
        self.deadline = Deadline(1e9, lambda: self.now)
        monkeypatch.setattr(ray_spread.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(ray_spread, "is_away", lambda actor: actor._actor_id in self.gone)
        monkeypatch.setattr(ray_spread.ray, "cancel", self.cancel)
        monkeypatch.setattr(ray_spread, "_is_cancelled", lambda ref: ref in self.cancelled)

    def send(self, actor, key):
        ref = len(self.sent)
        self.sent.append((actor._actor_id, key))
        self.queues[actor._actor_id].append(ref)
        self.left[ref] = self.seconds.get((actor._actor_id, key), self.seconds.get(actor._actor_id, 1.0))
        return ref

    def cancel(self, ref, recursive):
        who = self.sent[ref][0]
        if who in self.gone or self.queues[who].index(ref) > 0:
            self.queues[who].remove(ref)
            self.cancelled.add(ref)
            self.done.append(ref)

    def joined(self):
        """Those whose time has come, with two slots each."""
        found = [who for at, who in self.joining if at <= self.now]
        self.joining = [(at, who) for at, who in self.joining if at > self.now]
        self.queues.update({who: [] for who in found})
        return [SimpleNamespace(_actor_id=who) for who in found] * 2

    def leave(self):
        """Those whose time has come: their calls end at once."""
        for at, who in [held for held in self.leaving if held[0] <= self.now]:
            self.leaving.remove((at, who))
            self.gone.add(who)
            self.lost.update(self.queues[who])
            self.done += self.queues[who]
            self.queues[who] = []

    def poll(self, refs, busy):
        """Advance until something is done, at most a second."""
        assert busy() or not refs
        self.leave()
        for _ in range(10):
            found = [ref for ref in self.done if ref in refs]
            if found:
                self.done = [ref for ref in self.done if ref not in found]
                return found
            self.now = round(self.now + 0.1, 1)
            while self.events and self.events[0][0] <= self.now:
                _, who, back = self.events.pop(0)
                (self.gone.discard if back else self.gone.add)(who)
            for who, queue in self.queues.items():
                if queue and who not in self.gone:
                    self.left[queue[0]] -= 0.1
                    if self.left[queue[0]] < 0.05:
                        self.done.append(queue.pop(0))
        return []

    def run(self, items, slots=2, again=True):
        """Keys as they come, with the seconds at which they did."""
        found = []
        for key, _ in spread(
            Slots(self.actors * slots, self.joined, lambda ref, actor: ref in self.lost),
            Waiting(items),
            self.send,
            self,
            str,
            again,
        ):
            found.append((key, self.now))
            assert self.now < 1000
        return found


def numbers(count):
    return dict.fromkeys(range(count))


def test_every_key_comes_once_and_no_actor_idles(monkeypatch):
    cluster = Cluster(monkeypatch, 3)
    found = cluster.run(numbers(30))
    assert sorted(k for k, _ in found) == list(range(30))
    assert found[-1][1] == pytest.approx(10, abs=0.5)
    assert len(cluster.sent) == 30


@pytest.mark.parametrize("again", [True, False])
def test_the_calls_of_an_actor_that_is_away_go_to_others(monkeypatch, again):
    """Its node is lost, and no other has room: it never comes back."""
    cluster = Cluster(monkeypatch, 2, events=[(2.5, 0, False)])
    found = cluster.run(numbers(20), again=again)
    assert sorted(k for k, _ in found) == list(range(20))
    assert found[-1][1] < 22  # the other one does not wait for it
    assert len(cluster.sent) == 22  # two calls were moved


def test_an_actor_that_comes_back_works_again(monkeypatch):
    cluster = Cluster(monkeypatch, 2, events=[(2.5, 0, False), (20.0, 0, True)])
    found = cluster.run(numbers(60), again=False)
    assert sorted(k for k, _ in found) == list(range(60))
    by = Counter(who for who, _ in cluster.sent)
    assert found[-1][1] < 45 and by[0] > 15


def test_an_actor_that_is_away_from_the_start_gets_nothing(monkeypatch):
    cluster = Cluster(monkeypatch, 2)
    cluster.gone.add(0)
    assert len(cluster.run(numbers(9))) == 9
    assert {who for who, _ in cluster.sent} == {1}


def test_all_actors_away_for_a_while(monkeypatch):
    gone = [(1.5, who, False) for who in range(2)]
    cluster = Cluster(monkeypatch, 2, events=[*gone, (30.0, 1, True)])
    found = cluster.run(numbers(8))
    assert sorted(k for k, _ in found) == list(range(8))


def test_an_item_that_ends_processes_is_moved_a_few_times_only(monkeypatch):
    """Whoever has the first item goes away, and comes back later: in the end it stays where it is."""
    cluster = Cluster(monkeypatch, 2, seconds={(0, 0): 1e9, (1, 0): 1e9})
    plain = cluster.poll

    def poll(refs, busy):
        for who, queue in cluster.queues.items():
            deadly = bool(queue) and cluster.sent[queue[0]][1] == 0
            (cluster.gone.add if deadly else cluster.gone.discard)(who)
        if cluster.now > 200:
            raise TimeoutError
        return plain(refs, busy)

    cluster.poll = poll
    with pytest.raises(TimeoutError):
        cluster.run(numbers(6), again=False)
    assert Counter(key for _, key in cluster.sent)[0] == 1 + ray_calls.MOST_DEATHS


def test_an_actor_that_joins_works_and_one_that_leaves_for_good_is_replaced(monkeypatch):
    """The first one's node is lost, while the second one's has just joined."""
    cluster = Cluster(monkeypatch, 1, joining=[(5.0, 7)], leaving=[(12.5, 0)])
    found = cluster.run(numbers(30))
    assert sorted(k for k, _ in found) == list(range(30))
    by = Counter(who for who, _ in cluster.sent)
    assert by[0] < 16 and by[7] > 15
    assert len(cluster.sent) == 32  # two calls were lost and sent again
    alone = Cluster(monkeypatch, 1, joining=[(40.0, 7)], leaving=[(2.5, 0)])
    assert sorted(k for k, _ in alone.run(numbers(9))) == list(range(9))  # nobody, for a while


def test_an_item_that_is_lost_with_every_actor_is_given_up(monkeypatch):
    """It may be what ends their nodes; its error goes to the caller."""
    nodes = range(1, 9)
    cluster = Cluster(monkeypatch, 1, seconds=dict.fromkeys(range(9), 1e9), joining=[(10.0 * k, k) for k in nodes])
    cluster.leaving = [(10.0 * who + 5, who) for who in range(9)]
    assert [k for k, _ in cluster.run(numbers(1), slots=1)] == [0]
    assert len(cluster.sent) == 1 + ray_calls.MOST_DEATHS


def test_a_straggler_is_sent_again_elsewhere_and_counts_once(monkeypatch):
    cluster = Cluster(monkeypatch, 2, seconds={(0, 4): 500.0})
    found = cluster.run(numbers(10))
    assert sorted(k for k, _ in found) == list(range(10))
    assert found[-1][1] < 30
    slow = Cluster(monkeypatch, 2, seconds={(0, 4): 100.0})
    assert slow.run(numbers(10), again=False)[-1][1] > 90
    assert len(slow.sent) == 10


def test_the_loser_of_two_results_is_not_given_twice(monkeypatch):
    """The second call is there first, then the straggler's own, while a third item is still at work."""
    cluster = Cluster(monkeypatch, 3, seconds={(0, 0): 12.0, (1, 1): 1.0, (2, 2): 30.0})
    found = cluster.run(numbers(3), slots=1)
    assert sorted(k for k, _ in found) == [0, 1, 2]
    assert Counter(k for _, k in cluster.sent)[0] == 2


def group(file, group, shards, start=0):
    return [Shard(start + k, 100 * (start + k), 100, file, group, 100 * k) for k in range(shards)]


def test_consecutive_shards_of_a_row_group_go_to_one_actor():
    shards = [*group("a", 0, 4), *group("a", 1, 4, 4), *group("b", 0, 1, 8), *group("b", 1, 1, 9)]
    waiting = Waiting({s.index: s for s in shards})
    taken = {who: [] for who in "xyz"}
    for _ in range(2):
        for who in taken:
            taken[who].append(waiting.take(who))
    assert taken == {"x": [0, 1], "y": [4, 5], "z": [8, 9]}
    assert [waiting.take(who) for who in "xyxyx"] == [2, 6, 3, 7, None]


def test_the_rest_of_a_large_row_group_is_halved_for_those_without_work():
    waiting = Waiting({s.index: s for s in group("a", 0, 16)})
    taken = {who: [waiting.take(who)] for who in range(4)}
    while (left := [who for who in taken if taken[who][-1] is not None]) != []:
        for who in left:
            taken[who].append(waiting.take(who))
    assert sorted(k for keys in taken.values() for k in keys[:-1]) == list(range(16))
    decoded = sum(_decoded(keys[:-1]) for keys in taken.values())
    assert decoded <= 2.5 * 16 < sum(_decoded(range(who, 16, 4)) for who in range(4))


def _decoded(keys):
    """Shards of one row group that a reader decodes, which keeps its place and else begins again."""
    place = count = 0
    for key in keys:
        count += 1 if key == place else key + 1
        place = key + 1
    return count


def test_chunks_continue_each_other_within_a_row_group():
    shards = group("a", 0, 6)
    chunks = {k: Chunk(shards[2 * k : 2 * k + 2]) for k in range(3)}
    waiting = Waiting({**chunks, 3: Chunk(group("b", 0, 1, 6))})
    assert [waiting.take("x"), waiting.take("y")] == [0, 3]
    assert [waiting.take("x"), waiting.take("x"), waiting.take("x")] == [1, 2, None]


def test_what_comes_back_is_sent_first():
    waiting = Waiting(numbers(3))
    assert waiting.take("x") == 0
    waiting.put_back(0)
    assert [waiting.take("y") for _ in range(4)] == [0, 1, 2, None]


def test_a_pass_that_has_ended_waits_for_what_is_under_way_and_sends_nothing_more(monkeypatch):
    cluster, found = Cluster(monkeypatch, 2), []
    ended = lambda: len(found) >= 3  # noqa: E731
    slots = Slots(cluster.actors * 2, list, lambda ref, actor: False)
    for key, _ in spread(slots, Waiting(numbers(50)), cluster.send, cluster, str, ended=ended):
        found.append(key)
    assert sorted(found) == sorted(key for _, key in cluster.sent)
    assert len(found) <= 7


def test_runs_are_dealt_in_turn():
    waiting = InTurn([range(3), range(10, 15), []])
    assert waiting.count == 8
    taken = [waiting.take("x"), waiting.take("y")]
    waiting.put_back(0)
    assert [*taken, *(waiting.take("x") for _ in range(8))] == [0, 10, 0, 1, 11, 2, 12, 13, 14, None]


def test_runs_are_counted_up_to_a_number():
    shards = [*group("a", 0, 3), *group("a", 1, 2, 3), *group("b", 0, 1, 5)]
    items = {s.index: s for s in shards}
    assert few_runs(items, 3) == [deque([0, 1, 2]), deque([3, 4]), deque([5])]
    assert few_runs(items, 2) is None
    assert few_runs({}, 2) is None
    assert few_runs(numbers(3), 2) is None
