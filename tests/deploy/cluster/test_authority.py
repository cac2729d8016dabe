"""Whom a host and a front let in: nginx and OpenSSL decide, by what the authority signed."""

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.cluster import authority, certificates
from deploy.cluster.authority import ANY_HOST, Authority, AuthorityError, Role, has_signed
from deploy.cluster.renewal import reload_if_changed
from deploy.host import whole_file
from deploy.layout import Layout
from tests.deploy.cluster.machines import equip, layout_in
from tests.deploy.processes import wait_until
from tests.ports import free_ports

CONF = """
daemon off;
pid {host.nginx_pid};
error_log {folder}/error.log info;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {host.var_dir}/cluster/{role}.crt;
        ssl_certificate_key {host.var_dir}/cluster/{role}.key;
        ssl_client_certificate {host.authority_certificate};
        ssl_crl {host.revocation_list};
        ssl_verify_client on;
        return 200 "drawn for $ssl_client_s_dn";
    }}
    server {{
        listen 127.0.0.1:{front_port};
        location / {{
            proxy_pass https://127.0.0.1:{port};
            proxy_ssl_certificate {front.var_dir}/cluster/front.crt;
            proxy_ssl_certificate_key {front.var_dir}/cluster/front.key;
            proxy_ssl_trusted_certificate {front.authority_certificate};
            proxy_ssl_crl {front.revocation_list};
            proxy_ssl_name {name};
            proxy_ssl_verify on;
        }}
    }}
}}
"""


class Machines:
    """A front and a host, each a folder, of one authority."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.make("studio")
        self.host, self.front = layout_in(folder / "gpu1"), layout_in(folder / "edge")
        equip(self.host, self.authority, "gpu1")
        equip(self.front, self.authority, "edge")
        self.port, self.front_port = free_ports(2)

    @contextmanager
    def serving(self, role: Role = "host", name: str = ANY_HOST) -> Iterator[None]:
        """nginx of both. ``role``: by which certificate the host serves."""
        text = CONF.format(role=role, name=name, **vars(self))
        for path in (self.host.nginx_conf, self.host.nginx_pid):
            path.parent.mkdir(exist_ok=True)
        self.host.nginx_conf.write_text(text)
        command = ["nginx", "-p", str(self.folder), "-c", str(self.host.nginx_conf)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until(self.host.nginx_pid.exists, "nginx runs")
            yield
        finally:
            process.terminate()
            process.wait(30)

    def through_front(self) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.front_port}/", timeout=30)

    def as_client(self, layout: Layout, role: Role) -> httpx.Response:
        """The host's answer to whoever shows the certificate that ``layout`` has for ``role``."""
        trusted = ssl.create_default_context(cafile=str(self.host.authority_certificate))
        trusted.check_hostname = False
        trusted.load_cert_chain(layout.cluster_certificate(role), layout.cluster_key(role))
        return httpx.get(f"https://127.0.0.1:{self.port}/", verify=trusted, timeout=30)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


def refused(answer: httpx.Response) -> bool:
    return answer.status_code == 400 and "certificate error" in answer.text


def test_front_reaches_host_and_both_know_each_other(machines: Machines) -> None:
    with machines.serving():
        answer = machines.through_front()
    assert (answer.status_code, answer.text) == (200, "drawn for CN=edge")


def test_certificate_of_a_host_is_refused_as_a_client(machines: Machines) -> None:
    with machines.serving():
        assert machines.as_client(machines.front, "front").status_code == 200
        assert refused(machines.as_client(machines.host, "host"))
    assert "unsuitable certificate purpose" in (machines.folder / "error.log").read_text()


def test_front_gives_nothing_to_a_server_with_a_fronts_certificate(machines: Machines) -> None:
    with machines.serving(role="front", name="gpu1"):
        assert machines.through_front().status_code == 502
    assert "unsuitable certificate purpose" in (machines.folder / "error.log").read_text()


def test_front_of_another_authority_is_refused(machines: Machines) -> None:
    stranger = layout_in(machines.folder / "stranger")
    equip(stranger, Authority.make("studio"), "edge")
    with machines.serving():
        assert refused(machines.as_client(stranger, "front"))


def test_front_gives_nothing_to_a_host_of_another_authority(machines: Machines) -> None:
    request = certificates.pending(machines.host, "host", "gpu1")
    signed = Authority.make("studio").sign(request.csr, "gpu1", "host")
    certificates.install(machines.host, "host", certificates.pem(signed))
    with machines.serving():
        assert machines.through_front().status_code == 502


