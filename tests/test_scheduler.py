"""Who runs when, with whom and on how many cores: the scheduler's policy on a simulated machine."""

from __future__ import annotations

import random
from bisect import insort
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation import Kernel, Known, Ran, simulate
from whitebox.errors import Overloaded
from whitebox.runtime.latency import LatencyModel
from whitebox.runtime.request import Batch, Request
from whitebox.runtime.scheduler import Scheduler
from whitebox.runtime.timeline import Promise, Timeline

ROUNDING_S = 1e-5


def exact(cores: int = 1, max_queued: int = 4096) -> Scheduler:
    return Scheduler(cores, max_queued, Known())


def started(scheduler: Scheduler, now: float = 0.0) -> list[Batch]:
    return list(iter(lambda: scheduler.next(now), None))


def at_once(scheduler: Scheduler, request: Request, now: float = 0.0) -> Batch:
    batch = scheduler.add(request, now)
    assert batch is not None
    return batch


def test_a_lone_request_gets_all_cores() -> None:
    scheduler = Scheduler(8)
    for _ in range(3):
        batch = at_once(scheduler, alone := Request())
        assert batch.requests == [alone] and batch.cores == 8
        scheduler.done(batch, 1)


@pytest.mark.parametrize(
    ("cores", "requests", "share"), [(2, 2, 1), (8, 2, 4), (8, 3, 2), (2, 5, 1)]
)
def test_requests_at_once_share(cores: int, requests: int, share: int) -> None:
    """Clients that ask again as soon as they are answered."""
    scheduler = Scheduler(cores)
    running: list[Batch] = []
    for _ in range(requests):
        batch = scheduler.add(Request(), 0)
        running += [batch] if batch else started(scheduler)
    for turn in range(20):
        scheduler.done(running.pop(0), 0)
        batch = scheduler.add(Request(), 0)
        running += [batch] if batch else started(scheduler)
        assert sum(each.cores for each in running) <= cores
        if turn >= requests:
            assert {each.cores for each in running} == {share}
            assert len(running) == min(requests, cores)


def test_requests_start_in_order_of_arrival_and_within_the_bound() -> None:
    scheduler = exact(max_queued=3)
    kernel = Kernel(0.5)
    running = at_once(scheduler, first := kernel.request())
    assert running.requests == [first]
    waiting = [kernel.request() for _ in range(3)]
    for each in waiting:
        scheduler.add(each, 0.1)
    with pytest.raises(Overloaded, match="3 requests are waiting") as refusal:
        scheduler.add(kernel.request(), 0.1)
    assert refusal.value.retry_after_s == pytest.approx(0.4)
    assert len(scheduler) == 3 and not started(scheduler)
    assert scheduler.withdraw(waiting[1]) and not scheduler.withdraw(first)
    order = []
    while scheduler.done(running, 0.5) is None and (after := scheduler.next(0.5)) is not None:
        running = after
        order += running.requests
    assert order == [waiting[0], waiting[2]]
    assert at_once(scheduler, last := kernel.request(), 1).requests == [last]


# Random traffic

KERNELS = [Kernel(0.01), Kernel(0.05), Kernel(0.02, 0.001, 8), Kernel(0.005, 0.01, 4)]


@st.composite
def traffic(draw: st.DrawFn, kernels: list[Kernel] = KERNELS) -> list[tuple[float, Request]]:
    now, arrivals = 0.0, []
    for _ in range(draw(st.integers(1, 60))):
        now += draw(st.sampled_from([0.0, 0.001, 0.01, 0.2]))
        kernel = draw(st.sampled_from(kernels))
        timeout = draw(st.sampled_from([None, None, 0.02, 0.06, 0.1, 0.3, 1.0]))
        request = kernel.request(
            model=draw(st.sampled_from("abc")),
            priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
            items=draw(st.sampled_from([1, 1, 1, 2, 5])) if kernel.max_batch > 1 else 1,
            deadline=None if timeout is None else now + timeout,
        )
        arrivals.append((now, request))
    return arrivals


