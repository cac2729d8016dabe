import tomllib
from pathlib import Path

import pytest

from deploy.config import DEFAULT_PATH, ClusterConfig, ConfigError, load, parse

WRONG = [
    ('workers = "two"', 'workers: must be "auto", not "two"; the default is "auto"'),
    ("workers = 3", 'workers: must be "auto" or [[workers]] tables, not 3; the default is "auto"'),
    ("workers = []", 'workers: a cell needs one worker at least; write workers = "auto"'),
    (
        '[[workers]]\ndevice = "gpu"',
        'workers[0].device: must be "cpu", a GPU\'s number such as "0", or a UUID from '
        'nvidia-smi -L, not "gpu"; see [workers] in deploy/cluster.toml',
    ),
    (
        "[[workers]]\ncount = 2",
        'workers[0].device: missing; name one, or name several as devices = "0,1"',
    ),
    (
        '[[workers]]\ndevice = "0"\ndevices = "0,1"',
        'workers[0].device: there is devices as well; name one, or name several as devices = "0,1"',
    ),
    (
        '[[workers]]\ndevices = "0,MIG-1"',
        'workers[0].devices: must be two or more GPUs\' numbers or UUIDs, such as "0,1"; slices '
        'cannot be joined, not "0,MIG-1"; see [workers] in deploy/cluster.toml',
    ),
    (
        '[[workers]]\ndevices = "0, 1"\ncount = 2',
        "workers[0].count: 2 workers share the same GPUs; one uses all of them: delete it",
    ),
    (
        '[[workers]]\ndevices = "1,1"',
        'workers[0].devices: a GPU is named twice in "1,1"; name each once',
    ),
    (
        '[[workers]]\ndevices = "0,1"\n[[workers]]\ndevice = "1"\nvram_limit_gib = 9.0',
        "workers[0].vram_limit_gib: GPU 1 is shared without limits; set how many GiB each "
        "worker may use, CUDA context (1 GiB) included",
    ),
    (
        '[[workers]]\ndevice = "0"\ncount = 2',
        "workers[0].vram_limit_gib: 2 workers share one GPU without limits; "
        "set how many GiB each may use, CUDA context (1 GiB) included",
    ),
    (
        '[[workers]]\ndevice = "0"\n[[workers]]\ndevice = "0"\nvram_limit_gib = 9.0',
        "workers[0].vram_limit_gib: GPU 0 is shared without limits; "
        "set how many GiB each worker may use, CUDA context (1 GiB) included",
    ),
    (
        '[[workers]]\ndevice = "cpu"\nvram_limit_gib = 9.0',
        "workers[0].vram_limit_gib: a CPU worker has no video memory; remove the key",
    ),
    ("[limit]", 'limit: unknown key; did you mean "limits"?'),
    (
        "[limits]\nmax_pixles = 1",
        'limits.max_pixles: unknown key; did you mean "request.max_pixels"?',
    ),
    (
        "[limits]\nmax_steps = 9\n[limits.request]\nmax_steps = 8",
        'limits.max_steps: unknown key; did you mean "request.max_steps"?',
    ),
    (
        "[limits]\nmax_steps = 0",
        "limits.request.max_steps: must be at least 1, not 0; the default is 50",
    ),
    (
        "[limits]\nrequest = 1",
        "limits.request: must be a table, not 1; write [limits.request] on a line of its own",
    ),
    ("[listen]\nadress = 1", 'listen.adress: unknown key; did you mean "address"?'),
    (
        "[listen]\ntls = true",
        "listen.tls: unknown key; this table has address, port, auth, trusted_proxies, public_url, "
        "allowed_origins",
    ),
    (
        '[database]\nurl = "mysql://db/zimage"',
        'database.url: must be "sqlite:////absolute/path/of/a/file.db" or '
        '"postgresql://user@host/name", not "mysql://db/zimage"; the default is ""',
    ),
    *(
        (
            f'[database]\nurl = "{url}"',
            "database.url: there is a password in it, for all to read; "
            "put it into a file of your own and name that in database.password_file",
        )
        for url in ("postgresql://me:secret@db/zimage", "postgresql://db/zimage?password=secret")
    ),
    (
        '[database]\npassword_file = "/run/password"',
        "database.password_file: database.url names no PostgreSQL; delete it",
    ),
    ("listen = 80", "listen: must be a table, not 80; write [listen] on a line of its own"),
    (
        '[listen]\nport = "80"',
        'listen.port: must be a whole number, not "80"; the default is 7860',
    ),
    ("[listen]\nport = 0", "listen.port: must be at least 1, not 0; the default is 7860"),
    (
        "[listen]\nport = 99999",
        "listen.port: must be at most 65535, not 99999; the default is 7860",
    ),
    (
        '[listen]\naddress = "0.0.0.0"',
        'listen.address: other machines could draw without a key on "0.0.0.0"; use "127.0.0.1"; '
        'or set listen.auth = "keys" and make keys with zimage keys create; '
        'or "none" if everybody who can connect may',
    ),
    (
        '[listen]\nauth = "off"',
        'listen.auth: must be "loopback", "keys" or "none", not "off"; the default is "loopback"',
    ),
    (
        '[listen]\nallowed_origins = ["https://chat.example"]',
        "listen.allowed_origins: without keys, pages of https://chat.example would draw as whoever "
        'looks at them; set listen.auth = "keys", or delete it',
    ),
    (
        '[listen]\nauth = "keys"\nallowed_origins = ["https://chat.example/"]',
        "listen.allowed_origins[0]: must be an origin as browsers send it, such as "
        '"https://chat.example.com", "app://obsidian.md" or "null", without a path; or "*", not '
        '"https://chat.example/"; see [listen] in deploy/cluster.toml',
    ),
    ("[listen]\nport = 7861", "ops.port: 7861 is also listen.port; choose another, such as 7862"),
    (
        '[model]\nsource = "poster.safetensors"',
        "model.base: missing: one file holds the transformer alone; "
        'name the model that it was made from, such as "Tongyi-MAI/Z-Image-Turbo"',
    ),
    (
        '[model]\nbase = "tiny"',
        "model.base: has no meaning unless model.source is a .safetensors file; delete it",
    ),
    (
        '[model]\nmirror = "hf-mirror.com"',
        "model.mirror: must be the address of a hub's mirror, such as "
        '"https://hf-mirror.com", not "hf-mirror.com"; the default is ""',
    ),
    (
        '[cluster]\naddress = "10.0.0.7:7862"',
        "cluster.address: has no meaning without cluster.name; set that one, too",
    ),
    (
        '[cluster]\nname = "studio"',
        "cluster.address: missing beside cluster.name; name where fronts find this host, such as "
        '"10.0.0.7:7862"',
    ),
    (
        '[cluster]\nname = "studio"\naddress = "10.0.0.7"',
        'cluster.address: must be a host and a port such as "10.0.0.7:7862", not "10.0.0.7"; '
        'the default is ""',
    ),
    (
        '[cluster]\nname = "studio"\nrole = "front"\n[objects]\nurl = "s3://pictures/a"\n'
        'endpoint = "https://s3.example.com"\ncredentials_file = "key"',
        "database.url: the hosts of a cluster share one PostgreSQL; name it, such as "
        '"postgresql://zimage@db1/zimage" (docs/postgres.md)',
    ),
    (
        '[cluster]\nname = "studio"\nrole = "front"\n[database]\nurl = "postgresql://db1/zimage"',
        "objects.url: the hosts of a cluster share one store of pictures; name a bucket, such as "
        '"s3://bucket/prefix"',
    ),
    (
        "[front]\nlost_s = 0.2",
        "front.lost_s: 0.2 s is less than front.silence_s (0.5 s); raise it, or lower "
        "front.silence_s",
    ),
    (
        '[objects]\nurl = "https://bucket"',
        "objects.url: must be a bucket and what its objects' names begin with: "
        '"s3://bucket/prefix", not "https://bucket"; the default is ""',
    ),
    (
        '[objects]\nurl = "s3://pictures/"',
        "objects.url: must be a bucket and what its objects' names begin with: "
        '"s3://bucket/prefix", not "s3://pictures/"; the default is ""',
    ),
    (
        '[objects]\nurl = "s3://pictures/a"\nendpoint = "https://s3.example.com"',
        "objects.credentials_file: missing beside objects.url; "
        "name a file with a key of the store, as the AWS command line reads it",
    ),
    (
        '[objects]\nendpoint = "https://s3.example.com"',
        "objects.endpoint: has no meaning without objects.url; set that one, too",
    ),
    (
        '[tls]\ncertificate = "full.pem"',
        "tls.key: missing beside tls.certificate; name both files, or neither",
    ),
    (
        '[tls]\ncertificate = "a"\nkey = "b"\nself_signed = true',
        "tls.self_signed: there is a certificate as well; delete one of the two settings",
    ),
    (
        "[tls]\nhsts_s = 60",
        "tls.hsts_s: has no meaning without HTTPS; "
        "set tls.certificate and tls.key, or tls.self_signed = true",
    ),
    (
        '[tls]\nself_signed = "yes"',
        'tls.self_signed: must be true or false, not "yes"; the default is false',
    ),
    (
        '[tls]\nself_signed = true\nnames = ["a b"]',
        'tls.names[0]: must be a host\'s name or an IP address, not "a b"; '
        "see [tls] in deploy/cluster.toml",
    ),
    (
        "[tls]\nself_signed = true\nhttp_port = 7860",
        "tls.http_port: 7860 is also listen.port; choose another, such as 7861",
    ),
    (
        '[ops]\naddress = "10.0.0.1"',
        'ops.address: "10.0.0.1" is not a loopback address; use "127.0.0.1"',
    ),
    (
        "[model]\nsteps = 0.5",
        'model.steps: must be a whole number or "auto", not 0.5; the default is "auto"',
    ),
    (
        "[model]\nsteps = 60",
        "model.steps: 60 is over limits.request.max_steps (50); lower it or raise the limit",
    ),
    (
        '[model]\ndtype = "int8"',
        'model.dtype: must be "auto", "float32", "bfloat16" or "float16", not "int8"; '
        'the default is "auto"',
    ),
    (
        '[cell]\nname = "My Cell"',
        "cell.name: must be small letters, digits and dashes (32 at most), "
        'not "My Cell"; the default is "zimage"',
    ),
    (
        '[cell]\nvar_dir = "a;b"',
        "cell.var_dir: must be a path without quotes, backslashes, control characters "
        'and any of $ ; # { } * ? [ ] : %, not "a;b"; the default is "var"',
    ),
    (
        "[guard]\nsilence_s = 0.1",
        "guard.silence_s: 0.1 s is less than two probes (0.2 s each); one lost probe would close "
        "a healthy worker: raise it to 0.4 or more, or lower guard.probe_interval_s",
    ),
    (
        "[timeouts]\ndrain_timeout_s = 0.0",
        "timeouts.drain_timeout_s: must be more than 0.0, not 0; the default is 120",
    ),
    (
        "[environment]\nA = 1",
        "environment.A: must be text in quotes, not 1; see [environment] in deploy/cluster.toml",
    ),
    (
        '[environment]\nZIMAGE_STEPS = "1"',
        "environment.ZIMAGE_STEPS: the cell sets this itself; use the key of its own section",
    ),
    (
        "[environment]\nA = 'say \"x\"'",
        "environment.A: supervisor cannot pass on double quotes, control characters, "
        "; or # after a blank, and ' at the ends; name a file or a link without them",
    ),
]


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("https://draw.example.com", "draw.example.com", ""),
        ("https://Example.com:443/draw/", "example.com", "/draw"),
        ("http://[::1]:8080/a/b", "[::1]:8080", "/a/b"),
    ],
)
def test_public_url_is_read_in_its_parts(url: str, host: str, path: str) -> None:
    public = parse({"listen": {"public_url": url}}).listen.public
    assert public is not None
    assert (public.host, public.path) == (host, path)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("draw.example.com", "must be the address of the page"),
        ("https://example.com/a?b", "must be the address of the page"),
        ("https://example.com/../a", "must be the address of the page"),
        ("https://example.com:70000", "its port is over 65535"),
        ("https://example.com/v1/draw", 'the cell has a "/v1/draw" of its own'),
    ],
)
def test_public_url_that_leads_nowhere_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({"listen": {"public_url": url}})
    assert says in error.value.problems[0]
    assert error.value.problems[0].startswith("listen.public_url: ")


