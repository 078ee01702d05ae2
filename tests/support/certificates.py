"""Self-signed certificates for servers of tests."""

import ssl
import subprocess
from pathlib import Path
from shutil import which

import pytest


def make_certificate(directory: Path, host: str) -> tuple[Path, Path]:
    """Make a certificate and its key; skip the test if openssl is missing.

    Args:
        directory: Directory for the two files.
        host: Subject alternative name, such as "DNS:loops.test".
    """
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing, so no certificate can be made")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate)),
            *("-subj", "/CN=test", "-addext", f"subjectAltName={host}"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def trusting_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """Return the TLS context of a client that trusts this certificate only."""
    return ssl.create_default_context(cafile=str(certificate[0]))
