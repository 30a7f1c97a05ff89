"""Which process this is, from what users, SLURM, GKE and TPU virtual machines set."""

import http.server
import threading

import pytest

from t5x_selfimprove.processes import Identity, identify
from t5x_selfimprove.processes import identity as module
from t5x_selfimprove.processes.identity import first_host

EXPLICIT = {'JAX_COORDINATOR_ADDRESS': 'node0:1234', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
SLURM = {
    'SLURM_JOB_ID': '123456',
    'SLURM_STEP_NODELIST': 'gpu[07-08]',
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_STEP_TASKS_PER_NODE': '1(x2)',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
}
SHARED = {**SLURM, 'SLURM_STEP_NUM_TASKS': '16', 'SLURM_STEP_TASKS_PER_NODE': '8(x2)', 'SLURM_LOCALID': '5'}
GKE = {'TPU_WORKER_HOSTNAMES': 'a-0,a-1', 'TPU_WORKER_ID': '1'}
TPU_ENVIRONMENT = """ACCELERATOR_TYPE: 'v5e'
MEGASCALE_NUM_SLICES: '2'
MEGASCALE_SLICE_ID: '1'
MEGASCALE_COORDINATOR_ADDRESS: 'z:8080'
"""
SLICES = {'MEGASCALE_NUM_SLICES': '3', 'MEGASCALE_SLICE_ID': '2', 'MEGASCALE_COORDINATOR_ADDRESS': 'first:8080'}


@pytest.fixture(autouse=True)
def no_chips(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, '_has_chips', lambda: False)


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        ({}, None),
        (EXPLICIT, Identity(3, 4, 'node0:1234')),
        ({**EXPLICIT, 'T5X_SELFIMPROVE_HOSTS': 'a,b,c,d'}, Identity(3, 4, 'node0:1234', hosts=('a', 'b', 'c', 'd'))),
        ({**EXPLICIT, 'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}, None),
        ({**SLURM, **EXPLICIT}, Identity(3, 4, 'node0:1234')),
        (SLURM, Identity(1, 2, 'gpu07:23456')),
        ({**SLURM, 'T5X_SELFIMPROVE_HOSTS': 'gpu07,gpu08'}, Identity(1, 2, 'gpu07:23456', None, ('gpu07', 'gpu08'))),
        (SHARED, Identity(1, 16, 'gpu07:23456', (5,))),
        ({**SHARED, 'CUDA_VISIBLE_DEVICES': '0'}, Identity(1, 16, 'gpu07:23456')),  # SLURM shows each task its own
        ({**SHARED, 'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7'}, Identity(1, 16, 'gpu07:23456', (5,))),
        ({**SLURM, 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, None),
        ({name: value for name, value in SLURM.items() if name != 'SLURM_STEP_NODELIST'}, None),  # the batch script
        (GKE, Identity(1, 2, 'a-0:8476', hosts=('a-0', 'a-1'))),
        ({**GKE, **SLICES}, Identity(5, 6, 'first:8476')),
        ({'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}, None),
    ],
)
def test_identity(environment: dict[str, str], expected: Identity | None):
    assert identify(environment) == expected


@pytest.mark.parametrize(
    ('environment', 'message'),
    [
        ({'JAX_PROCESS_ID': '1'}, 'JAX_PROCESS_ID is set and JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES is not'),
        ({**EXPLICIT, 'JAX_PROCESS_ID': '4'}, 'process 4 of 4: processes are numbered from 0'),
        ({**EXPLICIT, 'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES must be a whole number; it is 'two'"),
        ({**EXPLICIT, 'JAX_COORDINATOR_ADDRESS': 'node0'}, "must be host:port of process 0; it is 'node0'"),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, "TPU_WORKER_ID must be a whole number; it is ''"),
    ],
)
def test_half_said_is_refused(environment: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        identify(environment)


@pytest.mark.parametrize(
    ('nodes', 'first'),
    [
        ('node1', 'node1'),
        ('a,b', 'a'),
        ('gpu[07-09,12],login', 'gpu07'),
        ('gpu[3,5]', 'gpu3'),
        ('a,gpu[3,5]', 'a'),
        ('rack[1-2]-gpu', 'rack1-gpu'),
    ],
)
def test_first_host_of_a_node_list(nodes: str, first: str):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ('attributes', 'expected'),
    [
        ({'worker-network-endpoints': 'a,b', 'agent-worker-number': '1'}, Identity(1, 2, 'a:8476', None, ('a', 'b'))),
        (
            {'worker-network-endpoints': 'x:1:addr0,y:2:addr1', 'agent-worker-number': '0', 'tpu-env': "A: 'b'\n"},
            Identity(0, 2, 'addr0:8476', None, ('addr0', 'addr1')),
        ),
        (
            {
                'worker-network-endpoints': 'w',
                'agent-worker-number': '0',
                'tpu-env': TPU_ENVIRONMENT,
            },
            Identity(1, 2, 'z:8476'),
        ),
        ({'agent-worker-number': '0'}, None),
    ],
)
def test_tpu_virtual_machine(monkeypatch: pytest.MonkeyPatch, attributes: dict[str, str], expected: Identity | None):
    monkeypatch.setattr(module, '_has_chips', lambda: True)

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition('/')[2])
            google = self.headers['Metadata-Flavor'] == 'Google'
            self.send_response(200 if value is not None and google else 404)
            self.end_headers()
            self.wfile.write((value or '').encode())

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert identify({'GCE_METADATA_IP': f'127.0.0.1:{server.server_port}'}) == expected
        server.shutdown()
