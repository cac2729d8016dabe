from collections.abc import Iterator

import pytest

from tests.deploy.certificates import Authority
from tests.deploy.nginx.cluster import host
from tests.deploy.nginx.site import Site, site


@pytest.fixture(scope="package")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One nginx for all tests; its pool is empty between them."""
    with site(tmp_path_factory.mktemp("front")) as front:
        yield front


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Of the cluster to which ``a`` and ``b`` belong."""
    return Authority()


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    with host(tmp_path_factory.mktemp("a"), authority) as here:
        yield here


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    with host(tmp_path_factory.mktemp("b"), authority) as here:
        yield here
