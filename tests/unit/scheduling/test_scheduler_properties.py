"""The scheduler's main property, over any order of events: a state machine whose failures shrink to short lists of events.

Each clip ends exactly once; no device runs two tasks; an idle worker that could run a ready task has one unless its reason
says why; while nothing runs, a worker or a Tick is waited for; lost work is done again; nothing needed is dropped; the same
events give the same actions. `CheckedCluster` checks every action, the invariants check every state in between.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from yardsticks.baseline_policies import SCHEDULERS, production

from ovi.stages import Stage
from ovi_ray.scheduling.config import CircuitBreakerConfig, Pairing, PairingConfig, SchedulerConfig, SpeculationConfig
from ovi_ray.scheduling.device_profile import BF16_SIZES, INT8_SIZES, DeviceProfile, StageRates
from ovi_ray.scheduling.events import (
    DataLost,
    DeviceFree,
    StepsTimed,
    TaskDone,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.states import ClipState
from ovi_ray.scheduling.task import FailureKind, Reason
from tests.support.scheduling import (
    BIG,
    ENCODER,
    IMAGE,
    LARGE,
    MIDDLE,
    SLOW,
    SMALL,
    SMALL_CARD,
    CheckedCluster,
    failed,
    make_workload,
)

RATES = st.floats(0.01, 1000)
DEVICES = st.sampled_from([BIG, MIDDLE, SMALL_CARD, SLOW, ENCODER]) | st.builds(
    DeviceProfile,
    name=st.sampled_from(["x", "y"]),
    memory_gb=st.floats(2, 100),
    stages=st.frozensets(st.sampled_from(Stage), min_size=1),
    sizes=st.sampled_from([BF16_SIZES, INT8_SIZES]),
    rates=st.builds(StageRates, encode_text=RATES, encode_first_frame=RATES, denoise=RATES, decode=RATES),
    load_gb_per_s=st.floats(0.1, 100),
)
FAULTS = st.tuples(
    st.sampled_from([frozenset(Stage), *(frozenset({stage}) for stage in Stage)]),
    st.sampled_from([FailureKind.OUT_OF_MEMORY, FailureKind.ERROR]),
)
FAULTY_DEVICES = st.tuples(st.sampled_from([BIG, MIDDLE, SLOW]), FAULTS)
PICK = st.integers(0, 20)
"""Index into a list that is known only when the rule runs; wraps around."""
AFTER = st.integers(0, 20)
"""Seconds before the event."""
INJECTED = "injected failure"


class SchedulerMachine(RuleBasedStateMachine):
    cluster: CheckedCluster

    @initialize(
        clips=st.integers(0, 16),
        texts=st.integers(1, 12),
        kinds=st.lists(st.sampled_from([SMALL, LARGE, IMAGE]), min_size=1, max_size=3, unique=True),
        with_latents=st.sets(st.integers(0, 11), max_size=3),
        make_scheduler=st.sampled_from(list(SCHEDULERS.values())),
        speculate=st.booleans(),
        pairing=st.sampled_from(Pairing),
        max_latents=st.none() | st.integers(1, 5),
        failures_to_trip=st.sampled_from([1, 3]),
        patience_s=st.sampled_from([50.0, 0.0]),
        devices=st.lists(DEVICES, max_size=2),
    )
    def start(
        self,
        clips,
        texts,
        kinds,
        with_latents,
        make_scheduler,
        speculate,
        pairing,
        max_latents,
        failures_to_trip,
        patience_s,
        devices,
    ):
        workload = make_workload(
            clips,
            kinds=tuple(kinds),
            distinct_texts=min(texts, max(clips, 1)),
            with_latents=tuple(sorted(clip for clip in with_latents if clip < clips)),
        )
        config = SchedulerConfig(
            max_latents=max_latents,
            patience_s=patience_s,
            speculation=SpeculationConfig(enabled=speculate),
            pairing=PairingConfig(when=pairing),
            circuit_breaker=CircuitBreakerConfig(cooldown_s=5.0, max_consecutive_failures=failures_to_trip),
        )
        self.is_production = make_scheduler is production
        self.make_scheduler = lambda: make_scheduler(workload, config)
        self.cluster = CheckedCluster(workload=workload, scheduler=self.make_scheduler())
        self.joined = 0
        self.empty_slots: list[str] = []
        self.send(*[self.new_worker(device) for device in (BIG, BIG, *devices)])

    # --- events

    def send(self, *events, after=0):
        self.cluster.send(*events, after=after)

    def new_worker(self, device, slot=""):
        self.joined += 1
        return WorkerJoined(worker=f"w{self.joined}", slot=slot, device=device, node=f"node{self.joined // 4}")

    @rule(device=DEVICES, after=AFTER)
    def join(self, device, after):
        if len(self.cluster.workers) < 6:
            self.send(self.new_worker(device), after=after)

    @precondition(lambda self: self.empty_slots)
    @rule(device=DEVICES, after=AFTER)
    def replace(self, device, after):
        self.send(self.new_worker(device, slot=self.empty_slots.pop()), after=after)

    @precondition(lambda self: self.cluster.workers)
    @rule(pick=PICK, crashed=st.booleans(), after=AFTER)
    def lose(self, pick, crashed, after):
        worker = pick_from(sorted(self.cluster.workers), pick)
        self.empty_slots.append(self.cluster.slots[worker])
        self.send(WorkerLost(worker=worker, crashed=crashed), after=after)

    @precondition(lambda self: self.cluster.writable())
    @rule(pick=PICK, after=AFTER)
    def free_device(self, pick, after):
        run = pick_from(self.cluster.writable(), pick)
        self.send(DeviceFree(worker=run.worker, task=run.task, seconds=1.0 + after), after=after)

    @precondition(lambda self: self.cluster.denoising())
    @rule(pick=PICK, seconds=st.sampled_from([0.5, 100.0, 20_000.0]), after=AFTER)
    def time_steps(self, pick, seconds, after):
        run = pick_from(self.cluster.denoising(), pick)
        self.send(StepsTimed(worker=run.worker, task=run.task, seconds=seconds), after=after)

    @precondition(lambda self: self.cluster.given())
    @rule(picks=st.lists(PICK, min_size=1, max_size=3), load_seconds=AFTER, after=AFTER)
    def complete(self, picks, load_seconds, after):
        runs = {(run.worker, run.task): run for run in (pick_from(self.cluster.given(), pick) for pick in picks)}
        done = [
            TaskDone(worker=run.worker, task=run.task, seconds=1.0 + after, load_seconds=float(load_seconds))
            for run in runs.values()
        ]
        self.send(*done, after=after)

    @precondition(lambda self: self.cluster.given())
    @rule(pick=PICK, kind=st.sampled_from([FailureKind.ERROR, *FailureKind]), blamed=st.integers(0, 3), after=AFTER)
    def fail(self, pick, kind, blamed, after):
        run = pick_from(self.cluster.given(), pick)
        items = run.task.items[:blamed]
        self.send(TaskFailed(worker=run.worker, task=run.task, kind=kind, message=INJECTED, items=items), after=after)

    @precondition(lambda self: self.cluster.droppable())
    @rule(pick=PICK, after=AFTER)
    def lose_data(self, pick, after):
        self.send(DataLost(key=pick_from(self.cluster.droppable(), pick)), after=after)

    @rule(seconds=st.integers(0, 700))
    def pass_time(self, seconds):
        self.send(Tick(), after=seconds)

    # --- what holds in between

    @invariant()
    def counts_of_clips_add_up(self):
        job = self.cluster.scheduler.job
        assert sum(job.totals) == job.workload.clips
        assert job.totals[ClipState.DONE] + job.totals[ClipState.FAILED] == job.ended == len(self.cluster.finished)

    @invariant()
    def a_worker_idles_beside_ready_work_only_for_a_reason(self):
        scheduler = self.cluster.scheduler
        if scheduler.done:
            return
        for worker, reason in scheduler.idle_reasons().items():
            if reason is Reason.NOTHING_READY:
                assert not self.could_run(worker)
            if reason is Reason.FASTER_DEVICE_SOON:
                assert self.cluster.running
            if reason is Reason.FAILED_HERE_BEFORE and self.is_production:
                assert scheduler.retries

    def could_run(self, worker):
        device, job = self.cluster.workers[worker], self.cluster.scheduler.job
        kinds = enumerate(job.workload.kinds)
        return [(s, k) for k, kind in kinds for s in Stage if device.fits(s, kind) and job.queue(s, k)]

    @invariant()
    def a_device_is_off_a_stage_only_while_it_cools_down(self):
        scheduler, now = self.cluster.scheduler, self.cluster.now
        breakers = [breaker for worker in scheduler.pool.workers.values() for breaker in worker.health]
        assert scheduler.done or all(breaker.open_until_s > now for breaker in breakers if breaker.is_open)

    @invariant()
    def while_nothing_runs_a_worker_or_a_time_is_waited_for(self):
        cluster = self.cluster
        waits = any(wake >= cluster.now for wake in cluster.wakes) or cluster.scheduler.awaited_slots
        assert cluster.running or cluster.writing or cluster.scheduler.done or not cluster.workers or waits

    # --- what holds in the end

    def teardown(self):
        if not hasattr(self, "cluster"):
            return
        if not self.cluster.scheduler.done:
            self.send(self.new_worker(BIG))
            self.cluster.finish_all()
        assert set(self.cluster.finished) == set(range(self.cluster.workload.clips))
        for message in failed(self.cluster).values():
            assert message.startswith((INJECTED, "poison", "no device can run"))
        self.assert_deterministic()

    def assert_deterministic(self):
        again = self.make_scheduler()
        for now, events, actions in self.cluster.log:
            assert tuple(again.handle(events, now)) == actions


class FaultMachine(RuleBasedStateMachine):
    """Devices that always fail, in all stages or in one; at least one that never does; successors that come late.

    While a healthy device is there that can run everything, no clip fails.
    """

    cluster: CheckedCluster

    @initialize(
        clips=st.integers(1, 12),
        kinds=st.lists(st.sampled_from([SMALL, IMAGE]), min_size=1, max_size=2, unique=True),
        texts=st.integers(1, 6),
        sick=st.lists(FAULTY_DEVICES, min_size=1, max_size=4),
        healthy_first=st.booleans(),
        patience_s=st.sampled_from([50.0, 0.0]),
    )
    def start(self, clips, kinds, texts, sick, healthy_first, patience_s):
        workload = make_workload(clips, kinds=tuple(kinds), distinct_texts=min(texts, clips))
        config = SchedulerConfig(patience_s=patience_s, circuit_breaker=CircuitBreakerConfig(cooldown_s=5.0))
        self.cluster = CheckedCluster(workload=workload, scheduler=Scheduler(workload, config=config))
        self.faults = {f"sick{number}": fault for number, (_, fault) in enumerate(sick)}
        self.profiles = {f"sick{number}": profile for number, (profile, _) in enumerate(sick)} | {"healthy": BIG}
        self.lives = dict.fromkeys(self.profiles, 0)
        self.away: list[str] = []
        slots = sorted(self.profiles, reverse=not healthy_first)
        self.send(*[self.join(slot) for slot in slots])

    def send(self, *events, after=0):
        ended = set(self.cluster.finished)
        self.cluster.send(*events, after=after)
        if "healthy" not in self.away:
            assert not set(failed(self.cluster)) - ended, "a clip failed beside a healthy device"

    def join(self, slot):
        self.lives[slot] += 1
        return WorkerJoined(worker=f"{slot}.{self.lives[slot]}", slot=slot, device=self.profiles[slot], node="node")

    def end(self, run):
        """The end of a task, as its device lets it end."""
        stages, kind = self.faults.get(self.cluster.slots[run.worker], (frozenset(), None))
        if run.task.stage in stages:
            return TaskFailed(worker=run.worker, task=run.task, kind=kind, message=INJECTED)
        return TaskDone(worker=run.worker, task=run.task, seconds=1.0)

    @precondition(lambda self: self.cluster.writable())
    @rule(pick=PICK, after=AFTER)
    def free_device(self, pick, after):
        run = pick_from(self.cluster.writable(), pick)
        self.send(DeviceFree(worker=run.worker, task=run.task, seconds=1.0 + after), after=after)

    @precondition(lambda self: self.cluster.given())
    @rule(picks=st.lists(PICK, min_size=1, max_size=3), after=AFTER)
    def tasks_end(self, picks, after):
        runs = {(run.worker, run.task): run for run in (pick_from(self.cluster.given(), pick) for pick in picks)}
        self.send(*map(self.end, runs.values()), after=after)

    @precondition(lambda self: self.cluster.workers)
    @rule(pick=PICK, after=AFTER)
    def lose(self, pick, after):
        worker = pick_from(sorted(self.cluster.workers), pick)
        self.away.append(self.cluster.slots[worker])
        self.send(WorkerLost(worker=worker, crashed=False), after=after)

    @precondition(lambda self: self.away)
    @rule(after=st.integers(0, 200))
    def a_successor_comes(self, after):
        event = self.join(self.away[0])
        self.cluster.now += after
        self.away.pop(0)
        self.send(event)

    @rule(seconds=st.integers(0, 700))
    def pass_time(self, seconds):
        self.send(Tick(), after=seconds)

    def teardown(self):
        if not hasattr(self, "cluster"):
            return
        while self.away:
            self.a_successor_comes(after=1)
        for _ in range(3000):
            if self.cluster.scheduler.done:
                break
            if given := self.cluster.given():
                self.send(self.end(given[0]), after=1)
            else:
                assert self.cluster.wakes, "nothing runs, and no time is waited for"
                self.cluster.now = max(self.cluster.now, self.cluster.wakes.pop(0))
                self.send(Tick())
        assert set(self.cluster.finished) == set(range(self.cluster.workload.clips))


def pick_from(choices, pick):
    return choices[pick % len(choices)]


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFaults = FaultMachine.TestCase
TestFaults.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