def check(ran: Ran, cores: int) -> None:
    """All of `check_answers`, and batches are of one stage, small enough and within the cores."""
    for batch, _ in ran.batches:
        assert len({each.stage for each in batch.requests}) == 1
        assert batch.items <= batch.requests[0].max_batch or len(batch.requests) == 1
        beside = [b.cores for b, e in ran.batches if b.started <= batch.started < e]
        assert sum(beside) <= cores
    check_answers(ran)


def check_answers(ran: Ran) -> None:
    """Everything is answered once, and the deadlines that were accepted are kept."""
    for request in ran.arrived:
        fates = (request in ran.ended, request in ran.refused, request in ran.withdrawn)
        assert sum(fates) == 1
        if request.deadline is not None and request in ran.ended:
            assert ran.ended[request] <= request.deadline + ROUNDING_S
        if request in ran.refused:
            assert request.deadline is not None


@settings(max_examples=300, deadline=None)
@given(traffic(), st.sampled_from([1, 2]), st.data())
def test_all_are_answered_once_and_promises_are_kept(
    arrivals: list[tuple[float, Request]], cores: int, data: st.DataObject
) -> None:
    leaving = data.draw(st.lists(st.sampled_from(arrivals), max_size=10, unique_by=id))
    withdrawals = [(now + data.draw(st.sampled_from([0.0, 0.03])), each) for now, each in leaving]
    failing = data.draw(st.frozensets(st.integers(0, 20), max_size=3))
    check(simulate(exact(cores), arrivals, withdrawals, failing), cores)


@settings(max_examples=200, deadline=None)
@given(traffic(KERNELS[:2]))
def test_refused_is_what_the_plan_has_no_room_for_and_nothing_else(
    arrivals: list[tuple[float, Request]],
) -> None:
    """Spelled out: on one core, without batches, the earliest deadline goes first."""

    def came(ran: Ran, new: Request, now: float) -> None:
        if new.deadline is None:
            assert new not in ran.refused
            return
        clock = max([now, *(end for _, end in ran.batches)])
        plan = [each for each in ran.waiting() if each.deadline is not None and each is not new]
        feasible = True
        for each in sorted([*plan, new], key=lambda each: each.deadline or 0):
            clock += each.stage.seconds(1)
            feasible &= clock <= (each.deadline or 0) + ROUNDING_S
        # (nobody has waited so long yet that a deadline must not keep it waiting)
        assert feasible == (new not in ran.refused)

    hasty = [(now, each) for now, each in arrivals if each.deadline is not None]
    simulate(exact(), hasty, came=came)


def test_a_refusal_says_when_the_request_would_fit() -> None:
    kernel = Kernel(0.1)
    scheduler = exact()
    running = at_once(scheduler, kernel.request())
    scheduler.add(kernel.request(deadline=0.25), 0)
    with pytest.raises(Overloaded, match=r"50 ms after its timeout of 250 ms.*retry") as refusal:
        scheduler.add(kernel.request(deadline=0.25), 0)
    after = refusal.value.retry_after_s
    assert after == pytest.approx(0.05)
    scheduler.add(kernel.request(deadline=0.25 + after), after)
    with pytest.raises(Overloaded, match=r"takes about 100 ms.*leaves it 50 ms") as refusal:
        scheduler.add(kernel.request(deadline=after + 0.05), after)
    assert refusal.value.retry_after_s is None
    scheduler.done(running, 0.1)
    assert [batch.requests[0].deadline for batch in started(scheduler, 0.1)] == [0.25]


