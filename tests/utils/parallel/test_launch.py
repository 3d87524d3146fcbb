"""How processes find out that they run together."""

import pytest

from tlflax.utils.errors import UserError
from tlflax.utils.parallel import launch
from tlflax.utils.parallel.launch import Launch, find, from_environment


def test_given_on_the_command_line():
    assert find('a.example:1234', '4', '3') == Launch('a.example:1234', 4, 3)
    assert find('[::1]:1234', '2', '0') == Launch('[::1]:1234', 2, 0)


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (('a:1', None, None), '--num_processes and --process_id must be given too'),
        ((None, '2', '0'), '--coordinator must be given too'),
        (('a', '2', '0'), '--coordinator=a is not HOST:PORT'),
        ((':1', '2', '0'), '--coordinator=:1 is not HOST:PORT'),
        (('a:70000', '2', '0'), '--coordinator=a:70000 is not HOST:PORT'),
        (('a:1', 'two', '0'), '--num_processes=two is not a whole number in 1..65536'),
        (('a:1', '2', '2'), '--process_id=2 is not a whole number in 0..1'),
        (('a:1', '2', '-1'), '--process_id=-1 is not a whole number in 0..1'),
    ],
)
def test_what_is_missing_or_wrong(given, said):
    with pytest.raises(UserError) as caught:
        find(*given)
    assert said in str(caught.value)


SLURM = {'SLURM_JOB_ID': '7', 'SLURM_PROCID': '1', 'SLURM_LOCALID': '0',
         'SLURM_STEP_NODELIST': 'node[1-2]', 'SLURM_NTASKS': '2'}  # fmt: skip


@pytest.mark.parametrize(
    ('environment', 'method'),
    [
        ({}, None),
        ({**SLURM, 'SLURM_STEP_NUM_TASKS': '2'}, 'slurm'),
        ({**SLURM, 'SLURM_STEP_NUM_TASKS': '1'}, None),  # srun --ntasks=1 in a larger job
        ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, None),  # sbatch's script
        ({'OMPI_COMM_WORLD_SIZE': '1'}, None),
        ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:3'}, 'ompi'),
        ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, ''),
    ],
)
def test_the_environment(environment, method, monkeypatch):
    monkeypatch.setattr(launch, '_on_a_tpu_machine', lambda: False)
    expected = None if method is None else Launch(method=method)
    assert from_environment(environment) == expected


@pytest.mark.parametrize(
    ('environment', 'said'),
    [
        ({'OMPI_COMM_WORLD_SIZE': '2'}, 'does not say where process 0 is; give --coordinator'),
        (
            {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'},
            'one of the pods of an indexed job, and it is not known how many there are',
        ),
    ],
)
def test_an_environment_that_does_not_say_enough(environment, said, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError) as caught:
        from_environment(environment)
    assert said in str(caught.value)


def test_one_process_of_a_cluster_may_run_alone(monkeypatch):
    monkeypatch.setattr(launch.os, 'environ', {**SLURM, 'SLURM_STEP_NUM_TASKS': '2'})
    assert find(None, None, None) == Launch(method='slurm')
    assert find(None, '1', None) is None
