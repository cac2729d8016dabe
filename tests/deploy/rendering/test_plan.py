import pytest

from deploy.config import ConfigError, parse
from deploy.host.machine import Gpu, Machine
from deploy.rendering.placement import model_source
from deploy.rendering.plan import plan
from worker.models.parallel.links import Link

A, B, C = (Gpu(str(i), f"GPU-{i}{i}", "H100", 79.6, 79.0, "580.1") for i in range(3))


def machine(*gpus: Gpu, cores: int = 2, link: Link = "NVLink") -> Machine:
    links = {frozenset((a.uuid, b.uuid)): link for a in gpus for b in gpus if a != b}
    return Machine(cores, 24.0, 23.0, gpus, links)


def test_without_gpu_three_workers_share_the_cores() -> None:
    workers = plan(parse({}), machine()).workers
    assert [(w.name, w.device, w.threads) for w in workers] == [
        ("w1", "cpu", 1),
        ("w2", "cpu", 1),
        ("w3", "cpu", 1),
    ]
    assert "no GPU, so 3 workers on the CPU; 2 cores make 1 thread each" in workers[0].reason


def test_many_cores_are_divided_among_the_workers() -> None:
    assert [w.threads for w in plan(parse({}), machine(cores=16)).workers] == [5, 5, 5]


def test_each_gpu_gets_one_worker_pinned_by_uuid() -> None:
    workers = plan(parse({}), machine(A, B, cores=16)).workers
    assert [(w.device, w.vram_limit_gib, w.threads) for w in workers] == [
        ("GPU-00", None, 8),
        ("GPU-11", None, 8),
    ]


def test_numbers_and_slices_of_the_file_become_uuids_and_limits() -> None:
    groups = [{"device": "1", "count": 2, "vram_limit_gib": 30.0}, {"device": "cpu", "threads": 3}]
    workers = plan(parse({"workers": groups}), machine(A, B)).workers
    assert [(w.name, w.device, w.vram_limit_gib) for w in workers] == [
        ("w1", "GPU-11", 30.0),
        ("w2", "GPU-11", 30.0),
        ("w3", "cpu", None),
    ]
    assert workers[2].threads == 3


@pytest.mark.parametrize(
    ("gpus", "workers", "pixels"),
    [
        ((A, B), "auto", 1792 * 1024),
        ((), "auto", 1024 * 1024),
        ((A,), [{"device": "0"}, {"device": "cpu"}], 1024 * 1024),  # either may be asked
        ((A, B), [{"devices": "0,1"}], 1792 * 1024),
        ((A,), [{"device": "cpu"}], 1024 * 1024),
    ],
)
def test_pictures_may_be_as_large_as_openais_where_every_worker_has_a_gpu(
    gpus: tuple[Gpu, ...], workers: object, pixels: int
) -> None:
    planned = plan(parse({"workers": workers}), machine(*gpus)).workers
    assert {worker.max_pixels for worker in planned} == {pixels}


def test_pictures_may_be_as_large_as_the_file_says() -> None:
    config = parse({"limits": {"request": {"max_pixels": 65_536}}})
    assert {worker.max_pixels for worker in plan(config, machine(A)).workers} == {65_536}


def test_missing_gpu_is_refused_with_what_there_is() -> None:
    config = parse({"workers": [{"device": "7"}]})
    with pytest.raises(ConfigError, match=r'^workers\[0\].device: .* no GPU 7; it has "0" H100$'):
        plan(config, machine(A))
    with pytest.raises(ConfigError, match='nvidia-smi lists none here: write device = "cpu"'):
        plan(config, machine())


def test_more_memory_than_the_gpu_has_is_refused() -> None:
    config = parse({"workers": [{"device": "0", "count": 3, "vram_limit_gib": 30}]})
    with pytest.raises(ConfigError, match=r"90 GiB are planned on GPU 0, which has 79.6 GiB"):
        plan(config, machine(A))


def test_one_gpu_under_two_names_is_seen_to_be_shared() -> None:
    config = parse({"workers": [{"device": "0"}, {"device": "GPU-00"}]})
    with pytest.raises(ConfigError, match=r"GPU 0 \(GPU-00\) is shared without limits"):
        plan(config, machine(A))


def test_folders_are_absolute_and_other_sources_as_written() -> None:
    sources = ["~/model", "Tongyi-MAI/Z-Image-Turbo", "tiny"]
    given = [model_source(parse({"model": {"source": source}}).model) for source in sources]
    assert given[0].startswith("/")
    assert given[1:] == sources[1:]


def test_several_gpus_make_one_worker_that_is_told_what_it_costs() -> None:
    groups = [{"devices": "1, 0", "vram_limit_gib": 50.0}, {"device": "0", "vram_limit_gib": 26.0}]
    workers = plan(parse({"workers": groups}), machine(A, B, cores=16)).workers
    assert [(w.name, w.device, w.vram_limit_gib) for w in workers] == [
        ("w1", "GPU-11,GPU-00", 50.0),
        ("w2", "GPU-00", 26.0),
    ]
    assert workers[0].device_name == "H100 (1) + H100 (0)"
    assert "each picture on 2 GPUs (1, 0): the shortest wait, for 10 to 15 % fewer pictures" in (
        workers[0].reason
    )


