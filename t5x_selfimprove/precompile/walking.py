"""The whole compiled program walked through, loops as often as they go round: what each phase of a round costs."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from t5x_selfimprove import partitioning
from t5x_selfimprove.precompile import collectives, counting, hlo
from t5x_selfimprove.precompile.chips import Topology
from t5x_selfimprove.precompile.collectives import Collective
from t5x_selfimprove.precompile.hlo import Computation, Instruction, Program

SCOPES = {'sampling': 'prefill', 'consolidation': 'consolidation', 'learning': 'learning'}  # of improve.one_round
PHASES = ('prefill', 'decoding', 'consolidation', 'learning', 'between')


@dataclasses.dataclass
class Phase:
    """What one device does in one phase of a dispatch."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: dict[Collective, float] = dataclasses.field(default_factory=dict)  # how often each

    def add(self, other: Collective, times: float) -> None:
        self.collectives[other] = self.collectives.get(other, 0.0) + times


@dataclasses.dataclass
class Costs:
    """What one device does in a dispatch.

    `bounded` names loops that data may end before, counted at their most; `unread` loops whose number of iterations
    could not be read, counted once.
    """

    phases: dict[str, Phase]
    bounded: dict[str, int]
    unread: list[str]


@dataclasses.dataclass(frozen=True)
class Steps:
    """What the loops of decoding, which data alone ends, are counted as."""

    total: int  # steps of a batch, every path as long as it may be
    period: int  # steps between refills, where there are any
    slots: int  # paths drawn at the same time


def costs(text: str, mesh: jax.sharding.Mesh, steps: Steps) -> Costs:
    """Walks through a compiled program.

    Args:
      text: of the program, in HLO.
      mesh: that it was compiled for.
      steps: of decoding.
    """
    walk = _Walk(hlo.parse(text), mesh, steps)
    walk.computation(walk.program.entry, 1.0, 'between')
    return Costs(walk.phases, walk.bounded, walk.unread)


class _Walk:
    def __init__(self, program: Program, mesh: jax.sharding.Mesh, steps: Steps):
        self.program, self.mesh, self.steps = program, mesh, steps
        self.phases = {name: Phase() for name in PHASES}
        self.bounded: dict[str, int] = {}
        self.unread: list[str] = []

    def computation(self, name: str, times: float, phase: str) -> None:
        """Adds what a computation does, done `times` times."""
        computation = self.program.computations[name]
        channels: set[str] = set()
        for each in computation.instructions:
            here = phase_of(each.scope, phase)
            if each.opcode == 'while':
                self.loop(computation, each, times, here)
            for called in self.called(each):
                self.computation(called, times, here)
            total = self.phases[here]
            total.flops += times * counting.operations(self.program, computation, each)
            total.hbm_bytes += times * counting.traffic(self.program, computation, each)
            for found in self.exchanges(each):
                channel = found.attributes.partition('channel_id=')[2].partition(',')[0] or found.name
                if channel in channels:  # the steps of one exchange that was cut in pieces to overlap with others
                    continue
                channels.add(channel)
                exchange = collectives.collective(found, self.mesh)
                if exchange is not None:
                    total.add(exchange, times)

    def loop(self, outer: Computation, loop: Instruction, times: float, phase: str) -> None:
        """Adds a loop."""
        trips = hlo.trips(self.program, outer, loop)
        if not trips.known and phase in ('prefill', 'decoding'):
            trips = hlo.Trips(self.of_decoding(loop, phase), bound=True)
        if not trips.known:
            self.unread.append(loop.name)
        if trips.bound:
            self.bounded[loop.name] = trips.count
            phase = 'decoding' if phase == 'prefill' else phase
        for attribute in ('body', 'condition'):
            self.computation(loop.called(attribute), times * trips.count, phase)

    def of_decoding(self, loop: Instruction, phase: str) -> int:
        """Iterations of a loop that ends when the paths do: of periods, if there is one of steps inside it."""
        body = self.program.computations[loop.called('body')]
        inner = [each for each in body.instructions if each.opcode == 'while']
        if any(not hlo.trips(self.program, body, each).known for each in inner):
            return -(-self.steps.total // self.steps.period)
        return self.steps.period if phase == 'decoding' else self.steps.total

    def called(self, instruction: Instruction) -> Iterator[str]:
        """Computations that an instruction runs, loops and fusions apart. Of branches all are counted."""
        if instruction.opcode in ('call', 'async-start'):
            yield instruction.called('to_apply') or instruction.called('calls')
        yield from instruction.wrapped
        if instruction.opcode == 'conditional':
            both = [instruction.called('true_computation'), instruction.called('false_computation')]
            yield from instruction.all_called('branch_computations') or filter(None, both)

    def exchanges(self, instruction: Instruction) -> Iterator[Instruction]:
        """Collectives of an instruction, those inside its fusion too; the compiler for TPUs writes a reduce-scatter as
        a fusion of that name, of an all-reduce and the slice that is kept."""
        if collectives.kind_of(instruction.opcode):
            yield instruction
        if instruction.opcode == 'fusion':
            name = instruction.called('calls')
            for each in self.program.computations[name].instructions:
                for found in self.exchanges(each):
                    if name.startswith('all-reduce-scatter') and found.opcode == 'all-reduce':
                        found = dataclasses.replace(found, opcode='reduce-scatter', shapes=instruction.shapes)
                    yield found


def phase_of(scope: str, otherwise: str) -> str:
    """The phase that a scope names; in the decoding loop all is decoding."""
    found = next((SCOPES[name] for name in reversed(scope.split('/')) if name in SCOPES), otherwise)
    return otherwise if otherwise == 'decoding' and found == 'prefill' else found


def links_used(devices: np.ndarray, axes: tuple[str, ...], names: tuple[str, ...], torus: int) -> float | None:
    """The share of a device's links that a group along mesh axes exchanges over: of a TPU's those along the axes of the
    torus that it lies on, of a GPU's all. None where it leaves the slice, or the GPUs of a host.

    Args:
      devices: of the mesh.
      axes: of the group.
      names: of the mesh's axes.
      torus: axes of the torus, of a TPU.
    """
    places = tuple(slice(None) if name in axes else 0 for name in names)
    group = list(np.atleast_1d(devices[places]).ravel())
    if len({partitioning.slice_of(device) for device in group}) > 1:
        return None
    if group[0].platform == 'gpu':
        return None if len({device.process_index for device in group}) > 1 else 1.0
    coordinates = np.array([device.coords for device in group])
    return max(1.0, float((coordinates != coordinates[:1]).any(axis=0).sum())) / torus


def seconds(phase: Phase, topology: Topology, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """The least seconds that a phase takes for its arithmetic, its HBM, its links and the network between slices, each
    by itself at its full speed."""
    chip = topology.chip
    found = {
        'compute': phase.flops * chip.devices / chip.flops,
        'hbm': phase.hbm_bytes * chip.devices / chip.hbm_bandwidth,
        'links': 0.0,
        'network': 0.0,
    }
    for exchange, times in phase.collectives.items():
        share = links_used(mesh.devices, exchange.axes, mesh.axis_names, chip.axes)
        if share is None:
            found['network'] += times * exchange.bytes * chip.devices / (chip.network or np.inf)
        else:
            found['links'] += times * exchange.bytes * chip.devices / (chip.links * share)
    return found
