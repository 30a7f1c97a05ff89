"""A run compiled before its pod is there: does it fit, what does it do, how long may it take."""

import dataclasses
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from t5x_selfimprove import files, placement
from t5x_selfimprove.display import Display, number_of_bytes
from t5x_selfimprove.precompile import program, report
from t5x_selfimprove.precompile.chips import Topology
from t5x_selfimprove.precompile.knobs import knobs
from t5x_selfimprove.precompile.program import Compiled, DoesNotFit
from t5x_selfimprove.train import Improve

SAVED = 'round.jax'  # the compiled program, in the output directory


@dataclasses.dataclass(frozen=True)
class Precompile:
    """Compiles the whole round of a run, as `improve` does, for a pod of TPUs, or for GPUs, that are not there.

    The compiler is that of the devices (libtpu's, or that of jax's plug-in for CUDA), so that what it says of memory
    holds on the pod. Nothing is allocated: no checkpoint and no questions are needed, shapes are enough. Seconds
    are a roofline: what the arithmetic, the HBM and the links of the chips take at least, each at its full speed, where
    every path is as long as `max_tokens` lets it.

    Raises:
      ValueError: there is no such topology.
    """

    improve: Improve
    topology: str  # as 'v5e-64', 'v5p:8x8x16' or 'h100-64'
    slices: int = 1  # connected by the network of the data centre
    output: str | None = None  # directory for precompile.json, and for the program
    tries: int = 8  # of other settings where it does not fit; 0: none

    def __post_init__(self):
        if self.tries < 0:
            raise ValueError(f'tries must be 0 or more; it is {self.tries}')
        Topology(self.topology, self.slices)

    def run(self, config: str, display: Display | None = None) -> dict[str, Any]:
        """Compiles, tells and writes what was found, and returns it.

        Raises:
          ValueError: a parameter or a batch that cannot be divided over the mesh.
          RuntimeError: what compiles for the topology is missing or does not know it.
          OSError: the output cannot be written.
        """
        display = display or Display()
        topology = Topology(self.topology, self.slices)
        run, attention = program.without_cudnn(self.improve, topology)
        mesh = program.mesh_of(run, topology)
        facts = report.place(run, topology, mesh) | attention
        display.say(f'precompile: {facts["name"]} for {topology}, {topology.chips} chips')
        said = {'parameters': f'{facts["parameters"]:,}', 'mesh': placement.describe(mesh), **attention}
        display.facts(said | facts['batch'])
        given = program.inputs(run, mesh)
        placement.show(display, given.state.model, mesh)
        with display.phase('compile', 'compiling the round'):
            found, compiled = outcome(run, topology, mesh)
        facts |= found
        if compiled is not None:
            report.show(display, facts)
        display.say(report.verdict(facts))
        if not facts['fits']:
            facts['tried'] = self.try_knobs(run, topology, mesh, display)
        elif self.output is not None and compiled is not None:
            facts['program'] = save(compiled, Path(self.output), display)
        if self.output is not None:
            path = Path(self.output) / 'precompile.json'
            files.write_text(path, json.dumps({**facts, 'config': config}, indent=1))
            display.say(f'written: {path}')
        return facts

    def try_knobs(
        self, run: Improve, topology: Topology, mesh: jax.sharding.Mesh, display: Display
    ) -> list[dict[str, Any]]:
        """Compiles with other settings until one fits; what each needs."""
        tried: list[dict[str, Any]] = []
        for knob in itertools.islice(knobs(run, mesh), self.tries):
            facts = {'change': knob.name, 'fits': False, 'hbm_bytes': topology.chip.hbm, 'topology': str(topology)}
            try:
                with display.phase('compile', f'trying {knob.name}'):
                    facts |= outcome(knob.run, topology, program.mesh_of(knob.run, topology))[0]
            except ValueError as error:  # the mesh of a knob may not divide the model
                facts['said'] = str(error)
            tried.append(facts)
            refused = 'needed_bytes' not in facts
            display.say(f'with {knob.name}: {facts["said"] if refused else report.verdict(facts)}')
            if facts['fits']:
                return tried
        display.say('none of the settings that were tried makes it fit: take more chips, or chips with more memory')
        return tried


def outcome(run: Improve, topology: Topology, mesh: jax.sharding.Mesh) -> tuple[dict[str, Any], Compiled | None]:
    """What came of compiling a round, and the program where there is one.

    Raises:
      ValueError: a division that is not possible.
    """
    try:
        compiled = program.compile_round(run, mesh)
    except DoesNotFit as failure:
        return {'fits': False, 'needed_bytes': failure.needed, 'said': str(failure)}, None
    return report.measured(run, topology, mesh, compiled), compiled


def save(compiled: Compiled, directory: Path, display: Display) -> dict[str, Any]:
    """Writes the compiled program for `jax.experimental.serialize_executable.deserialize_and_load` on the pod.

    Returns:
      The path and bytes, or why jax could not.
    """
    try:
        parts = serialize_executable.serialize(compiled.program)
    except Exception as error:  # jax says in many ways that a program cannot be taken out
        said = f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
        display.say(f'the compiled program cannot be saved: {said}')
        return {'refused': said}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / SAVED
    path.write_bytes(pickle.dumps(parts))
    display.say(f'written: {path}, the compiled program ({number_of_bytes(path.stat().st_size)})')
    return {'path': str(path), 'bytes': path.stat().st_size}