def test_what_has_never_run_is_not_refused() -> None:
    scheduler = Scheduler(1)
    kernel = Kernel(5.0)
    running = at_once(scheduler, kernel.request(deadline=0.001))
    for _ in range(2):
        assert scheduler.add(kernel.request(deadline=0.001), 0) is None
    scheduler.done(running, 5.0)
    with pytest.raises(Overloaded, match="takes about"):
        scheduler.add(kernel.request(deadline=5.001), 5.0)
    with pytest.raises(Overloaded, match="leaves it 0 ms"):
        scheduler.add(Kernel(1.0).request(deadline=4.0), 5.0)


# Fairness


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.01, 0.02, 0.05])), min_size=20))
def test_of_two_models_neither_gets_ahead(crowd: list[tuple[str, float]]) -> None:
    """While both wait, their work differs by no more than a request of each."""
    kernels = {seconds: Kernel(seconds) for _, seconds in crowd}
    arrivals = [(0.0, kernels[seconds].request(model)) for model, seconds in crowd]
    blocker = Kernel(0.001).request("c")
    ran = simulate(exact(), [(0.0, blocker), *arrivals])
    left = {model: sum(each.model == model for _, each in arrivals) for model in "ab"}
    work = dict.fromkeys("ab", 0.0)
    for batch, _ in ran.batches[1:]:
        if not all(left.values()):
            break
        assert abs(work["a"] - work["b"]) <= 0.1 + ROUNDING_S
        (request,) = batch.requests
        left[request.model] -= 1
        work[request.model] += request.stage.seconds(1)


def test_a_flood_of_one_model_holds_up_another_for_one_request() -> None:
    kernel = Kernel(0.01)
    flood = [(0.001 * n, kernel.request("flooded")) for n in range(1000)]
    others = [(0.05 + 0.1 * n, kernel.request("modest")) for n in range(90)]
    ran = simulate(exact(), sorted([*flood, *others], key=lambda pair: pair[0]))
    assert max(ran.wait(request) for _, request in others) <= 0.02 + ROUNDING_S


def test_requests_of_one_model_start_in_order_of_arrival() -> None:
    kernel, chance = Kernel(0.01), random.Random(0)
    arrivals = [(chance.random(), kernel.request(chance.choice("abc"))) for _ in range(300)]
    arrivals.sort(key=lambda pair: pair[0])
    ran = simulate(exact(2), arrivals)
    for model in "abc":
        mine = [each for each in ran.started if each.model == model]
        assert mine == sorted(mine, key=ran.arrived.__getitem__)


def test_a_reservation_is_honoured() -> None:
    kernel = Kernel(0.01)
    scheduler = exact()
    scheduler.reserve("a", 0.5)
    with pytest.raises(ValueError, match=r"0\.5 of the machine cannot be reserved for b"):
        scheduler.reserve("b", 0.5)
    crowd = [(0.0, kernel.request(model)) for _ in range(200) for model in "bcdea"]
    ran = simulate(scheduler, crowd)
    first = [batch.requests[0].model for batch, _ in ran.batches[:200]]
    assert 98 <= first.count("a") <= 104
    assert all(22 <= first.count(model) <= 28 for model in "bcde")
    scheduler.reserve("a", 0)
    ran = simulate(scheduler, [(0.0, kernel.request(model)) for _ in range(50) for model in "ab"])
    assert 24 <= [batch.requests[0].model for batch, _ in ran.batches[:50]].count("a") <= 26


def test_a_higher_priority_comes_first_but_not_for_ever() -> None:
    kernel = Kernel(0.1)
    low = [(0.0, kernel.request("a")) for _ in range(5)]
    high = [(0.1, kernel.request("b", priority=1)) for _ in range(40)]
    ran = simulate(exact(), [*low, *high])
    order = [batch.requests[0].model for batch, _ in ran.batches]
    assert order[2:10] == ["b"] * 8
    assert "a" in order[10:20]


