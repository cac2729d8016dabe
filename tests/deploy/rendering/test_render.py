import configparser
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster import settings as membership_settings
from deploy.config import ROOT, parse
from deploy.guard import settings as guard_settings
from deploy.host.machine import Gpu, Machine
from deploy.layout import Layout
from deploy.rendering.membership import MEMBERSHIP_CODE
from deploy.rendering.plan import plan
from deploy.rendering.render import (
    ALARMS_CODE,
    GUARD_CODE,
    Host,
    render,
    settings_document,
    worker_environment,
)
from worker.coordination.served_models import pool_of
from worker.settings import DOCUMENT, Settings

HOST = Host(
    "/usr/sbin/nginx",
    (1, 22, 1),
    2,
    "/venv/python",
    "me",
    "/home/me",
    "c0de",
    "c1de",
    "/python",
    "pac4",
)
LAYOUT = Layout(Path("/srv/50% of/var"), Path("/srv/50% of/var/run"))
CPU = Machine(2, 24.0, 23.0, ())
GPU = Machine(16, 24.0, 23.0, (Gpu("0", "GPU-aa", "H100", 79.6, 79.0, "580"),))


def rendered(machine: Machine = CPU, **config: object) -> dict[str, str]:
    parsed = parse(config)
    return render(parsed, plan(parsed, machine), LAYOUT, HOST)


def environment(machine: Machine = CPU, **config: object) -> dict[str, str]:
    parsed = parse(config)
    return worker_environment(parsed, plan(parsed, machine).workers[0], LAYOUT, HOST)


def settings(machine: Machine = CPU, **config: object) -> dict[str, Any]:
    parsed = parse(config)
    text = settings_document(parsed, plan(parsed, machine).workers[0], LAYOUT)[1]
    return dict(json.loads(text))