def test_revoked_front_is_refused_and_no_other(machines: Machines) -> None:
    gone = layout_in(machines.folder / "gone")
    equip(gone, machines.authority, "gone")
    known = certificates.installed(gone, "front")
    assert known is not None
    revoked = machines.authority.revocation_list({known.serial_number: 1e9})
    whole_file.write(machines.host.revocation_list, revoked, 0o644)
    with machines.serving():
        assert refused(machines.as_client(gone, "front"))
        assert machines.as_client(machines.front, "front").status_code == 200


def test_running_nginx_refuses_whom_a_new_list_names(machines: Machines) -> None:
    host, known = machines.host, certificates.installed(machines.front, "front")
    assert known is not None
    with machines.serving():
        assert machines.as_client(machines.front, "front").status_code == 200
        assert not reload_if_changed(host)
        revoked = machines.authority.revocation_list({known.serial_number: 1e9})
        whole_file.write(host.revocation_list, revoked, 0o644)
        assert reload_if_changed(host)
        wait_until(lambda: refused(machines.as_client(machines.front, "front")), "it is refused")
        assert not reload_if_changed(host)
    whole_file.write(host.revocation_list, machines.authority.revocation_list({}), 0o644)
    assert not reload_if_changed(host)  # nobody is there to be told


@pytest.mark.parametrize("off", [timedelta(days=-91), timedelta(days=2)])
def test_front_is_refused_outside_its_time(machines: Machines, off: timedelta) -> None:
    other = layout_in(machines.folder / "other")
    equip(other, machines.authority, "other", now=datetime.now(UTC) + off)
    with machines.serving():
        assert refused(machines.as_client(other, "front"))


def test_clock_that_is_hours_late_still_trusts(machines: Machines) -> None:
    """What is signed now holds since yesterday, the list of revocations included."""
    known = certificates.installed(machines.front, "front")
    assert known is not None
    host = machines.host
    (machines.folder / "front.pem").write_bytes(certificates.pem(known))
    late = int((datetime.now(UTC) - timedelta(hours=20)).timestamp())
    command = ["openssl", "verify", "-purpose", "sslclient", "-crl_check_all", "-attime", str(late)]
    command += ["-CAfile", str(host.authority_certificate), "-CRLfile", str(host.revocation_list)]
    done = subprocess.run([*command, str(machines.folder / "front.pem")], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_key_of_the_authority_is_its_users_alone(tmp_path: Path) -> None:
    made, layout = Authority.make("studio"), layout_in(tmp_path)
    authority.save(layout, [made])
    assert layout.authority_key.stat().st_mode & 0o777 == 0o600
    assert [each.certificate for each in authority.load(layout)] == [made.certificate]
    layout.authority_key.chmod(0o640)
    with pytest.raises(AuthorityError, match=r"chmod 600 .*ca\.key"):
        authority.load(layout)


def test_two_authorities_keep_their_order_and_damage_is_told(tmp_path: Path) -> None:
    both, layout = [Authority.make("studio") for _ in range(2)], layout_in(tmp_path)
    authority.save(layout, both)
    assert [each.pem for each in authority.load(layout)] == [each.pem for each in both]
    text = layout.authority_key.read_bytes()
    for damaged in (b"", text[:300], text[:-400], both[0].pem):
        whole_file.write(layout.authority_key, damaged, 0o600)
        with pytest.raises(AuthorityError, match="damaged; restore"):
            authority.load(layout)


def test_machine_without_the_key_is_told_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="where zimage cluster init ran"):
        authority.load(layout_in(tmp_path))


def test_only_the_key_of_a_request_counts(tmp_path: Path) -> None:
    """Whoever asks to be a front of another name, or an authority, is what he was invited as."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge")])
    wish = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True)
        .sign(key, hashes.SHA256())
    )
    made = Authority.make("studio")
    signed = made.sign(wish.public_bytes(serialization.Encoding.PEM), "gpu1", "host")
    assert has_signed(made.certificate, signed)
    assert signed.subject.rfc4514_string() == "CN=gpu1"
    extensions = signed.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def rsa_request() -> bytes:
    name = x509.Name([])
    made = x509.CertificateSigningRequestBuilder().subject_name(name)
    key = rsa.generate_private_key(65537, 2048)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def damaged_request() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(certificates.new_request("gpu1").csr).public_bytes(
        serialization.Encoding.DER
    ))  # fmt: skip
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("bad", [b"", b"\0" * 9, rsa_request(), damaged_request()])
def test_bad_request_is_refused(bad: bytes) -> None:
    with pytest.raises(AuthorityError, match="request for a certificate"):
        Authority.make("studio").sign(bad, "gpu1", "host")
