from pathlib import Path

from deploy.host.machine import find_nginx, mount_kind, parse_gpus, read

CSV = """\
0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 80994, 580.65.06
1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559, 1024, 580.65.06
"""

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
  MIG 3g.40gb     Device  0: (UUID: MIG-cccc)
  MIG 3g.40gb     Device  1: (UUID: MIG-dddd)
"""


def test_cards_are_read_with_their_memory() -> None:
    first, second = parse_gpus(CSV, "")
    assert (first.index, first.uuid, first.memory_gib) == ("0", "GPU-aaaa", 79.6)
    assert (second.free_gib, second.driver) == (1.0, "580.65.06")


def test_slices_take_the_place_of_their_card() -> None:
    assert [gpu.uuid for gpu in parse_gpus(CSV, LISTING)] == ["GPU-aaaa", "MIG-cccc", "MIG-dddd"]


def test_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = (
        "a / ext4 rw 0 0\nb:/x /srv/big\\040disk nfs4 rw 0 0\nc /srv/big\\040disk/in xfs rw 0 0"
    )
    kinds = [
        mount_kind(Path(place), mounts)
        for place in ("/srv", "/srv/big disk/var", "/srv/big disk/in/var", "/srv/big disk 2")
    ]
    assert kinds == ["ext4", "nfs4", "xfs", "ext4"]


def test_this_machine_has_cores_and_memory() -> None:
    here = read()
    assert here.cores >= 1
    assert 0 < here.available_gib <= here.memory_gib


def test_nginx_is_found_off_the_path_and_asked_for_its_version() -> None:
    found = find_nginx("nginx")
    assert found is not None
    assert found.version >= (1, 22, 0)
    assert find_nginx("no-such-nginx") is None