def test_gpus_joined_over_pcie_are_told_to_be_measured() -> None:
    (worker,) = plan(parse({"workers": [{"devices": "0,1"}]}), machine(A, B, link="PCIe")).workers
    assert "over PCIe; its start measures that, and fails where one GPU is quicker" in worker.reason


@pytest.mark.parametrize(
    ("workers", "gpus", "problem"),
    [
        (
            [{"devices": "0,1"}],
            machine(A, B, link="none"),
            "workers[0].devices: GPUs 0, 1 cannot write to each other's memory; "
            "name others, or give each a worker of its own",
        ),
        (
            [{"devices": "0,GPU-00"}],
            machine(A, B),
            "workers[0].devices: a GPU is named twice; name each once",
        ),
        (
            [{"devices": "0,7"}],
            machine(A),
            'workers[0].devices: this machine has no GPU 7; it has "0" H100',
        ),
        (
            [{"devices": "0,1", "vram_limit_gib": 30}, {"devices": "1,2", "vram_limit_gib": 30}],
            machine(A, B, C),
            "workers: GPU 1 belongs to two workers of several GPUs; "
            "they would wait for each other: name it in one of them",
        ),
        (
            [{"devices": "0,1", "vram_limit_gib": 60}, {"device": "1", "vram_limit_gib": 30}],
            machine(A, B),
            "workers: 90 GiB are planned on GPU 1, which has 79.6 GiB; "
            "lower vram_limit_gib or count",
        ),
    ],
)
def test_gpus_that_cannot_be_joined_are_refused(
    workers: list[dict[str, object]], gpus: Machine, problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(parse({"workers": workers}), gpus)
    assert refused.value.problems == [problem]


TURBO = {"name": "turbo", "source": "Tongyi-MAI/Z-Image-Turbo"}
SMALL = {"name": "small", "source": "tiny"}
EIGHT_BITS = {**TURBO, "name": "eight", "fp8": "all"}


def placed(*models: dict[str, str], on: Machine) -> list[tuple[str, str, float | None]]:
    workers = plan(parse({"models": list(models)}), on).workers
    return [(w.model, w.device, w.vram_limit_gib) for w in workers]


def test_workers_on_the_cpu_are_divided_among_the_models_and_each_has_one() -> None:
    def count(*names: str) -> list[str]:
        models = [{"name": name} for name in names]
        return [w.model for w in plan(parse({"models": models}), machine()).workers]

    assert count("a", "b") == ["a", "a", "b"]
    assert count("a", "b", "c", "d") == ["a", "b", "c", "d"]


def test_each_model_has_gpus_of_its_own_where_there_are_enough() -> None:
    assert placed(TURBO, SMALL, on=machine(A, B, C)) == [
        ("turbo", "GPU-00", None),
        ("small", "GPU-11", None),
        ("turbo", "GPU-22", None),
    ]


def test_small_gpu_goes_to_the_model_that_it_has_room_for() -> None:
    little = Gpu("0", "GPU-s", "T4", 15.0, 15.0, "580.1")
    assert placed(TURBO, EIGHT_BITS, on=machine(little, B)) == [
        ("eight", "GPU-s", None),
        ("turbo", "GPU-11", None),
    ]


def test_two_models_share_one_gpu_in_slices_by_what_they_need() -> None:
    (turbo, _, most), (eight, _, less) = placed(TURBO, EIGHT_BITS, on=machine(A))
    assert (turbo, eight) == ("turbo", "eight")
    assert most is not None
    assert less is not None
    assert (most >= 21.5, less >= 13.0, most + less <= 79.6) == (True, True, True)
    assert most > less


def test_models_that_do_not_fit_are_refused_with_figures() -> None:
    card = Gpu("0", "GPU-s", "A10", 24.0, 24.0, "580.1")
    figures = r"models: 21.5 \(turbo\) \+ 13 \(eight\) GiB are needed on GPU 0, which has 24 GiB"
    with pytest.raises(ConfigError, match=figures):
        placed(TURBO, EIGHT_BITS, on=machine(card))
    unknown = {"name": "mine", "source": "owner/mine"}
    with pytest.raises(ConfigError, match=r'1 GPU for 2 models, and nobody .* "mine" takes; write'):
        placed(TURBO, unknown, on=machine(A))


def test_workers_of_the_file_have_the_model_that_they_name() -> None:
    groups = [{"device": "cpu"}, {"device": "cpu", "model": "SMALL"}]
    config = parse({"models": [TURBO, SMALL], "workers": groups})
    assert [w.model for w in plan(config, machine()).workers] == ["turbo", "small"]