def test_deadlines_keep_nobody_waiting_for_ever() -> None:
    """A model whose requests have deadlines takes all it can get; another has none."""
    chance = random.Random(0)
    kernel = Kernel(0.01)
    arrivals = []
    for n in range(4000):
        now = 0.002 * n
        arrivals.append((now, kernel.request("strict", deadline=now + chance.uniform(0.02, 0.3))))
        if n % 50 == 0:
            arrivals.append((now, kernel.request("patient")))
    ran = simulate(exact(), arrivals)
    check(ran, 1)
    patient = [request for _, request in arrivals if request.model == "patient"]
    # Its patience, the deadlines that were accepted before that ended, and some patience more.
    assert max(ran.wait(request) for request in patient) <= 0.1 + 0.025 + 0.3 + 0.1 + 0.02


# Batches


def test_what_waits_rides_together_when_that_wins() -> None:
    """Learnt while serving: each size is tried before the next larger one."""
    kernel = Kernel(0.01, 0.001, max_batch=16)
    arrivals = [(0.0005 * n, kernel.request()) for n in range(3000)]
    ran = simulate(Scheduler(1), arrivals)
    sizes = [batch.items for batch, _ in ran.batches]
    assert sizes[0] == 1 and sizes[-2] == 16
    assert [sizes.index(size) for size in (2, 4, 8, 16)] == sorted(
        sizes.index(size) for size in (2, 4, 8, 16)
    )
    assert sizes.count(2) <= 4


def test_what_loses_together_is_tried_and_left() -> None:
    class Loses(Kernel):
        def seconds(self, items: int) -> float:
            return float(0.01 * items**1.5)

    kernel = Loses(0.0, max_batch=16)
    ran = simulate(Scheduler(1), [(0.0001 * n, kernel.request()) for n in range(500)])
    sizes = [batch.items for batch, _ in ran.batches]
    assert sizes.count(2) == 3 and max(sizes) == 2


def test_a_batch_breaks_no_promise() -> None:
    """Ten could ride together for longer than the one with a deadline can wait."""
    many, one = Kernel(0.01, 0.01, max_batch=16), Kernel(0.02)
    scheduler = exact()
    running = at_once(scheduler, one.request())
    for n in range(10):
        scheduler.add(many.request(deadline=0.1 if n == 0 else None), 0)
    scheduler.add(strict := one.request("b", deadline=0.08), 0)
    scheduler.done(running, 0.02)
    (batch,) = started(scheduler, 0.02)
    assert 1 < batch.items <= 3  # 0.01 + 0.01 each, and 0.02 for the other, by 0.08
    end = 0.02 + many.seconds(batch.items)
    scheduler.done(batch, end)
    (batch,) = started(scheduler, end)
    assert batch.requests == [strict]


def test_deadlines_that_only_a_batch_keeps_are_accepted() -> None:
    kernel = Kernel(0.01, 0.001, max_batch=8)
    scheduler = exact()
    running = at_once(scheduler, kernel.request())
    waiting = [kernel.request(str(n), deadline=0.035) for n in range(8)]
    for each in waiting:
        scheduler.add(each, 0)
    with pytest.raises(Overloaded):
        scheduler.add(kernel.request(deadline=0.03), 0)
    assert scheduler.withdraw(waiting[0])
    scheduler.done(running, 0.011)
    (batch,) = started(scheduler, 0.011)
    assert set(batch.requests) == set(waiting[1:])


def test_free_cores_share_what_waits() -> None:
    kernel = Kernel(0.01, 0.01, max_batch=16)
    scheduler = exact(2)
    running = at_once(scheduler, kernel.request())
    for _ in range(8):
        scheduler.add(kernel.request(), 0)
    scheduler.done(running, 1)
    assert [(batch.items, batch.cores) for batch in started(scheduler, 1)] == [(4, 1), (4, 1)]


# What it builds on