@pytest.mark.parametrize(("toml", "line"), WRONG)
def test_wrong_file_is_refused_with_its_remedy(toml: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(tomllib.loads(toml))
    assert error.value.problems == [line]


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse({"listen": {"port": "x"}, "modle": {}, "limits": {"worker": {"max_batch": 0}}})
    assert [p.split(":")[0] for p in error.value.problems] == [
        "listen.port",
        "limits.worker.max_batch",
        "modle",
    ]


def test_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"No such file or directory; give its path with --config"
    ):
        load(tmp_path / "cluster.toml")


def test_half_written_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("[listen]\nport =")
    with pytest.raises(ConfigError, match=r"not TOML: Invalid value \(at end of document\)"):
        load(path)


def test_a_byte_order_mark_is_no_mistake_and_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    text = '[cell]  # 画室\nname = "studio"\n'
    path.write_text(text, encoding="utf-8-sig")
    assert load(path).cell.name == "studio"
    path.write_text(text, encoding="gb18030")
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        load(path)


def test_default_file_shows_every_key_with_its_default() -> None:
    shown = tomllib.loads(DEFAULT_PATH.read_text())
    assert shown == ClusterConfig().model_dump()


def test_every_address_is_fine_once_the_file_says_that_nobody_needs_a_key() -> None:
    config = parse({"listen": {"address": "0.0.0.0", "auth": "none"}})
    assert config.listen.address == "0.0.0.0"


