"""Tests of running as one process or many."""

import multiprocessing

import pytest
import torch

from vidm.distributed import Rendezvous, gather_rows, launch, rank, world_size


def record(device, seen):
    seen.append((device.type, rank(), world_size()))


def test_a_single_process_runs_without_a_group():
    seen = []
    launch(record, (seen,))
    assert seen == [("cuda" if torch.cuda.is_available() else "cpu", 0, 1)]
    rows = torch.arange(3)
    assert gather_rows(rows) is rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the behaviour without a GPU")
def test_the_original_spawn_flags_fall_back_to_one_gloo_process_on_a_cpu(tmp_path, capsys):
    seen = []
    launch(record, (seen,), multiprocessing=True, rendezvous=Rendezvous(f"file://{tmp_path}/store", backend="nccl"))
    assert seen == [("cpu", 0, 1)]
    out = capsys.readouterr().out
    assert "using gloo instead of nccl" in out
    assert "1 process over gloo" in out


def gather_on_two(node_rank, store, results):
    def worker(device):
        results.put((rank(), world_size(), gather_rows(torch.tensor([rank(), 10 + rank()])).tolist()))

    rendezvous = Rendezvous(f"file://{store}")
    launch(worker, (), multiprocessing=True, num_nodes=2, node_rank=node_rank, rendezvous=rendezvous)


def test_two_nodes_form_one_group_and_gather_in_order_of_rank(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=gather_on_two, args=(node_rank, tmp_path / "store", results)) for node_rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert found == [(0, 2, [0, 10, 1, 11]), (1, 2, [0, 10, 1, 11])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu": 99}, "--gpu 99"),
        ({"multiprocessing": True, "num_nodes": 2, "node_rank": 2}, "--rank 2 is not among 2 nodes"),
        ({"multiprocessing": True, "rendezvous": Rendezvous("not-a-url")}, "not-a-url .* another --dist-url"),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        launch(record, ([],), **arguments)
