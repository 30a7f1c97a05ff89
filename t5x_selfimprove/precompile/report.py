"""What was found out about a compiled round, as JSON and for people."""

import dataclasses
from typing import Any

import jax

from t5x_selfimprove import session
from t5x_selfimprove.display import Display, number_of_bytes
from t5x_selfimprove.models import parameters
from t5x_selfimprove.precompile import program, walking
from t5x_selfimprove.precompile.chips import Topology
from t5x_selfimprove.precompile.program import Compiled
from t5x_selfimprove.precompile.walking import Costs, Phase
from t5x_selfimprove.train import Improve

IN_TOTAL = ('parameters', 'optimizer', 'base', 'other arguments', 'new outputs', 'temporaries', 'program')
BOUNDS = ('compute', 'hbm', 'links', 'network')
SHOWN = 12  # collectives


def place(run: Improve, topology: Topology, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What was compiled, and for what."""
    model = jax.eval_shape(lambda: run.model.create(run.vocabulary.size, jax.random.key(0)))
    return {
        'name': run.place.name,
        'topology': str(topology),
        'chips': topology.chips,
        'devices': mesh.size,
        'mesh': dict(mesh.shape),
        'parameters': parameters.count(model),
        'batch': run.batch_arithmetic(),
        'hbm_bytes': topology.chip.hbm,
        'versions': session.versions() | program.compiler_version(topology),
    }


def measured(run: Improve, topology: Topology, mesh: jax.sharding.Mesh, compiled: Compiled) -> dict[str, Any]:
    """Memory, work and time of a program; seconds and all counts are of one round.

    The compiler for TPUs refuses what does not fit, that for GPUs compiles it.
    """
    costs = walking.costs(compiled.text, mesh, compiled.steps)
    rounds = run.rounds_per_dispatch
    phases = {name: _phase(each, rounds, topology, mesh) for name, each in costs.phases.items()}
    seconds = sum(each['roofline_seconds'] for each in phases.values())
    return {
        'fits': topology.chip.platform == 'tpu' or compiled.memory['total'] <= topology.chip.hbm,
        'compile_seconds': compiled.seconds,
        'memory': compiled.memory,
        'needed_bytes': compiled.memory['total'],
        'phases': phases,
        'seconds_per_round': seconds,
        'seconds_per_round_without_overlap': sum(sum(each['seconds'].values()) for each in phases.values()),
        'chip_hours_per_round': seconds * topology.chips / 3600,
        'loops': _loops(costs),
    }


def _phase(phase: Phase, rounds: int, topology: Topology, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    seconds = {name: value / rounds for name, value in walking.seconds(phase, topology, mesh).items()}
    exchanges = sorted(phase.collectives.items(), key=lambda item: -item[0].bytes * item[1])
    return {
        'flops': phase.flops / rounds,
        'hbm_bytes': phase.hbm_bytes / rounds,
        'seconds': seconds,
        'roofline_seconds': max(seconds.values()),
        'bound_by': max(seconds, key=seconds.get) if any(seconds.values()) else None,
        'collectives': [
            {**dataclasses.asdict(each), 'count': times / rounds, 'total_bytes': each.bytes * times / rounds}
            for each, times in exchanges
        ],
    }


def _loops(costs: Costs) -> dict[str, Any]:
    return {'counted at their most': costs.bounded, 'counted once': costs.unread}


def show(display: Display, facts: dict[str, Any]) -> None:
    """Tables of memory, phases and collectives."""
    hbm = facts['hbm_bytes']
    rows = [(kind, number_of_bytes(facts['memory'][kind])) for kind in IN_TOTAL if facts['memory'][kind]]
    rows += [('total', number_of_bytes(facts['memory']['total'])), ('HBM', number_of_bytes(hbm))]
    display.table('Memory of a device', ('kind', 'bytes'), rows)
    of_temporaries = [kind for kind in facts['memory'] if kind not in (*IN_TOTAL, 'total')]
    display.facts({kind: number_of_bytes(facts['memory'][kind]) for kind in of_temporaries})
    columns = ('phase', 'TFLOP', 'GB of HBM', 'GB sent', *(f'{name} s' for name in BOUNDS), 'at least s')
    rows = []
    for name, each in facts['phases'].items():
        sent = sum(exchange['total_bytes'] for exchange in each['collectives'])
        work = [short(each['flops'] / 1e12), short(each['hbm_bytes'] / 1e9), short(sent / 1e9)]
        times = [short(each['seconds'][bound]) for bound in BOUNDS]
        rows.append([name, *work, *times, short(each['roofline_seconds'])])
    display.table('Work of a device in a round', columns, rows)
    display.table('Collectives of a round', ('phase, kind, axes', 'devices', 'times', 'GB sent'), _exchanges(facts))


def _exchanges(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """The collectives of each phase by kind and axes, those that send most."""
    together: dict[tuple[str, str, str, int], list[float]] = {}
    for name, phase in facts['phases'].items():
        for each in phase['collectives']:
            key = (name, each['kind'], ' x '.join(each['axes']), each['size'])
            counts = together.setdefault(key, [0.0, 0.0])
            counts[0] += each['count']
            counts[1] += each['total_bytes']
    most = sorted(together.items(), key=lambda item: -item[1][1])[:SHOWN]
    return [(', '.join(key[:3]), str(key[3]), f'{count:,.0f}', short(size / 1e9)) for key, (count, size) in most]


def short(value: float) -> str:
    """A number in three digits, or in whole ones."""
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def verdict(facts: dict[str, Any]) -> str:
    """One sentence: does it fit, and how long does a round take at least."""
    needed, hbm = facts['needed_bytes'], facts['hbm_bytes']
    there = f'{number_of_bytes(hbm)} of HBM that a device of {facts["topology"]} has'
    if not facts['fits']:
        wanted = 'more than the' if needed is None else f'{number_of_bytes(needed)}, and does not fit the'
        return f'does not fit: a device would need {wanted} {there}'
    return (
        f'fits: {number_of_bytes(needed)} ({100 * needed / hbm:.0f} %) of the {there}; a round takes at least '
        f'{facts["seconds_per_round"]:,.1f} s, {short(facts["chip_hours_per_round"])} chip-hours '
        f'({facts["seconds_per_round_without_overlap"]:,.1f} s were nothing done at the same time)'
    )