def test_one_gpu_may_be_shared_within_limits() -> None:
    config = parse({"workers": [{"device": "0", "count": 2, "vram_limit_gib": 30}]})
    assert [group.count for group in config.workers if group != "auto"] == [2]


def test_old_names_of_limits_are_read_with_a_warning() -> None:
    warnings: list[str] = []
    old = {"max_pixels": 65536, "max_batch": 2, "job_keep_days": 3.0, "request": {"max_steps": 9}}
    limits = parse({"limits": old}, warn=warnings.append).limits
    assert (limits.request.max_pixels, limits.request.max_steps) == (65536, 9)
    assert (limits.worker.max_batch, limits.owner.job_keep_days) == (2, 3.0)
    assert warnings == [
        f"limits.{key} is now limits.{table}.{key}: write it below [limits.{table}]; "
        "the next version does not read the old name"
        for table, key in (
            ("request", "max_pixels"),
            ("worker", "max_batch"),
            ("owner", "job_keep_days"),
        )
    ]


def test_new_names_are_read_without_a_warning() -> None:
    parse(tomllib.loads(DEFAULT_PATH.read_text(encoding="utf-8")), warn=pytest.fail)


TWO = {"models": [{"name": "turbo"}, {"name": "photo", "source": "synthetic:"}]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[[models]]\nname = "a"\n[model]\nsource = "tiny"',
            "models: there is a [model] as well; make it the first of [[models]], with a name, "
            "and delete [model]",
        ),
        (
            '[[models]]\nname = "a"\n[[models]]\nsource = "tiny"',
            "models[1].name: missing: each of several models has its own; give it one, by which "
            "requests and [[workers]] ask for it",
        ),
        (
            '[[models]]\nname = "a"\naliases = ["X"]\n[[models]]\nname = "b"\naliases = ["x"]',
            'models[1].aliases: "x" is also in models[0].aliases; a name means one model: '
            "change one",
        ),
        (
            '[[models]]\nname = "a"\n[[models]]\nname = "A"',
            'models[1].name: "A" is also in models[0].name; a name means one model: change one',
        ),
        (
            '[[models]]\nname = "a"\n[[models]]\nname = "b"\nsteps = 60',
            "models[1].steps: 60 is over limits.request.max_steps (50); "
            "lower it or raise the limit",
        ),
        (
            '[[models]]\nname = "a"\n[[models]]\nname = "b"\nstepz = 6',
            'models[1].stepz: unknown key; did you mean "steps"?',
        ),
        (
            '[[models]]\nname = "a"\n[[models]]\nname = "b"\n'
            '[[workers]]\ndevice = "cpu"\nmodel = "c"',
            'workers[0].model: there is no model "c"; the file has "a", "b"',
        ),
        (
            '[[models]]\nname = "a"\n[[models]]\nname = "b"\n[[workers]]\ndevice = "cpu"',
            'models[1]: no worker draws with "b"; add [[workers]] with model = "b", or write '
            'workers = "auto"',
        ),
        (
            '[[workers]]\ndevice = "cpu"\nmodel = "b"',
            'workers[0].model: there is no model "b"; name it in [[models]], or delete the key',
        ),
    ],
)
def test_mistakes_about_several_models_are_told_with_a_remedy(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.problems == [problem]


def test_first_model_alone_has_the_default_aliases_but_for_those_of_another() -> None:
    first, second = parse(TWO).served
    assert ("dall-e-3" in first.aliases, second.aliases) == (True, [])
    named = {"name": "dall-e-3", "aliases": ["gpt-image-1"]}
    first, second = parse({"models": [{"name": "turbo"}, named]}).served
    assert "dall-e-2" in first.aliases
    assert not {"dall-e-3", "gpt-image-1"} & set(first.aliases)
    assert second.aliases == ["gpt-image-1"]


def test_one_of_several_models_is_found_by_any_name_of_it() -> None:
    config = parse({"models": [{"name": "turbo"}, {"name": "Photo", "aliases": ["x"]}]})
    found = [config.model_of(name).name for name in ("photo", "X", "TURBO", "", "dall-e-2")]
    assert found == ["Photo", "Photo", "turbo", "turbo", "turbo"]


def test_one_entry_of_several_is_the_one_model() -> None:
    entry = {"name": "turbo", "steps": 4}
    one, other = parse({"models": [entry]}), parse({"model": entry})
    assert not one.several
    assert one.model_dump() == other.model_dump()