def test_latencies_are_learnt() -> None:
    model, stage = LatencyModel(), Kernel(1.0)
    assert model.bound(stage, 1, 1) is None and model.work(stage, 1) is None
    for seconds in (0.5, 0.1, 0.12):  # the first run is slow
        model.learn(stage, 1, 2, seconds)
    assert model.bound(stage, 1, 2) == 0.1
    assert model.bound(stage, 1, 1) == model.work(stage, 1) == 0.2
    assert model.bound(stage, 1, 4) == 0.1 and model.bound(stage, 3, 2) == pytest.approx(0.3)
    for _ in range(3):
        model.learn(stage, 5, 2, 0.3)
    assert model.bound(stage, 3, 2) == pytest.approx(0.2)
    assert model.work(stage, 10) == pytest.approx(2 * 0.06 * 10)
    model.learn(stage, 1, 2, 100.0)  # a hiccup
    assert 0.1 < (model.bound(stage, 1, 2) or 0) < 0.3
    for _ in range(50):
        model.learn(stage, 1, 2, 0.4)  # a change
    assert model.bound(stage, 1, 2) == pytest.approx(0.4, rel=0.1)
    known = len(model._curves)
    del stage
    assert len(model._curves) == known - 1


@pytest.mark.parametrize("seed", range(5))
def test_a_timeline_is_a_list_with_sums(seed: int) -> None:
    chance = random.Random(seed)
    timeline, plain = Timeline(), []

    def late(start: float, plan: list[Promise]) -> list[float]:
        found = []
        for promise in plan:
            found.append(start - promise.latest)
            start += promise.work
        return found

    for _ in range(600):
        start = float(chance.randrange(100))
        made = Promise([], chance.randrange(50), chance.randrange(1000), chance.randrange(9), 1)
        action = chance.random()
        if action < 0.7 or not plain:
            timeline.insert(made)
            insort(plain, made)
        elif action < 0.75:
            made.deadline = plain[0].deadline
            timeline.insert_first(made)
            plain.insert(0, made)
        elif action < 0.8:
            place = chance.randrange(len(plain))
            made.deadline = plain[place].deadline
            timeline.insert_after(plain[place], made)
            plain.insert(place + 1, made)
        else:
            place = chance.randrange(len(plain))
            made.deadline = plain[place].deadline
            instead = [*plain[:place], *([made] if action < 0.9 else []), *plain[place + 1 :]]
            other = made if action < 0.9 else None
            expected = max(late(start, instead), default=-inf)
            assert timeline.lateness(start, {plain[place]: other}) == expected
            timeline.replace(plain[place], other)
            plain = instead
        found = late(start, plain)
        assert timeline.lateness(start) == max(found, default=-inf)
        assert [promise for promise, _ in timeline.late(start)] == [
            promise for promise, by in zip(plain, found, strict=True) if by > 0
        ]
        assert not plain or timeline.first() is plain[0]


# At length


def test_a_hundred_thousand_requests() -> None:
    """50 models, some in floods, at 1.2 times what two cores can do for a while, then at less."""
    chance = random.Random(0)
    kernels = [Kernel(0.0005 * (1 + n % 7), 0.0001, 1 if n % 2 else 16) for n in range(50)]
    now, arrivals = 0.0, []
    for n in range(100_000):
        now += chance.expovariate(1600.0 if n % 20_000 < 5_000 else 700.0)
        model = min(int(chance.paretovariate(0.8)) - 1, 49)
        arrivals.append((now, kernels[model].request(str(model))))
        arrivals[-1][1].priority = chance.choice([0, 0, 0, 0, 1])
        if chance.random() < 0.3:
            arrivals[-1][1].deadline = now + chance.choice([0.005, 0.02, 0.1])
    leaving = [(when + 0.01, each) for when, each in chance.sample(arrivals, 5000)]
    ran = simulate(exact(2, 100_000), arrivals, leaving, frozenset(range(0, 100_000, 997)))
    check_answers(ran)
    assert len(ran.ended) > 80_000 and ran.refused and ran.withdrawn
    assert max(ran.wait(request) for request in ran.started) < 20
