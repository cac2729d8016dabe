from collections.abc import Iterator

import pytest

from tests.deploy.nginx.site import Site, site


@pytest.fixture(scope="package")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One nginx for all tests; its pool is empty between them."""
    with site(tmp_path_factory.mktemp("front")) as front:
        yield front