def supervisor(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    parser.read_string(text)
    return parser


def test_supervisor_has_nginx_guard_and_one_program_a_worker() -> None:
    programs = [s for s in supervisor(rendered()["supervisord.conf"]).sections() if ":" in s]
    assert programs[1:] == [f"program:{name}" for name in ("guard", "w1", "w2", "w3", "nginx")]


def test_every_program_dies_with_its_group_and_has_bounded_logs() -> None:
    parsed = supervisor(rendered(logs={"max_mib": 7, "keep": 2})["supervisord.conf"])
    programs = [parsed[s] for s in parsed.sections() if s.startswith("program:")]
    for key, value in (
        ("stopasgroup", "true"),
        ("killasgroup", "true"),
        ("stdout_logfile_maxbytes", "7MB"),
        ("stdout_logfile_backups", "2"),
    ):
        assert {program[key] for program in programs} == {value}


def test_percent_signs_are_escaped_for_supervisor() -> None:
    parsed = supervisor(rendered()["supervisord.conf"])
    assert parsed["supervisord"]["pidfile"] == "/srv/50%% of/var/state/supervisord.pid"


def test_supervisor_outwaits_the_drain_of_its_workers() -> None:
    parsed = supervisor(rendered(timeouts={"drain_timeout_s": 30.0})["supervisord.conf"])
    assert int(parsed["program:w1"]["stopwaitsecs"]) > 30
    assert int(parsed["program:nginx"]["stopwaitsecs"]) > 30


def test_worker_settings_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {
        "limits": {"request": {"max_pixels": 65536}},
        "model": {"steps": 4, "source": "synthetic:"},
    }
    document = tmp_path / "w1.json"
    document.write_text(json.dumps(settings(**wanted)))
    monkeypatch.setenv(DOCUMENT, str(document))
    read = Settings()
    assert (read.name, read.max_pixels, read.steps) == ("w1", 65536, 4)
    assert (read.model, read.guidance_scale) == ("synthetic:", None)
    assert settings(GPU)["max_pixels"] == 1792 * 1024


def test_workers_are_told_of_the_bucket_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "objects" not in settings()
    told = {"url": "s3://pictures/a/b", "endpoint": "http://10.0.0.9:9000"}
    document = tmp_path / "w1.json"
    document.write_text(json.dumps(settings(objects={**told, "credentials_file": "s3-key"})))
    monkeypatch.setenv(DOCUMENT, str(document))
    read = Settings().objects
    assert (read.on, read.bucket, read.prefix, read.spool_gib) == (True, "pictures", "a/b", 10.0)
    assert Path(read.credentials_file) == ROOT / "s3-key"


def test_workers_are_told_which_levers_to_pull() -> None:
    wanted = {"attention": "cudnn", "graphs": "off", "kernels": "off", "products": "native"}
    given = settings(GPU, model=wanted)
    assert {key: given[key] for key in wanted} == wanted


def test_a_program_says_where_its_settings_stand_and_who_it_is() -> None:
    given = environment()
    own = {key: value for key, value in given.items() if key.startswith("ZIMAGE_")}
    assert set(own) == {"ZIMAGE_NAME", "ZIMAGE_RUN_DIR", "ZIMAGE_SETTINGS"}
    name = Path(own["ZIMAGE_SETTINGS"]).relative_to(LAYOUT.render_dir).as_posix()
    assert json.loads(rendered()[name]) == settings()


def test_a_setting_of_one_worker_changes_its_program_alone() -> None:
    groups: list[dict[str, Any]] = [{"device": "cpu"}, {"device": "cpu", "threads": 1}]
    old = supervisor(rendered(workers=groups)["supervisord.conf"])
    groups[1]["threads"] = 2
    new = supervisor(rendered(workers=groups)["supervisord.conf"])
    assert [name for name in old.sections() if dict(old[name]) != dict(new[name])] == ["program:w2"]


def test_a_setting_of_all_workers_changes_their_programs_alone() -> None:
    old = supervisor(rendered()["supervisord.conf"])
    new = supervisor(rendered(limits={"worker": {"max_batch": 2}})["supervisord.conf"])
    changed = [name for name in old.sections() if dict(old[name]) != dict(new[name])]
    assert changed == ["program:w1", "program:w2", "program:w3"]


def test_what_gpu_workers_build_is_kept_for_all_of_them() -> None:
    given = environment(GPU)
    caches = ("TRITON_CACHE_DIR", "QUACK_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR")
    assert len({Path(given[cache]).parent for cache in caches}) == 1
    assert given["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"


def test_what_python_compiled_is_kept() -> None:
    assert environment()["PYTHONDONTWRITEBYTECODE"] == ""


def test_workers_read_and_write_utf8_whatever_the_locale() -> None:
    assert environment(environment={"LC_ALL": "zh_CN.GB18030"})["PYTHONUTF8"] == "1"


def test_cpu_workers_get_their_share_of_threads() -> None:
    assert environment()["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in environment()


def test_gpu_workers_see_their_own_card_alone() -> None:
    given = environment(GPU)
    assert given["CUDA_VISIBLE_DEVICES"] == settings(GPU)["device"] == "GPU-aa"
    assert given["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_environment_of_the_file_reaches_workers_and_wins() -> None:
    given = environment(environment={"HF_HOME": "/data/hub", "HTTPS_PROXY": "http://proxy"})
    assert (given["HF_HOME"], given["HTTPS_PROXY"]) == ("/data/hub", "http://proxy")


def test_new_code_changes_the_programs_that_run_it() -> None:
    config = parse({})
    planned = plan(config, CPU)
    old = render(config, planned, LAYOUT, HOST)
    new = render(config, planned, LAYOUT, replace(HOST, worker_code="beef"))
    assert {name for name in old if old[name] != new[name]} == {"supervisord.conf"}


def test_guard_understands_what_is_rendered_for_it(tmp_path: Path) -> None:
    path = tmp_path / "guard.json"
    path.write_text(rendered(guard={"silence_s": 0.9})["guard.json"])
    settings = guard_settings.load(path)
    assert (settings.cell, settings.guard.silence_s) == ("zimage", 0.9)
    assert [worker.name for worker in settings.workers] == ["w1", "w2", "w3"]


def test_guard_is_told_no_more_than_it_needs() -> None:
    told = json.loads(rendered()["guard.json"])
    assert set(told) <= set(guard_settings.GuardSettings.model_fields)
    assert set(told["guard"]) <= set(guard_settings.Rules.model_fields)


@pytest.mark.parametrize(
    ("program", "counted"),
    [
        ("deploy/guard/__main__.py", GUARD_CODE),
        ("deploy/cluster/__main__.py", MEMBERSHIP_CODE),
        ("deploy/alarms/__main__.py", ALARMS_CODE),
    ],
)
def test_all_that_a_program_loads_of_ours_counts_as_its_code(
    program: str, counted: tuple[str, ...]
) -> None:
    module = program.removesuffix(".py").replace("/", ".")
    files = "[getattr(m, '__file__', None) for m in sys.modules.values()]"
    code = f"import json, sys, {module}; print(json.dumps({files}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = [Path(file) for file in json.loads(done.stdout) if file]
    ours = {file.relative_to(ROOT) for file in loaded if file.is_relative_to(ROOT)}
    ours = {p for p in ours if p.parts[0] in ("deploy", "worker")}
    packages = {path for path in ours if path.name == "__init__.py"}  # they hold no code
    assert Path(program) in ours
    assert {p for p in ours - packages if not any(map(p.is_relative_to, counted))} == set()


CLUSTER: dict[str, Any] = {
    "cluster": {"name": "studio", "host": "a", "address": "10.0.0.7:7862", "role": "both"},
    "database": {"url": "postgresql://zimage@db1/zimage"},
    "objects": {
        "url": "s3://pictures",
        "endpoint": "http://10.0.0.9:9",
        "credentials_file": "s3-key",
    },
}


def test_a_host_of_a_cluster_has_a_program_more_that_is_started_again() -> None:
    alone, files = rendered(), of_cluster("host")
    assert "membership.json" in files.keys() - alone.keys()
    programs = supervisor(files["supervisord.conf"]).keys()
    more = programs - supervisor(alone["supervisord.conf"]).keys()
    assert more == {"program:membership"}
    assert json.loads(files["guard.json"])["programs"] == ["nginx", "membership"]
    assert "programs" not in json.loads(alone["guard.json"])


def test_operators_of_a_cluster_get_its_hosts_where_prometheus_looks_for_them() -> None:
    alone, files = rendered(), rendered(**CLUSTER)
    ops, found = files["conf.d/ops.conf"], files["monitoring/prometheus.yml"]
    for path, file in (("/hosts/metrics", "hosts.prom"), ("/hosts/targets.json", "targets.json")):
        assert path in found
        block = ops.split(f"location = {path} {{", 1)[1].split("}\n\n", 1)[0]
        assert f'{file}";' in block
    assert "/hosts/" not in alone["conf.d/ops.conf"] + alone["monitoring/prometheus.yml"]


def test_membership_reads_who_this_host_is(tmp_path: Path) -> None:
    path = tmp_path / "membership.json"
    path.write_text(rendered(**CLUSTER)["membership.json"])
    told = membership_settings.load(path)
    assert (told.cluster, told.host, told.address) == ("studio", "a", "10.0.0.7:7862")
    assert (told.role, told.workers, told.models) == ("both", 3, ("tiny",))
    assert told.database_url == LAYOUT.database_url


def worker_settings(files: dict[str, str]) -> dict[str, Any]:
    [text, *_] = [files[name] for name in sorted(files) if name.startswith("workers/w1-")]
    told: dict[str, Any] = json.loads(text)
    return told


def test_workers_of_a_cluster_know_their_host_and_trust_keys_for_less_long() -> None:
    alone, told = worker_settings(rendered()), worker_settings(rendered(**CLUSTER))
    assert not {"host", "cluster_secret"} & alone.keys()
    assert told["cluster_secret"] == str(LAYOUT.cluster_secret)
    assert (alone["key_cache_s"], told["key_cache_s"], told["host"]) == (3600.0, 300.0, "a")
    asked = rendered(**CLUSTER, auth={"key_cache_s": 60.0})
    assert worker_settings(asked)["key_cache_s"] == 60.0


def test_a_front_alone_has_no_workers_for_others(tmp_path: Path) -> None:
    front = {**CLUSTER, "cluster": {"name": "studio", "host": "f", "role": "front"}}
    assert json.loads(rendered(**front)["membership.json"])["workers"] == 0


def test_what_membership_reads_restarts_it_alone() -> None:
    old = supervisor(rendered(**CLUSTER)["supervisord.conf"])
    new = supervisor(rendered(**CLUSTER, front={"lost_s": 3.0})["supervisord.conf"])
    changed = [name for name in old.sections() if dict(old[name]) != dict(new[name])]
    assert changed == ["program:membership"]


def test_a_host_without_a_name_of_its_own_is_called_as_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unnamed = {**CLUSTER, "cluster": {"name": "studio", "address": "10.0.0.7:7862"}}
    for machine, name in (("GPU_7.example", "gpu-7"), ("7th", "h7th"), ("_", "host")):
        monkeypatch.setattr("socket.gethostname", lambda machine=machine: machine)
        assert json.loads(rendered(**unnamed)["membership.json"])["host"] == name


def of_cluster(role: str, links: dict[str, int] | None = None, waiting: int = 0) -> dict[str, str]:
    address = {} if role == "front" else {"address": "10.0.0.7:7862"}
    config = parse({**CLUSTER, "cluster": {"name": "studio", "role": role, **address}})
    return render(config, plan(config, CPU, links, waiting), LAYOUT, HOST)


def test_a_host_of_its_own_has_nothing_of_a_cluster() -> None:
    texts = {name: text for name, text in rendered().items() if not name.startswith("monitoring")}
    assert not [name for name in texts if "cluster" in name]
    for word in ("told_request_id", "hosts_draw", "h1.sock", "link-", "ssl_verify_client"):
        assert not [name for name, text in texts.items() if word in text]


def test_a_host_of_a_cluster_has_a_server_for_fronts() -> None:
    texts = of_cluster("host")
    assert "listen 0.0.0.0:7862 default_server" in texts["cluster.d/fronts.conf"]
    assert "proxy_pass http://draw;" in texts["conf.d/locations.conf"]
    assert "limit_" not in texts["cluster.d/fronts-locations.conf"]
    assert "link-h1" not in texts["supervisord.conf"]
    assert "cluster.d/hosts.conf" not in texts


def test_a_front_has_links_and_no_workers() -> None:
    texts = of_cluster("front")
    programs = [s for s in supervisor(texts["supervisord.conf"]).sections() if ":" in s][1:]
    spare = [f"program:link-h{n}" for n in range(1, 9)]
    assert programs == ["program:guard", "program:membership", *spare, "program:nginx"]
    assert json.loads(texts["guard.json"])["workers"] == []
    assert "proxy_pass http://hosts_draw;" in texts["conf.d/locations.conf"]
    assert "/internal/" not in texts["conf.d/locations.conf"].replace("/internal/ops", "")
    assert "cluster.d/fronts.conf" not in texts


def test_a_machine_that_is_both_hands_its_clients_requests_to_hosts() -> None:
    texts = of_cluster("both")
    assert "proxy_pass http://hosts_draw;" in texts["conf.d/locations.conf"]
    assert "proxy_pass http://draw;" in texts["cluster.d/fronts-locations.conf"]


def test_hosts_weigh_what_their_workers_do_and_spare_ones_as_most() -> None:
    hosts = of_cluster("front", {"h2": 8, "h5": 4, "h6": 8})["cluster.d/hosts.conf"]
    found = re.findall(r"/(h\d+)\.sock\" weight=(\d+) max_fails=", hosts)
    weights = {"h2": "8", "h5": "4", "h6": "8"}
    spare = ("h1", "h3", "h4", "h7", "h8", "h9", "h10", "h11")
    assert dict(found) == {**weights, **dict.fromkeys(spare, "8")}
    never_out = re.findall(r"/(h\d+)\.sock\" weight=\d+ max_fails=0;", hosts)
    assert set(never_out) == set(weights)  # a spare one is tried once a second
    assert [name for name, _ in found] == [f"h{n}" for n in range(1, 12)]


def test_hosts_that_wait_for_a_link_get_one_beside_the_spare_ones() -> None:
    hosts = of_cluster("front", {"h1": 4}, waiting=90)["cluster.d/hosts.conf"]
    found = dict(re.findall(r"/(h\d+)\.sock\" weight=(\d+) max_fails=", hosts))
    assert found == dict.fromkeys((f"h{n}" for n in range(1, 1 + 1 + 90 + 8)), "4")


def test_the_guard_of_a_front_reads_what_is_rendered_for_it(tmp_path: Path) -> None:
    path = tmp_path / "guard.json"
    path.write_text(of_cluster("front")["guard.json"])
    front = guard_settings.load(path).front
    assert front is not None
    assert (front.links[0], front.silence_s, front.lost_s) == ("h1", 0.5, 1.5)


A, B, C = (pool_of(name) for name in "abc")


def of_models(serves: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """A front of hosts that have other models, by their links."""
    config = parse({**CLUSTER, "cluster": {"name": "studio", "role": "front"}})
    used = {"h1": 8, "h2": 4, "h3": 2}
    return render(config, plan(config, CPU, used, serves=serves), LAYOUT, HOST)


def test_a_front_has_a_pool_for_each_model_where_hosts_have_other_ones() -> None:
    texts = of_models({"h1": (A, C), "h2": (B, C), "h3": (B,)})
    hosts, locations = texts["cluster.d/hosts.conf"], texts["conf.d/locations.conf"]
    found = {}
    for pool in (A, B, C):
        for kind, suffix in (("draw", ""), ("read", "-read")):
            [block] = re.findall(rf"upstream hosts_{kind}_{pool} {{(.*?)\n}}", hosts, re.S)
            gates = re.findall(rf"/(h\d+){suffix}\.sock\" weight=(\d+) max_fails=0;", block)
            found[pool, kind] = dict(gates)
        assert f"location @pool_{pool} {{" in locations
    of_a, of_b, of_c = {"h1": "8"}, {"h2": "4", "h3": "2"}, {"h1": "8", "h2": "4"}
    assert found == {
        (pool, kind): gates
        for pool, gates in ((A, of_a), (B, of_b), (C, of_c))
        for kind in ("draw", "read")
    }
    told = re.findall(r'X-Front-Pools "([^"]+)"', texts["conf.d/proxy.conf"])
    assert set(told[0].split(",")) == {"any", A, B, C}
    assert json.loads(texts["guard.json"])["front"]["serves"]["h3"] == [B]


def test_a_front_whose_hosts_have_the_same_has_no_pools_of_models() -> None:
    texts = of_models({})
    assert re.findall(r"@pool_(\w+)", texts["conf.d/locations.conf"]) == ["any"]
    assert not any("hosts_draw_" in text for text in texts.values())
    assert "serves" not in json.loads(texts["guard.json"])["front"]


TWO = [{"name": "turbo"}, {"name": "photo", "source": "synthetic:", "steps": 4}]


def test_membership_tells_of_all_models_in_full(tmp_path: Path) -> None:
    config = parse(
        {
            **CLUSTER,
            "models": [*TWO],
            "cluster": {"name": "studio", "role": "host", "address": "10.0.0.7:7862"},
        }
    )
    path = tmp_path / "membership.json"
    path.write_text(render(config, plan(config, CPU), LAYOUT, HOST)[path.name])
    told = membership_settings.load(path)
    assert [model.name for model in told.serves] == ["turbo", "photo"]
    assert told.serves[0].aliases
    assert told.serves[1].source == "synthetic:"
    path.write_text(of_cluster("front")[path.name])
    assert membership_settings.load(path).serves == ()


def test_one_model_in_a_list_is_rendered_as_the_one_model() -> None:
    entry = {"name": "turbo", "source": "synthetic:"}
    texts = rendered(models=[entry])
    assert texts == rendered(model=entry)
    assert not any("X-Pool" in text for text in texts.values())
    assert "models.json" not in texts


def test_each_model_has_its_workers_and_a_pool_of_them() -> None:
    texts = rendered(models=TWO)
    told = [json.loads(t) for n, t in sorted(texts.items()) if n.startswith("workers/")]
    assert [(each["model"], each["names"]["name"], each.get("steps")) for each in told] == [
        ("tiny", "turbo", None),
        ("tiny", "turbo", None),
        ("synthetic:", "photo", 4),
    ]
    pools = re.findall(r"^upstream draw_(\w+) \{(.*?)^\}", texts["conf.d/pool.conf"], re.M | re.S)
    members = {pool: re.findall(r"/(w\d)\.sock", text) for pool, text in pools}
    assert members == {pool_of("turbo"): ["w1", "w2"], pool_of("photo"): ["w3"]}
    for pool in members:
        assert f"location @pool_{pool} " in texts["conf.d/locations.conf"]
    guarded = json.loads(texts["guard.json"])["workers"]
    assert [each["model"] for each in guarded] == ["turbo", "turbo", "photo"]


def test_another_model_changes_no_settings_of_workers_that_stay() -> None:
    def turbos(*models: Any) -> list[str]:
        told = rendered(models=list(models), workers=workers(*models))
        return [name for name in told if name.startswith(("workers/w1", "workers/w2"))]

    def workers(*models: Any) -> list[dict[str, Any]]:
        count = {"count": 1, "threads": 1}
        return [{"device": "cpu", "model": each["name"], **count} for each in models]

    third = {"name": "third", "source": "synthetic:"}
    assert turbos(*TWO) == turbos(*TWO, third)


def test_pool_of_a_model_is_the_same_wherever_it_stands_in_the_list() -> None:
    pools = rendered(models=TWO)["conf.d/pool.conf"], rendered(models=TWO[::-1])["conf.d/pool.conf"]
    assert pool_of("PHOTO") == pool_of("photo")
    assert all(f"draw_{pool_of('photo')} " in text for text in pools)
