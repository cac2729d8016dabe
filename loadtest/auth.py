"""How clients get in: which key they show, and whom they trust where the cell speaks HTTPS."""

import argparse
import os
import ssl
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

KEY_VARIABLE = "ZIMAGE_API_KEY"


@dataclass(frozen=True)
class Entry:
    """``ca``: a file of certificates; whoever shows one of them, or one that they vouch for, is
    trusted by any address, and nobody else. ``insecure``: anybody is."""

    key: str = field(default="", repr=False)
    ca: str = ""
    insecure: bool = False

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def session(self) -> requests.Session:
        session = requests.Session()
        session.headers.update(self.headers)
        if self.ca or self.insecure:
            session.trust_env = False  # REQUESTS_CA_BUNDLE would win over what is set here
            session.verify = False if self.insecure else self.ca
        if self.insecure:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        elif self.ca:
            session.mount("https://", _ByAnyAddress(self.ca))
        return session


class _ByAnyAddress(HTTPAdapter):
    """A cell is asked by its address; its certificate has its name."""

    def __init__(self, ca: str) -> None:
        self._ca = ca
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = ssl.create_default_context(cafile=self._ca)
        context.check_hostname = False
        context.verify_flags |= (
            ssl.VERIFY_X509_PARTIAL_CHAIN
        )  # the file may have the server's alone
        super().init_poolmanager(*args, **kwargs, ssl_context=context, assert_hostname=False)


def add_key(parser: argparse.ArgumentParser) -> None:
    """``--key``, for commands that find everything else in the cell's configuration."""
    about = (
        f"of a cell that asks for keys; better as {KEY_VARIABLE}, which no list of processes has"
    )
    parser.add_argument("--key", default=os.environ.get(KEY_VARIABLE, ""), help=about)
